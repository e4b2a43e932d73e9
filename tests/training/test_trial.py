"""One child network: trained the same whenever it is trained, and cheaply."""

import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from recipes.images.parts import Arrays, Stream
from recipes.training import child_training as trial
from recipes.training.evaluation import Evaluator
from recipes.training.tensorflow_options import run_branches_side_by_side

VARIABLE = "TF_NUM_INTRAOP_THREADS"


def images(count: int, seed: int = 0) -> Arrays:
    """Two classes: bright above, or bright below."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    pixels = rng.integers(0, 60, (count, 8, 8, 1))
    for number, label in enumerate(labels):
        pixels[number, 4 * label : 4 * label + 4] += 150
    return Arrays(pixels.astype(np.uint8), labels)


def network() -> keras.Model:
    x = inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, use_bias=False, name="conv")(x)
    x = keras.layers.BatchNormalization(momentum=0.9997, name="bn")(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    return keras.Model(inputs, keras.layers.Dense(2, name="top")(x))


def train(epochs: int = 3, seed: int = 1, make_model=network, part: Arrays | None = None, ends=(), **options) -> dict:
    part = images(64) if part is None else part
    return trial.train(
        make_model,
        part,
        images(40, seed=9),
        trial.make_child_settings(len(part), epochs, 16, 0.1, 1e-4, ends),
        seed=seed,
        **options,
    )


def test_a_network_learns_what_can_be_learned():
    result = train()
    assert result["val_accuracy"] == 1.0
    # 3x3x4 and 2x4 of the normalisation (and as many statistics), 4x2+2 of the classifier
    assert result["params"] == 36 + 16 + 10
    assert train() == result
    assert train(seed=6)["val_loss"] != result["val_loss"]


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_training_killed_between_epochs_resumes_to_the_same_result(tmp_path, epoch: int):
    class Killed(BaseException):
        pass

    def kill(share: float, text: str) -> None:
        if share > epoch / 3:
            raise Killed

    with pytest.raises(Killed):
        train(folder=tmp_path, report=kill)
    with np.load(tmp_path / "epoch.npz") as state:
        assert len(json.loads(state["header"].tobytes())["facts"]["history"]) == epoch
    seen = []
    resumed = train(folder=tmp_path, report=lambda share, text: seen.append(share))
    assert seen[0] == epoch / 3
    assert resumed == train()
    assert [path.name for path in tmp_path.iterdir()] == ["model.weights.h5"]


def test_a_training_in_stages_ends_as_one_without_a_stop(tmp_path):
    first = train(folder=tmp_path, until=1, ends=(1,))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch.npz", "model.weights.h5"]
    assert (
        train(folder=tmp_path, until=1, ends=(1,)) == first
    )  # killed between its end and the journal's line: run again
    seen = []
    last = train(folder=tmp_path, ends=(1,), report=lambda share, text: seen.append(share))
    assert seen[0] == 1 / 3
    assert last == train(ends=(1,)) != train()
    assert first == train(epochs=1)


def test_a_state_of_another_network_or_half_a_file_is_left_alone(tmp_path):
    (tmp_path / "epoch.npz").write_bytes(b"PK\x03\x04 half a file")
    assert train(folder=tmp_path) == train()


def test_the_rate_falls_along_a_cosine_after_ten_steps_of_warmup():
    schedule = trial.make_child_settings(1600, 1, 16, 0.4, 1e-4).schedule
    assert schedule.at_step(0, 100, 1) == pytest.approx(0.4 / 11)
    assert schedule.at_step(50, 100, 1) == pytest.approx(0.2)
    assert schedule.at_step(10, 10**6, 10**6) == pytest.approx(0.4 * 11 / 10**6 / 0.11)  # of epochs, not of steps


def test_each_stage_of_a_training_has_a_cosine_of_its_own():
    schedule = trial.make_child_settings(1600, 9, 16, 0.4, 1e-4, ends=(1, 3)).schedule
    assert schedule.at_step(50, 100, 9) == pytest.approx(0.2)  # the middle of the first epoch,
    assert [schedule.at_step(step, 100, 9) for step in (100, 300)] == [0.4, 0.4]
    assert [schedule.at_step(step, 100, 9) for step in (200, 600)] == pytest.approx([0.2, 0.2])  # of two, and of six
    assert schedule.at_step(899, 100, 9) < 1e-5


def test_augmentation_sees_every_batch_with_its_own_seed():
    seeds = []

    def augment(batch: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        seeds.append(tuple(seed.numpy().tolist()))
        return batch

    assert train(epochs=2, augment=augment) == train(epochs=2)
    assert len(set(seeds)) == len(seeds) == 2 * 64 / 16


class Streamed(Stream):
    """The images of an array as they come from a file: one by one, undecoded."""

    def __init__(self, part: Arrays):
        encoded = tf.constant([image.tobytes() for image in part.images])
        stored = tf.data.Dataset.from_tensor_slices((encoded, part.labels))
        super().__init__(stored, len(part), part.image_shape, buffer=len(part))

    @property
    def labels(self) -> np.ndarray:
        raise ValueError("not known before all is read")

    def take(self, indices: np.ndarray) -> Stream:
        raise ValueError("not needed")

    def _decode(self, stored: tf.Tensor) -> tf.Tensor:
        return tf.reshape(tf.io.decode_raw(stored, tf.uint8), self.image_shape)


def test_images_that_stream_from_the_disk_are_trained_on_and_judged_alike():
    settings = trial.make_child_settings(64, 3, 16, 0.1, 1e-4)
    parts = Streamed(images(64)), Streamed(images(40, seed=9))
    first, again = (trial.train(network, *parts, settings, seed=1) for _ in range(2))
    assert first == again
    assert first["val_accuracy"] == 1.0
    model = network()
    assert Evaluator(model, parts[0])() == pytest.approx(Evaluator(model, images(64))(), rel=1e-6)


def test_grappler_is_off_meanwhile_and_moving_averages_are_short():
    def is_off() -> bool:
        return tf.config.optimizer.get_experimental_options().get("disable_meta_optimizer", False)

    models, found = [], []

    def make() -> keras.Model:
        models.append(network())
        return models[0]

    train(epochs=1, make_model=make, report=lambda share, text: found.append(is_off()))
    assert all(found)
    assert not is_off()
    assert models[0].get_layer("bn").momentum == 0.9


@pytest.mark.parametrize(
    ("cores", "given", "expected"),
    [(1, None, "1"), (2, None, "1"), (8, None, "2"), (64, None, "16"), (None, None, "1"), (8, "7", "7")],
)
def test_an_operation_gets_a_quarter_of_the_cores_unless_the_user_says_otherwise(monkeypatch, cores, given, expected):
    monkeypatch.setenv(VARIABLE, given or "to be put back")
    if given is None:
        del os.environ[VARIABLE]
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    run_branches_side_by_side()
    assert os.environ[VARIABLE] == expected
