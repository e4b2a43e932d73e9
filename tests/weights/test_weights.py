"""Weights of others put into a network: PyTorch's tensors by their names, and Keras files by the names of layers."""

import dataclasses
import re
import zipfile

import keras
import numpy as np
import pytest

import zoo
from tests.small_networks import as_torch, built, images_for, outputs_of, shrunk, small
from zoo.weights import WeightsError, cell_names
from zoo.weights.published import load_file


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    """The weights of the small DARTS network as quark0/darts names them and lays them out."""
    names = [layer.name for layer in built("darts").layers if layer.weights]
    return as_torch(built("darts"), cell_names.darts(names, []))


@pytest.fixture(scope="module")
def network() -> keras.Model:
    """A fresh network, which a refused file must leave as it is."""
    return zoo.build(small("darts"))


def state_of(model: keras.Model) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(weight).copy() for weight in model.weights]


def assert_refused(message: str, model: keras.Model, fill) -> None:
    """The error must match, and no weight may have changed."""
    before = state_of(model)
    with pytest.raises(WeightsError, match=message):
        fill()
    for old, new in zip(before, state_of(model), strict=True):
        np.testing.assert_array_equal(old, new)


# PyTorch


def test_tensors_fill_a_network_by_their_names(tensors):
    model = zoo.build(small("darts"))
    assert zoo.weights.from_torch(model, dict(reversed(tensors.items()))) == "quark0/darts"
    images = images_for(model)
    np.testing.assert_allclose(outputs_of(model, images), outputs_of(built("darts"), images), rtol=1e-5)


def test_counters_of_batches_and_heads_that_the_network_lacks_may_be_there(tensors):
    extra = {"stem.1.num_batches_tracked": np.array(7), "auxiliary_head.classifier.weight": np.zeros((4, 768))}
    assert zoo.weights.from_torch(zoo.build(small("darts"), include_top=False), {**tensors, **extra})


def test_without_the_head_another_number_of_classes_is_filled(tensors):
    model = zoo.build(small("darts"), classes=7)
    before = keras.ops.convert_to_numpy(model.get_layer("predictions").kernel).copy()
    with pytest.raises(WeightsError, match=r"2 tensors are of another shape: classifier\.weight has the shape"):
        zoo.weights.from_torch(model, tensors)
    zoo.weights.from_torch(model, tensors, head=False)
    np.testing.assert_array_equal(model.get_layer("predictions").kernel, before)
    np.testing.assert_array_equal(model.get_layer("stem_conv").kernel, built("darts").get_layer("stem_conv").kernel)


NEW = {f"cells.3.new{number}.weight": np.zeros(3) for number in range(6)}


@pytest.mark.parametrize(
    ("lacking", "changed", "message"),
    [
        (
            ["stem.0.weight", "cells.1.preprocess0.op.2.bias"], {},
            r"of quark0/darts do not fit: 2 tensors are missing: .*stem\.0\.weight.*Build the model that",
        ),
        ([], NEW, r"6 tensors are left over: cells\.3\.new0\.weight; .*new3\.weight; and 2 more"),
        (
            [], {"stem.0.weight": np.zeros((12, 1, 3, 3))},
            r"1 tensors are of another shape: stem\.0\.weight has the shape \(12, 1, 3, 3\), stem_conv/kernel",
        ),
    ],
    ids=["missing", "left over", "another shape"],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named_and_many_are_counted(lacking, changed, message, tensors, network):
    given = {name: value for name, value in tensors.items() if name not in lacking} | changed
    assert len(given) == len(tensors) - len(lacking) + len(changed.keys() - tensors.keys())
    assert_refused(message, network, lambda: zoo.weights.from_torch(network, given))


@pytest.mark.parametrize("given", [{}, {"layer1.0.conv1.weight": np.zeros(3)}])
def test_an_unknown_naming_is_told_with_the_known_ones(given, network):
    message = rf"the names of these {len(given)} tensors.* are not known; expected those of quark0/darts, NNI darts, "
    assert_refused(message, network, lambda: zoo.weights.from_torch(network, given))


def test_a_network_of_another_kind_has_no_place_for_them(tensors):
    model = built("mcunet")
    assert_refused(
        "mcunet_vww0_small is not a network of quark0/darts: no place for its layer 'block",
        model, lambda: zoo.weights.from_torch(model, tensors),
    )  # fmt: skip


QUARK0 = {  # of its cnn/operations.py: the modules with weights of an operation in a normal and a reduction cell
    "sep_conv": ["op.1", "op.2", "op.3", "op.5", "op.6", "op.7"],
    "dil_conv": ["op.1", "op.2", "op.3"],
    "conv_7x1": ["1", "2", "3"],  # a bare Sequential
    "skip_connect strided": ["conv_1", "conv_2", "bn"],
}
# genotypes.py: what its readers can do but its own search does not find
QUARK0_AMOEBANET = """Genotype(normal=[('avg_pool_3x3', 0), ('max_pool_3x3', 1), ('sep_conv_3x3', 0),
('sep_conv_5x5', 2), ('sep_conv_3x3', 0), ('avg_pool_3x3', 3), ('sep_conv_3x3', 1), ('skip_connect', 1),
('skip_connect', 0), ('avg_pool_3x3', 1)], normal_concat=[4, 5, 6], reduce=[('avg_pool_3x3', 0), ('sep_conv_3x3', 1),
('max_pool_3x3', 0), ('sep_conv_7x7', 2), ('sep_conv_7x7', 0), ('avg_pool_3x3', 1), ('max_pool_3x3', 0),
('max_pool_3x3', 1), ('conv_7x1_1x7', 0), ('sep_conv_3x3', 5)], reduce_concat=[3, 4, 6])"""
OWN = """Genotype(normal=[('conv_7x1_1x7', 1), ('dil_conv_5x5', 0), ('none', 2), ('skip_connect', 2)],
normal_concat=[3], reduce=[('skip_connect', 1), ('dil_conv_3x3', 0), ('sep_conv_7x7', 2), ('skip_connect', 2)],
reduce_concat=[2, 3])"""


@pytest.mark.parametrize("text", [QUARK0_AMOEBANET, OWN], ids=["amoebanet", "own"])
@pytest.mark.parametrize("preset", ["cifar10", "imagenet"])
def test_every_operation_of_quark0_darts_has_its_names_in_both_skeletons(text, preset):
    genotype = dataclasses.replace(
        zoo.formats.from_darts(text), presets={"small": {"cells": 3, "filters": 4, "stem": preset.removesuffix("10")}}
    )
    with keras.StatelessScope():
        model = zoo.build(genotype, input_shape=(32, 32, 3), classes=4)
    modules = set(cell_names.darts([layer.name for layer in model.layers if layer.weights], []).values())
    for number, graph in enumerate((genotype.body.normal, genotype.body.reduce, genotype.body.reduce)):
        reducing = number > 0
        expected = set()
        for place, (op, state) in enumerate(edge for node in graph.nodes for edge in node.edges):
            kind = f"{op} strided" if op == "skip_connect" and reducing and state < 2 else op[:8]
            expected |= {f"cells.{number}._ops.{place}.{module}" for module in QUARK0.get(kind, [])}
        assert {module for module in modules if module.startswith(f"cells.{number}._ops")} == expected


MIRRORS = {  # layer -> its module in quark0/darts, in NNI, in pytorchcv: as their state_dicts list them
    "cell00_input0_conv": ("cells.0.preprocess0.op.1", "stages.0.0.preprocessor.pre0.1", "preprocess_prev.conv"),
    "cell00_node2_edge1_dw2": ("cells.0._ops.1.op.5", "stages.0.0.ops.0.1.5", "body.ops.1.conv2.conv.dw_conv"),
    "cell01_reduce_node3_edge0_path2_conv": ("cells.1._ops.2.conv_2", "stages.1.0.ops.1.0.conv_2", "body.ops.2.conv2"),
    "cell02_input0_path1_bn": ("cells.2.preprocess0.bn", "stages.1.1.preprocessor.pre0.bn", "preprocess_prev.bn"),
    "cell02_node5_edge1_dw1": ("cells.2._ops.7.op.1", "stages.1.1.ops.3.1.1", "body.ops.7.conv.dw_conv"),
    "cell02_node5_edge1_bn1": ("cells.2._ops.7.op.3", "stages.1.1.ops.3.1.3", "body.ops.7.bn"),
    "cell03_reduce_input1_bn": ("cells.3.preprocess1.op.2", "stages.2.0.preprocessor.pre1.2", "preprocess.bn"),
}


def test_names_of_the_mirrors_of_darts_weights():
    units = ((1, 1), (1, 1), (2, 1), (2, 2), (2, 2), (2, 2), (3, 1))
    pytorchcv = [
        f"features.stage{stage}.unit{unit}.{names[2]}"
        for (stage, unit), names in zip(units, MIRRORS.values(), strict=True)
    ]
    assert list(cell_names.darts(MIRRORS, []).values()) == [names[0] for names in MIRRORS.values()]
    assert list(cell_names.nni_darts(MIRRORS, []).values()) == [names[1] for names in MIRRORS.values()]
    assert list(cell_names.pytorchcv_darts(MIRRORS, [f"{pytorchcv[4]}.weight"]).values()) == pytorchcv
    outside = {"stem_bn": "stem.1", "predictions": "classifier"}
    assert cell_names.nni_darts(outside, []) == outside
    outside = {"stem0_second_conv": "features.stem1_unit.conv2.conv", "stem1_bn": "features.stem2_unit.bn"}
    assert cell_names.pytorchcv_darts(outside, []) == outside


def test_weights_under_nni_names_give_the_same_network(tensors):
    layers = [layer.name for layer in built("darts").layers if layer.weights]
    quark0, nni = (names(layers, []) for names in (cell_names.darts, cell_names.nni_darts))
    renamed = {module: nni[layer] for layer, module in quark0.items()}
    state = {f"{renamed[name.rsplit('.', 1)[0]]}.{name.rsplit('.', 1)[1]}": value for name, value in tensors.items()}
    model = zoo.build(small("darts"))
    assert zoo.weights.from_torch(model, state) == "NNI darts"
    images = np.random.default_rng(0).normal(size=(1, *model.input_shape[1:])).astype("float32")
    np.testing.assert_allclose(outputs_of(model, images), outputs_of(built("darts"), images), rtol=1e-5)


def test_names_of_the_released_codes():
    layers = "stem_conv stem_bn cell02_input0_path2_bn cell05_node3_edge1_dw2 cell05_node2_edge0_bn1".split()
    assert list(cell_names.darts(layers, []).values()) == (
        "stem.0 stem.1 cells.2.preprocess0.bn cells.5._ops.3.op.5 cells.5._ops.0.op.3".split()
    )
    layers = "stem_conv stem1_node2_edge1_pw2 cell03_node4_edge0_bn1 cell02_reduce_input0_path1_conv cell03_input1_bn"
    assert list(cell_names.timm_nasnet(layers.split(), []).values()) == (
        "conv0.conv cell_stem_1.comb_iter_0_right.separable_2.pointwise_conv2d cell_2.comb_iter_2_left.bn_sep_1 "
        "reduction_cell_0.path_1.conv cell_2.conv_1x1.bn".split()
    )
    layers = "stem_bn cell02_reduce_input0_path2_conv cell02_reduce_node6_edge1_conv predictions".split()
    assert list(cell_names.timm_pnasnet(layers, []).values()) == (
        "conv_0.bn cell_2.conv_prev_1x1.path_2.conv cell_2.comb_iter_4_right.conv last_linear".split()
    )


# Keras files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of the small DARTS network, of one with an auxiliary head, and of a deeper MCUNet without its top."""
    folder = tmp_path_factory.mktemp("weights")
    built("darts").save_weights(folder / "darts.weights.h5")
    built("darts").save(folder / "darts.keras")
    with_head = zoo.build(small("darts"), auxiliary=True, input_shape=(32, 32, 3), drop_path_rate=0.1)
    with_head.save_weights(folder / "auxiliary.weights.h5")
    zoo.build("mcunet_vww0", include_top=False).save_weights(folder / "deep.weights.h5")
    (folder / "damaged.weights.h5").write_bytes((folder / "darts.weights.h5").read_bytes()[:5000])
    (folder / "damaged.keras").write_bytes((folder / "darts.keras").read_bytes()[:5000])
    with zipfile.ZipFile(folder / "empty.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    return folder


@pytest.mark.parametrize("file", ["darts.weights.h5", "darts.keras"])
def test_build_takes_a_file_that_keras_saved(file, folder):
    model = zoo.build(small("darts"), weights=folder / file)
    images = images_for(model)
    np.testing.assert_array_equal(outputs_of(model, images), outputs_of(built("darts"), images))


def test_a_path_may_be_text_and_heads_that_the_network_lacks_may_be_in_the_file(folder):
    features = zoo.build(small("darts"), include_top=False, pooling="avg", weights=str(folder / "darts.keras"))
    images = images_for(features)
    whole = built("darts")
    expected = keras.Model(whole.inputs[0], whole.get_layer("avg_pool").output)
    np.testing.assert_array_equal(outputs_of(features, images), outputs_of(expected, images))


def test_an_auxiliary_head_in_the_file_moves_no_other_weights(folder):
    model = zoo.build(small("darts"), weights=folder / "auxiliary.weights.h5")
    again = zoo.build(small("darts"), auxiliary=True, input_shape=(32, 32, 3), weights=folder / "auxiliary.weights.h5")
    for layer in model.layers:
        for one, other in zip(layer.weights, again.get_layer(layer.name).weights, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("deep.weights.h5", "does not fit darts_small: it lacks .*; and .* more. The file must be of the same"),
        ("damaged.weights.h5", "damaged.weights.h5 cannot be read: .*Save it again"),
        ("damaged.keras", "damaged.keras cannot be read: File is not a zip file"),
        ("empty.keras", "empty.keras cannot be read: .*model.weights.h5"),
    ],
)
def test_a_file_that_does_not_fit_changes_nothing(file, message, folder, network):
    assert_refused(message, network, lambda: load_file(network, folder / file))


def test_the_file_of_a_deeper_network_is_refused(folder):
    """Keras' own load_weights takes it: the first layers have the same shapes."""
    genotype = shrunk("mcunet_vww0")
    body = dataclasses.replace(genotype.body, rows=genotype.body.rows[:6], head_filters=None)
    with pytest.raises(WeightsError, match=r"it also has block06_0_.*; and .* more"):
        zoo.build(dataclasses.replace(genotype, body=body), include_top=False, weights=folder / "deep.weights.h5")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 9}, r"other shapes of predictions \(there \[\(64, 4\), \(4,\)\], here \[\(64, 9\), \(9,\)\]\)"),
        ({"input_shape": (8, 8, 1)}, r"other shapes of stem_conv \(there \[\(3, 3, 3, 12\)\], here \[\(3, 3, 1, 12"),
        ({"auxiliary": True, "input_shape": (32, 32, 3)}, "it lacks aux_narrow_conv"),
    ],
)
def test_other_classes_channels_and_heads_are_refused(options, message, folder):
    with pytest.raises(WeightsError, match=message):
        zoo.build(small("darts"), weights=folder / "darts.weights.h5", **options)


def test_a_file_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "no.weights.h5"
    with pytest.raises(FileNotFoundError, match=f"weights: there is no file {re.escape(str(path))}; expected None or"):
        zoo.build(small("darts"), weights=path)
    (tmp_path / "model.h5").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"neither a \.weights\.h5 nor a \.keras file, which is what Keras 3 saves"):
        zoo.build(small("darts"), weights=tmp_path / "model.h5")


@pytest.mark.parametrize("weights", [3, True, b"imagenet"])
def test_weights_are_a_name_or_a_path(weights):
    with pytest.raises(ValueError, match=r"expected None, a name such as 'imagenet', or a path"):
        zoo.build(small("darts"), weights=weights)
