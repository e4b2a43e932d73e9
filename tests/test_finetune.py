"""`python -m recipes.finetune`: a folder of images, weights of other classes, and what is refused."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from PIL import Image

import zoo
from recipes import finetune

CONFIG = finetune.Config(image_size=None, head_epochs=1, epochs=2, batch_size=8)


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
        CONFIG, data=make_folder(tmp_path / "images"), weights=weights, folder=tmp_path / "out"
    )
    result = finetune.finetune(config)
    assert result.notes == ["left fresh, to be trained: predictions"]
    assert list(result.phases) == ["head", "all"]
    model = keras.saving.load_model(tmp_path / "out" / "model.keras")
    assert model.output_shape == (None, 2)
    assert model(np.zeros((1, 8, 8, 3)))[0].numpy().sum() == pytest.approx(1)  # probabilities
    assert json.loads((tmp_path / "out" / "class_names.json").read_text()) == ["dark", "light"]
    assert json.loads((tmp_path / "out" / "results.json").read_text())["test_accuracy"] == result.accuracy


def test_too_few_images_are_refused(tmp_path, weights):
    config = dataclasses.replace(CONFIG, data=make_folder(tmp_path, count=3), weights=weights)
    with pytest.raises(ValueError, match="expected at least 5 training images"):
        finetune.finetune(config)


def test_a_single_class_is_refused(tmp_path, weights):
    config = dataclasses.replace(CONFIG, data=make_folder(tmp_path, classes=("dark",)), weights=weights)
    with pytest.raises(ValueError, match="expected at least two"):
        finetune.finetune(config)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.keras"):
        finetune.finetune(dataclasses.replace(CONFIG, weights=tmp_path / "none.keras"))
