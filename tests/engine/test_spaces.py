"""Search spaces: decisions on one side, genotypes on the other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from recipes.engine import spaces
from recipes.oracles import AgingEvolution


def draw(space: spaces.CellSpace, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {d.name: d.choices[rng.integers(len(d.choices))] for d in space.decisions}


def test_the_spaces_have_the_papers_numbers_of_ops():
    assert len(set(spaces.NASNET_OPS)) == 13
    assert len(set(spaces.AMOEBANET_OPS)) == 8


def test_a_nasnet_cell_pair_takes_fifty_decisions():
    # 2 cells of 5 nodes, each with two inputs, two ops and a combiner
    assert len(spaces.nasnet().decisions) == 2 * 5 * 5
    assert len(spaces.amoebanet().decisions) == 2 * 5 * 4


def test_the_size_of_a_space_is_its_product():
    # one node: two states twice, eight ops twice: 256 normal cells, and as many reduction cells
    assert spaces.amoebanet(nodes=1).size == 256**2


def test_decisions_come_in_the_order_of_the_controller():
    names = [decision.name for decision in spaces.nasnet(nodes=1).decisions[:5]]
    assert names == [f"normal/node0/{last}" for last in ("state0", "state1", "op0", "op1", "combine")]


def test_values_become_a_cell_whose_loose_ends_are_its_output():
    space = spaces.CellSpace("small", ("skip_connect", "sep_conv_3x3"), nodes=3, cells=("normal",))
    values = {}
    for node, (first, second) in enumerate([(0, 1), (2, 0), (1, 1)]):
        values |= {f"normal/node{node}/state0": first, f"normal/node{node}/state1": second}
        values |= {f"normal/node{node}/op0": "skip_connect", f"normal/node{node}/op1": "sep_conv_3x3"}
    body = space.body(values)
    assert body.normal.concat == (3, 4)  # node 2 is read by node 3
    assert body.normal.nodes[1].edges == (("skip_connect", 2), ("sep_conv_3x3", 0))
    assert body.reduce is None


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6))
def test_values_and_bodies_are_two_ways_to_write_one_cell(seed: int):
    space = spaces.nasnet(nodes=4)
    values = draw(space, seed)
    assert space.values(space.body(values)) == values


def test_whatever_is_mutated_stays_without_a_cycle():
    space = spaces.amoebanet(nodes=5)
    oracle = AgingEvolution(hyperparameters=space.hyperparameters(), kinds=space.kinds, seed=0)
    genome = oracle.random_genome()
    for _ in range(300):
        genome = oracle.mutate(genome)
        space.body(oracle.choices.values(genome))  # raises where a node reads what comes after it


def test_swapping_a_nodes_two_edges_gives_the_same_key():
    space = spaces.amoebanet(nodes=2)
    values = draw(space, 0) | {"normal/node1/op0": "skip_connect", "normal/node1/op1": "sep_conv_3x3"}
    swapped = dict(values)
    for what in ("state", "op"):
        one, other = f"normal/node1/{what}0", f"normal/node1/{what}1"
        swapped[one], swapped[other] = values[other], values[one]
    assert swapped != values
    assert space.key(swapped) == space.key(values)


def test_the_features_of_cells_are_their_paths_ops_and_combiners():
    space = spaces.CellSpace("small", ("skip_connect", "sep_conv_3x3"), 2, ("add", "concat"), cells=("normal",))
    values = {"state0": 0, "state1": 1, "op0": "sep_conv_3x3", "op1": "skip_connect", "combine": "concat"}
    cell = {f"normal/node0/{name}": value for name, value in values.items()}
    cell |= {f"normal/node1/{name}": value for name, value in (values | {"state1": 2, "combine": "add"}).items()}
    # node 0: sep_conv_3x3 of 0, and 1 itself; node 1: sep_conv_3x3 of 0, and node 0 itself
    assert space.count_features(cell) == {
        ("normal", (0, "sep_conv_3x3")): 2,
        ("normal", (1,)): 1,
        ("normal", "sep_conv_3x3"): 2,
        ("normal", "skip_connect"): 2,
        ("normal", "concat"): 1,
        ("normal", "add"): 1,
    }


def test_a_drawn_cell_builds_trains_and_survives_its_file(tmp_path):
    space = spaces.nasnet(nodes=2)
    presets = {"search": {"repeats": 1, "filters": 4, "stem": "cifar", "stem_filters": 12}}
    genotype = zoo.Genotype("drawn", "nasnet", space.body(draw(space, 1)), presets=presets)
    zoo.save(genotype, tmp_path / "drawn.json")
    model = zoo.build(tmp_path / "drawn.json", "search", classes=10, input_shape=(8, 8, 1))
    assert model.output_shape == (None, 10)


def test_unknown_decisions_and_values_are_named():
    space = spaces.amoebanet(nodes=1)
    values = draw(space, 0)
    with pytest.raises(ValueError, match=r"no decision 'normal/node0/opp0'.*did you mean 'normal/node0/op0'"):
        spaces.check_values({**values, "normal/node0/opp0": 1}, space.decisions)
    with pytest.raises(ValueError, match="normal/node0/op0 is 'conv_9x9'"):
        spaces.check_values({**values, "normal/node0/op0": "conv_9x9"}, space.decisions)
    with pytest.raises(ValueError, match="5 nodes; the space amoebanet has 1"):
        space.values(zoo.load("amoebanet_a").body)


def test_uniform_cells_are_the_largest_of_each_op():
    cells = spaces.uniform_cells(spaces.amoebanet(nodes=2))
    assert len(cells) == 8
    assert {cell["reduce/node1/op1"] for cell in cells} == set(spaces.AMOEBANET_OPS)
