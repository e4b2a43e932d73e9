"""Random genotypes for Hypothesis: cells, blocks and chains that every check lets through; and damage to JSON."""

import copy
import random

from hypothesis import HealthCheck, settings, strategies

from zoo.genotype import INPUT_STATES, OP_NAMES, Block, Blocks, CellGraph, Cells, Chain, Edge, Genotype, Layer, Node

OPS = tuple(sorted(OP_NAMES))
LAYER_OPS = tuple(sorted(OP_NAMES - {"none"}))
TEXT = strategies.text(strategies.characters(exclude_categories=["Cs"]), max_size=20)


def examples(number: int) -> settings:
    """Settings for this many examples: the same ones on each run, however busy the machine is."""
    slow = [HealthCheck.too_slow]
    return settings(max_examples=number, deadline=None, derandomize=True, suppress_health_check=slow)


@strategies.composite
def cell_graphs(draw, ops=OPS, most_nodes=6, edges=(1, 3), combine=("add", "concat"), oldest=0):
    """A cell; `edges` is the least and the most that a node has, `oldest` the first state that one reads."""
    nodes = []
    for number in range(INPUT_STATES, INPUT_STATES + draw(strategies.integers(1, most_nodes))):
        edge = strategies.builds(Edge, strategies.sampled_from(ops), strategies.integers(oldest, number - 1))
        pairs = draw(strategies.lists(edge, min_size=edges[0], max_size=edges[1]))
        nodes.append(Node(tuple(pairs), draw(strategies.sampled_from(combine))))
    states = strategies.sampled_from(range(INPUT_STATES + len(nodes)))
    return CellGraph(tuple(nodes), tuple(draw(strategies.lists(states, min_size=1, unique=True))))


@strategies.composite
def blocks(draw, ops=("conv", "sep_conv", "mb_conv"), skips=("identity", "pool", "none"), se=True, middle=True):
    """Rows of blocks; `se` and `middle` say whether squeeze-and-excite and mid_filters may occur."""
    rows = []
    for _ in range(draw(strategies.integers(1, 5))):
        op = draw(strategies.sampled_from(ops))
        mobile = op == "mb_conv"
        rows.append(
            Block(
                op,
                kernel_size=draw(strategies.sampled_from((1, 3, 5, 7))),
                filters=draw(strategies.sampled_from((8, 16, 24))),
                strides=draw(strategies.integers(1, 2)),
                expansion=draw(strategies.sampled_from((2, 3, 4, 6))) if mobile else 1,
                repeats=draw(strategies.integers(1, 3)),
                se_ratio=draw(strategies.sampled_from((0, 0.25))) if se else 0,
                skip=draw(strategies.sampled_from(skips)),
                mid_filters=draw(strategies.sampled_from((None, 20, 40))) if mobile and middle else None,
            )
        )
    return Blocks(tuple(rows), draw(strategies.sampled_from((8, 16))), draw(strategies.sampled_from((None, 128))))


@strategies.composite
def chains(draw, ops=LAYER_OPS, most_layers=6):
    """A chain of layers."""
    layers = []
    for number in range(draw(strategies.integers(1, most_layers))):
        earlier = strategies.sampled_from(range(number)) if number else strategies.nothing()
        skips = draw(strategies.lists(earlier, unique=True, max_size=number).map(sorted))
        layers.append(Layer(draw(strategies.sampled_from(ops)), tuple(skips)))
    return Chain(tuple(layers))


def cells():
    """Two cells, or one that is its own reduction cell."""
    return strategies.builds(Cells, cell_graphs(), strategies.one_of(strategies.none(), cell_graphs()))


def genotypes():
    """Genotypes of all three bodies, with what a file may hold beside."""
    leaves = strategies.one_of(
        strategies.booleans(),
        strategies.integers(),
        strategies.floats(allow_nan=False, allow_infinity=False),
        TEXT,
    )
    values = strategies.one_of(leaves, strategies.lists(leaves, max_size=4))
    records = strategies.dictionaries(TEXT, values, max_size=3)
    return strategies.builds(
        Genotype,
        strategies.from_regex(r"[a-z0-9][a-z0-9_.-]{0,20}", fullmatch=True),
        strategies.sampled_from(("darts", "nasnet", "mcunet")),
        strategies.one_of(cells(), blocks(), chains()),
        source=records,
        presets=strategies.dictionaries(strategies.text("abc", max_size=4), records, max_size=2),
        published=strategies.dictionaries(strategies.text("abc", max_size=4), records, max_size=2),
        notes=TEXT,
        represents_family=strategies.booleans(),
    )


_JUNK = (None, True, False, 0, -1, 10**30, 1.5, 1e308, "", "none", [], {}, [[]], [1], {"a": 1}, ["sep_conv_3x3", 0])


def damaged(record, choose: random.Random):
    """A copy of a JSON value with one to three of its parts taken out or replaced by junk."""
    record = copy.deepcopy(record)
    for _ in range(choose.randint(1, 3)):
        part, key = choose.choice(list(_places(record)) or [({}, None)])
        if choose.random() < 0.2 and key is not None:
            del part[key]
        else:
            part[key] = copy.deepcopy(choose.choice(_JUNK))
    return record


def _places(value):
    """All (container, key) pairs in a JSON value."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])
