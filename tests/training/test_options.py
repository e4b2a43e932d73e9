"""What people add to a training: mixed images, weights of classes, AdamW, mixed precision."""

import dataclasses
import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from recipes import finetune, train
from recipes.images import augment
from recipes.training import TrainingOptions
from recipes.training.learner import Learner, schedule_drop_path, shorten_moving_averages
from recipes.training.loop import fit
from recipes.training.optimizer import Optimizer, Schedule, Settings, choose_optimizer
from tests.training.test_trial import images, network


def key(*numbers: int) -> tf.Tensor:
    return tf.constant(numbers, tf.int64)


def test_mixup_of_two_images_by_hand():
    images = np.stack([np.full((2, 2, 1), 10, np.uint8), np.full((2, 2, 1), 210, np.uint8)])
    seen = []
    for seed in range(40):
        mixed, labels = augment.Mix(2, 1.0, None)(tf.constant(images), tf.constant([0, 1]), key(0, seed))
        shares = labels.numpy()
        np.testing.assert_allclose(shares.sum(axis=1), 1.0, rtol=1e-6)
        for image, (first, second) in zip(mixed.numpy(), shares, strict=True):
            np.testing.assert_allclose(image, 10 * first + 210 * second, rtol=1e-5)
        seen.append(shares[0, 0])
    assert min(seen) < 0.3  # mostly the other one
    assert max(seen) == 1.0  # mixed with itself: the order of two is kept in half of all batches


def test_cutmix_pastes_a_window_as_large_as_the_label_says():
    images = np.stack([np.full((32, 32, 3), value, np.uint8) for value in (0, 100, 200)])
    mixed, labels = augment.Mix(3, None, 1.0)(tf.constant(images), tf.constant([0, 1, 2]), key(0, 5))
    for number, (image, shares) in enumerate(zip(mixed.numpy(), labels.numpy(), strict=True)):
        found = [np.mean(image == value) for value in (0, 100, 200)]
        np.testing.assert_allclose(found, shares, atol=2 / 32)  # a window's sides are whole pixels
        assert shares.sum() == pytest.approx(1.0)
        assert found[number] > 0 or shares[number] < 0.1


def test_with_both_each_batch_is_blended_or_pasted():
    images = np.stack([np.full((16, 16, 1), value, np.uint8) for value in (0, 200)])
    mix = augment.Mix(2, 1.0, 1.0)
    kinds = set()
    for seed in range(30):
        mixed, labels = mix(tf.constant(images), tf.constant([0, 1]), key(1, seed))
        if 0.05 < labels[0, 0] < 0.95:
            kinds.add("pasted" if set(np.unique(mixed)) == {0.0, 200.0} else "blended")
    assert kinds == {"pasted", "blended"}


def test_rand_augment_depends_on_the_seed_alone_and_changes_images_one_by_one():
    images = np.random.default_rng(0).integers(0, 256, (32, 12, 12, 3), np.uint8)
    step = augment.rand_augment(0.5)
    changed = step(tf.constant(images), key(0, 1)).numpy()
    np.testing.assert_array_equal(step(tf.constant(images), key(0, 1)), changed)
    assert np.abs(step(tf.constant(images), key(0, 2)).numpy() - changed).max() > 1
    assert (changed.min(), changed.max(), changed.dtype) == (0.0, 255.0, np.float32)
    distances = np.abs(changed - images).mean(axis=(1, 2, 3))
    assert len(np.unique(distances.round(3))) > 16  # each image draws its own
    gray = step(tf.constant(images[..., :1]), key(0, 1))
    assert gray.shape == (32, 12, 12, 1)


def linear(start=0.0, classes=2):
    image = keras.Input((2, 1, 1))
    initializer = keras.initializers.Constant(start)
    dense = keras.layers.Dense(classes, kernel_initializer=initializer, use_bias=False)
    return keras.Model(image, dense(keras.layers.Flatten()(image)))


IMAGES = tf.constant([[[[1.0]], [[2.0]]], [[[3.0]], [[4.0]]]])


def test_balanced_weights_by_hand():
    options = TrainingOptions(class_weights="balanced")
    assert options.weigh_classes(("cat", "dog"), [0, 0, 0, 1]) == pytest.approx((2 / 3, 2.0))
    assert options.weigh_classes(("cat", "dog"), [0, 1]) == (1.0, 1.0)


def test_loss_counts_each_image_by_its_class():
    learner = Learner(linear(), Settings(), class_weights=(2 / 3, 2.0))
    loss, _ = learner.step(IMAGES, np.array([0, 1]), 0.0)
    assert float(loss) == pytest.approx((2 / 3 + 2.0) / 2 * math.log(2), rel=1e-6)
    soft = Learner(linear(), Settings(), class_weights=(2 / 3, 2.0), soft_labels=True)
    loss, right = soft.step(IMAGES, np.array([[1.0, 0.0], [0.25, 0.75]]), 0.0)
    assert float(loss) == pytest.approx((2 / 3 + 0.25 * 2 / 3 + 0.75 * 2.0) / 2 * math.log(2), rel=1e-6)
    assert int(right) == 1  # equal logits say class 0


def test_step_on_shares_is_the_mean_of_the_steps_on_the_classes():
    model = linear()
    settings = Settings(optimizer=Optimizer(momentum=0.0))
    Learner(model, settings, soft_labels=True).step(IMAGES[:1], np.array([[0.25, 0.75]]), 0.1)
    # gradient: image x (probability - share) = (1, 2) x (0.5 - 0.25, 0.5 - 0.75)
    np.testing.assert_allclose(model.get_weights()[0], [[-0.025, 0.025], [-0.05, 0.05]], rtol=1e-5)


def test_unbalanced_classes_are_said_and_balanced_ones_not(capsys):
    assert TrainingOptions().weigh_classes(("cat", "dog"), [0] * 21 + [1] * 10) is None
    assert "cat has 21 training images and dog 10" in (said := capsys.readouterr().err)
    assert "--class_weights=balanced" in said
    assert TrainingOptions().weigh_classes(("cat", "dog"), [0] * 20 + [1] * 10) is None
    assert capsys.readouterr().err == ""


def test_adamw_takes_the_place_of_the_settings_step():
    usual = Optimizer(nesterov=True, weight_decay=5e-4, clip=5.0)
    assert choose_optimizer(None, usual) is usual
    adamw = choose_optimizer("adamw", usual)
    assert (adamw.kind, adamw.decay_in, adamw.weight_decay, adamw.clip) == ("adam", "weights", 0.05, 5.0)
    settings = Settings(schedule=Schedule(rate=0.1), optimizer=usual)
    assert train._adapt_settings(train.Config(optimizer="adamw"), settings).schedule.rate == pytest.approx(0.001)
    given = train._adapt_settings(train.Config(optimizer="adamw", learning_rate=0.003), settings)
    assert (given.schedule.rate, given.optimizer) == (pytest.approx(0.003), adamw)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_learns_and_what_is_saved_is_float32(dtype, tmp_path):
    model = network()
    shorten_moving_averages(model)
    twin = schedule_drop_path(model, dtype).model
    assert {weight.dtype for weight in twin.weights} == {"float32"}
    assert twin.layers[1].compute_dtype == dtype.removeprefix("mixed_")
    outcome = fit(twin, images(64), images(32, seed=1), Settings(6, 16, Schedule(rate=0.1)))
    losses = [record["loss"] for record in outcome.history]
    assert losses[-1] < 0.5 * losses[0]
    assert outcome.accuracy >= 0.9
    model.set_weights(twin.get_weights())
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert {layer.compute_dtype for layer in loaded.layers} == {"float32"}
    pixels = images(8).images / 255
    np.testing.assert_allclose(loaded(pixels), np.asarray(twin(pixels), np.float32), atol=0.1)


def test_gradients_too_small_for_float16_still_count():
    twin = schedule_drop_path(linear(), "mixed_float16").model
    settings = Settings(optimizer=Optimizer(momentum=0.0))
    # gradient: 1e-9 x image x (probability - truth), and the least float16 is 6e-8
    Learner(twin, settings, class_weights=(1e-9, 1.0)).step(IMAGES[:1], np.array([0]), 1e8)
    np.testing.assert_allclose(twin.get_weights()[0], [[0.05, -0.05], [0.1, -0.1]], rtol=0.02)


def test_loss_scale_halves_after_an_overflow_that_changes_no_weight_and_doubles_after_2000_good_steps():
    twin = schedule_drop_path(network(), "mixed_float16").model
    learner = Learner(twin, Settings(optimizer=Optimizer(momentum=0.0)))
    *_, scale, good = learner.slots
    before = [weight.numpy() for weight in learner.weights]
    learner.step(tf.fill([4, 8, 8, 1], 1e6), np.array([0, 1, 0, 1]), 0.1)  # float16 ends at 65,504
    assert scale.numpy() == 2.0**14
    for weight, old in zip(learner.weights, before, strict=True):
        np.testing.assert_array_equal(weight, old)
    for taken, then in ((1998, 2.0**14), (1999, 2.0**15)):
        good.assign(taken)
        learner.step(tf.ones([4, 8, 8, 1]), np.array([0, 1, 0, 1]), 0.1)
        assert (scale.numpy(), good.numpy()) == (then, (taken + 1) % 2000)


@pytest.mark.slow
def test_both_recipes_take_all_of_them(tmp_path, capsys):
    every = {
        "optimizer": "adamw", "mixed_precision": "float16", "class_weights": "balanced", "mixup": 0.2, "cutmix": 1.0,
        "rand_augment": 0.5,
    }  # fmt: skip
    config = train.Config(
        filters=4, image_size=8, training_images=64, validation_images=50, epochs=1, folder=tmp_path / "run", **every
    )
    trained = train.train(config)
    assert "mixed_precision=float16: no GPU is visible" in capsys.readouterr().err
    loaded, images = keras.saving.load_model(tmp_path / "run" / "model.keras"), np.ones((1, 8, 8, 1))
    assert {layer.compute_dtype for layer in loaded.layers} == {"float32"}
    np.testing.assert_array_equal(loaded(images), trained.model(images))
    assert json.loads((tmp_path / "run" / "results.json").read_text())["config"]["mixup"] == 0.2
    for number in range(48):
        file = tmp_path / "photos" / ("dark", "light")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 20 + 200 * (number % 2) + number // 2).save(file)
    data, weights = str(tmp_path / "photos"), str(tmp_path / "run" / "model.keras")
    found = finetune.finetune(
        finetune.Config(data=data, weights=weights, head_epochs=1, epochs=1, folder=tmp_path / "tuned", **every)
    )
    assert {layer.compute_dtype for layer in found.model.layers} == {"float32"}
    assert set(found.phases) == {"head", "all"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixup": 0.0}, "mixup is 0.0; expected a number above 0, or none"),
        ({"cutmix": 1.5}, "cutmix is 1.5; expected a number above 0, at most 1, or none"),
        ({"rand_augment": -1.0}, "rand_augment is -1.0; expected a number above 0, at most 1"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    for config in (train.Config, finetune.Config):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(config(), **options)
