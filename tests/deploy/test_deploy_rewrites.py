"""What is rewritten in a file: joins of many tensors, scales of units that have died, weights of four bits."""

import keras
import numpy as np
import pytest

from zoo.deploy import compact, measure, planner, rewrites, tflite, tflite_file, tflm

layers = keras.layers
IMAGES = np.random.default_rng(0).uniform(-1, 1, (4, 6, 6, 3)).astype(np.float32)


def joining(count: int) -> keras.Model:
    """Joins the outputs of `count` convolutions; those in the middle are the smallest."""
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 3))
    parts = [layers.Conv2D(1 if 5 <= part <= 7 else 2, 1, name=f"part{part}")(image) for part in range(count)]
    x = layers.GlobalAveragePooling2D()(layers.Concatenate(name="join")(parts))
    return keras.Model(image, layers.Dense(4, name="logits")(x))


def widths(file: bytes) -> list[int]:
    """How many tensors each concatenation joins."""
    model = tflite_file.parse(file)
    kinds = tflite_file.kinds_of(model)
    return [
        len(one.inputs)
        for one, kind in zip(model.subgraphs[0].operators, kinds, strict=True)
        if kind == "CONCATENATION"
    ]


@pytest.fixture(scope="module")
def as_converted() -> bytes:
    """A file as the converter writes it, thirteen tensors in one concatenation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewrites, "narrow_joins", lambda data: data)
        return tflite.convert(joining(13), quantize="int8", calibration=IMAGES)


def test_ten_tensors_are_left_alone():
    file = tflite.convert(joining(10), quantize="int8", calibration=IMAGES)
    assert widths(file) == [10]
    assert rewrites.narrow_joins(file) is file


def test_as_many_as_are_too_many_are_joined_first_the_smallest_of_them(as_converted):
    file = rewrites.narrow_joins(as_converted)
    assert (widths(as_converted), widths(file)) == ([13], [4, 10])
    model = tflite_file.parse(file)
    inner = model.subgraphs[0].tensors[-1]
    assert list(inner.shape) == [1, 6, 6, 1 + 1 + 1 + 2]


def test_outputs_stay_the_same_bit_by_bit_and_tflm_computes_them_too(as_converted):
    with pytest.raises(tflm.TflmError, match="cannot run CONCATENATION"):
        measure.arena(as_converted)
    file = rewrites.narrow_joins(as_converted)
    np.testing.assert_array_equal(measure.predict(file, IMAGES), measure.predict(as_converted, IMAGES))
    step = measure.interpret(file, threads=1).get_output_details()[0]["quantization"][0]
    np.testing.assert_allclose(measure.predict_tflm(file, IMAGES), measure.predict(file, IMAGES), atol=2.01 * step)
    assert planner.plan(file).head == measure.arena(file).head


@pytest.mark.parametrize("count", [11, 25])
def test_any_number_is_nested_to_any_depth_in_the_same_order(count):
    model = joining(count)
    file = tflite.convert(model)
    assert max(widths(file)) == rewrites.MOST_INPUTS
    assert sum(widths(file)) - (len(widths(file)) - 1) == count
    np.testing.assert_allclose(measure.predict(file, IMAGES), measure.predict(model, IMAGES), atol=1e-5)
    measure.arena(file)


def test_planner_names_the_operator_and_the_remedy(as_converted):
    plan = planner.plan(as_converted)
    assert "concatenates at most 10 tensors, but CONCATENATION 13 (join) has more" in plan.to_markdown()
    assert "zoo.deploy.rewrites.narrow_joins splits it up" in plan.to_markdown()
    assert planner.plan(rewrites.narrow_joins(as_converted)).too_wide == ()


def test_plan_of_other_tensors_stays_behind(as_converted):
    file = rewrites.narrow_joins(compact.with_best_plan(as_converted))
    assert tflite_file.find_metadata(tflite_file.parse(file), planner.OFFLINE_PLAN) is None
    assert planner.plan(compact.with_best_plan(file)).head == planner.plan(compact.with_best_plan(file)).bound


PICTURES = np.random.default_rng(0).uniform(-1, 1, (8, 6, 6, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def dying() -> keras.Model:
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
def refused(dying) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewrites, "widen_scales", lambda data: data)
        return tflite.convert(dying, quantize="int8", calibration=PICTURES)


def test_litert_refuses_the_file_as_the_converter_writes_it(refused):
    with pytest.raises(measure.MeasureError, match="LiteRT refuses the file"):
        measure.predict(refused, PICTURES)


def test_widened_file_runs_everywhere_and_computes_what_the_model_computes(dying, refused):
    file = rewrites.widen_scales(refused)
    expected = measure.predict(dying, PICTURES)
    spread = expected.max() - expected.min()
    np.testing.assert_allclose(measure.predict(file, PICTURES), expected, atol=0.03 * spread)
    step = measure.interpret(file, threads=1).get_output_details()[0]["quantization"][0]
    before = measure.predict(refused, PICTURES, kernels="reference")  # the plain kernels do run it
    np.testing.assert_allclose(measure.predict(file, PICTURES, kernels="reference"), before, atol=1.01 * step)
    np.testing.assert_allclose(measure.predict_tflm(file, PICTURES), before, atol=1.01 * step)


def test_file_of_living_units_is_left_alone(refused):
    once = rewrites.widen_scales(refused)
    assert once != refused
    assert rewrites.widen_scales(once) is once


def network_of_weights(kind: str) -> keras.Model:
    """One layer of three inputs and outputs: weights for whole steps of 1, for steps of 0.1, and none."""
    kernel = np.array([[7.0, -3.4, 1.0], [0.7, 0.31, -0.7], [0.0, 0.0, 0.0]], np.float32).T
    image = keras.Input((1, 1, 3))
    if kind == "FULLY_CONNECTED":
        layer = layers.Dense(3)
        model = keras.Model(image, layer(layers.Flatten()(image)))
    else:
        layer = layers.Conv2D(3, 1) if kind == "CONV_2D" else layers.DepthwiseConv2D(1)
        model = keras.Model(image, layer(image))
    shape = layer.kernel.shape
    layer.set_weights([kernel[:, 0].reshape(shape) if kind == "DEPTHWISE_CONV_2D" else kernel.reshape(shape),
                       np.array([1.0, -0.5, 0.25], np.float32)])  # fmt: skip
    return model


@pytest.mark.parametrize(
    ("kind", "stored", "scales"),
    [
        ("CONV_2D", [[7, -3, 1], [7, 3, -7], [0, 0, 0]], [1, 0.1, 1 / 7]),
        ("FULLY_CONNECTED", [[7, -3, 1], [1, 0, -1], [0, 0, 0]], [1]),  # TFLM has no more scales there
        ("DEPTHWISE_CONV_2D", [[127, -127, 127]], [7 / 127, 3.4 / 127, 1 / 127]),
    ],
)
def test_weights_of_four_bits_are_the_nearest_of_fifteen_steps(kind, stored, scales):
    images = np.random.default_rng(0).uniform(-1, 1, (32, 1, 1, 3)).astype(np.float32)
    model = network_of_weights(kind)
    file = tflite.convert(model, quantize="int4", calibration=images)
    parsed = tflite_file.parse(file)
    graph = parsed.subgraphs[0]
    (operator,) = (one for one in graph.operators if tflite_file.kind_of(parsed, one) == kind)
    weights, bias = (graph.tensors[operator.inputs[place]] for place in (1, 2))
    assert tflite_file.constant_of(parsed, int(operator.inputs[1])).reshape(-1, 3).tolist() == stored
    assert tflite_file.type_of(weights) == ("int8" if kind == "DEPTHWISE_CONV_2D" else "int4")
    np.testing.assert_allclose(weights.quantization.scale, scales, rtol=1e-5)
    biases = tflite_file.constant_of(parsed, int(operator.inputs[2])) * bias.quantization.scale
    np.testing.assert_allclose(biases, [1, -0.5, 0.25], atol=0.005)
    if kind != "DEPTHWISE_CONV_2D":
        assert len(parsed.buffers[weights.buffer].data) == 5  # nine halves of bytes
    outputs = [measure.predict(file, images, kernels=kernels) for kernels in ("xnnpack", "builtin", "reference")]
    step = graph.tensors[operator.outputs[0]].quantization.scale[0]  # dense layers of one scale round apart
    np.testing.assert_allclose(measure.predict_tflm(file, images), outputs[2], atol=1.01 * step)
    for output in outputs:
        np.testing.assert_allclose(output, measure.predict(model, images), atol=0.8)


def test_weights_of_four_bits_take_less_flash_and_the_arena_of_the_unpacked():
    model = joining(3)
    files = [tflite.convert(model, quantize=scheme, calibration=IMAGES) for scheme in ("int8", "int4")]
    assert planner.find_scheme(files[1]) == "int4"
    assert planner.plan(files[1]).arena == pytest.approx(measure.arena(files[1]).total, abs=64)
    assert not planner.plan(files[1]).refusals
