"""`python -m recipes.train`: a small training from end to end, and the papers' settings."""

import dataclasses
import json

import keras
import pytest

from recipes import train
from recipes.training.paper_settings import PAPER, paper_of

SMOKE = dataclasses.replace(train.PRESETS["smoke"], model="darts", cells=2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    return train.train(dataclasses.replace(SMOKE, folder=folder)), folder


def test_what_is_saved_is_the_plain_model_with_the_accuracy_that_is_told(trained):
    result, folder = trained
    model = keras.saving.load_model(folder / "model.keras")
    assert not any(isinstance(layer, keras.layers.Dropout) for layer in model.layers)
    assert model.output_shape == (None, 10)
    results = json.loads((folder / "results.json").read_text())
    assert results["test_accuracy"] == result.accuracy
    assert sorted(path.name for path in folder.iterdir()) == [
        "history.csv",
        "history.json",
        "model.keras",
        "results.json",
        "results.md",
    ]


def test_batch_takes_the_learning_rate_along():
    config = dataclasses.replace(SMOKE, batch_size=16)
    assert train._settings(config, train.SMALL.settings).schedule.rate == pytest.approx(0.025)
    config = dataclasses.replace(config, learning_rate=0.3)
    assert train._settings(config, train.SMALL.settings).schedule.rate == pytest.approx(0.3)


def test_paper_rows_by_scale_and_image():
    assert paper_of("darts", "cifar10", 32).settings.epochs == 600
    assert paper_of("nasnet", "mobile", 224).drop_path == 0
    assert paper_of("nasnet", "large", 331).drop_path == pytest.approx(0.3)
    amoebanet = paper_of("amoebanet", "large", 331).settings  # imagenet_hparams of the TPU code
    assert [amoebanet.schedule.at(time, 100) for time in (3, 5)] == pytest.approx([0.015 * 0.97, 0.015 * 0.97**2])
    assert amoebanet.descent.epsilon == 1
    assert sorted(PAPER) == ["amoebanet", "darts", "enas", "mcunet", "mnasnet", "nasnet", "pnasnet"]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"epochs": 0}, "epochs is 0"), ({"cells": None}, "give both"), ({"learning_rate": 0.0}, "above 0")],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMOKE, **options)
