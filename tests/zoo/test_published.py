"""Published weights in networks of `zoo.build`, from a file that stands in for the download."""

import dataclasses
import json
import warnings

import keras
import numpy as np
import pytest

import zoo
from recipes import classifiers, models
from tests.small_networks import as_torch, randomised
from zoo import GenotypeError, manifest
from zoo.weights import mobile_names
from zoo.weights.download import CACHE_VARIABLE
from zoo.weights.importing import WeightsError
from zoo.weights.published import WeightsWarning, adapt_kernel, preprocess, transfer

MODEL = "mcunet_vww0"


@pytest.fixture(scope="module")
def trained() -> keras.Model:
    keras.utils.set_random_seed(7)
    return randomised(zoo.build(MODEL))


@pytest.fixture
def published(trained, tmp_path, monkeypatch):
    """Puts a file of the trained network's weights in the place of the published one."""
    header, values, at = {}, [], 0
    layers = [layer.name for layer in trained.layers if layer.weights]
    blocks = {"_".join(name.split("_")[:2]) for name in layers if name.startswith("block")}
    names = mobile_names.once_for_all(layers, [f"blocks.{number}.x" for number in range(len(blocks))])
    for name, value in as_torch(trained, names).items():
        data = np.ascontiguousarray(value, "<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [at, at + len(data)]}
        values.append(data)
        at += len(data)
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(values))
    sources = (manifest.Source(path.as_uri(), "safetensors"),)
    entry = dataclasses.replace(manifest.find(MODEL, "vww"), sources=sources)
    monkeypatch.setattr(manifest, "entries", lambda: (entry,))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return entry


IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)


def test_build_takes_published_weights(published, trained):
    network = zoo.build(MODEL, weights="vww")
    np.testing.assert_allclose(network(IMAGES), trained(IMAGES), rtol=1e-5, atol=1e-7)


def test_another_number_of_classes_leaves_the_classifier_fresh_and_says_so(published, trained):
    with pytest.warns(WeightsWarning, match="left fresh, to be trained: predictions"):
        network = zoo.build(MODEL, weights="vww", classes=5)
    for name in ("stem_conv", "block03_0_project_bn"):
        np.testing.assert_array_equal(network.get_layer(name).weights[0], trained.get_layer(name).weights[0])


def test_one_channel_sums_the_first_kernel_and_says_so(published, trained):
    with pytest.warns(WeightsWarning, match=r"stem_conv \(from 3 channels to 1\)"):
        network = zoo.build(MODEL, weights="vww", input_shape=(64, 64, 1))
    grey = IMAGES[..., :1]
    np.testing.assert_allclose(network(grey), trained(np.repeat(grey, 3, axis=-1)), rtol=1e-4, atol=1e-6)


def test_features_take_the_weights_without_a_word(published, trained):
    network = zoo.build(MODEL, weights="vww", features_only=True)
    last = keras.Model(trained.inputs[0], trained.get_layer("avg_pool").input)
    np.testing.assert_allclose(network(IMAGES)[-1], last(IMAGES), rtol=1e-4, atol=1e-5)


def test_classes_of_published_weights_have_the_names_of_their_data_set(published):
    classifier = classifiers.load(models.ModelOptions(model=MODEL, weights="vww"))
    assert classifier.class_names == ("non_person", "person")
    assert classifier.labels == {"non_person": 0, "person": 1}


def test_a_model_without_published_weights_says_which_have_some(published):
    with pytest.raises(manifest.NoWeightsError, match=f"build one of {MODEL}"):
        zoo.build("mcunet_in0", weights="imagenet")


def test_more_channels_repeat_the_kernel_at_the_same_scale():
    kernel = np.arange(3.0).reshape(1, 1, 3, 1)
    np.testing.assert_array_equal(adapt_kernel(kernel, 6)[0, 0, :, 0], [0, 0.5, 1, 0, 0.5, 1])
    np.testing.assert_array_equal(adapt_kernel(kernel, 1)[0, 0, :, 0], [3])


def test_another_network_is_refused_and_stays_as_it_was(trained):
    other = zoo.build("mcunet_vww1")
    before = np.array(other.get_layer("stem_conv").kernel)
    with pytest.raises(WeightsError, match="is another network"):
        transfer(trained, other)
    np.testing.assert_array_equal(other.get_layer("stem_conv").kernel, before)


def test_preprocessing_gives_what_the_weights_were_trained_with():
    pixels = np.array([[[[0, 127.5, 255]]]], np.float32)
    np.testing.assert_allclose(preprocess("mcunet_in3")(pixels)[0, 0, 0], [-1, 0, 1], atol=1e-6)
    expected = [
        (value / 255 - mean) / std
        for value, mean, std in ((0, 0.485, 0.229), (127.5, 0.456, 0.224), (255, 0.406, 0.225))
    ]
    np.testing.assert_allclose(preprocess("mnasnet_a1")(pixels)[0, 0, 0], expected, rtol=1e-5)
    assert preprocess("mcunet_in3", channels=1)(pixels[..., :1]).shape == (1, 1, 1, 1)


def test_a_model_without_weights_has_no_preprocessing():
    with pytest.raises(manifest.NoWeightsError):
        preprocess("enas_micro")
    with pytest.raises(GenotypeError, match="there is no model 'resnet'"):
        preprocess("resnet")


def test_preprocessing_takes_a_family_and_a_genotype_as_build_does():
    for model in ("mnasnet", zoo.load("mnasnet_a1")):
        assert preprocess(model).get_config() == preprocess("mnasnet_a1").get_config()


@pytest.mark.slow
def test_a_file_of_keras_applications_fills_a_nasnet(tmp_path, monkeypatch):
    reference = keras.applications.NASNetMobile(weights=None, classes=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that h5 is the old format is the point
        reference.save(tmp_path / "nasnet.h5")
    entry = manifest.find("nasnet_a", "imagenet", ["mobile"])
    entry = dataclasses.replace(entry, sources=(manifest.Source((tmp_path / "nasnet.h5").as_uri(), "h5"),))
    monkeypatch.setattr(manifest, "entries", lambda: (entry,))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    network = zoo.build("nasnet_a", weights="imagenet")
    np.testing.assert_array_equal(network.get_layer("stem_conv").kernel, reference.get_layer("stem_conv1").kernel)
    np.testing.assert_array_equal(network.get_layer("predictions").kernel, reference.get_layer("predictions").kernel)
