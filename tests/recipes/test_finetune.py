"""`python -m recipes.finetune`: a folder of images, weights of other classes, and what is refused."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from PIL import Image

import zoo
from recipes import finetune

CONFIG = finetune.Config(head_epochs=1, epochs=2, batch_size=8)


def make_folder(root, classes=("dark", "light"), count=24):
    generator = np.random.default_rng(0)
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 100, (8, 8, 3)) + 150 * number
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{index}.png")
    return str(root)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    genotype = dataclasses.replace(
        zoo.load("darts"), presets={"tiny": {"cells": 2, "filters": 4, "stem": "cifar", "stem_multiplier": 1}}
    )
    path = tmp_path_factory.mktemp("weights") / "five.keras"
    zoo.build(genotype, "tiny", classes=5, input_shape=(8, 8, 3)).save(path)
    return path


def test_weights_of_other_classes_learn_the_folder_and_name_its_classes(tmp_path, weights):
    config = dataclasses.replace(
        CONFIG, data=make_folder(tmp_path / "images"), weights=str(weights), folder=tmp_path / "out"
    )
    result = finetune.finetune(config)
    assert result.notes == ["left fresh, to be trained: predictions"]
    assert list(result.phases) == ["head", "all"]
    model = keras.saving.load_model(tmp_path / "out" / "model.keras")
    assert model.output_shape == (None, 2)
    assert model(np.zeros((1, 8, 8, 3)))[0].numpy().sum() == pytest.approx(1)  # probabilities
    assert json.loads((tmp_path / "out" / "class_names.json").read_text()) == ["dark", "light"]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["test_accuracy"] == result.accuracy
    dark, light = (results["test_classes"][name] for name in ("dark", "light"))
    assert dark["n"] + light["n"] == results["test_images"]
    right = dark["n"] * dark["recall"] + light["n"] * light["recall"]
    assert right / results["test_images"] == pytest.approx(result.accuracy)
    again = finetune.finetune(config)  # done: nothing is trained
    assert (again.phases, again.accuracy, again.notes) == (result.phases, result.accuracy, result.notes)
    with pytest.raises(ValueError, match=r"learning_rate=0\.01 there and 0\.1 here"):
        finetune.finetune(dataclasses.replace(config, learning_rate=0.1))


def test_weights_bring_their_normalisation_and_size_which_options_must_not_contradict(tmp_path, weights):
    results = {"image_size": [8, 8], "data": "photos", "preprocess": "centered", "config": {}}
    results["normalization"] = {"mean": [0.5], "std": [0.5]}
    weights.with_name("results.json").write_text(json.dumps(results))
    try:
        config = dataclasses.replace(CONFIG, weights=str(weights), folder=tmp_path / "out")
        with pytest.raises(ValueError, match=r"preprocess is unit, but .* reads centered by "):
            finetune.finetune(dataclasses.replace(config, preprocess="unit"))
        with pytest.raises(ValueError, match=r"image_size is 96, but .* takes 8 x 8; leave it out"):
            finetune.finetune(dataclasses.replace(config, image_size=96))
        with pytest.raises(ValueError, match="'photos' is not there"):  # and their data, unless others are given
            finetune.finetune(config)
    finally:
        weights.with_name("results.json").unlink()


def test_published_weights_bring_theirs(tmp_path, monkeypatch):
    built = zoo.build("mcunet_in0")
    monkeypatch.setattr(zoo, "build", lambda *args, weights=None, **options: built)
    found, origin = finetune._load_weights(dataclasses.replace(CONFIG, model="mcunet_in0", weights="imagenet"))
    assert found is built
    assert origin.image_size == (48, 48)
    assert origin.normalization == {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    assert origin.place == "the weights mcunet_in0_mit"


def test_too_few_images_are_refused(tmp_path, weights):
    config = dataclasses.replace(
        CONFIG, data=make_folder(tmp_path / "images", count=3), weights=str(weights), folder=tmp_path / "out"
    )
    with pytest.raises(ValueError, match="expected at least 5 training images"):
        finetune.finetune(config)


def test_a_single_class_is_refused(tmp_path, weights):
    config = dataclasses.replace(
        CONFIG, data=make_folder(tmp_path / "images", classes=("dark",)), weights=str(weights), folder=tmp_path / "out"
    )
    with pytest.raises(ValueError, match="expected at least two"):
        finetune.finetune(config)


def test_missing_and_damaged_weights_are_named(tmp_path):
    (tmp_path / "broken.keras").write_bytes(b"PK")
    for name, error, message in (
        ("none", FileNotFoundError, r"there is no file .*none\.keras"),
        ("broken", ValueError, r"broken\.keras is damaged or cut off"),
    ):
        with pytest.raises(error, match=message):
            finetune.finetune(dataclasses.replace(CONFIG, weights=str(tmp_path / f"{name}.keras"), folder=tmp_path))
