"""The canonical hash: equal for equal architectures, different for others."""

import itertools
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.genotype_strategies import blocks, cell_graphs, chains, examples
from zoo.canonical import canonical_form, canonical_hash
from zoo.genotype import INPUT_STATES, Block, Blocks, CellGraph, Cells, Chain, Edge, Genotype, Layer, Node

FEW_OPS = ("none", "conv_1x1", "conv_3x3")  # few, so that ties and symmetries are common


def renumbered(graph: CellGraph, choose: random.Random) -> CellGraph:
    """The same cell with its nodes in another order, and edges and concat shuffled."""
    waiting = {INPUT_STATES + place: node for place, node in enumerate(graph.nodes)}
    number, nodes = {0: 0, 1: 1}, []
    while waiting:
        ready = [state for state, node in waiting.items() if all(edge.state in number for edge in node.edges)]
        state = choose.choice(ready)
        node = waiting.pop(state)
        edges = [Edge(op, number[source]) for op, source in node.edges]
        choose.shuffle(edges)
        number[state] = INPUT_STATES + len(nodes)
        nodes.append(Node(edges, node.combine))
    concat = [number[state] for state in graph.concat]
    choose.shuffle(concat)
    return CellGraph(nodes, concat)


@examples(200)
@given(cell_graphs(ops=FEW_OPS, most_nodes=7), st.randoms(use_true_random=False))
def test_the_order_of_nodes_edges_and_concat_does_not_count(graph, choose):
    other = renumbered(graph, choose)
    assert canonical_form(graph) == canonical_form(other)
    assert canonical_hash(graph) == canonical_hash(other)


@examples(100)
@given(cell_graphs(ops=FEW_OPS), st.integers(0, 6), st.data())
def test_a_node_that_nobody_reads_does_not_count(graph, place, data):
    place = min(place, len(graph.nodes))
    edge = Edge("conv_1x1", data.draw(st.integers(0, INPUT_STATES + place - 1)))

    def moved(state: int) -> int:
        return state + (state >= INPUT_STATES + place)

    nodes = [Node([Edge(op, moved(state)) for op, state in node.edges], node.combine) for node in graph.nodes]
    nodes.insert(place, Node([edge]))
    assert canonical_hash(CellGraph(nodes, map(moved, graph.concat))) == canonical_hash(graph)


@examples(100)
@given(cell_graphs(ops=FEW_OPS), st.data())
def test_an_edge_none_does_not_count(graph, data):
    place = data.draw(st.integers(0, len(graph.nodes) - 1))
    node = graph.nodes[place]
    extra = Edge("none", data.draw(st.integers(0, INPUT_STATES + place - 1)))
    nodes = [*graph.nodes[:place], Node([*node.edges, extra], node.combine), *graph.nodes[place + 1 :]]
    assert canonical_hash(CellGraph(nodes, graph.concat)) == canonical_hash(graph)


def brute_force_form(graph: CellGraph):
    """The least of all renumberings of a small cell, tried one by one."""
    live = sorted(state for state in graph.live_states() if state >= INPUT_STATES)
    forms = []
    for order in itertools.permutations(range(INPUT_STATES, INPUT_STATES + len(live))):
        number = {0: 0, 1: 1} | dict(zip(live, order, strict=True))
        rows = sorted(
            (
                number[state],
                graph.nodes[state - INPUT_STATES].combine,
                sorted((op, number[s]) for op, s in graph.nodes[state - INPUT_STATES].edges if op != "none"),
            )
            for state in live
        )
        forms.append((rows, sorted(number[state] for state in graph.concat)))
    return min(forms)


@examples(150)
@given(
    cell_graphs(ops=("conv_1x1",), most_nodes=4, edges=(1, 2), combine=("add",)),
    cell_graphs(ops=("conv_1x1",), most_nodes=4, edges=(1, 2), combine=("add",)),
)
def test_hashes_are_equal_exactly_where_trying_all_renumberings_finds_the_cells_equal(one, other):
    assert (canonical_hash(one) == canonical_hash(other)) == (brute_force_form(one) == brute_force_form(other))


def test_twins_may_change_places_and_a_shared_node_is_not_a_doubled_one():
    twins = [Node([("conv_1x1", 0)]), Node([("conv_1x1", 0)])]
    doubled = CellGraph([*twins, Node([("conv_3x3", 2), ("conv_3x3", 3)])], [4])
    exchanged = CellGraph([*twins, Node([("conv_3x3", 3), ("conv_3x3", 2)])], [4])
    shared = CellGraph([twins[0], Node([("conv_3x3", 2), ("conv_3x3", 2)])], [3])
    assert canonical_hash(doubled) == canonical_hash(exchanged)
    assert canonical_hash(doubled) != canonical_hash(shared)


@pytest.mark.parametrize(
    "other",
    [
        CellGraph([Node([("conv_1x1", 1)])], [2]),  # another input
        CellGraph([Node([("conv_3x3", 0)])], [2]),  # another operation
        CellGraph([Node([("conv_1x1", 0)], "concat")], [2]),  # another way to combine
        CellGraph([Node([("conv_1x1", 0)] * 2)], [2]),  # twice
        CellGraph([Node([("conv_1x1", 0)])], [0, 2]),  # another output
    ],
)
def test_other_cells_hash_otherwise(other):
    assert canonical_hash(other) != canonical_hash(CellGraph([Node([("conv_1x1", 0)])], [2]))


def test_cells_that_neighbours_alone_do_not_tell_apart_hash_otherwise():
    # two rings of three against one of six, between equal layers: colours of neighbours are the same everywhere
    def rings(*lengths: int) -> CellGraph:
        lower = [Node([("conv_1x1", 0)]) for _ in range(sum(lengths))]
        upper, start = [], 0
        for length in lengths:
            for place in range(length):
                pair = (INPUT_STATES + start + place, INPUT_STATES + start + (place + 1) % length)
                upper.append(Node([("conv_3x3", state) for state in pair]))
            start += length
        return CellGraph(lower + upper, range(INPUT_STATES + start, INPUT_STATES + 2 * start))

    assert canonical_hash(rings(3, 3)) != canonical_hash(rings(6))
    assert canonical_hash(rings(2, 4)) == canonical_hash(rings(4, 2))


def test_a_cell_of_many_alike_branches_takes_no_exponential_time():
    nodes = []
    for _ in range(12):  # 12! = 479,001,600 orders
        nodes += [Node([("conv_1x1", 0)]), Node([("conv_3x3", INPUT_STATES + len(nodes))])]
    begin = time.perf_counter()
    canonical_hash(CellGraph(nodes, range(INPUT_STATES, INPUT_STATES + len(nodes))))
    assert time.perf_counter() - begin < 5


def test_names_presets_and_provenance_do_not_count():
    body = Cells(CellGraph([Node([("conv_1x1", 0)])], [2]))
    one = Genotype("one", "darts", body)
    other = Genotype("other", "nasnet", body, {"score": 1}, {"small": {}}, {}, "notes", True)
    assert canonical_hash(one) == canonical_hash(other) == canonical_hash(body)


def test_a_reduction_cell_of_its_own_counts():
    one, other = (CellGraph([Node([(op, 0)])], [2]) for op in ("conv_1x1", "conv_3x3"))
    assert (
        len({canonical_hash(body) for body in (Cells(one), Cells(one, one), Cells(one, other), Cells(other, one))}) == 4
    )


@examples(60)
@given(blocks())
def test_how_blocks_are_gathered_in_rows_does_not_count(body):
    rows = []
    for row in body.rows:
        for repeat in range(row.repeats):
            fields = {**row.__dict__, "repeats": 1, "strides": row.strides if repeat == 0 else 1}
            rows.append(Block(**fields))
    assert canonical_hash(Blocks(rows, body.stem_filters, body.head_filters)) == canonical_hash(body)


def test_words_that_change_no_block_do_not_count():
    def of(*rows: Block) -> str:
        return canonical_hash(Blocks(rows, 16))

    assert of(Block("mb_conv", 3, 8, expansion=1)) == of(Block("sep_conv", 3, 8))
    assert of(Block("mb_conv", 3, 8, expansion=3)) == of(Block("mb_conv", 3, 8, mid_filters=48))
    assert of(Block("sep_conv", 3, 8, skip="none")) == of(Block("sep_conv", 3, 8))  # 16 to 8: no skip anyway
    assert of(Block("sep_conv", 3, 16, skip="none")) != of(Block("sep_conv", 3, 16))
    assert of(Block("sep_conv", 3, 8)) != of(Block("sep_conv", 5, 8))
    assert canonical_hash(Blocks([Block("conv", 3, 8)], 8, 64)) != canonical_hash(Blocks([Block("conv", 3, 8)], 8))


@examples(60)
@given(chains(), st.randoms(use_true_random=False))
def test_the_order_of_skips_does_not_count_and_that_of_layers_does(chain, choose):
    layers = [Layer(layer.op, choose.sample(layer.skips, len(layer.skips))) for layer in chain.layers]
    assert canonical_hash(Chain(layers)) == canonical_hash(chain)
    longer = Chain([*chain.layers, Layer("conv_3x3")])
    assert canonical_hash(longer) != canonical_hash(chain)


def test_what_is_no_architecture_has_no_hash():
    with pytest.raises(TypeError, match="expected a Genotype, a body or a CellGraph"):
        canonical_hash("darts")  # type: ignore[arg-type]
