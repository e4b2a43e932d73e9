"""Genotypes as dataclasses: what they keep, and what they refuse, with which words."""

import dataclasses
import re
import subprocess
import sys

import pytest

from zoo.genotype import OP_NAMES, Block, Blocks, CellGraph, Cells, Chain, Edge, Genotype, GenotypeError, Layer, Node

NODE = Node((Edge("sep_conv_3x3", 0), Edge("skip_connect", 1)))
CELL = CellGraph((NODE,), (2,))
BLOCK = Block("mb_conv", 3, 16)


def refused(message: str):
    """The error must say all of `message`, whatever stands between its parts (separated by ...)."""
    return pytest.raises(GenotypeError, match=".*".join(re.escape(part) for part in message.split("...")))


def test_genotype_needs_the_standard_library_only():
    code = "import sys, zoo.genotype, zoo.genotype_json, zoo.canonical, zoo.formats; print('keras' in sys.modules, "
    code += "'numpy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


def test_lists_become_tuples_so_that_genotypes_hash_and_compare_by_value():
    listed = CellGraph([Node([["sep_conv_3x3", 0], ["skip_connect", 1]])], [2])
    assert listed == CELL
    assert hash(listed) == hash(CELL)
    assert listed.nodes[0].edges[0].op == "sep_conv_3x3"
    assert CellGraph([NODE], range(3)).concat == (0, 1, 2)
    assert hash(Chain([Layer("conv_3x3"), Layer("conv_3x3", [])])) == hash(Chain((Layer("conv_3x3"),) * 2))
    assert hash(Blocks([BLOCK], 16)) == hash(Blocks((BLOCK,), 16))


def test_a_genotype_with_dictionaries_hashes():
    assert isinstance(hash(Genotype("mine", "darts", Cells(CELL), presets={"small": {"cells": 3}})), int)


def test_genotypes_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CELL.concat = (1,)  # type: ignore[misc]


def test_paths_are_the_ops_from_an_input_to_the_output_without_identities():
    # node 2: sep_conv_3x3 of 0 and 1 itself; node 3: pool of node 2 and nothing of 0; node 4: node 3 itself, twice
    cell = CellGraph(
        (
            Node((Edge("sep_conv_3x3", 0), Edge("skip_connect", 1))),
            Node((Edge("max_pool_3x3", 2), Edge("none", 0))),
            Node((Edge("skip_connect", 3), Edge("skip_connect", 3))),
        ),
        (2, 4),
    )
    short = {(0, "sep_conv_3x3"): 1, (1,): 1, (1, "max_pool_3x3"): 2}
    assert cell.count_paths(longest=1) == short
    assert cell.count_paths(longest=2) == short | {(0, "sep_conv_3x3", "max_pool_3x3"): 2}


def test_live_states_are_what_the_output_depends_on():
    nodes = [
        Node([("conv_1x1", 0)]),  # 2, read by 3 through "none" alone
        Node([("none", 2), ("conv_1x1", 1)]),  # 3
        Node([("conv_1x1", 0)]),  # 4, read by nobody
    ]
    assert CellGraph(nodes, [3]).live_states() == {1, 3}
    assert CellGraph(nodes, [3, 4]).live_states() == {0, 1, 3, 4}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Node([]), "a node's edges has 0 entries; expected at least one"),
        (lambda: Node("ab"), "a node's edges is 'ab'; expected a list, each entry [op, state]"),
        (lambda: Node(3), "a node's edges is 3; expected a list"),
        (
            lambda: Node([("conv_1x1",)]),
            "an edge is ('conv_1x1',); expected [op, state], such as [\"sep_conv_3x3\", 0]",
        ),
        (
            lambda: Node([("sep_conv3x3", 0)]),
            "op 'sep_conv3x3' is not known (did you mean 'sep_conv_3x3'?); expected one",
        ),
        (lambda: Node([(["conv_1x1"], 0)]), "op ['conv_1x1'] is not known"),
        (lambda: Node([("conv_1x1", -1)]), "the state that an edge reads is -1; expected a whole number from 0"),
        (lambda: Node([("conv_1x1", 0.5)]), "reads is 0.5"),
        (lambda: Node([("conv_1x1", True)]), "reads is True"),
        (lambda: Node([("conv_1x1", 0)], "mul"), "combine 'mul' is not known; expected one of add, concat"),
        (lambda: CellGraph([], [0]), "a cell's nodes has 0 entries; expected 1 to 100"),
        (lambda: CellGraph([NODE] * 101, [2]), "a cell's nodes has 101 entries; expected 1 to 100"),
        (lambda: CellGraph(["x"], [2]), "node 2 is 'x'; expected a Node"),
        (lambda: CellGraph([Node([("conv_1x1", 2)])], [2]), "node 2 reads state 2 (conv_1x1), which...states 0 to 1"),
        (
            lambda: CellGraph([Node([("conv_1x1", 3)]), Node([("conv_1x1", 2)])], [3]),
            "node 2 reads state 3 (conv_1x1), which does not come before it: a cycle, or the...reorder the nodes",
        ),
        (lambda: CellGraph([NODE], []), "a cell's concat has 0 entries"),
        (lambda: CellGraph([NODE], [3]), "concat names state 3; this cell has the states 0 to 2"),
        (lambda: CellGraph([NODE], ["2"]), "concat names state '2'"),
        (lambda: CellGraph([NODE], [2, 2]), "concat [2, 2] names a state twice; expected each at most once"),
        (lambda: Cells(NODE), "the normal cell is Node(...expected a CellGraph"),
        (lambda: Cells(None), "the normal cell is None"),
        (lambda: Cells(CELL, "reduce"), "the reduce cell is 'reduce'; expected a CellGraph"),
        (lambda: Block("mbconv", 3, 8), "a block's op 'mbconv' is not known (did you mean 'mb_conv'?)"),
        (lambda: Block("conv", 3, 0), "a block's filters is 0; expected a whole number from 1"),
        (lambda: Block("conv", 4, 8), "a block's kernel_size is 4; expected an odd number"),
        (lambda: Block("conv", 3, 8, strides=1.0), "a block's strides is 1.0"),
        (lambda: Block("conv", 3, 8, repeats=101), "a block's repeats is 101; expected 1 to 100"),
        (lambda: Block("mb_conv", 3, 8, expansion=0), "a block's expansion is 0; expected a number from 0.01 to 100"),
        (lambda: Block("mb_conv", 3, 8, expansion=float("nan")), "a block's expansion is nan"),
        (lambda: Block("mb_conv", 3, 8, se_ratio=-1), "a block's se_ratio is -1; expected a number from 0 to 100"),
        (lambda: Block("mb_conv", 3, 8, skip="no"), "a block's skip 'no' is not known"),
        (lambda: Block("mb_conv", 3, 8, mid_filters=0), "a block's mid_filters is 0; expected a whole number from 1"),
        (
            lambda: Block("sep_conv", 3, 8, expansion=6),
            "a sep_conv block has expansion 6...only mb_conv has an inner",
        ),
        (lambda: Blocks([], 16), "blocks' rows has 0 entries"),
        (lambda: Blocks(["row"], 16), "row 1 of blocks is 'row'; expected a Block"),
        (lambda: Blocks([BLOCK], None), "stem_filters is None; expected a whole number from 1"),
        (lambda: Blocks([BLOCK], 16, 0), "head_filters is 0; expected a whole number from 1"),
        (lambda: Layer("none"), "op 'none' is not known"),
        (lambda: Layer("conv_3x3", 0), "a layer's skips is 0; expected a list of states"),
        (lambda: Chain([]), "a chain's layers has 0 entries"),
        (lambda: Chain(["conv_3x3"]), "layer 1 is 'conv_3x3'; expected a Layer"),
        (lambda: Chain([Layer("conv_3x3", [0])]), "layer 1 has a skip from state 0; expected none"),
        (lambda: Chain([Layer("conv_3x3"), Layer("conv_3x3", [1])]), "layer 2 has a skip from state 1...to 0"),
        (lambda: Chain([Layer("conv_3x3")] * 2 + [Layer("conv_3x3", [0, 0])]), "layer 3 names a skip twice: [0, 0]"),
        (lambda: Genotype("My cell", "darts", Cells(CELL)), "name is 'My cell'; expected up to 100 of a-z"),
        (lambda: Genotype("../cell", "darts", Cells(CELL)), "name is '../cell'"),
        (lambda: Genotype("mine", "DARTS", Cells(CELL)), "family is 'DARTS'; expected the name of a module"),
        (lambda: Genotype("mine", "darts", CELL), "body is CellGraph(...expected Cells, Blocks or Chain"),
        (lambda: Genotype("mine", "darts", Cells(CELL), source="paper"), "source is 'paper'; expected an object"),
        (
            lambda: Genotype("mine", "darts", Cells(CELL), presets={"small": 3}),
            "presets: 'small' is 3; expected an object",
        ),
        (lambda: Genotype("mine", "darts", Cells(CELL), published={"x": 3}), "published: 'x' is 3; expected an object"),
        (lambda: Genotype("mine", "darts", Cells(CELL), notes=3), "notes is 3"),
        (lambda: Genotype("mine", "darts", Cells(CELL), represents_family="yes"), "represents_family 'yes'"),
    ],
)
def test_what_cannot_be_is_refused_with_value_and_expectation(make, message):
    with refused(message):
        make()


def test_an_error_about_a_huge_value_stays_short():
    with pytest.raises(GenotypeError) as caught:
        Node([("x" * 100_000, 0)])
    assert len(str(caught.value)) < 1000


def test_the_operations_are_those_that_files_and_searches_rely_on():
    assert len(OP_NAMES) == 18
    assert {"none", "skip_connect", "sep_conv_3x3", "dil_conv_5x5", "conv_7x1_1x7"} <= OP_NAMES
