"""Units that have died get a scale that every runtime can compute with, and the outputs stay what they were."""

import keras
import numpy as np
import pytest

from zoo.deploy import measure, scales, tflite

layers = keras.layers
IMAGES = np.random.default_rng(0).uniform(-1, 1, (8, 6, 6, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """Squeeze-excite whose inner ReLU is next to zero for each image; its gate is then the sigmoid of a bias."""
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="wide")(image)
    squeezed = layers.GlobalAveragePooling2D(keepdims=True)(x)
    dead = layers.Conv2D(2, 1, activation="relu", bias_initializer=keras.initializers.Constant(-50.0), name="dead")
    gate = layers.Conv2D(8, 1, activation="sigmoid", bias_initializer=keras.initializers.Constant(1.0), name="gate")
    x = layers.Multiply()([x, gate(dead(squeezed))])
    return keras.Model(image, layers.Dense(4, name="logits")(layers.GlobalAveragePooling2D()(x)))


@pytest.fixture(scope="module")
def as_converted(model) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scales, "widen", lambda data: data)
        return tflite.convert(model, quantize="int8", calibration=IMAGES)


def test_litert_refuses_the_file_as_the_converter_writes_it(as_converted):
    with pytest.raises(measure.MeasureError, match="LiteRT refuses the file"):
        measure.predict(as_converted, IMAGES)


def test_widened_file_runs_everywhere_and_computes_what_the_model_computes(model, as_converted):
    file = scales.widen(as_converted)
    expected = measure.predict(model, IMAGES)
    spread = expected.max() - expected.min()
    np.testing.assert_allclose(measure.predict(file, IMAGES), expected, atol=0.03 * spread)
    step = measure.interpret(file, threads=1).get_output_details()[0]["quantization"][0]
    before = measure.predict(as_converted, IMAGES, kernels="reference")  # the plain kernels do run it
    np.testing.assert_allclose(measure.predict(file, IMAGES, kernels="reference"), before, atol=1.01 * step)
    np.testing.assert_allclose(measure.predict_tflm(file, IMAGES), before, atol=1.01 * step)


def test_file_of_living_units_is_left_alone(as_converted):
    once = scales.widen(as_converted)
    assert once != as_converted
    assert scales.widen(once) is once
