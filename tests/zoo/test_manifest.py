"""The list of published weights: each entry is complete, belongs to a model, and is found by what a user would say."""

import re

import numpy as np
import pytest

import zoo
from zoo import manifest
from zoo.manifest import NoWeightsError

ENTRIES = pytest.mark.parametrize("entry", manifest.entries(), ids=lambda entry: entry.name)


@ENTRIES
def test_every_entry_belongs_to_a_preset_of_a_model(entry):
    preset = zoo.load(entry.model).presets[entry.preset]
    assert preset["classes"] == entry.classes
    names = zoo.decode_predictions(np.ones((1, entry.classes)), top=entry.classes, dataset=entry.dataset)[0]
    assert len({name for name, *_ in names}) == entry.classes
    assert preset["input_shape"][2] == len(entry.preprocessing["mean"]) == len(entry.preprocessing["std"])


@ENTRIES
def test_every_entry_says_where_whose_and_how_good(entry):
    assert entry.license in ("Apache-2.0", "BSD-3-Clause", "MIT")
    assert entry.source
    assert 30 < entry.top1 < 100
    for source in entry.sources:
        assert source.url.startswith("https://")
        assert source.format in ("h5", "safetensors", "pth", "pth.zip", "tar.gz")
        for digest, pattern in (
            (source.sha256, "[0-9a-f]{64}"),
            (source.sha256_prefix, "[0-9a-f]{8,}"),
            (source.md5, "[0-9a-f]{32}"),
            (source.sha1_inside, "[0-9a-f]{40}"),
        ):
            assert digest is None or re.fullmatch(pattern, digest)


def test_names_are_unique_and_say_no_dataset_or_origin():
    names = [entry.name for entry in manifest.entries()]
    words = {word for entry in manifest.entries() for word in (entry.dataset, entry.origin)}
    assert len(set(names)) == len(names)
    assert not words & set(names)


@pytest.mark.parametrize(
    ("model", "weights", "presets", "include_top", "name"),
    [
        ("nasnet_a", "imagenet", ["mobile"], True, "nasnet_a_mobile_keras"),
        ("nasnet_a", "imagenet", ["large"], False, "nasnet_a_large_keras_notop"),
        ("nasnet_a", "timm", ["large"], False, "nasnetalarge_timm"),
        ("mnasnet_a1", "imagenet", None, True, "semnasnet_100_timm"),
        ("mnasnet_b1", "imagenet", ["imagenet"], True, "mnasnet_100_timm"),
        ("mnasnet_b1", "torchvision", ["imagenet"], True, "mnasnet1_0_torchvision"),
        ("mnasnet_b1", "imagenet", ["imagenet_w130"], True, "mnasnet1_3_torchvision"),
        ("mnasnet_b1", "mnasnet0_5_torchvision", None, True, "mnasnet0_5_torchvision"),
        ("darts", "cifar10", ["cifar10"], True, "darts_cifar10_quark0"),
        ("mcunet_vww1", "vww", None, True, "mcunet_vww1_mit"),
    ],
)
def test_weights_are_found_by_data_set_origin_or_name(model, weights, presets, include_top, name):
    assert manifest.find(model, weights, presets, include_top=include_top).name == name


@pytest.mark.parametrize(
    ("model", "weights", "presets", "message"),
    [
        ("amoebanet_a", "imagenet", None, "build one of darts, mcunet_in0, .*pnasnet_5"),
        ("mnasnet_a1", "imagenett", None, "did you mean 'imagenet'"),
        ("mnasnet_a1", "imagenet", ["imagenet_w140"], r"size \(imagenet_w140\), only .* imagenet, imagenet_w075"),
        ("mnasnet_a1", "imagenet", [], "of no preset"),
        ("darts", "cifar10", ["imagenet"], "for the presets cifar10"),
    ],
)
def test_weights_that_are_not_there_list_those_that_are(model, weights, presets, message):
    with pytest.raises(NoWeightsError, match=message):
        manifest.find(model, weights, presets)


def test_info_tells_a_model_with_weights_from_one_without():
    assert zoo.info("mcunet_vww0")["weights"] == {
        "mcunet_vww0_mit": {"preset": "vww", "dataset": "vww", "origin": "mit", "top1": 87.4, "license": "MIT"}
    }
    assert zoo.info("enas_micro")["weights"] == {}
