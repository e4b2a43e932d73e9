"""The arguments of `zoo.build`: what each does, and what is refused, with which words."""

import dataclasses
import re

import keras
import numpy as np
import pytest

import zoo
from tests.small_networks import CLASSES, built, images_for, outputs_of, shrunk, small
from zoo.genotype import CellGraph, Cells, Genotype, GenotypeError, Node

DARTS = small("darts")


def shape_of(genotype=DARTS, **options):
    """The shapes of the outputs; no values are made."""
    with keras.StatelessScope():
        model = zoo.build(genotype, **options)
    shapes = [output.shape[1:] for output in model.outputs]
    return shapes[0] if len(shapes) == 1 else shapes


def test_a_path_builds_what_the_genotype_does(tmp_path):
    zoo.save(DARTS, tmp_path / "mine.json")
    with keras.StatelessScope():
        model = zoo.build(str(tmp_path / "mine.json"))
    assert [layer.name for layer in model.layers] == [layer.name for layer in built("darts").layers]


def test_a_network_is_named_after_file_and_preset_or_as_one_likes():
    assert built("darts").name == "darts_small"
    with keras.StatelessScope():
        assert zoo.build(small("mcunet"), name="mine").name == "mine"


def test_the_first_preset_is_the_default_and_a_genotype_without_any_takes_those_of_its_family():
    own = dataclasses.replace(small("mcunet"), name="own.cell", presets={})
    with keras.StatelessScope():
        model = zoo.build(own)
    assert model.name == "own_cell_imagenet"  # Keras has dots for paths of its own
    assert (model.input_shape, model.output_shape) == ((None, 176, 176, 3), (None, 1000))  # of mcunet_in3


def test_classes_and_shape_are_the_presets_unless_given():
    assert shape_of() == (CLASSES,)
    assert shape_of(classes=7) == (7,)
    assert shape_of(classes=np.int64(7)) == (7,)
    assert shape_of(input_shape=[12, np.int64(10), 1], include_top=False) == (3, 3, 64)


@pytest.mark.parametrize("channels", [1, 5])
def test_any_number_of_channels_and_odd_sizes(channels):
    assert shape_of(input_shape=(9, 13, channels), include_top=False) == (3, 4, 64)
    assert shape_of(small("darts_imagenet"), input_shape=(33, 47, channels), include_top=False) == (2, 2, 64)


def test_without_top_come_the_last_map_its_mean_or_its_maximum():
    images = images_for(built("darts"))
    models = [zoo.build(DARTS, include_top=False, pooling=pooling) for pooling in (None, "avg", "max")]
    models[1].set_weights(models[0].get_weights())
    models[2].set_weights(models[0].get_weights())
    last, mean, most = (outputs_of(model, images) for model in models)
    assert last.shape == (2, 2, 2, 64)
    np.testing.assert_allclose(mean, last.mean(axis=(1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(most, last.max(axis=(1, 2)))


def test_without_activation_come_logits():
    logits = zoo.build(DARTS, classifier_activation=None)
    logits.set_weights(built("darts").get_weights())
    images = images_for(logits)
    values = np.exp(outputs_of(logits, images))
    np.testing.assert_allclose(
        values / values.sum(axis=1, keepdims=True), outputs_of(built("darts"), images), rtol=1e-5
    )
    assert np.abs(outputs_of(logits, images).sum(axis=1) - 1).min() > 1e-3


def test_an_auxiliary_head_is_a_second_output_of_the_same_classes():
    assert shape_of(auxiliary=True, input_shape=(32, 32, 3), classes=6) == [(6,), (6,)]
    with keras.StatelessScope():
        model = zoo.build(DARTS, auxiliary=True, input_shape=(32, 32, 3), classifier_activation=None)
    assert [layer.activation.__name__ for layer in model.layers if "predictions" in layer.name] == ["linear"] * 2
    assert not [layer.name for layer in built("darts").layers if layer.name.startswith("aux")]


def dropouts(**options) -> list:
    with keras.StatelessScope():
        model = zoo.build(DARTS, **options)
    return [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]


def test_dropout_is_there_when_it_is_asked_for_and_leaves_nothing_behind_otherwise():
    assert dropouts() == []
    (dropout,) = dropouts(dropout_rate=0.25)
    assert (dropout.name, dropout.rate, dropout.noise_shape) == ("top_dropout", 0.25, None)
    paths = dropouts(drop_path_rate=0.3)
    assert {layer.rate for layer in paths} == {0.3}  # DARTS: the same in every cell
    assert {layer.noise_shape for layer in paths} == {(None, 1, 1, 1)}
    assert all(re.fullmatch(r"cell\d\d(_reduce)?_node\d_edge\d_drop_path", layer.name) for layer in paths)
    # per normal cell 8 edges of which 2 are identities, in each of two reductions all 8, three of them from a node
    assert len(paths) == 6 + 2 * (8 - 3)


@pytest.mark.parametrize(
    ("kind", "shape", "strides"),
    [
        ("darts", (16, 24, 3), [1, 2, 4]),
        ("darts_imagenet", (64, 32, 3), [2, 4, 8, 16, 32]),
        ("nasnet", (16, 24, 3), [1, 2, 4]),
        ("mcunet", (64, 32, 3), [2, 4, 8]),
    ],
)
def test_features_come_finest_first_one_a_stride(kind, shape, strides):
    shapes = shape_of(small(kind), features_only=True, input_shape=shape)
    assert [side[:2] for side in shapes] == [(shape[0] // stride, shape[1] // stride) for stride in strides]


# Bad input

BLOCKS = dataclasses.replace(small("mcunet"), family="darts", presets=DARTS.presets)
NONES = Genotype("mine", "darts", Cells(CellGraph([Node([("none", 0), ("none", 1)])], [2])), presets=DARTS.presets)


def preset_of(**changes) -> Genotype:
    return shrunk("darts", "cifar10", cells=3, filters=4, **changes)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (["dart"], {}, "there is no model 'dart' (did you mean 'darts'?)"),
        ([3], {}, "a model is 3; expected a name from zoo.list_models(), or a path"),
        (["darts", "cifar100"], {}, "no preset 'cifar100' (did you mean 'cifar10'?); expected one of cifar10, "),
        (["darts", 10], {}, "darts has no preset 10; expected one of"),
        ([dataclasses.replace(DARTS, family="dart")], {}, "there is no family 'dart' (did you mean 'darts'?); "),
        ([BLOCKS], {}, "mcunet_vww0 has Blocks, but its family 'darts' builds Cells; give the genotype the"),
        ([preset_of(cell=3)], {}, "the preset's key 'cell' is not known (did you mean 'cells'?); this family has"),
        ([preset_of(stem="mnist")], {}, "darts, preset 'small': the preset's stem 'mnist' is not known; expected"),
        ([preset_of(stem_multiplier=0)], {}, "the preset's stem_multiplier is 0; expected a whole number from 1"),
        ([shrunk("nasnet_a", "large", skip_reduction="no")], {}, "skip_reduction is 'no'; expected true or false"),
        ([shrunk("nasnet_a", "mobile", filters=3)], {}, "would have 0 filters, a fraction of the preset's"),
        ([preset_of(input_shape=None)], {}, "input_shape is not given, and the preset has none"),
        ([preset_of(classes=None)], {}, "classes is not given, and the preset has none"),
        ([NONES], {}, 'mine, preset \'small\': node 2 of cell00 is zero, because its edges are "none" or read zero'),
        *(([DARTS], {"classes": value}, f"classes={value!r}; expected a whole number from 1")
          for value in (0, -1, True, 2.0, "10")),
        *(([DARTS], {"input_shape": value}, f"input_shape={value!r}; expected (height, width, channels), such as (224")
          for value in ((16, 3), (16, 16, 0), (16, 16, None), (-1, 16, 3), (True, 16, 3), (16.5, 16, 3), 16, "224")),
        ([DARTS], {"input_shape": (8, 3, 3)}, "(8, 3, 3) has a width of 3, which halvings would reduce to nothing; "),
        (["darts", "imagenet"], {"input_shape": (31, 64, 3)}, "a height of 31, which halvings would reduce to nothing"),
        ([DARTS], {"include_top": False, "pooling": "mean"}, "pooling='mean'; expected one of None, 'avg', 'max'"),
        ([DARTS], {"pooling": "avg"}, "without the classifier; leave it out, or add include_top=False"),
        ([DARTS], {"pooling": "avg", "features_only": True}, "pools the last feature map without the classifier; "),
        ([DARTS], {"auxiliary": True, "include_top": False}, "auxiliary=True has no effect without the classifier"),
        ([DARTS], {"auxiliary": True, "features_only": True}, "auxiliary=True has no effect without the classifier"),
        ([DARTS], {"dropout_rate": 0.5, "include_top": False}, "dropout_rate=0.5 has no effect without the classifier"),
        *(([DARTS], {name: value}, f"{name}={value!r}; expected a number from 0 to less than 1")
          for name in ("drop_path_rate", "dropout_rate") for value in (-0.1, 1, True, "0.1", None)),
        ([DARTS], {"drop_path_rate": float("nan")}, "drop_path_rate=nan; expected"),
        ([DARTS], {"auxiliary": True, "input_shape": (None, None, 3)}, "needs a feature map of at least 5 x 5 at the"),
        ([DARTS], {"auxiliary": True, "input_shape": (16, 16, 3)}, "and has (4, 4). Give a larger input_shape than ("),
        ([DARTS], {"width_multiplier": 0.5}, "width_multiplier is not for the family 'darts', only for mnasnet; leave"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_value_and_expectation(arguments, options, message):
    with keras.StatelessScope(), pytest.raises(ValueError, match=re.escape(message)):
        zoo.build(*arguments, **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema_version": 1, "name": "mine"', r"mine\.json: malformed JSON in line 1"),
        (
            ("0]]", "4]]"),
            r"mine\.json: cell 'normal': node 3 reads state 4 \(skip_connect\), which does not come before it: a cycle",
        ),
        (("skip_connect", "skip_conect"), r"node 3: op 'skip_conect' is not known \(did you mean 'skip_connect'\?\)"),
    ],
)
def test_a_bad_file_is_refused_with_its_path_and_place(text, message, tmp_path):
    graph = CellGraph([Node([("sep_conv_3x3", 1)]), Node([("sep_conv_3x3", 1), ("skip_connect", 0)])], [2, 3])
    path = tmp_path / "mine.json"
    zoo.save(dataclasses.replace(DARTS, name="mine", body=Cells(graph)), path)
    good = path.read_text(encoding="utf-8")
    path.write_text(text if isinstance(text, str) else good.replace(*text), encoding="utf-8")
    assert path.read_text(encoding="utf-8") != good
    with pytest.raises(GenotypeError, match=message):
        zoo.build(path)


def test_an_argument_that_there_is_not_is_a_type_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'class_count'"):
        zoo.build(DARTS, class_count=3)
