"""What every network of `zoo.build` keeps to: names, standard layers, places of normalisation, and files."""

import keras
import numpy as np
import pytest

import zoo
from tests.small_networks import (
    CLASSES,
    KINDS,
    built,
    foreign_layers,
    images_for,
    misplaced_normalisations,
    outputs_of,
    randomised,
    shrunk,
    small,
)
from zoo.genotype import Blocks, Genotype

# These share their code with others: the ImageNet stems, and ENAS' second kind of body
SLOW = ("nasnet_imagenet", "darts_imagenet", "enas_macro")
kinds = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind in SLOW else kind for kind in KINDS]
)


@kinds
def test_two_builds_of_one_process_have_the_same_names(kind):
    with keras.StatelessScope():  # makes no values
        again = zoo.build(small(kind))
    assert [layer.name for layer in again.layers] == [layer.name for layer in built(kind).layers]
    assert [weight.path for weight in again.weights] == [weight.path for weight in built(kind).weights]


@kinds
def test_names_are_by_place_and_never_by_a_counter(kind):
    counted = [layer.name for layer in built(kind).layers if layer.name.startswith(tuple(COUNTED))]
    assert not counted


COUNTED = "conv2d depthwise_conv2d batch_normalization re_lu add concatenate dense input_layer dropout".split()


@kinds
def test_all_layers_are_standard_and_none_is_a_model(kind):
    assert not foreign_layers(built(kind))


@kinds
def test_normalisation_stands_right_behind_a_linear_convolution_that_nobody_else_reads(kind):
    assert not misplaced_normalisations(built(kind))


@kinds
def test_the_output_is_one_distribution_over_the_classes_an_image(kind):
    model = built(kind)
    probabilities = outputs_of(model, images_for(model))
    assert probabilities.shape == (2, CLASSES)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert np.ptp(probabilities) > 1e-3


@pytest.mark.parametrize(
    "kind",
    # one of each kind of body; the others share their code
    [kind if kind in ("darts", "mcunet") else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS],
)
def test_a_saved_network_computes_the_same_when_it_is_loaded(kind, tmp_path):
    model = built(kind)
    model.save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras")
    np.testing.assert_allclose(
        outputs_of(loaded, images_for(model)), outputs_of(model, images_for(model)), rtol=1e-5, atol=1e-7
    )
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]


@pytest.mark.parametrize(
    "kind",  # TensorFlow's paddings, PyTorch's, and blocks; the others share their code
    [kind if kind in ("nasnet", "darts", "mcunet") else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS],
)
def test_a_network_for_images_of_any_size_computes_what_one_for_this_size_does(kind):
    def network(*sides):
        model = zoo.build(small(kind), input_shape=(*sides, 3), classifier_activation=None)
        for layer in model.layers:  # by name: the order of the layers depends on the paddings
            if layer.weights:
                layer.set_weights(built(kind).get_layer(layer.name).get_weights())
        return model

    open_sized, smallest = network(None, None), KINDS[kind][3]
    for sides in [(2 * smallest, 2 * smallest), (2 * smallest + 1, 2 * smallest + 1), (smallest + 2, smallest + 5)]:
        fixed = network(*sides)
        images = images_for(fixed)
        expected = outputs_of(fixed, images)
        np.testing.assert_allclose(outputs_of(open_sized, images), expected, rtol=0, atol=1e-5 * np.std(expected))


@pytest.mark.parametrize("kind", ["darts", "mcunet"])
def test_a_network_is_channels_last_whatever_keras_is_set_to(kind):
    keras.config.set_image_data_format("channels_first")
    try:
        model = zoo.build(small(kind))
        assert keras.config.image_data_format() == "channels_first"
    finally:
        keras.config.set_image_data_format("channels_last")
    model.set_weights(built(kind).get_weights())
    images = images_for(model)
    np.testing.assert_allclose(outputs_of(model, images), outputs_of(built(kind), images), rtol=1e-5)


def few_filters(genotype: Genotype, preset: str) -> Genotype:
    """The preset as deep as it is, but narrow: AmoebaNet's stem has a quarter of a quarter."""
    changes = {"filters": 16 if genotype.family == "amoebanet" else 8, "stem_filters": 8}
    values = genotype.presets[preset]
    return shrunk(genotype.name, preset, **{key: value for key, value in changes.items() if key in values})


def narrow_presets() -> list:
    """All presets of all files, but for those that differ in nothing but widths from one before."""
    seen, found = set(), []
    for name in zoo.list_models():
        genotype = zoo.load(name)
        for preset in genotype.presets:
            values = {**few_filters(genotype, preset).presets["small"], "input_shape": (), "classes": 0}
            if (name, key := str(sorted(values.items()))) not in seen:
                seen.add((name, key))
                found.append(pytest.param(name, preset, id=f"{name}-{preset}"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "preset"), narrow_presets())
def test_every_preset_of_every_file(name, preset, tmp_path):
    genotype = few_filters(zoo.load(name), preset)
    # the networks of blocks end at stride 32, and their published sizes are small
    shape = (64, 64, 3) if isinstance(genotype.body, Blocks) else (33, 40, 3)
    model = randomised(zoo.build(genotype, classes=CLASSES, input_shape=shape))
    with keras.StatelessScope():
        again = zoo.build(genotype, classes=CLASSES, input_shape=shape)
    assert [weight.path for weight in again.weights] == [weight.path for weight in model.weights]
    assert [layer.name for layer in again.layers] == [layer.name for layer in model.layers]
    assert not foreign_layers(model)
    assert not misplaced_normalisations(model)
    outputs = outputs_of(model, images_for(model, count=1))
    assert outputs.shape == (1, CLASSES)
    assert np.isfinite(outputs).all()
    model.save(tmp_path / "network.keras")
    del again
    loaded = keras.models.load_model(tmp_path / "network.keras")
    np.testing.assert_allclose(outputs_of(loaded, images_for(model, count=1)), outputs, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@kinds
def test_a_tflite_file_computes_the_same(kind):
    pytest.importorskip("ai_edge_litert", reason="extra `deploy` is not installed")
    from zoo.deploy import measure, tflite

    model = built(kind)
    predicted = measure.predict(tflite.convert(model), images_for(model))
    np.testing.assert_allclose(predicted, outputs_of(model, images_for(model)), rtol=1e-3, atol=1e-5)
