"""`zoo.Cell` beside the flat `expand`, in models of one's own, and both by hand."""

import dataclasses
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import keras
import numpy as np
import pytest

import zoo
from zoo.blocks import Style
from zoo.canonical import canonical_hash
from zoo.cell import expand
from zoo.families import amoebanet, darts, enas, nasnet, pnasnet
from zoo.genotype import CellGraph, Cells, GenotypeError, Node

PROJECT = Path(__file__).resolve().parents[2]
STYLES = {
    "nasnet": nasnet.STYLE,
    "amoebanet": amoebanet.STYLE,
    "pnasnet": pnasnet.STYLE,
    "darts": darts.STYLE,
    "enas": enas.STYLE,
}
# What the published cells have, in one small cell: operations of every kind, a loose input, a concatenating node
MIXED = CellGraph(
    [
        Node([("sep_conv_3x3", 0), ("skip_connect", 1)]),
        Node([("dil_conv_3x3", 1), ("none", 0)]),
        Node([("max_pool_3x3", 0), ("avg_pool_3x3", 1)]),
        Node([("conv_1x7_7x1", 2), ("conv_3x3", 3)], "concat"),
    ],
    [0, 4, 5],
)
SKIP = CellGraph([Node([("skip_connect", 0), ("skip_connect", 1)])], [2])


def pair(height: int = 8, width: int = 6, channels: tuple[int, int] = (3, 5), oldest_strides: int = 1):
    rng = np.random.default_rng(0)
    sizes = ((height * oldest_strides, width * oldest_strides), (height, width))
    return [
        rng.uniform(-1, 1, (2, *size, depth)).astype(np.float32) for size, depth in zip(sizes, channels, strict=True)
    ]


def own_name(weight) -> str:
    """The layer's name and the variable's, which are all of its path in a flat graph, and the end of it in a cell."""
    return "/".join(weight.path.split("/")[-2:])


def randomise(weights) -> None:
    """Gives each weight values that go by its name; the order of layers depends on paddings, too."""
    for weight in weights:
        values = np.random.default_rng(zlib.crc32(own_name(weight).encode())).uniform(0.5, 1.5, weight.shape)
        weight.assign(values * (1 if len(weight.shape) == 1 else 0.3))


def flat(cell: zoo.Cell, inputs) -> keras.Model:
    """The cell's layers in a flat graph, with its weights."""
    tensors = [keras.Input(array.shape[1:]) for array in inputs]
    output = expand(
        cell.graph, tensors, cell.filters, style=cell.style, name=cell.name, strides=cell.strides,
        oldest_strides=cell.oldest_strides,
    )  # fmt: skip
    model = keras.Model(tensors, output)
    randomise(model.weights)
    weights = {own_name(weight): weight for weight in model.weights}
    for weight in cell.weights:
        weight.assign(weights[own_name(weight)])
    assert len(weights) == len(cell.weights)
    return model


@pytest.mark.parametrize(
    ("family", "strides", "oldest_strides"),
    [("darts", 1, 1), ("darts", 1, 2), ("amoebanet", 1, 2), *((family, 2, 1) for family in STYLES)],
)
def test_a_cell_computes_what_the_flat_graph_computes(family, strides, oldest_strides):
    inputs = pair(oldest_strides=oldest_strides)
    cell = zoo.Cell(MIXED, 4, style=STYLES[family], strides=strides, oldest_strides=oldest_strides, name="cell")
    cell.build([array.shape for array in inputs])
    expected = flat(cell, inputs)(inputs, training=False)
    outputs = cell(inputs, training=False)
    assert outputs.shape == (2, 8 // strides, 6 // strides, 3 * 4)
    assert cell.compute_output_shape([array.shape for array in inputs]) == outputs.shape
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
    assert float(np.std(expected)) > 0.01


def test_a_cell_is_read_from_a_file_of_the_zoo():
    cell = zoo.Cell(zoo.load("darts").body.normal, 4, style=darts.STYLE)
    assert cell(pair()).shape == (2, 8, 6, 4 * 4)


def test_a_configuration_makes_the_same_cell():
    cell = zoo.Cell(MIXED, 4, style=darts.STYLE, strides=2, oldest_strides=2, drop_path_rate=0.25, name="mine")
    again = zoo.Cell.from_config(cell.get_config())
    for name in ("graph", "filters", "style", "strides", "oldest_strides", "drop_path_rate", "name"):
        assert getattr(again, name) == getattr(cell, name)


@pytest.fixture(scope="module")
def own_model() -> keras.Model:
    """A user's: two cells between layers of Keras, for images of any size."""
    image = keras.Input((None, None, 3))
    stem = keras.layers.Conv2D(4, 3, padding="same")(image)
    first = zoo.Cell(MIXED, 4, strides=2, drop_path_rate=0.2, name="first")([stem, stem])
    second = zoo.Cell(SKIP, 4, oldest_strides=2, style=darts.STYLE, name="second")([stem, first])
    pooled = keras.layers.GlobalAveragePooling2D()(second)
    model = keras.Model(image, keras.layers.Dense(3, activation="softmax")(pooled))
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


IMAGES = np.random.default_rng(2).uniform(-1, 1, (4, 8, 8, 3)).astype(np.float32)


def test_a_step_of_training_changes_the_kernels_and_statistics_of_a_cell(own_model):
    before = {weight.path: keras.ops.convert_to_numpy(weight).copy() for weight in own_model.get_layer("first").weights}
    own_model.fit(IMAGES, np.arange(4) % 3, epochs=1, batch_size=4, verbose=0)
    changed = {
        path.rpartition("/")[2]
        for weight in own_model.get_layer("first").weights
        if not np.array_equal(before[path := weight.path], keras.ops.convert_to_numpy(weight))
    }
    assert {"kernel", "gamma", "beta", "moving_mean", "moving_variance"} <= changed


def test_cells_survive_saving_and_loading_in_a_model(own_model, tmp_path):
    own_model.save(tmp_path / "own.keras")
    loaded = keras.models.load_model(tmp_path / "own.keras")  # no custom_objects needed
    np.testing.assert_allclose(loaded(IMAGES), own_model(IMAGES), rtol=1e-5, atol=1e-7)
    assert loaded.get_layer("first").graph == MIXED
    assert loaded.get_layer("second").style == darts.STYLE


@pytest.mark.parametrize("imports", ["import zoo, keras", pytest.param("import keras, zoo", marks=pytest.mark.slow)])
def test_a_fresh_process_loads_cells_after_importing_zoo_alone(imports, own_model, tmp_path):
    own_model.save(tmp_path / "own.keras")
    code = f"{imports}; print(keras.models.load_model('own.keras').get_layer('second').filters)"
    variables = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.split() == ["4"], done.stderr[-2000:]


def test_the_layers_of_a_cell_have_its_dtype_wherever_they_are_built(tmp_path):
    images = pair()
    inputs = [keras.Input(array.shape[1:]) for array in images]
    cell = zoo.Cell(MIXED, 4, dtype="mixed_float16")
    model = keras.Model(inputs, cell(inputs))
    assert {layer.dtype_policy.name for layer in cell.network.layers} == {"mixed_float16"}
    assert {weight.dtype for weight in cell.weights} == {"float32"}
    model.save(tmp_path / "half.keras")
    loaded = keras.models.load_model(tmp_path / "half.keras")  # under float32
    assert loaded(images).dtype == "float16"
    np.testing.assert_array_equal(loaded(images), model(images))


def test_drop_path_works_in_training_alone(own_model):
    still = own_model(IMAGES, training=False)
    np.testing.assert_array_equal(own_model(IMAGES, training=False), still)
    assert not np.array_equal(own_model(IMAGES, training=True), still)


@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize("family", ["darts", "nasnet"])
def test_an_open_size_computes_what_the_known_one_computes(family, side):
    cells = []
    for shape in [(None, side, side, 3), (None, None, None, 3)]:
        cell = zoo.Cell(MIXED, 4, strides=2, style=STYLES[family], name="cell")
        cell.build([shape, shape])
        randomise(cell.weights)
        cells.append(cell)
    images = np.random.default_rng(3).uniform(-1, 1, (2, side, side, 3)).astype(np.float32)
    known, unknown = (cell([images, images], training=False) for cell in cells)
    assert known.shape == (2, -(-side // 2), -(-side // 2), 12)
    np.testing.assert_allclose(known, unknown, rtol=1e-4, atol=1e-5)


# By hand


def call_of(graph: CellGraph, inputs, filters: int, **options):
    tensors = [None if array is None else keras.Input(array.shape[1:]) for array in inputs]
    output = expand(graph, tensors, filters, name="cell", **{"style": Style(), **options})
    try:
        return keras.Model([tensor for tensor in tensors if tensor is not None], output)
    except ValueError as error:
        if "not connected" not in str(error) or tuple(map(int, keras.__version__.split(".")[:2])) >= (3, 14):
            raise
        pytest.skip("Keras before 3.14 makes no model with an input that nothing reads")


def test_identities_of_fitting_inputs_are_added_without_a_layer_between():
    inputs = pair(channels=(4, 4))
    model = call_of(SKIP, inputs, 4)
    # h[c-2] fits and comes as it is; h[c-1] is projected always
    assert [layer.name for layer in model.layers if layer.weights] == ["cell_input1_conv", "cell_input1_bn"]
    model.get_layer("cell_input1_conv").kernel.assign(2 * np.eye(4)[None, None])
    expected = inputs[0] + 2 * np.maximum(inputs[1], 0) / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(model(inputs, training=False), expected, rtol=1e-5)


def test_darts_projects_its_oldest_input_always():
    model = call_of(SKIP, pair(channels=(4, 4)), 4, style=darts.STYLE)
    assert model.get_layer("cell_input0_conv").kernel.shape == (1, 1, 4, 4)


def test_without_an_oldest_input_state_0_is_the_newest_as_it_comes():
    (_, newest) = pair(channels=(4, 4))
    model = call_of(CellGraph([Node([("skip_connect", 0)])], [2]), [None, newest], 4)
    np.testing.assert_array_equal(model([newest]), newest)


def test_none_leaves_the_edge_out_and_a_dead_node_costs_nothing():
    graph = CellGraph([Node([("conv_5x5", 0)]), Node([("none", 2), ("skip_connect", 1)])], [3])
    names = {layer.name for layer in call_of(graph, pair(), 4).layers if layer.weights}
    assert names == {"cell_input1_conv", "cell_input1_bn"}


def test_a_concatenating_node_is_brought_back_to_its_width():
    model = call_of(CellGraph([dataclasses.replace(SKIP.nodes[0], combine="concat")], [2]), pair(channels=(4, 4)), 4)
    assert model.get_layer("cell_node2_concat").output.shape[-1] == 8
    assert model.get_layer("cell_node2_conv").kernel.shape == (1, 1, 8, 4)
    assert model.output_shape[-1] == 4


def test_edges_of_one_state_share_its_relu_and_its_pools():
    graph = CellGraph([Node([("conv_1x1", 1), ("sep_conv_3x3", 1)]), Node([("max_pool_3x3", 1)] * 2)], [2, 3])
    names = [layer.name for layer in call_of(graph, pair(), 4).layers]
    assert names.count("cell_input1_relu") == 1
    assert [name for name in names if "pool" in name] == ["cell_input1_max_pool_3x3"]


def test_drop_path_spares_identities_and_darts_strided_ones_alone_are_dropped():
    def dropped(graph, **options):
        model = call_of(graph, pair(channels=(4, 4)), 4, drop_path_rate=0.1, **options)
        return [layer.name for layer in model.layers if isinstance(layer, keras.layers.Dropout)]

    graph = CellGraph([Node([("skip_connect", 0), ("max_pool_3x3", 1)])], [2])
    assert dropped(graph) == ["cell_node2_edge1_drop_path"]
    assert dropped(graph, strides=2) == ["cell_node2_edge1_drop_path"]
    assert dropped(graph, style=darts.STYLE) == ["cell_node2_edge1_drop_path"]
    strided = dropped(graph, style=darts.STYLE, strides=2)
    assert sorted(strided) == ["cell_node2_edge0_drop_path", "cell_node2_edge1_drop_path"]


def test_an_input_in_the_output_takes_the_strides_of_the_cell():
    graph = CellGraph([Node([("max_pool_3x3", 1)])], [0, 2])
    model = call_of(graph, pair(channels=(4, 4)), 4, strides=2)
    assert model.get_layer("cell_output0_path1_conv").output.shape == (None, 4, 3, 2)
    assert model.output_shape == (None, 4, 3, 8)


# Bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: zoo.Cell(MIXED, 0), "a Cell's filters is 0; expected a whole number from 1"),
        (lambda: zoo.Cell(MIXED, True), "a Cell's filters is True"),
        (lambda: zoo.Cell(MIXED, 4, strides=3), "strides=3, oldest_strides=1; expected 1 or 2"),
        (lambda: zoo.Cell(MIXED, 4, oldest_strides=0), "oldest_strides=0; expected 1 or 2"),
        (lambda: zoo.Cell(MIXED, 4, drop_path_rate=1), "drop_path_rate=1; expected a number from 0 to less than 1"),
        (lambda: zoo.Cell(MIXED, 4, drop_path_rate="0.1"), "drop_path_rate='0.1'; expected a number"),
        (lambda: zoo.Cell("darts", 4), "graph is 'darts'; expected a CellGraph, such as zoo.load('darts').body.normal"),
        (lambda: zoo.Cell(zoo.load("darts"), 4), "expected a CellGraph, such as"),
        (lambda: zoo.Cell({"nodes": []}, 4), "a cell has no 'concat'"),
        (lambda: zoo.Cell(MIXED, 4, style="darts"), "style is 'darts'; expected a zoo.blocks.Style"),
        (lambda: Style(padding="pytorch"), "the style's padding 'pytorch' is not known"),
        (lambda: zoo.Cell(MIXED, 4)(pair()[0]), "a Cell is called on a pair [h0, h1]; got an input of shape"),
        (lambda: zoo.Cell(MIXED, 4)([*pair(), pair()[0]]), "a Cell is called on a pair [h0, h1]"),
        (lambda: zoo.Cell(MIXED, 4)([array[0] for array in pair()]), "on images (batch, height, width, channels)"),
        (lambda: zoo.Cell(MIXED, 4)([keras.Input((8, 8, None))] * 2), "of known channels; got"),
        (lambda: zoo.Cell(MIXED, 4)(pair(oldest_strides=2)), "do not fit oldest_strides=1: expected h0 as high"),
        (lambda: zoo.Cell(MIXED, 4, oldest_strides=2)(pair()), "do not fit oldest_strides=2"),
        (lambda: zoo.Cell(MIXED, 4, style=Style(epsilon=0)), "epsilon is 0; expected a number between 0 and 1"),
        (lambda: zoo.Cell(MIXED, 4, style={"momentum": True}), "momentum is True; expected a number between 0 and 1"),
    ],
)
def test_bad_input_is_refused_with_value_and_expectation(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_a_node_of_nones_that_the_output_needs_is_an_error():
    zero = Node([("none", 0), ("none", 1)])
    for graph in (CellGraph([zero], [2]), CellGraph([zero, Node([("conv_3x3", 2)])], [3])):
        with pytest.raises(GenotypeError, match=r"is zero, because its edges .* but the output needs it: put an"):
            call_of(graph, pair(), 4)


def test_what_reads_a_node_of_nones_is_left_out():
    zero = Node([("none", 0), ("none", 1)])
    graph = CellGraph(
        [zero, Node([("conv_3x3", 2), ("none", 1)]), Node([("sep_conv_3x3", 3), ("skip_connect", 1)])], [4]
    )
    plain = CellGraph([Node([("skip_connect", 1)])], [2])
    assert graph.live_states() == {1, 4}
    assert {layer.name for layer in call_of(graph, pair(), 4).layers if layer.weights} == {
        "cell_input1_conv",
        "cell_input1_bn",
    }
    assert canonical_hash(Cells(graph)) == canonical_hash(Cells(plain))
