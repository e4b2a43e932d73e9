"""Long trainings: schedules and steps by hand, the best weights, kills that change nothing."""

import dataclasses
import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import zoo
from recipes.images import augment
from recipes.images.parts import Arrays
from recipes.training import fitting as training
from recipes.training.descent import Descent, Learner
from recipes.training.display import Moment
from recipes.training.drop_path import scheduled
from recipes.training.fitting import Settings, fit
from recipes.training.judging import accuracy
from recipes.training.schedules import Schedule


def part(count=64, seed=0, side=8):
    """Two classes that differ in brightness."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = generator.integers(0, 128, (count, side, side, 1)) + 100 * labels[:, None, None, None]
    return Arrays(images.astype(np.uint8), labels)


def dense(start=0.5, inputs=2, classes=2):
    image = keras.Input((inputs,))
    layer = keras.layers.Dense(classes, kernel_initializer=keras.initializers.Constant(start))
    return keras.Model(image, layer(image))


def small_network(drop_path_rate=0.0):
    keras.utils.set_random_seed(1)
    genotype = zoo.load("darts")
    preset = {"cells": 2, "filters": 4, "stem": "cifar", "stem_multiplier": 1}
    genotype = dataclasses.replace(genotype, presets={"tiny": preset})
    return zoo.build(
        genotype, "tiny", classes=2, input_shape=(8, 8, 1), classifier_activation=None, drop_path_rate=drop_path_rate
    )


def linear():
    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 1))
    x = keras.layers.Flatten()(image)
    return keras.Model(image, keras.layers.Dense(2)(keras.layers.Dropout(0.3)(x)))


# Learning rates


def test_cosine_goes_from_the_rate_to_the_last():
    cosine = Schedule("cosine", rate=0.1, last=0.02)
    assert [cosine.at(time, 10) for time in (0, 5, 10)] == pytest.approx([0.1, 0.06, 0.02])


def test_warmup_grows_linearly():
    cosine = Schedule("cosine", rate=0.1, warmup=2)
    assert cosine.at(0, 10) == 0
    assert cosine.at(1, 10) == pytest.approx(0.5 * 0.05 * (1 + math.cos(math.pi / 10)))


def test_restarts_of_enas_last_10_20_40_epochs_and_end_with_630():
    restarts = Schedule("restarts", rate=0.05, last=1e-4, period=10, factor=2)
    assert [restarts.at(start, 630) for start in (0, 10, 30, 70, 150, 310)] == pytest.approx([0.05] * 6)
    assert restarts.at(20, 630) == pytest.approx((0.05 + 1e-4) / 2)  # the middle of the second period
    assert restarts.at(20.9, 630) == restarts.at(20, 630)  # the code of ENAS changes it by the epoch
    assert restarts.at(629.999, 630) == restarts.at(629, 630) < 1.02e-4


def test_exponential_falls_in_stairs_or_smoothly():
    stairs = Schedule("exponential", rate=1.0, period=2.4, factor=0.97)
    assert [stairs.at(time, 100) for time in (0, 2.3, 2.5, 4.9)] == pytest.approx([1, 1, 0.97, 0.97**2])
    assert dataclasses.replace(stairs, stairs=False).at(1.2, 100) == pytest.approx(0.97**0.5)
    assert dataclasses.replace(stairs, last=0.5).at(90, 100) == 0.5


def test_exponential_falls_only_after_its_warmup():
    stairs = Schedule("exponential", rate=1.0, warmup=3, period=2.4, factor=0.97)
    assert [stairs.at(time, 100) for time in (0, 1.5, 2.7, 3, 4.8)] == pytest.approx([0, 0.5, 0.9, 0.97, 0.97**2])


@pytest.mark.parametrize("options", [{"kind": "linear"}, {"rate": 0}, {"last": 1}, {"period": 0}, {"warmup": -1}])
def test_schedules_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match="expected"):
        Schedule(**options)


# One step by hand: the logits are equal, so the gradient of the kernel is input x (0.5 - truth)

IMAGE = np.array([[1.0, 2.0]], np.float32)
GRADIENT = np.array([[-0.5, 0.5], [-1.0, 1.0]])


def kernel_after(descent, steps=1, rate=0.1):
    model = dense()
    learner = Learner(model, descent)
    for _ in range(steps):
        learner.step(IMAGE, np.array([0]), rate)
    return model.layers[1].get_weights()[0]


def test_step_of_sgd():
    np.testing.assert_allclose(kernel_after(Descent(momentum=0.0)), 0.5 - 0.1 * GRADIENT, rtol=1e-6)


def test_first_step_of_nesterov_is_one_and_nine_tenths_of_the_gradient():
    np.testing.assert_allclose(kernel_after(Descent(nesterov=True)), 0.5 - 0.19 * GRADIENT, rtol=1e-6)


def test_first_step_of_rmsprop_divides_by_the_root_of_a_mean_that_starts_at_one():
    mean = 0.9 + 0.1 * GRADIENT**2
    after = kernel_after(Descent("rmsprop", epsilon=0.001))
    np.testing.assert_allclose(after, 0.5 - 0.1 * GRADIENT / np.sqrt(mean + 0.001), rtol=1e-5)


def test_weight_decay_adds_w_times_the_weight():
    np.testing.assert_allclose(
        kernel_after(Descent(momentum=0.0, weight_decay=0.2)), 0.5 - 0.1 * (GRADIENT + 0.2 * 0.5), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("options", "gamma", "bias"),
    [({}, 1, 1), ({"decay_all": True}, 0.98, 0.98), ({"decay_biases": True}, 1, 0.98)],
    ids=["kernels", "all", "biases"],
)
def test_biases_and_normalisation_decay_only_where_they_are_asked_to(options, gamma, bias):
    inputs = keras.Input((2,))
    norm, head = keras.layers.BatchNormalization(), keras.layers.Dense(2, kernel_initializer="zeros")
    model = keras.Model(inputs, head(norm(inputs)))
    head.bias.assign(np.ones(2))
    learner = Learner(model, Descent(momentum=0.0, weight_decay=0.2, **options))
    learner.step(np.zeros((2, 2), np.float32), np.array([0, 1]), 0.1)  # the gradients of the two images cancel out
    np.testing.assert_allclose(norm.gamma, [gamma, gamma], rtol=1e-6)
    np.testing.assert_allclose(head.bias, [bias, bias], rtol=1e-6)


def test_clipping_scales_the_gradient_to_the_norm():
    norm = math.sqrt((GRADIENT**2).sum() + 2 * 0.5**2)
    np.testing.assert_allclose(
        kernel_after(Descent(momentum=0.0, clip=0.3)), 0.5 - 0.1 * GRADIENT * 0.3 / norm, rtol=1e-5
    )


def test_label_smoothing_moves_the_truth():
    after = kernel_after(Descent(momentum=0.0, label_smoothing=0.2))  # truth 0.9, 0.1
    np.testing.assert_allclose(after, 0.5 - 0.1 * GRADIENT * 0.8, rtol=1e-5)


def test_auxiliary_loss_counts_four_tenths():
    image = keras.Input((2,))
    heads = [keras.layers.Dense(2, kernel_initializer="zeros", name=name)(image) for name in ("main", "auxiliary")]
    model = keras.Model(image, heads)
    loss, right = Learner(model, Descent(momentum=0.0)).step(IMAGE, np.array([0]), 0.1)
    np.testing.assert_allclose(model.get_layer("main").get_weights()[0], -0.1 * GRADIENT, rtol=1e-6)
    np.testing.assert_allclose(model.get_layer("auxiliary").get_weights()[0], -0.04 * GRADIENT, rtol=1e-6)
    assert float(loss) == pytest.approx(math.log(2))
    assert int(right) == 1


# Whole trainings

SETTINGS = Settings(
    epochs=4, batch_size=16, schedule=Schedule(rate=0.05), descent=Descent(weight_decay=1e-4, clip=5.0), average=0.9
)


def run(folder, stop_after=None, settings=SETTINGS, make=linear, **options):
    """Trains; `stop_after` epochs the process is as good as killed."""
    model = make()
    policy = augment.cifar(padding=1, cutout_length=0)

    class KilledError(Exception):
        pass

    def observe(moment: Moment):
        if stop_after is not None and moment.done > stop_after + 0.4:
            raise KilledError

    try:
        outcome = fit(
            model, part(), part(32, seed=1), settings, seed=3, augment=policy, folder=folder, observe=observe, **options
        )
    except KilledError:
        return None, model
    return outcome, model


def without_seconds(outcome):
    return [{name: value for name, value in record.items() if name != "seconds"} for record in outcome.history]


def test_killed_and_resumed_training_gives_the_same_result(tmp_path):
    whole, model = run(tmp_path / "whole")
    assert run(tmp_path / "killed", stop_after=1)[0] is None
    assert len(json.loads((tmp_path / "killed" / "history.json").read_text())) == 1
    assert run(tmp_path / "killed", stop_after=3)[0] is None
    resumed, other = run(tmp_path / "killed")
    assert without_seconds(resumed) == without_seconds(whole)
    assert (resumed.epoch, resumed.accuracy) == (whole.epoch, whole.accuracy)
    for mine, theirs in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert (tmp_path / "killed" / "history.csv").read_text().count("\n") == 5


def test_finished_training_is_not_done_again(tmp_path):
    first, model = run(tmp_path)
    second, other = run(tmp_path, stop_after=0)
    assert second == first
    np.testing.assert_array_equal(model.get_weights()[0], other.get_weights()[0])


def test_state_of_another_training_is_refused(tmp_path):
    run(tmp_path, stop_after=1)
    with pytest.raises(ValueError, match="batch_size 16 there and 32 here"):
        run(tmp_path, settings=dataclasses.replace(SETTINGS, batch_size=32))


def test_damaged_state_is_refused(tmp_path):
    run(tmp_path, stop_after=1)
    whole = (tmp_path / training.STATE_FILE).read_bytes()
    for damaged in (b"", b"not an archive", whole[: len(whole) // 2]):
        (tmp_path / training.STATE_FILE).write_bytes(damaged)
        with pytest.raises(ValueError, match="delete it to begin anew"):
            run(tmp_path)


def test_best_weights_are_those_of_the_best_validation_epoch(tmp_path):
    outcome, model = run(None)
    accuracies = [record["val_accuracy"] for record in outcome.history]
    assert outcome.accuracy == max(accuracies)
    assert outcome.epoch == 1 + accuracies.index(max(accuracies))
    assert accuracy(model, part(32, seed=1)) == pytest.approx(outcome.accuracy)


def test_average_follows_the_weights_by_hand():
    model = dense()
    settings = Settings(average=0.5)
    averaging = training._Run(model, part(), settings, 0, None, augment.UNIT, None)
    model.layers[1].set_weights([np.ones((2, 2)), np.ones(2)])
    averaging._average(tf.constant(0.5))
    np.testing.assert_allclose(averaging._averages[0], np.full((2, 2), 0.75))  # of 0.5 and 1
    with averaging.judged_weights():
        np.testing.assert_allclose(model.get_weights()[0], 0.75)
    np.testing.assert_allclose(model.get_weights()[0], 1.0)


def test_searched_cell_with_drop_path_learns_and_traces_once():
    twin = scheduled(small_network(drop_path_rate=0.2))
    outcome = fit(
        twin.model, part(), part(32, seed=1), Settings(epochs=2, batch_size=16), seed=0, drop_path=twin.progress
    )
    assert float(twin.progress.value) == pytest.approx(1 - 1 / 8)  # 8 steps in all
    assert outcome.history[1]["loss"] < outcome.history[0]["loss"]


def test_frozen_layers_stay_as_they_are():
    model = small_network()
    for layer in model.layers[:-1]:
        layer.trainable = False
    before = {layer.name: layer.get_weights() for layer in model.layers}
    fit(model, part(), part(32, seed=1), Settings(epochs=1, batch_size=32))
    changed = [
        layer.name
        for layer in model.layers
        if any((mine != theirs).any() for mine, theirs in zip(layer.get_weights(), before[layer.name], strict=True))
    ]
    assert changed == [model.layers[-1].name]


def test_diverging_training_says_what_to_do():
    with pytest.raises(training.DivergedError, match="lower the learning rate"):
        fit(linear(), part(), part(8), Settings(epochs=3, batch_size=8, schedule=Schedule(rate=1e38)))


def test_no_validation_image_is_refused():
    with pytest.raises(ValueError, match="validation_fraction"):
        fit(linear(), part(), part().take(np.arange(0)), Settings())


def test_tensorboard_on_request(tmp_path):
    run(tmp_path, settings=dataclasses.replace(SETTINGS, epochs=1), tensorboard=True)
    (events,) = (tmp_path / "tensorboard").glob("events*")
    tags = {value.tag for event in tf.compat.v1.train.summary_iterator(str(events)) for value in event.summary.value}
    assert tags == {"learning_rate", "loss", "accuracy", "seconds", "val_loss", "val_accuracy"}


@pytest.mark.parametrize("options", [{"epochs": 0}, {"batch_size": 0}, {"average": 1.0}])
def test_settings_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match="expected"):
        Settings(**options)


@pytest.mark.parametrize(
    "options", [{"optimizer": "adam"}, {"optimizer": "rmsprop", "nesterov": True}, {"clip": 0}, {"momentum": 1}]
)
def test_steps_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options)) if len(options) == 1 else "nesterov"):
        Descent(**options)
