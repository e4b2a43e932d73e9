"""Scheduled drop path: hand-computed rates, nothing lost on average, nothing traced again, nothing left behind."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import zoo
from recipes.training.drop_path import Progress, ScheduledDropPath, is_drop_path, schedule_drop_path


def kept_share(layer: ScheduledDropPath, examples: int = 20_000) -> tuple[float, float]:
    """The share of examples that pass, and the mean of what comes out for ones."""
    out = keras.ops.convert_to_numpy(layer(np.ones((examples, 1, 1, 2), np.float32), training=True))
    assert (out[..., 0] == out[..., 1]).all(), "an example is lost whole"
    return float((out[:, 0, 0, 0] > 0).mean()), float(out.mean())


# A standard deviation of the share is at most 0.5 / sqrt(20,000) = 0.0035
@pytest.mark.parametrize(("progress", "keep"), [(0.0, 1.0), (0.5, 0.8), (1.0, 0.6)])
def test_rate_grows_linearly_and_the_mean_stays(progress, keep):
    layer = ScheduledDropPath(0.4, Progress(progress))
    share, mean = kept_share(layer)
    assert share == (1.0 if keep == 1.0 else pytest.approx(keep, abs=0.015))
    assert mean == pytest.approx(1.0, abs=0.025)


def test_kept_examples_are_scaled_by_one_over_the_chance_to_stay():
    out = keras.ops.convert_to_numpy(ScheduledDropPath(0.5, Progress(0.4))(np.ones((64, 2, 2, 1)), training=True))
    assert set(np.round(np.unique(out), 5)) == {0.0, 1.25}  # 1 / (1 - 0.5 * 0.4)


def test_outside_of_training_nothing_is_dropped():
    image = np.ones((8, 2, 2, 1), np.float32)
    assert (keras.ops.convert_to_numpy(ScheduledDropPath(0.9, Progress(1.0))(image)) == 1).all()


def test_progress_changes_without_tracing_again():
    progress = Progress()
    layer = ScheduledDropPath(0.5, progress)
    traced = []

    @tf.function
    def step(x):
        traced.append(True)
        return layer(x, training=True)

    x = tf.ones((1000, 1, 1, 1))
    shares = []
    for value in (0.0, 0.5, 1.0):
        progress.assign(value)
        shares.append(float(tf.reduce_mean(tf.cast(step(x) > 0, tf.float32))))
    assert len(traced) == 1
    assert shares[0] == 1.0
    assert shares[1] == pytest.approx(0.75, abs=0.07)
    assert shares[2] == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_progress_out_of_range_is_refused(value):
    with pytest.raises(ValueError, match="expected a number from 0 to 1"):
        Progress().assign(value)


@pytest.fixture(scope="module")
def nasnet():
    return zoo.build(small("nasnet_a"), "small", drop_path_rate=0.4)


def small(name):
    genotype = zoo.load(name)
    preset = {"repeats": 1, "filters": 4, "stem": "cifar", "stem_filters": 12, "input_shape": [8, 8, 1], "classes": 3}
    return zoo.Genotype(genotype.name, genotype.family, genotype.body, {}, {"small": preset})


def test_twin_has_the_rates_of_the_plain_model_scaled_by_depth_in_nasnet(nasnet):
    twin = schedule_drop_path(nasnet).model
    rates = {layer.name: layer.rate for layer in nasnet.layers if is_drop_path(layer)}
    assert rates
    assert {layer.name: layer.rate for layer in twin.layers if isinstance(layer, ScheduledDropPath)} == rates
    # 3 normal and 2 reduction cells: the first has a fifth of the rate, the last all of it
    by_cell = {name.split("_")[0]: rate for name, rate in rates.items()}
    assert [by_cell[f"cell0{cell}"] for cell in range(5)] == pytest.approx([0.08, 0.16, 0.24, 0.32, 0.4])


def test_twin_computes_the_same_has_the_same_weights_and_no_dropout_left(nasnet):
    twin = schedule_drop_path(nasnet).model
    images = np.random.default_rng(0).random((2, 8, 8, 1), np.float32)
    np.testing.assert_array_equal(twin(images, training=False), nasnet(images, training=False))
    assert [weight.path for weight in twin.weights] == [weight.path for weight in nasnet.weights]
    assert not any(isinstance(layer, keras.layers.Dropout) for layer in twin.layers)
    assert twin.layers[1] is not nasnet.layers[1]
