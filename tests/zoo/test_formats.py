"""Foreign notations: published examples, round trips of random architectures, and what is refused."""

import collections
import itertools
import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import zoo
from tests.genotype_strategies import blocks, cell_graphs, chains, damaged, examples
from zoo import formats
from zoo.canonical import canonical_hash
from zoo.formats import darts, enas, nasbench201
from zoo.genotype import Block, Blocks, CellGraph, Cells, Chain, Genotype, GenotypeError, Layer, Node

DARTS_V2 = """Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1),
('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5],
reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0),
('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"""
ENAS_MICRO = ("0 2 0 0 0 4 0 1 0 4 1 1 1 0 0 1 0 2 1 1", "1 0 1 0 0 3 0 2 1 1 3 1 1 0 0 4 0 3 1 1")
MNASNET_A1 = """r1_k3_s11_e1_i32_o16_noskip r2_k3_s22_e6_i16_o24 r3_k5_s22_e3_i24_o40_se0.25 r4_k3_s22_e6_i40_o80
    r2_k3_s11_e6_i80_o112_se0.25 r3_k5_s22_e6_i112_o160_se0.25 r1_k3_s11_e6_i160_o320""".split()
NB201 = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|"
CELL = CellGraph([Node([("sep_conv_3x3", 0), ("skip_connect", 1)])], [2])
random_tests = examples(60)
darts_cells = cell_graphs(ops=tuple(sorted(darts.OPS)), edges=(2, 2), combine=("add",))


def refused(message: str):
    return pytest.raises(GenotypeError, match="(?s)" + ".*".join(re.escape(part) for part in message.split("...")))


def test_darts_text_is_the_shipped_cell():
    genotype = formats.from_darts(DARTS_V2)
    assert genotype.body == zoo.load("darts").body
    assert (genotype.name, genotype.family) == ("darts_cell", "darts")


def test_darts_is_read_from_mapping_named_tuple_and_plain_tuple_too():
    named = formats.to_darts(zoo.load("darts"))
    own_tuple = collections.namedtuple("Genotype", "normal normal_concat reduce reduce_concat")
    for given_form in (named, own_tuple(*named), tuple(named), list(named), named._asdict(), repr(named)):
        assert formats.from_darts(given_form).body == zoo.load("darts").body
    assert repr(named) == re.sub(r",\n", ", ", DARTS_V2)


@pytest.mark.parametrize(
    "text",
    [
        "PC = Genotype([('none', 0), ('none', 1)], range(2, 3), [('none', 0), ('none', 1)], range(2, 3))",
        "genotypes.Genotype(normal=(('none', 0), ('none', 1)), normal_concat=range(2, 3), "
        "reduce=[('none', 0), ('none', 1)], reduce_concat=(2,))",
    ],
)
def test_darts_text_may_be_an_assignment_and_hold_ranges_and_tuples(text):
    cell = CellGraph([Node([("none", 0), ("none", 1)])], [2])
    assert formats.from_darts(text).body == Cells(cell, cell)


NESTED = "[(('sep_conv_3x3', 1), ('skip_connect', 0)), (('max_pool_3x3', 0), ('dil_conv_5x5', 2))]"
NESTED_CELL = CellGraph(
    [Node([("sep_conv_3x3", 1), ("skip_connect", 0)]), Node([("max_pool_3x3", 0), ("dil_conv_5x5", 2)])], [2, 3]
)
WITH_STRENGTHS = (
    "[[('sep_conv_3x3', 1, 0.31), ('skip_connect', 0, 0.2)], [('max_pool_3x3', 0, 1), ('dil_conv_5x5', 2, 0.1)]]"
)
FLAT_STRENGTHS = (
    NESTED[:-1].replace("((", "(").replace("))", ")").replace("1)", "np.int64(1), np.float32(0.125))") + "]"
)


@pytest.mark.parametrize(
    "text",
    [
        f"Genotype(normal={NESTED}, normal_concat=range(2, 4), reduce={WITH_STRENGTHS}, reduce_concat=[2, 3])",
        f"Genotype(normal={FLAT_STRENGTHS}, normal_concat=[2, 3], reduce={NESTED}, reduce_concat=array([2, 3]))",
        # AutoDL-Projects has two fields more
        f"Genotype(normal={NESTED}, normal_concat=[2, 3], reduce={NESTED}, reduce_concat=[2, 3], connectN=None, "
        "connects=None)",
        f"11/13 02:14:24 AM genotype = Genotype(normal={NESTED}, normal_concat=range(2, 4),\n reduce={NESTED}, "
        "reduce_concat=range(2, 4)) (valid_acc 97.1)",
        f"INFO:root:best: DartsGenotype ({NESTED}, [2, 3], reduce={NESTED}, reduce_concat=[2, 3])]",
        f"{{'normal': {NESTED}, 'normal_concat': range(2, 4), 'reduce': {NESTED}, 'reduce_concat': [2, 3]}}",
        f"epoch 49 {{'normal': {NESTED}, 'normal_concat': [2, 3], 'reduce': {NESTED}, 'reduce_concat': [2, 3]}}",
        f"({NESTED}, [2, 3], {WITH_STRENGTHS}, range(2, 4))",
        '{"normal": [["sep_conv_3x3", 1], ["skip_connect", 0], ["max_pool_3x3", 0], ["dil_conv_5x5", 2]],\n'
        ' "normal_concat": [2, 3], "connects": null, "reduce_concat": [2, 3], "reduce": [[["sep_conv_3x3", 1, 0.4], '
        '["skip_connect", 0, 0.3]], [["max_pool_3x3", 0, 0.2], ["dil_conv_5x5", 2, 0.1]]]}',
    ],
    ids=["nested", "strengths", "autodl", "log", "another log", "dictionary", "dictionary in a log", "tuple", "json"],
)
def test_darts_is_read_as_people_have_it(text):
    assert formats.from_darts(text).body == Cells(NESTED_CELL, NESTED_CELL)


def test_darts_values_may_be_nested_and_numpys():
    nodes = [[("sep_conv_3x3", np.int64(1), 0.4), ("skip_connect", np.int32(0), np.float32(0.3))],
             [["max_pool_3x3", 0], ["dil_conv_5x5", 2]]]  # fmt: skip
    concat = np.arange(2, 4)
    genotype = {"normal": nodes, "normal_concat": concat, "reduce": nodes, "reduce_concat": range(2, 4)}
    assert formats.from_darts(genotype).body == Cells(NESTED_CELL, NESTED_CELL)
    assert formats.from_darts([*genotype.values(), None, None]).body == Cells(NESTED_CELL, NESTED_CELL)


@random_tests
@given(darts_cells, darts_cells)
def test_darts_round_trip(normal, reduce):
    body = Cells(normal, reduce)
    assert formats.from_darts(formats.to_darts(body)).body == body
    assert formats.from_darts(repr(formats.to_darts(body))).body == body


def test_darts_without_a_reduction_cell_repeats_the_normal_one():
    assert formats.from_darts(formats.to_darts(Cells(CELL))).body == Cells(CELL, CELL)


def test_enas_micro_arcs_are_the_shipped_cells():
    genotype = formats.from_enas_micro(*ENAS_MICRO)
    assert genotype.body == zoo.load("enas_micro").body
    arcs = formats.to_enas_micro(genotype)
    assert tuple(" ".join(map(str, arc)) for arc in arcs) == ENAS_MICRO
    assert formats.from_enas_micro(*arcs) == genotype


PRINTED = """[0 2 0 0 0 4 0 1 0 4 1 1 1 0 0
 1 0 2 1 1]"""


@pytest.mark.parametrize(
    "normal",
    [
        PRINTED,
        PRINTED.replace(" ", "  ").replace("\n", ""),
        "[0, 2, 0, 0, 0, 4, 0, 1, 0, 4, 1, 1, 1, 0, 0, 1, 0, 2, 1, 1]",
        "array([0., 2., 0., 0., 0., 4., 0., 1., 0., 4., 1., 1., 1., 0., 0., 1., 0., 2., 1., 1.], dtype=float32)",
        f"epoch 149: normal {PRINTED} val_acc 0.8",
        np.array(ENAS_MICRO[0].split(), np.int64),
        np.array(ENAS_MICRO[0].split(), np.float32).reshape(5, 4),
        [(0, 2, 0, 0), (0, 4, 0, 1), (0, 4, 1, 1), (1, 0, 0, 1), (0, 2, 1, 1)],
    ],
    ids=["printed", "in one line", "json", "floats", "log", "array", "matrix", "by node"],
)
def test_enas_micro_arcs_are_read_as_people_have_them(normal):
    body = zoo.load("enas_micro").body
    assert formats.from_enas_micro(normal, ENAS_MICRO[1]).body == body
    if isinstance(normal, str):
        assert formats.from_enas_micro(f"{normal}\n[{ENAS_MICRO[1]}]").body == body  # as --child_fixed_arc has them


def test_enas_micro_by_hand():
    # node 2: sep_conv_3x3 of h[c-2] + max_pool_3x3 of h[c-1]; node 3: skip of node 2 + sep_conv_5x5 of h[c-2]
    graph = formats.from_enas_micro([0, 0, 1, 3, 2, 4, 0, 1], "0 0 0 0").body.normal
    assert graph.nodes[0].edges == (("sep_conv_3x3", 0), ("max_pool_3x3", 1))
    assert graph.nodes[1].edges == (("skip_connect", 2), ("sep_conv_5x5", 0))
    assert graph.concat == (3,)


def test_an_input_that_no_enas_node_reads_is_output():
    assert formats.from_enas_micro("0 0 0 0", "0 0 0 0").body.normal.concat == (1, 2)


@pytest.mark.parametrize("arc", ["0 2 0 0", "0 2 0 0 0 4 0 1 0 0 0 0", [], [0], None])
def test_one_enas_arc_for_two_cells_has_as_many_nodes_in_either(arc):
    with pytest.raises(GenotypeError, match="an ENAS arc "):
        formats.from_enas_micro(arc)


@random_tests
@given(cell_graphs(ops=enas.MICRO_OPS, edges=(2, 2), combine=("add",)))
def test_enas_micro_round_trip(graph):
    read = {edge.state for node in graph.nodes for edge in node.edges}
    loose = [state for state in range(2 + len(graph.nodes)) if state not in read]
    body = Cells(CellGraph(graph.nodes, loose), CellGraph(graph.nodes, loose))
    assert formats.from_enas_micro(*formats.to_enas_micro(body)).body == body


def test_enas_macro_by_hand():
    # bit 0 is the stem, bit 1 the first layer
    arc = ["0", "3 1", "5 0 1"]
    layers = (Layer("conv_3x3"), Layer("sep_conv_5x5", (0,)), Layer("max_pool_3x3", (1,)))
    assert formats.from_enas_macro(arc).body == Chain(layers)
    assert formats.to_enas_macro(Chain(layers)) == [0, 3, 1, 5, 0, 1]
    for printed in ("[0]\n[3 1]\n[5 0 1]", "[0 3 1 5 0 1]", "[0, 3, 1, 5, 0, 1]", np.array([0, 3, 1, 5, 0, 1])):
        assert formats.from_enas_macro(printed).body == Chain(layers)


@random_tests
@given(chains(ops=enas.MACRO_OPS, most_layers=8))
def test_enas_macro_round_trip(chain):
    arc = formats.to_enas_macro(chain)
    assert formats.from_enas_macro(arc).body == chain
    assert formats.from_enas_macro(" ".join(map(str, arc))).body == chain


def test_nasbench201_by_hand():
    graph = formats.from_nasbench201(NB201).body.normal
    assert graph.nodes[0].edges == (("conv_3x3", 1),)
    assert graph.nodes[1].edges == (("none", 1), ("skip_connect", 2))
    assert graph.nodes[2].edges == (("avg_pool_3x3", 1), ("conv_1x1", 2), ("none", 3))
    assert graph.concat == (4,)
    assert graph.live_states() == {1, 2, 4}  # h[c-2] is never read


def test_nasbench201_all_cells_of_three_operations_round_trip():
    ops = ("none", "skip_connect", "nor_conv_3x3")
    for a, b, c, d, e, f in itertools.product(ops, repeat=6):
        text = f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|"
        assert formats.to_nasbench201(formats.from_nasbench201(text)) == text


@random_tests
@given(cell_graphs(ops=tuple(nasbench201.OPS.values()), oldest=1, combine=("add",), most_nodes=3), st.data())
def test_nasbench201_round_trip_of_cells_with_edges_missing(graph, data):
    nodes = [Node({edge.state: edge for edge in node.edges}.values()) for node in graph.nodes]
    graph = CellGraph(nodes, [1 + len(nodes)])
    again = formats.from_nasbench201(formats.to_nasbench201(graph)).body
    assert canonical_hash(again) == canonical_hash(Cells(graph))


class Structure:  # as in AutoDL-Projects, whose objects have no base class
    def __init__(self, text):
        self.text = text

    def __len__(self):
        return 4

    def __repr__(self):
        return f"Structure(4 nodes with {self.text})"


@pytest.mark.parametrize(
    "cell",
    [
        f" {NB201}\n",
        f"Structure(4 nodes with {NB201})",
        f"CellStructure(4 nodes with {NB201})",
        f"[2021-03-04 05:06:07] | epoch 12 | genotype : Structure(4 nodes with {NB201}) | acc 91.2 |",
        f'{{"arch_str": "{NB201}", "accuracy": 91.2}}',
        Structure(NB201),
        [(("nor_conv_3x3", 0),), (("none", 0), ("skip_connect", 1)),
         (("avg_pool_3x3", 0), ("nor_conv_1x1", 1), ("none", 2))],
        "[(('nor_conv_3x3', 0),), (('none', 0), ('skip_connect', 1)), (('avg_pool_3x3', 0), ('nor_conv_1x1', 1), "
        "('none', 2))]",
        # edges 0-1, 0-2, 0-3, 1-2, 1-3, 2-3; 0 skip, 1 none, 2 3x3, 3 1x1, 4 average
        (2, 1, 4, 0, 3, 1),
        "(2, 1, 4, 0, 3, 1)",
        "[2, 1, 4, 0, 3, 1]",
        np.array([2, 1, 4, 0, 3, 1]),
        "(np.int64(2), 1, 4, 0, 3, 1)",
    ],
    ids=str,
)  # fmt: skip
def test_nasbench201_is_read_as_people_have_it(cell):
    assert formats.to_nasbench201(formats.from_nasbench201(cell)) == NB201


def test_mnasnet_strings_are_the_shipped_network():
    genotype = formats.from_mnasnet(MNASNET_A1)
    assert genotype.body == zoo.load("mnasnet_a1").body
    assert formats.to_mnasnet(genotype) == MNASNET_A1
    timm = formats.to_mnasnet(genotype, "timm")
    assert timm[0] == "ds_r1_k3_s1_e1_c16_noskip"
    assert timm[2] == "ir_r3_k5_s2_e3_c40_se0.25"
    assert formats.from_mnasnet(timm).body == genotype.body


TIMM = [
    ["ds_r1_k3_s1_c16_noskip"], ["ir_r2_k3_s2_e6_c24"], ["ir_r3_k5_s2_e3_c40_se0.25"], ["ir_r4_k3_s2_e6_c80"],
    ["ir_r2_k3_s1_e6_c112_se0.25"], ["ir_r3_k5_s2_e6_c160_se0.25"], ["ir_r1_k3_s1_e6_c320"],
]  # fmt: skip


@pytest.mark.parametrize(
    "strings", [TIMM, tuple(map(tuple, TIMM)), [*TIMM[:5], TIMM[5] + TIMM[6]], str(TIMM), json.dumps(TIMM),
                "arch_def = [  # stage 0\n    " + f"{TIMM}"[1:], str(tuple(MNASNET_A1)), json.dumps(MNASNET_A1)],
)  # fmt: skip
def test_mnasnet_strings_are_read_as_people_have_them(strings):
    assert formats.from_mnasnet(strings).body == zoo.load("mnasnet_a1").body


@random_tests
@given(blocks(ops=("sep_conv", "mb_conv"), skips=("identity", "none"), middle=False), st.sampled_from(("tpu", "timm")))
def test_mnasnet_round_trip(body, dialect):
    strings = formats.to_mnasnet(body, dialect)
    assert formats.from_mnasnet(strings, body.stem_filters, body.head_filters).body == body


def normal_cell(arc):
    return formats.from_enas_micro(arc, "0 0 0 0")


NO_ARCHITECTURES = {  # reader -> what it refuses, and with which words
    formats.from_darts: [
        ("__import__('os').system('true')", "expected the fields normal"),
        ("Genotype(__import__('os').system('true'), [2], [], [2])", "__import__('os').system('true') is not a literal"),
        ("Genotype(normal=open('/etc/passwd'))", "open('/etc/passwd') is not a literal"),
        ("Genotype(normal=[], normal_concat=range(10**9), reduce=[], reduce_concat=[])", "is not a literal"),
        ("Genotype([], range(1000000000), [], [])", "has 1000000000 states; a cell has at most 100 nodes"),
        ("Genotype(", "a DARTS genotype's text is 'Genotype('"),
        ("Genotype([], range('a'), [], [])", "expected Genotype(normal=[...]"),
        ("a; b", "a DARTS genotype's text is 'a; b'; expected Genotype(normal=[...]"),
        ("", "a DARTS genotype's text is ''"),
        ("(" * 5000, "a DARTS genotype's text is"),
        ("x" * 30_000, "text has 30000 characters"),
        ("Genotype(normal=[])", "expected the fields normal, normal_concat, reduce, reduce_concat"),
        ({"normal": []}, "a DARTS genotype is {'normal': []}; expected the fields normal"),
        (3, "a DARTS genotype is 3"),
        (None, "a DARTS genotype is None; expected the fields normal...as in Genotype(normal=["),
        ('["normal"]', "a DARTS genotype is ['normal']; expected the fields normal"),
        ("Genotype([('none', 0)], normal_concat=[2])", "expected the fields normal, normal_concat, reduce"),
        (
            "Genotype([], [], [], [], [])",
            "text is 'Genotype([], [], [], [], [])'; expected Genotype(",
        ),
        (
            "Genotype(normal=[], normal_concat=[], reduce=[], reduce_concat=[], connectN=2)",
            "expected the fields normal",
        ),
        (f"{DARTS_V2}\n{DARTS_V2.replace('sep_conv_3x3', 'sep_conv_5x5')}", "contains 2 different genotypes"),
        (([("sep_conv_3x3", 0, "x")] * 2, [2], [], [2]), "an edge is ('sep_conv_3x3', 0, 'x'); expected [op, state]"),
        (([3, 4], [2], [], [2]), "an edge is 3; expected [op, state]"),
        (([[("none", 0), ("none", 1)], 3], [2], [], [2]), "3]; expected two (op, state) pairs for each node, as in"),
        (([("none", 0)] * 2, [True], [("none", 0)] * 2, [2]), "concat names state True"),
        (([("sep_conv_3x3", 0)], [2], [], [2]), "cell 'normal': it is [('sep_conv_3x3', 0)]; expected two (op, state)"),
        (([("sep_conv3x3", 0)] * 2, [2], [], [2]), "cell 'normal': op 'sep_conv3x3' is not known (did you mean"),
        (([("none", 0)] * 2, [2], [("none", 2)] * 2, [2]), "cell 'reduce': node 2 reads state 2 (none), which"),
    ],
    formats.from_nasbench201: [
        (None, "node 1 of a NAS-Bench-201 cell is 'None'"),
        ((2, 1, 4, 0, 3, 5), "a NAS-Bench-201 cell is (2, 1, 4, 0, 3, 5); expected '|nor_conv_3x3~0|+...from 0 to 4"),
        ([2, 1, 4, 0, 3], "expected '|nor_conv_3x3~0|+...NASLib's six numbers from 0 to 4"),
        ("(2, 1, 4, 0", "a NAS-Bench-201 cell's text is '(2, 1, 4, 0'...or six numbers as NASLib has them"),
        ([(("nor_conv_3x3", 1),)], "edge 'nor_conv_3x3~1' of node 1 of a NAS-Bench-201 cell; expected OP~0"),
        (f"{NB201} {NB201.replace('none', 'skip_connect')}", "the text contains 2 different NAS-Bench-201 cells"),
        ("", "node 1 of a NAS-Bench-201 cell is ''; expected 1 edges, such as '|nor_conv_3x3~0|'"),
        ("|nor_conv_3x3~0|+|none~0|", "node 2 of a NAS-Bench-201 cell is '|none~0|'; expected 2 edges"),
        ("|nor_conv_3x3~1|", "edge 'nor_conv_3x3~1' of node 1 of a NAS-Bench-201 cell; expected OP~0"),
        ("|nor_conv_3x3~0", "node 1 of a NAS-Bench-201 cell is '|nor_conv_3x3~0'"),
        ("|nor_conv3x3~0|", "NAS-Bench-201 has no op 'nor_conv3x3' (did you mean 'nor_conv_3x3'?); it has none"),
    ],
    formats.from_mnasnet: [
        ("r1_k3_s11_e1_i32_o16", "block strings are 'r1_k3_s11_e1_i32_o16'; expected a list of them"),
        (["r1_k3_s11_e1_i32"], "row 1, 'r1_k3_s11_e1_i32': it lacks o; expected"),
        (["ds_r1_k3_s1_c16", "ir_r1_k3_s1_o16"], "row 2, 'ir_r1_k3_s1_o16': it lacks c; expected"),
        (["ir_r1_k3_s1_i32_c16"], "mixes two dialects"),
        (["r1_k3_s12_e6_i32_o16"], "s12: expected the same strides down and across"),
        (["r1_k3_s22_e6_i16_o24"], "it reads 16 filters, but those before it give 32"),
        (["r1_k3_s22_e6_o24_x3"], "'x3' is unknown or occurs twice"),
        (["r1_r2_k3_s22_e6_o24"], "'r2' is unknown or occurs twice"),
        (["ds_r1_k3_s1_e6_c16"], "a ds block has the expansion 6"),
        (["ir_r1_k4_s1_e6_c16"], "kernel_size is 4; expected an odd number"),
        (["ir_r1.5_k3_s1_e6_c16"], "1.5 is not a whole number"),
        (["cn_r1_k3_s1_c16"], "'cn' is unknown"),
        ([3], "it lacks r, k, s, o; expected"),
        ([], "blocks' rows has 0 entries"),
        (None, "block strings are None; expected a list of them, such as ['r2_k3"),
        ("['r1_k3_s11_e1_i32_o16'", "a list's text is"),
        ([["ds_r1_k3_s1_c16"], ["cn_r1_k3_s1_c16"]], "row 2, 'cn_r1_k3_s1_c16': 'cn' is unknown"),
    ],
    normal_cell: [
        ("0 2 0", "cell 'normal': it has 3 numbers; expected four a node"),
        ("0 9 0 0", "ENAS op 9 is not known; expected one of 0 sep_conv_3x3, 1 sep_conv_5x5"),
        ("0 0 2 0", "node 2 reads state 2"),
        ("", "an ENAS arc is ''; expected whole numbers"),
        ("0 -1 0 0", "an ENAS arc is '0 -1 0 0'; expected whole numbers"),
        ([0, 1.5, 0, 0], "expected whole numbers"),
        ("[0 2 ... 1 1]", "expected whole numbers, such as"),
    ],
    formats.from_enas_macro: [
        (None, "an ENAS arc is None; expected whole numbers"),
        (12.5, "an ENAS arc is 12.5; expected whole numbers"),
        ("0 1", "has 2 numbers; expected 1, 3, 6, 10, ...: for layer 1 (from 0) its op and 1 bits"),
        ("0 0 2", "layer 1 (from 0) of an ENAS macro arc has the bits [2]; expected 0, 1"),
        ("7", "ENAS op 7 is not known"),
        ([0] * (101 * 102 // 2), "more than 100 layers"),
    ],
}


@pytest.mark.parametrize(
    ("read", "given", "message"),
    [(read, given, message) for read, cases in NO_ARCHITECTURES.items() for given, message in cases],
)
def test_what_is_no_architecture_is_refused_and_never_run(read, given, message):
    with refused(message):
        read(given)


NO_WORDS = {  # writer -> what its notation cannot express
    formats.to_darts: [
        (Cells(CellGraph([Node([("none", 0)])], [2])), "node 2 has 1 edges and combines by 'add'"),
        (Cells(CellGraph([Node([("none", 0)] * 2, "concat")], [2])), "node 2 has 2 edges and combines by 'concat'"),
        (Cells(CellGraph([Node([("max_pool_7x7", 0)] * 2)], [2])), "quark0/darts has no op 'max_pool_7x7' (node 2)"),
        (Chain([Layer("conv_3x3")]), "for Cells, not for Chain"),
    ],
    formats.to_nasbench201: [
        (CELL, "node 2 reads state 0, which is h[c-2]"),
        (
            CellGraph([Node([("conv_1x1", 1)])], [1, 2]),
            "the cell's concat is [1, 2]; expected its last node alone, [2]",
        ),
        (CellGraph([Node([("conv_1x1", 1)] * 2)], [2]), "node 2 reads state 1 twice"),
        (CellGraph([Node([("conv_5x5", 1)])], [2]), "NAS-Bench-201 has no op 'conv_5x5'"),
        (CellGraph([Node([("conv_1x1", 1)]), Node([("none", 1), ("none", 2)], "concat")], [3]), "combines by 'concat'"),
        (zoo.load("darts"), "no reduction cell"),
        (Chain([Layer("conv_3x3")]), "not for Chain"),
    ],
    formats.to_enas_micro: [
        (Cells(CellGraph(CELL.nodes, [1, 2])), "concat is [1, 2]; ENAS' notation...here [2]"),
        (Cells(CellGraph([Node([("none", 0)] * 2)], [1, 2])), "has no op 'none'"),
        (Cells(CellGraph([Node([("skip_connect", 0)])], [1, 2])), "node 2 has 1 edges"),
        (Chain([Layer("conv_3x3")]), "micro notation is for Cells, not for Chain"),
    ],
    formats.to_enas_macro: [
        (Cells(CELL), "macro notation is for Chain, not for Cells"),
        (Chain([Layer("conv_1x1")]), "has no op 'conv_1x1'"),
    ],
    formats.to_mnasnet: [
        (Blocks([Block("conv", 3, 8)], 8), "row 1...has no block string"),
        (Blocks([Block("mb_conv", 3, 8, mid_filters=20)], 8), "row 1...has no block string"),
        (Blocks([Block("mb_conv", 3, 8, expansion=2.5)], 8), "the TPU code needs a whole expansion"),
        (Cells(CELL), "MnasNet's notation is for Blocks, not for Cells"),
    ],
    lambda body: formats.to_mnasnet(body, "timm"): [
        (Blocks([Block("sep_conv", 3, 8, skip="pool")], 8), "row 1...has no block string"),
    ],
    lambda body: formats.to_mnasnet(body, "torch"): [
        (Blocks([Block("sep_conv", 3, 8)], 8), "dialect is 'torch'; expected 'tpu' or 'timm'"),
    ],
}


@pytest.mark.parametrize(
    ("write", "body", "message"),
    [(write, body, message) for write, cases in NO_WORDS.items() for body, message in cases],
)
def test_what_a_notation_has_no_words_for_is_refused(write, body, message):
    with refused(message):
        write(body)


def small_config() -> dict:
    rows = [Block("sep_conv", 3, 8), Block("mb_conv", 5, 8, expansion=3), Block("mb_conv", 7, 16, 2, 4)]
    preset = {"input_shape": [48, 48, 3], "classes": 10, "epsilon": 1e-3}
    return formats.to_mcunet(Genotype("mine", "mcunet", Blocks(rows, 16, 32), presets={"small": preset}))


def test_mcunet_configuration_by_hand():
    config = small_config()
    assert config["resolution"] == 48
    assert config["bn"]["eps"] == 1e-3
    assert config["first_conv"]["out_channels"] == 16
    assert [block["shortcut"] is not None for block in config["blocks"]] == [False, True, False]
    assert config["blocks"][2]["mobile_inverted_conv"] == {
        "name": "MBInvertedConvLayer",
        "kernel_size": 7,
        "stride": 2,
        "in_channels": 8,
        "out_channels": 16,
        "expand_ratio": 4,
        "mid_channels": 32,
        "act_func": "relu6",
        "use_se": False,
    }
    assert config["feature_mix_layer"]["in_channels"] == 16
    assert config["classifier"]["in_features"] == 32
    assert formats.from_mcunet(config).presets["configured"] == {
        "input_shape": [48, 48, 3],
        "classes": 10,
        "epsilon": 1e-3,
    }


@random_tests
@given(blocks(ops=("sep_conv", "mb_conv"), skips=("identity", "none"), se=False))
def test_mcunet_round_trip(body):
    genotype = Genotype("mine", "mcunet", body, presets={"small": {"input_shape": [32, 32, 3], "classes": 2}})
    again = formats.from_mcunet(json.loads(json.dumps(formats.to_mcunet(genotype))))
    assert canonical_hash(again) == canonical_hash(genotype)
    assert again.presets["configured"] == genotype.presets["small"]
    assert formats.from_mcunet(json.dumps(formats.to_mcunet(again))) == again


@pytest.mark.parametrize("config", [None, 3, [], "mcunet-in0", "{", "[1]"])
def test_what_is_no_object_is_no_mcunet_configuration(config):
    with refused("an MCUNet configuration...expected a"):
        formats.from_mcunet(config)


def test_mcunet_zero_layers_are_left_out():
    config = small_config()
    config["blocks"].insert(2, {"mobile_inverted_conv": {"name": "ZeroLayer", "stride": 1}, "shortcut": {}})
    assert formats.from_mcunet(config) == formats.from_mcunet(small_config())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["first_conv"], None, "an MCUNet configuration's first_conv is None; expected an object"),
        (["first_conv", "kernel_size"], 5, "first_conv: kernel_size is 5; this family builds 3"),
        (["first_conv", "out_channels"], 16.0, "out_channels is 16.0; expected a whole number from 1"),
        (["blocks"], [], "blocks of an MCUNet configuration is []; expected a list of blocks"),
        (["blocks", 1], 3, "block 1 (from 0) of an MCUNet configuration: it is 3"),
        (["blocks", 1, "mobile_inverted_conv", "name"], "Conv", "mobile_inverted_conv: name is 'Conv'; this family"),
        (["blocks", 1, "mobile_inverted_conv", "in_channels"], 9, "in_channels is 9; this family builds 8"),
        (["blocks", 1, "mobile_inverted_conv", "use_se"], True, "use_se is True; this family builds False"),
        (["blocks", 1, "mobile_inverted_conv", "act_func"], "swish", "act_func is 'swish'; this family builds 'relu6'"),
        (["blocks", 1, "mobile_inverted_conv", "expand_ratio"], "3", "expand_ratio is '3'; expected a number"),
        (["blocks", 1, "mobile_inverted_conv"], {"name": "ZeroLayer"}, "block 2 (from 0)"),
        (["blocks", 2, "shortcut"], {}, "a shortcut from 8 to 16 channels at stride 2; shapes differ"),
        (["blocks", 1, "shortcut", "name"], "ConvLayer", "shortcut: name is 'ConvLayer'; this family builds"),
        (["feature_mix_layer", "in_channels"], 9, "feature_mix_layer: in_channels is 9; this family builds 16"),
        (["classifier", "in_features"], 9, "classifier: in_features is 9; this family builds 32"),
        (["bn"], {"eps": 2.0}, "bn of an MCUNet configuration is {'eps': 2.0}"),
        (["resolution"], None, "resolution is None"),
    ],
)
def test_what_is_no_mcunet_configuration_is_refused(path, value, message):
    config = small_config()
    if path[-1] == "mobile_inverted_conv":
        config["blocks"][2]["mobile_inverted_conv"]["in_channels"] = 16  # so that the next block does not fit
    part = config
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    with refused(message):
        formats.from_mcunet(config)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Block("conv", 3, 8), "has no form in MCUNet's notation"),
        (Block("mb_conv", 3, 8, expansion=3, se_ratio=0.25), "has no form in MCUNet's notation"),
        (Block("mb_conv", 3, 8, expansion=3, skip="pool"), "has no form in MCUNet's notation"),
    ],
)
def test_what_mcunet_has_no_words_for_is_refused(row, message):
    presets = {"small": {"input_shape": [32, 32, 3], "classes": 2}}
    with refused(message):
        formats.to_mcunet(Genotype("mine", "mcunet", Blocks([row], 8), presets=presets))
    with refused("mine has no preset 'large'; expected one of small"):
        formats.to_mcunet(Genotype("mine", "mcunet", Blocks([row], 8), presets=presets), "large")
    with refused("mine has no presets; expected one"):
        formats.to_mcunet(Genotype("mine", "mcunet", Blocks([row], 8)))


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ({"classes": 2}, "the preset's input_shape is None; MCUNet's notation has one number for height and width"),
        ({"input_shape": [32, 64, 3], "classes": 2}, "input_shape is [32, 64, 3]"),
        ({"input_shape": [None, None, 3], "classes": 2}, "input_shape is [None, None, 3]"),
        ({"input_shape": [32, 32, 3]}, "classes is None; expected a whole number from 1"),
        ({"input_shape": [32, 32, 3], "classes": 2, "epsilon": "small"}, "epsilon is 'small'; expected a number"),
    ],
)
def test_a_preset_without_one_resolution_has_no_mcunet_configuration(preset, message):
    genotype = Genotype("mine", "mcunet", Blocks([Block("sep_conv", 3, 8)], 8), presets={"small": preset})
    with refused(message):
        formats.to_mcunet(genotype)


@pytest.mark.parametrize(
    ("read", "record"),
    [
        (formats.from_mcunet, formats.to_mcunet(zoo.load("mcunet_in0"))),
        (formats.from_darts, json.loads(json.dumps(formats.to_darts(zoo.load("darts"))._asdict()))),
        (formats.from_mnasnet, MNASNET_A1),
        (formats.from_enas_macro, formats.to_enas_macro(zoo.load("enas_macro"))),
    ],
    ids=["mcunet", "darts", "mnasnet", "enas"],
)
def test_a_damaged_notation_is_read_or_refused_but_never_fails_otherwise(read, record):
    choose, refusals = random.Random(0), 0
    for _ in range(300):
        try:
            read(damaged(record, choose))
        except GenotypeError:
            refusals += 1
    assert refusals > 50


def read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_all_released_mcunet_configurations_round_trip(reference):
    paths = sorted((reference / "mcunet").glob("*.json"))
    assert len(paths) == 13
    for path in paths:
        config = read_json(path)
        genotype = formats.from_mcunet(config)
        written = formats.to_mcunet(genotype)
        assert formats.from_mcunet(written) == genotype
        if not path.name.startswith(("mbv2", "proxyless")):  # those leave out keys, name dropout or have zero layers
            assert written == config


def test_all_released_block_strings_round_trip(reference):
    genotypes = read_json(reference / "models" / "reference_genotypes.json")["genotypes"]
    names = [name for name, record in genotypes.items() if "tpu_blocks" in record]
    assert len(names) == 5
    for name in names:
        record = genotypes[name]
        genotype = formats.from_mnasnet(record["tpu_blocks"], record["stem"], record["head_conv"])
        written = formats.to_mnasnet(genotype)
        if name == "MnasNet-small":  # which names 16 input filters behind its stem of 8
            written[0] = written[0].replace("_i8_", "_i16_")
        assert written == [
            text.replace("_noskip", "") + "_noskip" * ("noskip" in text) for text in record["tpu_blocks"]
        ]
        if "timm_arch_def" in record:
            timm = formats.from_mnasnet(record["timm_arch_def"], record["stem"], record["head_conv"])
            assert timm.body == genotype.body


def test_the_released_macro_arc_is_the_shipped_chain(reference):
    genotypes = read_json(reference / "models" / "reference_genotypes.json")["genotypes"]
    arc = genotypes["ENAS-macro"]["arc_strings"]
    macro = formats.from_enas_macro(arc)
    assert macro.body == zoo.load("enas_macro").body
    assert formats.to_enas_macro(macro) == [int(number) for line in arc for number in line.split()]


def test_every_cell_of_the_nasbench201_table_round_trips(reference):
    path = reference / "tables" / "nas-bench-201_cifar10_12epochs.csv"
    texts = re.findall(r"\|[^,\s\"]+\|", path.read_text(encoding="utf-8"))
    assert len(texts) == 15_625
    for text in texts:
        assert formats.to_nasbench201(formats.from_nasbench201(text)) == text


@pytest.mark.parametrize(
    ("genotype", "preset", "shipped"),
    [
        (formats.from_darts(DARTS_V2), "imagenet", "darts"),
        (formats.from_mnasnet(MNASNET_A1), "imagenet_w050", "mnasnet_a1"),
        (formats.from_mcunet(formats.to_mcunet(zoo.load("mcunet_in0"))), "configured", "mcunet_in0"),
        (formats.from_mcunet(small_config()), "configured", None),
        (formats.from_nasbench201(NB201), "cifar10", None),
    ],
    ids=["darts", "mnasnet", "mcunet", "mcunet_small", "nasbench201"],
)
def test_what_is_read_builds_in_a_preset_of_its_family(genotype, preset, shipped):
    import keras

    with keras.StatelessScope():  # graph and shapes, without the weights
        model = zoo.build(genotype, preset)
    count = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    if shipped is None:
        assert model.output_shape == (None, 10)
    else:
        published = zoo.load(shipped).published
        assert count == published[preset if preset in published else "imagenet"]["trainable_params"]
