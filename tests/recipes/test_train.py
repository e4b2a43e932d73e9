"""`python -m recipes.train`: a small training from end to end, what it takes unless given, and the papers' settings."""

import dataclasses
import json
import os

import keras
import numpy as np
import pytest

import zoo
from recipes import evaluate, train
from recipes.images import EMBEDDED
from recipes.training.paper_settings import PAPER, SMALL, find_paper
from recipes.training.results import find_origin
from recipes.training.state import StateError, locked
from tests.recipes.test_finetune import make_folder

SMOKE = dataclasses.replace(train.PRESETS["smoke"], model="darts", cells=2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    return train.train(dataclasses.replace(SMOKE, folder=folder)), folder


def test_what_is_saved_is_the_plain_model_with_the_accuracy_that_is_reported(trained):
    result, folder = trained
    model = keras.saving.load_model(folder / "model.keras")
    assert not any(isinstance(layer, keras.layers.Dropout) for layer in model.layers)
    assert model.output_shape == (None, 10)
    results = json.loads((folder / "results.json").read_text())
    assert results["test_accuracy"] == result.accuracy
    assert results["config"]["epochs"] == 1  # a number, not a text
    assert json.loads((folder / "class_names.json").read_text()) == results["class_names"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "class_names.json",
        "history.csv",
        "history.json",
        "model.keras",
        "results.json",
        "results.md",
    ]


def test_a_training_that_is_done_says_so_and_is_not_done_again(trained, capsys):
    result, folder = trained
    written = (folder / "model.keras").stat().st_mtime_ns
    again = train.train(dataclasses.replace(SMOKE, folder=folder, tensorboard=True))
    assert capsys.readouterr().out.startswith("this training is done: test accuracy ")
    assert (folder / "model.keras").stat().st_mtime_ns == written
    assert again.outcome == result.outcome
    assert again.accuracy == result.accuracy
    for ours, theirs in zip(again.model.get_weights(), result.model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_model_of_somebody_in_the_folder_is_not_overwritten(tmp_path):
    (tmp_path / "model.keras").write_text("somebody's")
    with pytest.raises(StateError, match=r"model\.keras was not written by this .*: move it away, or choose another"):
        train.train(dataclasses.replace(SMOKE, folder=tmp_path))
    assert (tmp_path / "model.keras").read_text() == "somebody's"


def test_other_options_in_the_folder_of_a_training_are_refused(trained):
    with pytest.raises(StateError, match=r"epochs=1 there and 2 here\); choose another folder"):
        train.train(dataclasses.replace(SMOKE, folder=trained[1], epochs=2))


def test_a_second_training_in_one_folder_is_refused(tmp_path):
    with locked(tmp_path), pytest.raises(BlockingIOError, match="in use by another process"):
        train.train(dataclasses.replace(SMOKE, folder=tmp_path))


def test_later_programs_learn_from_the_results_what_a_network_was_trained_on(trained, tmp_path):
    origin = find_origin(trained[1] / "model.keras")
    assert (origin.data, origin.image_size, origin.preprocess) == (EMBEDDED, (8, 8), "unit")
    assert origin.model == SMOKE.model  # not the Keras model's name
    assert origin.normalization == {"mean": [0.0], "std": [1.0]}
    old = {"config": {"data": "photos", "image_size": "14", "preprocess": "centered"}}  # of the version before
    (tmp_path / "results.json").write_text(json.dumps(old))
    origin = find_origin(tmp_path / "model.keras")
    assert (origin.data, origin.image_size, origin.preprocess) == ("photos", None, "centered")
    assert find_origin("darts").data is None


def test_a_genotype_is_trained_on_the_images_of_its_search_at_their_size(tmp_path, capsys):
    photos = make_folder(tmp_path / "photos")
    source = {"recipe": "recipes/darts.py", "config": {"data": photos, "image_size": 12}}
    zoo.save(dataclasses.replace(zoo.load("darts"), name="found", source=source), tmp_path / "genotype.json")
    config = dataclasses.replace(SMOKE, model=str(tmp_path / "genotype.json"), image_size=None, dry_run=True)
    train.train(config)
    text = capsys.readouterr().out
    assert f"data={photos} as in the search that found" in text
    assert "image_size=12 as in the search" in text
    assert "of 12 x 12 x 3, 2 classes" in text
    train.train(dataclasses.replace(config, data=EMBEDDED))  # given: its size is then not that of the search
    assert "of 14 x 14 x 1, 10 classes" in capsys.readouterr().out


_SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("mnasnet_a1", "enas_micro", "pnasnet_5", "darts")]


@pytest.mark.parametrize("model", ["mcunet_in0", "enas_macro", *_SLOW])
def test_every_family_is_trained_without_further_options(model, tmp_path, capsys):
    train.train(dataclasses.replace(train.PRESETS["laptop"], model=model, dry_run=True, folder=tmp_path / "none"))
    assert "10 classes" in capsys.readouterr().out
    assert not os.path.exists(tmp_path / "none")


def test_photos_are_resized_to_what_the_model_takes_and_it_is_said(tmp_path, capsys):
    config = train.Config(model="mcunet_in0", data=make_folder(tmp_path / "photos"), dry_run=True)
    train.train(config)
    text = capsys.readouterr().out
    assert "image_size=48 as in the model's preset" in text
    assert "of 48 x 48 x 3, 2 classes" in text


def test_batch_takes_the_learning_rate_along():
    config = dataclasses.replace(SMOKE, batch_size=16)
    assert train._adapt_settings(config, SMALL.settings).schedule.rate == pytest.approx(0.025)
    config = dataclasses.replace(config, learning_rate=0.3)
    assert train._adapt_settings(config, SMALL.settings).schedule.rate == pytest.approx(0.3)


def test_paper_rows_by_scale_and_image():
    assert find_paper("darts", "cifar10", 32).settings.epochs == 600
    assert find_paper("nasnet", "mobile", 224).drop_path == 0
    assert find_paper("nasnet", "large", 331).drop_path == pytest.approx(0.3)
    assert sorted(PAPER) == ["amoebanet", "darts", "enas", "mcunet", "mnasnet", "nasnet", "pnasnet"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"model_preset": "cifar10"}, "or cells"),
        ({"learning_rate": 0.0}, "above 0"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMOKE, **options)


def test_cells_are_not_for_networks_of_blocks():
    with pytest.raises(ValueError, match="not for the family 'mcunet'"):
        train.train(dataclasses.replace(SMOKE, model="mcunet_in0", dry_run=True))


def test_evaluate_finds_the_accuracy_that_the_training_reports(trained, tmp_path):
    result, folder = trained
    judged = evaluate.evaluate(evaluate.Config(model=str(folder / "model.keras"), folder=tmp_path))
    assert (judged["part"], judged["n"], judged["accuracy"]) == ("test", 2000, pytest.approx(result.accuracy))
    assert [one["class"] for one in judged["classes"]][:2] == ["T-shirt/top", "Trouser"]


def test_a_training_starts_from_weights(tmp_path):
    preset = {"cells": 2, "filters": 4, "stem": "cifar", "stem_multiplier": 1}
    genotype = dataclasses.replace(zoo.load("darts"), presets={"tiny": preset})
    zoo.save(genotype, tmp_path / "tiny.json")
    first = zoo.build(genotype, "tiny", classes=10, input_shape=(8, 8, 1))
    first.save_weights(tmp_path / "first.weights.h5")
    config = train.Config(
        model=str(tmp_path / "tiny.json"), weights=str(tmp_path / "first.weights.h5"), image_size=8, training_images=64,
        validation_images=50, epochs=1, learning_rate=1e-9, folder=tmp_path / "out",
    )  # fmt: skip
    second = train.train(config).model
    for before, after in zip(first.trainable_weights, second.trainable_weights, strict=True):
        np.testing.assert_allclose(before, after, atol=1e-6)
    with pytest.raises(ValueError, match="belong to a preset of the model; leave cells and filters out"):
        dataclasses.replace(config, cells=3)
