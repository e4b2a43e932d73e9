"""Long trainings: schedules and steps by hand, the best weights, kills that change nothing."""

import dataclasses
import functools
import io
import json
import math
import re
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console

import zoo
from recipes.images import augment
from recipes.images.parts import Arrays, Batches
from recipes.training import progress
from recipes.training.evaluation import Evaluator, measure_accuracy
from recipes.training.learner import Learner, schedule_drop_path
from recipes.training.loop import STATE_FILE, fit, run_epochs
from recipes.training.optimizer import Optimizer, Schedule, Settings, choose_optimizer
from recipes.training.progress import Status, show_progress
from recipes.training.state import TrainingState, locked


def part(count=64, seed=0, side=8):
    """Two classes that differ in brightness."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = generator.integers(0, 128, (count, side, side, 1)) + 100 * labels[:, None, None, None]
    return Arrays(images.astype(np.uint8), labels)


def dense():
    image = keras.Input((2,))
    layer = keras.layers.Dense(2, kernel_initializer=keras.initializers.Constant(0.5))
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
    assert cosine.at_step(0, 4, 10) == pytest.approx(0.1 / 8)  # the first of 8 steps
    assert cosine.at_step(3, 4, 10) == pytest.approx(0.5 * 0.05 * (1 + math.cos(math.pi * 3 / 40)))
    assert cosine.at_step(8, 4, 10) == cosine.at(2, 10)


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


# One step by hand: the logits are equal, so the gradient of the kernel is input x (0.5 - truth)

IMAGE = np.array([[1.0, 2.0]], np.float32)
GRADIENT = np.array([[-0.5, 0.5], [-1.0, 1.0]])


NORM = math.sqrt((GRADIENT**2).sum() + 2 * 0.5**2)  # with the biases'


@pytest.mark.parametrize(
    ("options", "settings", "step"),
    [
        ({}, {}, GRADIENT),
        ({"momentum": 0.9, "nesterov": True}, {}, 1.9 * GRADIENT),  # looks ahead: g + 0.9 g
        # the mean square starts at one
        ({"kind": "rmsprop", "epsilon": 0.001}, {}, GRADIENT / np.sqrt(0.9 + 0.1 * GRADIENT**2 + 0.001)),
        ({"weight_decay": 0.2}, {}, GRADIENT + 0.2 * 0.5),  # w times the weight
        ({"clip": 0.3}, {}, GRADIENT * 0.3 / NORM),
        ({}, {"label_smoothing": 0.2}, GRADIENT * 0.8),  # the truth is 0.9, 0.1
    ],
    ids=["sgd", "nesterov", "rmsprop", "decay", "clipped", "smoothed"],
)
def test_first_step_by_hand(options, settings, step):
    model = dense()
    optimizer = Optimizer(**({"momentum": 0.0} | options))
    Learner(model, Settings(optimizer=optimizer, **settings)).step(IMAGE, np.array([0]), 0.1)
    np.testing.assert_allclose(model.layers[1].get_weights()[0], 0.5 - 0.1 * step, rtol=1e-5)


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
    learner = Learner(model, Settings(optimizer=Optimizer(momentum=0.0, weight_decay=0.2, **options)))
    learner.step(np.zeros((2, 2), np.float32), np.array([0, 1]), 0.1)  # the gradients of the two images cancel out
    np.testing.assert_allclose(norm.gamma, [gamma, gamma], rtol=1e-6)
    np.testing.assert_allclose(head.bias, [bias, bias], rtol=1e-6)


def test_auxiliary_loss_counts_four_tenths():
    image = keras.Input((2,))
    heads = [keras.layers.Dense(2, kernel_initializer="zeros", name=name)(image) for name in ("main", "auxiliary")]
    model = keras.Model(image, heads)
    loss, right = Learner(model, Settings(optimizer=Optimizer(momentum=0.0))).step(IMAGE, np.array([0]), 0.1)
    np.testing.assert_allclose(model.get_layer("main").get_weights()[0], -0.1 * GRADIENT, rtol=1e-6)
    np.testing.assert_allclose(model.get_layer("auxiliary").get_weights()[0], -0.04 * GRADIENT, rtol=1e-6)
    assert float(loss) == pytest.approx(math.log(2))
    assert int(right) == 1


# Whole trainings

SETTINGS = Settings(
    epochs=4, batch_size=16, schedule=Schedule(rate=0.05), optimizer=Optimizer(weight_decay=1e-4, clip=5.0), average=0.9
)


PLAIN = {"augment": augment.cifar(padding=1, cutout_length=0)}
# in float16, with AdamW, and with all that people add
MIXED = {"augment": augment.rand_augment(0.3), "mix": augment.Mix(2, 0.2, 1.0), "class_weights": (0.5, 1.5)}
ADAMW = Settings(3, 16, Schedule(rate=0.002), choose_optimizer("adamw", Optimizer()))


def half():
    return schedule_drop_path(linear(), "mixed_float16").model


def run(folder, stop_after=None, settings=SETTINGS, make=linear, **options):
    """Trains; `stop_after` epochs the process is as good as killed."""
    model = make()

    class KilledError(Exception):
        pass

    def observe(status: Status):
        if stop_after is not None and status.done + status.share > stop_after + 0.4:
            raise KilledError

    try:
        options = PLAIN | options
        outcome = fit(model, part(), part(32, seed=1), settings, seed=3, folder=folder, observe=observe, **options)
    except KilledError:
        return None, model
    return outcome, model


def without_seconds(outcome):
    return [{name: value for name, value in record.items() if name != "seconds"} for record in outcome.history]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="momentum and average"),
        pytest.param({"settings": ADAMW, "make": half, **MIXED}, id="all that people add", marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_training_gives_the_same_result(tmp_path, options):
    whole, model = run(tmp_path / "whole", **options)
    assert run(tmp_path / "killed", stop_after=1, **options)[0] is None
    assert len(json.loads((tmp_path / "killed" / "history.json").read_text())) == 1
    assert run(tmp_path / "killed", stop_after=2, **options)[0] is None
    resumed, other = run(tmp_path / "killed", **options)
    assert without_seconds(resumed) == without_seconds(whole)
    assert (resumed.epoch, resumed.accuracy) == (whole.epoch, whole.accuracy)
    for mine, theirs in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert (tmp_path / "killed" / "history.csv").read_text().count("\n") == 1 + len(whole.history)


def test_finished_training_is_not_done_again(tmp_path):
    first, model = run(tmp_path)
    second, other = run(tmp_path, stop_after=0)
    assert second == first
    np.testing.assert_array_equal(model.get_weights()[0], other.get_weights()[0])


def test_state_of_another_training_is_refused(tmp_path):
    run(tmp_path, stop_after=1)
    with pytest.raises(ValueError, match="batch_size=16 there and 32 here"):
        run(tmp_path, settings=dataclasses.replace(SETTINGS, batch_size=32))


def test_damaged_state_is_refused(tmp_path):
    run(tmp_path, stop_after=1)
    whole = (tmp_path / STATE_FILE).read_bytes()
    for damaged in (b"", b"not an archive", whole[: len(whole) // 2]):
        (tmp_path / STATE_FILE).write_bytes(damaged)
        with pytest.raises(ValueError, match="delete it to start over"):
            run(tmp_path)


def test_best_weights_are_those_of_the_best_validation_epoch(tmp_path):
    outcome, model = run(None)
    accuracies = [record["val_accuracy"] for record in outcome.history]
    assert outcome.accuracy == max(accuracies)
    assert outcome.epoch == 1 + accuracies.index(max(accuracies))
    assert measure_accuracy(model, part(32, seed=1)) == pytest.approx(outcome.accuracy)


def test_average_follows_the_weights_by_hand():
    # The gradients of the two images cancel out, and all that a step does is to halve the weights of ones.
    decay = Optimizer(momentum=0.0, weight_decay=0.5, decay_all=True)
    model = keras.Sequential([keras.Input((1, 1, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    model.set_weights([np.ones((1, 2)), np.ones(2)])
    data = Arrays(np.zeros((2, 1, 1, 1), np.uint8), np.array([0, 1]))
    fit(model, data, data, Settings(1, 2, Schedule(rate=1.0), decay, average=0.9))
    # in the first step the factor is 1/10: 1/10 of 1 and 9/10 of 0.5
    np.testing.assert_allclose(model.get_weights()[1], [0.55, 0.55], rtol=1e-6)


def test_searched_cell_learns_while_its_drop_path_grows():
    twin = schedule_drop_path(small_network(drop_path_rate=0.2))
    outcome = fit(
        twin.model, part(), part(32, seed=1), Settings(epochs=2, batch_size=16), seed=0, drop_path=twin.progress
    )
    assert float(twin.progress) == pytest.approx(1 - 1 / 8)  # 8 steps in all
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
    with pytest.raises(FloatingPointError, match=r"the loss is .* in epoch .*lower the learning rate"):
        fit(linear(), part(), part(8), Settings(epochs=3, batch_size=8, schedule=Schedule(rate=1e38)))


def test_no_validation_image_is_refused():
    with pytest.raises(ValueError, match="validation_fraction"):
        fit(linear(), part(), part().take(np.arange(0)), Settings())


def test_tensorboard_on_request(tmp_path):
    run(tmp_path, settings=dataclasses.replace(SETTINGS, epochs=1), tensorboard=True)
    (events,) = (tmp_path / "tensorboard").glob("events*")
    tags = {value.tag for event in tf.compat.v1.train.summary_iterator(str(events)) for value in event.summary.value}
    assert tags == {"learning_rate", "loss", "accuracy", "seconds", "val_loss", "val_accuracy"}


@pytest.mark.parametrize(
    ("made", "options", "message"),
    [
        (Schedule, {"kind": "linear"}, "kind is linear; expected one of cosine, restarts, exponential"),
        (Schedule, {"rate": 0}, "rate is 0; expected"),
        (Schedule, {"last": 1}, "rate is 0.05, last 1 and"),
        (Schedule, {"kind": "restarts", "factor": 0.5}, "factor of at least 1 for restarts"),
        (Schedule, {"warmup": -1}, "warmup is -1; expected"),
        (Settings, {"epochs": 0}, "epochs is 0; expected a whole number from 1"),
        (Settings, {"average": 1.0}, "average is 1.0; expected"),
        (Settings, {"label_smoothing": 1.0}, "label_smoothing is 1.0; expected"),
        (Optimizer, {"kind": "adagrad"}, "kind is adagrad; expected one of sgd, rmsprop, adam"),
        (Optimizer, {"kind": "rmsprop", "nesterov": True}, "kind is rmsprop; expected sgd: leave nesterov out"),
        (Optimizer, {"clip": 0}, "clip is 0; expected"),
        (Optimizer, {"momentum": 1}, "momentum is 1; expected"),
        (Optimizer, {"decay_in": "x"}, "decay_in is x; expected loss, gradient or weights"),
    ],
)
def test_trainings_that_cannot_be_are_refused(made, options, message):
    with pytest.raises(ValueError, match=message):
        made(**options)


# One optimiser for lists of weights and flat vectors


def vector_after(optimizer, gradients, rate=0.1, decayed=None):
    weights = [tf.Variable([1.0, -2.0])]
    slots = optimizer.make_slots(weights)
    for gradient in gradients:
        optimizer.apply(weights, slots, [tf.constant(gradient)], rate, decayed)
    return weights[0].numpy()


def test_a_mask_says_which_values_of_a_flat_vector_decay():
    optimizer = Optimizer(momentum=0.0, weight_decay=0.5)
    after = vector_after(optimizer, [[0.0, 0.0]], decayed=[tf.constant([1.0, 0.0])])
    np.testing.assert_allclose(after, [0.95, -2.0], rtol=1e-6)


def test_decay_is_clipped_with_the_gradient_or_added_after():
    gradient = [[3.0, 4.0]]  # of length 5
    options = {"momentum": 0.0, "weight_decay": 1.0, "decay_all": True, "clip": 1.0}
    in_loss = vector_after(Optimizer(decay_in="loss", **options), gradient)
    sum_of_both = np.array([4.0, 2.0])
    np.testing.assert_allclose(in_loss, [1.0, -2.0] - 0.1 * sum_of_both / np.linalg.norm(sum_of_both), rtol=1e-6)
    after = vector_after(Optimizer(decay_in="gradient", **options), gradient)
    np.testing.assert_allclose(after, [1 - 0.1 * (0.6 + 1), -2 - 0.1 * (0.8 - 2)], rtol=1e-6)


def test_two_steps_of_adam_with_decay_apart_from_the_gradient():
    optimizer = Optimizer("adam", mean_decay=0.999, epsilon=1e-8, weight_decay=0.1, decay_all=True, decay_in="weights")
    after = vector_after(optimizer, [[2.0, -2.0], [2.0, -2.0]])
    # equal gradients: both means are the gradient's own, so each step goes by the rate, after a decay by 1 - 0.1 x 0.1
    expected = 1.0
    for _ in range(2):
        expected = expected * 0.99 - 0.1
    np.testing.assert_allclose(after, [expected, -(2 * 0.99 - 0.1) * 0.99 + 0.1], rtol=1e-5)


def test_a_graph_of_the_first_tensorflow_takes_the_same_steps():
    optimizer = Optimizer(nesterov=True, weight_decay=0.1, decay_all=True, clip=1.0)
    gradients = [[3.0, 4.0], [0.1, 0.2]]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        weights = [tf.Variable([1.0, -2.0])]
        slots = optimizer.make_slots(weights)
        gradient = tf.compat.v1.placeholder(tf.float32, [2])
        step = optimizer.apply(weights, slots, [gradient], 0.1)
        session.run([variable.initializer for variable in (*weights, *slots)])
        for values in gradients:
            session.run(step, {gradient: values})
        found = session.run(weights[0])
    np.testing.assert_array_equal(found, vector_after(optimizer, gradients))


# The loop itself


def test_a_loop_saved_within_an_epoch_resumes_at_the_step(tmp_path):
    def train(stop_at=None):
        total = tf.Variable(0.0)
        taken = []

        def step(epoch, number):
            if len(taken) == stop_at:
                raise KeyboardInterrupt
            taken.append((epoch, number))
            total.assign_add(10.0 * epoch + number)
            return (total.numpy(),)

        history = run_epochs(
            step,
            lambda history, values: {"epoch": len(history), "losses": [float(loss) for (loss,) in values]},
            epochs=2,
            steps=3,
            variables={"total": [total]},
            state=TrainingState(tmp_path / "state.npz", {}),
            save_seconds=0.0,
        )
        return taken, history

    with pytest.raises(KeyboardInterrupt):
        train(stop_at=4)
    taken, history = train()
    assert taken == [(1, 1), (1, 2)]
    assert history == [{"epoch": 0, "losses": [0.0, 1.0, 3.0]}, {"epoch": 1, "losses": [13.0, 24.0, 36.0]}]
    assert train() == ([], history)


def test_ctrl_c_waits_for_the_end_of_a_step_and_saves_it(tmp_path):
    taken = []

    def step(epoch, number):
        if number == 2 and not taken[2:]:
            signal.raise_signal(signal.SIGINT)
        taken.append(number)
        return (0.0,)

    def train():
        return run_epochs(
            step,
            lambda history, values: {},
            epochs=1,
            steps=5,
            state=TrainingState(tmp_path / "state.npz", {}),
            save_seconds=1e9,
        )

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train()
    assert signal.getsignal(signal.SIGINT) is before
    train()
    assert taken == [0, 1, 2, 3, 4]


def test_a_loop_ends_early_where_a_record_says_so(tmp_path):
    state = TrainingState(tmp_path / "state.npz", {})
    run = functools.partial(
        run_epochs,
        lambda epoch, number: (0.0,),
        lambda history, values: {"skips": len(history)},
        epochs=9,
        steps=1,
        state=state,
        stop=lambda record: record["skips"] == 2,
    )
    assert [record["skips"] for record in run()] == [0, 1, 2]
    assert [record["skips"] for record in run()] == [0, 1, 2]


def test_a_state_that_does_not_fit_is_passed_over_where_the_work_is_short(tmp_path):
    weight = tf.Variable(1.0)
    TrainingState(tmp_path / "state.npz", {"seed": 0}).save({"step": 1}, {"weight": [weight]})
    assert TrainingState(tmp_path / "state.npz", {"seed": 1}, strict=False).restore({"weight": [weight]}) is None
    arrays = [np.zeros(())]
    assert TrainingState(tmp_path / "state.npz", {"seed": 0}).restore({"weight": arrays}) == {"step": 1}
    assert arrays[0] == 1.0  # arrays are filled in place


def test_a_locked_folder_is_refused_to_others(tmp_path):
    with (
        locked(tmp_path / "run"),
        pytest.raises(BlockingIOError, match="in use by another process"),
        locked(tmp_path / "run"),
    ):
        pass
    with locked(tmp_path / "run"):  # free again
        pass


# Batches and evaluation


@pytest.mark.parametrize("keep_last", [True, False])
def test_a_batch_depends_on_its_place_alone(keep_last):
    batches = Batches(part(10), 4, seed=3, keep_last=keep_last)
    assert batches.steps == (3 if keep_last else 2)
    whole = [batches.batch(epoch, number) for epoch in range(2) for number in range(batches.steps)]
    images, labels = Batches(part(10), 4, seed=3, keep_last=keep_last).batch(1, 1)
    np.testing.assert_array_equal(images, whole[batches.steps + 1][0])
    np.testing.assert_array_equal(labels, whole[batches.steps + 1][1])
    assert not np.array_equal(whole[0][0], whole[batches.steps][0])
    assert len(whole[batches.steps - 1][1]) == (2 if keep_last else 4)


def test_streams_of_one_seed_draw_other_orders():
    first, second = (Batches(part(32), 16, seed=3, stream=[place]) for place in (0, 1))
    assert not np.array_equal(first.batch(0, 0)[0], second.batch(0, 0)[0])


def test_evaluation_is_keras_own_traced_or_not():
    model, data = linear(), part(90)
    logits = model.predict(data.images / np.float32(255), verbose=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(data.labels, logits)
    expected = np.mean(logits.argmax(axis=1) == data.labels), float(loss)
    assert Evaluator(model, data)() == pytest.approx(expected, rel=1e-5)
    assert Evaluator(model, data, batch_size=8)() == pytest.approx(expected, rel=1e-5)  # twelve batches: traced


# Progress


@pytest.mark.parametrize(("width", "words"), [(60, ", 1 h 5 min left"), (200, "best validation accuracy 0.8123")])
def test_a_line_of_progress_fits_the_terminal_and_says_how_long_is_left(width, words):
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=True, color_system=None)
    with show_progress("amoebanet", console=console) as show:
        show(Status(113, 20_000, 0.81234, 3900.0, 0.5, "epoch 1 of 25, tracing, evaluating, and what else there is"))
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue()).replace("\r", "\n").splitlines()
    assert max(map(len, lines)) <= width
    assert words in lines[-1]
    assert "113 of 20,000 trials done" in lines[-1]


def test_time_left_counts_down_and_drifts_to_an_estimate_that_jumps(monkeypatch):
    now, text = [0.0], io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "_LOG_SECONDS", 0.0)
    with show_progress("train", console=Console(file=text, width=200), unit="epoch") as show:
        for seconds, estimate in [(1, 100.0), (2, 1000.0), (12, 1000.0), (13, 0.0), (300, 0.0)]:
            now[0] = seconds
            show(Status(1, 4, None, estimate, text="x"))
    # 99 + (1 - exp(-1/10)) x 901 = 185, then 175 + (1 - 1/e) x 825 = 696, then 695 x exp(-1/10) = 629; then it is over
    found = [line.partition("done")[2] for line in text.getvalue().splitlines()]
    assert found == [
        ", about 1 min 40 s left, x",
        ", about 3 min 5 s left, x",
        ", about 11 min left, x",
        ", about 10 min left, x",
        ", x",
    ]
