"""`python -m recipes.quantize`: float, int8 after training and int8 trained for, on one page."""

import dataclasses
import re

import keras
import pytest

from recipes import deployable, quantize
from recipes.images import sources as data
from recipes.images.augment import UNIT
from zoo.deploy import planner, report, tflite_file

layers = keras.layers


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> quantize.Config:
    folder = tmp_path_factory.mktemp("quantize")
    image = keras.Input((28, 28, 1))
    x = layers.MaxPooling2D(2)(layers.Conv2D(8, 5, strides=2, activation="relu")(image))
    model = keras.Model(image, layers.Dense(10, activation="softmax")(layers.Flatten()(x)), name="small")
    model.compile(keras.optimizers.Adam(0.003), "sparse_categorical_crossentropy")
    model.fit(data.load(limit=2000).train.dataset(32, training=True), epochs=2, shuffle=False, verbose=0)
    model.save(folder / "small.keras")
    return quantize.Config(
        model=str(folder / "small.keras"),
        images=200,
        calibration=64,
        training_images=640,
        epochs=1,
        copy_back=True,
        sparsity=0.75,
        clusters=4,
        folder=folder / "out",
    )


@pytest.fixture(scope="module")
def result(config) -> report.Report:
    return quantize.train(config)


def test_all_files_are_judged_on_the_same_images(result, config):
    assert result.schemes == ("float32", "int8", "int8 QAT", "int8 pruned", "int8 clustered")
    assert result.n == 200
    assert result.accuracy > 0.6
    assert abs(result.drop("int8 QAT")) <= 0.05
    assert sorted(path.name for path in config.folder.iterdir()) == [
        "class_names.json",
        "deploy.json",
        "deploy.md",
        "model.keras",
        "small_float32.tflite",
        "small_int8.tflite",
        "small_int8_clustered.tflite",
        "small_int8_pruned.tflite",
        "small_int8_qat.tflite",
        "source.json",
    ]


def test_scheme_int4_trains_for_weights_of_four_bits(config, tmp_path):
    options = {"scheme": "int4", "training_images": 64, "images": 100, "copy_back": False, "folder": tmp_path}
    result = quantize.train(dataclasses.replace(config, **options, sparsity=None, clusters=None))
    assert result.schemes == ("float32", "int4", "int4 QAT")
    assert {planner.find_scheme(tmp_path / f"small_{name}.tflite") for name in ("int4", "int4_qat")} == {"int4"}
    assert abs(result.drop("int4 QAT")) <= 0.1


def test_pruned_and_clustered_files_are_smaller_once_compressed_as_the_page_says(result, config):
    line = re.search("Deflated, .*", (config.folder / "deploy.md").read_text())[0]
    sizes = {name: float(size) for name, size in re.findall(r"(int8 ?\w*) ([\d.]+) kB", line)}
    assert sizes["int8 pruned"] < 0.8 * sizes["int8"]
    assert sizes["int8 clustered"] < 0.8 * sizes["int8"]


def test_copied_back_weights_are_the_trained_ones(result, config):
    before, after = (keras.saving.load_model(path) for path in (config.model, config.folder / "model.keras"))
    moved = abs(before.layers[1].kernel.numpy() - after.layers[1].kernel.numpy())
    assert 0 < moved.max() < 0.05


def test_state_of_other_options_is_not_taken(config):
    model = keras.saving.load_model(config.model)
    folders = {
        quantize._name_state(dataclasses.replace(config, **change), model)
        for change in ({}, {"epochs": 2}, {"learning_rate": 1e-3}, {"training_images": None}, {"threads": 2})
    }
    assert len(folders) == 4  # the number of threads has no influence


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0; expected a number above 0"),
        ({"training_images": 0}, "training_images is 0"),
        ({"sparsity": 1.0}, "sparsity is 1.0; expected a share above 0 and below 1"),
        ({"clusters": 1}, "clusters is 1; expected a whole number from 2"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        quantize.Config(**options)


def test_model_of_two_outputs_is_trained_and_judged_by_one(tmp_path, capsys):
    image = keras.Input((28, 28, 1))
    x = layers.Conv2D(4, 5, strides=3, activation="relu")(image)
    first, second = (layers.Dense(10, "softmax", name=name)(layers.Flatten()(x)) for name in ("main", "auxiliary"))
    keras.Model(image, [first, second]).save(tmp_path / "two.keras")
    options = {"images": 20, "calibration": 8, "training_images": 32, "epochs": 1}
    config = quantize.Config(model=str(tmp_path / "two.keras"), folder=tmp_path / "out", output="auxiliary", **options)
    result = quantize.train(config)
    assert "has 2 outputs; the files get only number 1" in capsys.readouterr().err
    file = tflite_file.parse((tmp_path / "out" / result.row("int8 QAT").file).read_bytes())
    assert len(tflite_file.outputs_of(file)) == 1
    assert 0 <= result.row("int8 QAT").accuracy <= 1


@pytest.mark.parametrize(("units", "activation", "threshold"), [(10, "sigmoid", None), (1, None, None), (1, None, 0.0)])
def test_labels_and_loss_follow_from_the_activation(units, activation, threshold):
    image = keras.Input((28, 28, 1))
    model = keras.Model(image, layers.Dense(units, activation)(layers.Flatten()(image)))
    parts = data.load(limit=40)
    subject = deployable.Deployable(model, None, None, None, parts, UNIT, threshold, genotype=None)
    config = quantize.Config(training_images=20)
    if units == 1 and threshold is None:
        with pytest.raises(ValueError, match=r"one unit without a sigmoid\. If it is a logit, give --threshold=0"):
            quantize._load_training_images(config, subject)
        return
    images, labels, loss = quantize._load_training_images(config, subject)
    assert (len(images), loss) == (20, "binary")
    assert labels.shape == ((20, 10) if units == 10 else (20,))
    assert units == 1 or (labels.sum(axis=1) == 1).all()
