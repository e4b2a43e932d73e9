"""The memory estimated from a file: lifetimes, TFLM's greedy placement, better plans, boards."""

import dataclasses
import random
import re

import keras
import numpy as np
import pytest

from zoo.deploy import boards, compact, measure, memory_plan, planner, tflite, tflite_file
from zoo.deploy.memory_plan import Buffer

layers = keras.layers
IMAGES = np.random.default_rng(0).uniform(-1, 1, (8, 16, 16, 3)).astype(np.float32)


def convert(outputs, image) -> bytes:
    keras.utils.set_random_seed(0)
    return tflite.convert(keras.Model(image, outputs), quantize="int8", calibration=IMAGES)


@pytest.fixture(scope="module")
def residual() -> bytes:
    """8 channels of 16 x 16 around a branch of 16 channels, and a stride of 2 padded by hand as PyTorch does it."""
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same", name="stem")(image)
    y = layers.Conv2D(16, 1, activation="relu", name="expand")(x)
    y = layers.Conv2D(8, 1, name="project")(y)
    x = layers.Add(name="add")([x, y])
    x = layers.ZeroPadding2D(1, name="pad")(x)
    x = layers.Conv2D(4, 3, strides=2, name="down")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return convert(layers.Dense(10, activation="softmax", name="logits")(x), image)


def test_tensors_live_from_the_step_that_writes_them_to_the_last_that_reads_them(residual):
    plan = planner.plan(residual)
    kinds = [operator.kind for operator in plan.operators]
    assert kinds[:6] == ["CONV_2D", "CONV_2D", "CONV_2D", "ADD", "PAD", "CONV_2D"]
    lives = [(buffer.size, buffer.first, buffer.last) for buffer in plan.buffers if buffer.tensor is not None]
    assert lives[:6] == [
        (16 * 16 * 3, 0, 1),  # the image
        (16 * 16 * 8, 1, 4),  # the stem's output, until it is added
        (16 * 16 * 16, 2, 3),
        (16 * 16 * 8, 3, 4),
        (16 * 16 * 8, 4, 5),
        (18 * 18 * 8, 5, 6),
    ]


def test_peak_is_where_the_most_bytes_live(residual):
    plan = planner.plan(residual)
    assert plan.bound == 16 * 16 * (8 + 16 + 8)
    assert str(plan.peak) == "CONV_2D 2 (project)"
    assert [buffer.size for buffer in plan.alive_at_peak()] == [4096, 2048, 2048]


@pytest.mark.parametrize("scheme", [None, "int8", "int16x8"])
def test_head_is_what_tflm_records_and_the_arena_within_five_percent(residual, scheme):
    image = keras.Input((16, 16, 3))
    x = layers.MaxPooling2D(3, 2, padding="same")(layers.Conv2D(8, 3, padding="same", activation="relu")(image))
    gate = layers.Conv2D(8, 1, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.Multiply()([x, gate])
    x = layers.Concatenate()([x, layers.AveragePooling2D(3, 1, padding="same")(x)])
    model = keras.Model(image, layers.Dense(3)(layers.Flatten()(x)))
    data = tflite.convert(model, quantize=scheme, calibration=IMAGES if scheme else None)
    recorded, plan = measure.arena(data), planner.plan(data)
    assert plan.head == recorded.head
    assert -0.02 <= plan.arena / recorded.total - 1 <= 0.05


def test_published_mcunet_file_is_told_exactly(reference):
    plan = planner.plan(reference / "mcunet" / "mcunet-320kb-1mb_imagenet.tflite")
    assert plan.head == 416_832  # as TFLM recorded it
    assert plan.arena == pytest.approx(512_064, rel=0.02)
    assert plan.peak.kind == "PAD"
    assert not plan.unsupported


def test_padding_that_costs_most_is_named_with_what_it_costs():
    image = keras.Input((16, 16, 3))
    x = layers.ZeroPadding2D(1, name="small_pad")(layers.Conv2D(2, 1)(image))
    x = layers.ZeroPadding2D(1, name="large_pad")(layers.Conv2D(16, 3, strides=2)(x))
    savings = planner.find_padding_savings(convert(layers.Conv2D(1, 3, strides=2)(x), image))
    assert [saving.operator.output for saving in savings] == ["large_pad", "small_pad"]
    # With it 8 x 8 x 16 and 10 x 10 x 16 bytes live together. Without: 8 x 8 x 16 at 0, the 18 x 18 x 2 that it is made
    # of above, and above both what those are made of, as the image leaves no room below.
    padded = memory_plan.aligned(18 * 18 * 2)
    assert savings[0].bytes == 8 * 8 * 16 + 10 * 10 * 16 - (8 * 8 * 16 + padded + 16 * 16 * 2)
    assert savings[1].bytes == 0


def test_operators_have_the_names_of_their_layers_whatever_numbers_these_end_in():
    image = keras.Input((16, 16, 3))
    shared = layers.DepthwiseConv2D(3, padding="same", name="shared")
    x = layers.Conv2D(4, 3, name="conv_1")(layers.Conv2D(4, 3, padding="same", name="conv")(image))
    x = layers.Add(name="add_2")([shared(shared(x)), layers.AveragePooling2D(3, 1, padding="same", name="pool_3_1")(x)])
    model = tflite_file.parse(convert(layers.GlobalMaxPooling2D(name="last")(x), image))
    names = [operator.output for operator in planner.list_operators(model)]
    assert names == ["conv", "conv_1", "pool_3_1", "shared", "shared", "add_2", "output"]
    for number, tensor in enumerate(model.subgraphs[0].tensors):  # as Keras 2 names a second model of a session
        tensor.name = f"model_1/conv_{number % 2 + 3}/Conv2D"
    assert {operator.output for operator in planner.list_operators(model)} == {"conv_3", "conv_4"}


def test_greedy_puts_the_largest_first_and_each_into_the_lowest_gap():
    buffers = [Buffer("a", 32, 0, 1), Buffer("b", 64, 1, 2), Buffer("c", 16, 2, 3), Buffer("d", 48, 3, 4)]
    assert memory_plan.place_greedily(buffers) == [64, 0, 64, 0]
    assert memory_plan.live_bytes(buffers) == [32, 96, 80, 64, 48]
    assert [memory_plan.aligned(size) for size in (0, 1, 16, 17)] == [0, 16, 16, 32]


def test_best_plan_reaches_the_bound_where_greedy_wastes():
    # Greedy puts the long-lived 32 bytes above the 64 of its first step; the 64 of its last, then, above both.
    buffers = [Buffer("a", 64, 0, 1), Buffer("b", 32, 1, 2), Buffer("c", 80, 2, 3), Buffer("d", 48, 3, 4),
               Buffer("e", 80, 4, 5)]  # fmt: skip
    bound = max(memory_plan.live_bytes(buffers))
    assert memory_plan.end_of(buffers, memory_plan.find_best_offsets(buffers)) == bound


def test_no_two_live_buffers_share_a_byte_in_any_plan():
    draw = random.Random(0)
    for _ in range(50):
        buffers = [Buffer("x", draw.randint(1, 300), first, first + draw.randint(0, 4)) for first in range(12)]
        bound = max(memory_plan.live_bytes(buffers))
        greedy, best = memory_plan.place_greedily(buffers), memory_plan.find_best_offsets(buffers, tries=50)
        assert bound <= memory_plan.end_of(buffers, best) <= memory_plan.end_of(buffers, greedy)
        for offsets in (greedy, best):
            placed = list(zip(buffers, offsets, strict=True))
            for number, (one, start) in enumerate(placed):
                for other, other_start in placed[:number]:
                    apart = start + one.size <= other_start or other_start + other.size <= start
                    assert apart or one.last < other.first or other.last < one.first


def test_plan_in_the_file_is_followed_by_tflm_and_changes_no_output(residual):
    planned = compact.with_best_plan(residual)
    plan = planner.plan(planned)
    assert plan.head == measure.arena(planned).head == plan.bound
    np.testing.assert_array_equal(measure.predict_tflm(planned, IMAGES), measure.predict_tflm(residual, IMAGES))
    np.testing.assert_array_equal(measure.predict(planned, IMAGES), measure.predict(residual, IMAGES))
    assert len(tflite_file.parse(compact.with_best_plan(planned)).metadata) == len(tflite_file.parse(planned).metadata)


def test_damaged_plan_is_refused(residual):
    model = tflite_file.parse(residual)
    tflite_file.set_metadata(model, planner.OFFLINE_PLAN, np.array([1, 0, 99], "<i4").tobytes())
    with pytest.raises(planner.PlannerError, match=r"have 3 numbers; expected version.*with_best_plan"):
        planner.plan(tflite_file.pack(model))


def from_function(function, *shapes: tuple[int, ...], module=None, **options) -> bytes:
    """The float file of a TensorFlow function of a `module`, for what no Keras layer makes."""
    import tensorflow as tf

    concrete = tf.function(function).get_concrete_function(*(tf.TensorSpec(shape, tf.float32) for shape in shapes))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module or tf.Module())
    for name, value in options.items():
        setattr(converter, name, value)
    with tflite_file.quiet():
        return converter.convert()


def recurrent() -> bytes:
    sequence = keras.Input((6, 8))
    return tflite.convert(keras.Model(sequence, layers.Dense(4)(layers.LSTM(16)(sequence))))


def fused_lstm() -> bytes:
    """UNIDIRECTIONAL_SEQUENCE_LSTM, whose states are variable tensors."""
    import tensorflow as tf
    import tf_keras

    sequence = tf_keras.Input((6, 8), batch_size=1)
    model = tf_keras.Model(sequence, tf_keras.layers.LSTM(12)(sequence))
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    with tflite_file.quiet():
        return converter.convert()


def ring_buffer() -> bytes:
    """CALL_ONCE, VAR_HANDLE, READ_VARIABLE, ASSIGN_VARIABLE: 8 x 16 floats that live from call to call."""
    import tensorflow as tf

    module = tf.Module()
    module.past = tf.Variable(tf.zeros((1, 8, 16)))

    def push(image):
        joined = tf.concat([module.past, image], axis=1)
        module.past.assign(joined[:, 1:])
        return tf.reduce_sum(joined * 2.0, axis=2)

    return from_function(push, (1, 1, 16), module=module, experimental_enable_resource_variables=True)


def branches() -> bytes:
    import tensorflow as tf

    return from_function(
        lambda x: tf.cond(tf.reduce_sum(x) > 0, lambda: tf.concat([2 * x, x], 1), lambda: tf.concat([x - 1, x], 1)),
        (1, 24),
    )


def transposing_matmul() -> bytes:
    """BATCH_MATMUL of two activations: TFLM keeps a transposed copy of the second, 2 x 24 x 8 floats."""
    import tensorflow as tf

    return from_function(tf.matmul, (2, 16, 24), (2, 24, 8))


def dense(per_channel: bool) -> bytes:
    """2,000 units in int8, with one scale for all of them or a scale each."""
    import tensorflow as tf

    weights = tf.constant(np.random.default_rng(0).normal(size=(64, 2000)), tf.float32)
    return from_function(
        lambda x: tf.matmul(x, weights),
        (1, 64),
        optimizations=[tf.lite.Optimize.DEFAULT],
        representative_dataset=lambda: ([np.full((1, 64), value, np.float32)] for value in (-1, 1)),
        _experimental_disable_per_channel_quantization_for_dense_layers=not per_channel,
    )


def upsampling() -> bytes:
    image = keras.Input((16, 16, 3))
    return convert(layers.Conv2DTranspose(8, 3, strides=2)(layers.Conv2D(4, 3, strides=2)(image)), image)


OTHERS = {
    "recurrent": recurrent, "fused LSTM": fused_lstm, "ring buffer": ring_buffer, "branches": branches,
    "matmul": transposing_matmul, "dense, one scale": lambda: dense(False), "dense, a scale each": lambda: dense(True),
    "transposed convolution": upsampling,
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_other_kinds_are_estimated_within_two_percent(name):
    data = OTHERS[name]()
    plan, recorded = planner.plan(data), measure.arena(data)
    assert plan.head == recorded.head
    assert -0.02 <= plan.arena / recorded.total - 1 <= 0.02
    assert not plan.refusals


def test_dense_layer_keeps_a_multiplier_and_a_shift_a_unit_only_with_scales_of_their_own():
    tails = [planner.plan(dense(per_channel)).tail for per_channel in (True, False)]
    assert tails[0] - tails[1] == 2 * 4 * 2000


def test_matmul_keeps_the_copy_that_it_transposes():
    model = tflite_file.parse(transposing_matmul())
    before = planner.plan(tflite_file.pack(model)).tail
    model.subgraphs[0].operators[0].builtinOptions.adjY = True  # as it is then: no copy, no shape, no tensor of its own
    assert before - planner.plan(tflite_file.pack(model)).tail == 4 * 2 * 24 * 8 + 16 + 32


@pytest.mark.parametrize(("left", "right"), [("INT16", "INT16"), ("INT8", "INT8"), ("FLOAT32", "INT8")])
def test_matmul_takes_two_operands_of_the_same_type(left, right):
    model, types = tflite_file.parse(transposing_matmul()), tflite_file.load_schema().TensorType
    graph = model.subgraphs[0]
    for number in (graph.operators[0].inputs[0], *graph.operators[0].outputs):
        graph.tensors[number].type = getattr(types, left)
    graph.tensors[graph.operators[0].inputs[1]].type = getattr(types, right)
    refused = () if left == right else ("BATCH_MATMUL of float32 with int8 weights",)
    assert planner.plan(tflite_file.pack(model)).unsupported == refused


@pytest.mark.parametrize(
    ("outputs", "scheme", "refusal"),
    [
        (lambda x: layers.Dense(100)(layers.Flatten()(x)), "dynamic", "FULLY_CONNECTED of float32 with int8 weights"),
        (lambda x: layers.Conv2D(8, 3)(x), "float16", "DEQUANTIZE of float16"),
        (lambda x: layers.UpSampling2D(2)(x), "int8", "TILE"),
        (lambda x: layers.GlobalMaxPooling2D()(x), "int16x8", "REDUCE_MAX of int16"),
        (lambda x: layers.UpSampling2D(2, interpolation="bilinear")(x), "int16x8", "RESIZE_BILINEAR of int16"),
        (lambda x: keras.ops.transpose(keras.ops.reshape(x, (-1, 2, 8, 2, 8, 3)), (0, 1, 3, 2, 4, 5)), None,
         "TRANSPOSE of 6 dimensions"),
    ],
)  # fmt: skip
def test_operator_that_tflm_lacks_or_has_for_other_types_is_named_and_fits_no_board(outputs, scheme, refusal):
    image = keras.Input((16, 16, 3))
    calibration = IMAGES if scheme in tflite.CALIBRATED_SCHEMES else None
    plan = planner.plan(tflite.convert(keras.Model(image, outputs(image)), quantize=scheme, calibration=calibration))
    assert plan.unsupported == (refusal,)
    fit = boards.fit(plan, "stm32h743")
    assert not fit.fits
    assert str(fit) == f"does not fit on STM32H743: TFLM has no {refusal}"
    assert f"The file will not run: TFLM has no {refusal}." in plan.to_markdown()


@pytest.mark.parametrize("scheme", ["int8", "int16x8", "dynamic", "float16", None])
def test_scheme_is_told_by_what_is_computed_and_what_is_stored(scheme):
    image = keras.Input((16, 16, 3))
    model = keras.Model(image, layers.Dense(100)(layers.Flatten()(layers.Conv2D(4, 3)(image))))
    calibration = IMAGES if scheme in tflite.CALIBRATED_SCHEMES else None
    file = tflite.convert(model, quantize=scheme, calibration=calibration)
    assert planner.find_scheme(file) == (scheme or "float32")


def test_operator_of_unknown_memory_is_named_and_one_that_nobody_has_is_unsupported(residual):
    model = tflite_file.parse(residual)
    custom = tflite_file.load_schema().BuiltinOperator.CUSTOM
    softmax = model.operatorCodes[model.subgraphs[0].operators[-1].opcodeIndex]
    softmax.builtinCode = softmax.deprecatedBuiltinCode = custom
    softmax.customCode = b"TFLite_Detection_PostProcess"
    with pytest.raises(planner.PlannerError, match=r"not known for CUSTOM TFLite_Detection_PostProcess\. Measure it"):
        planner.plan(tflite_file.pack(model))
    softmax.customCode = b"FlexErf"
    assert planner.plan(tflite_file.pack(model)).unsupported == ("CUSTOM FlexErf",)


def test_board_says_by_how_much_it_fits_or_not(residual):
    plan = planner.plan(residual)
    fit = boards.fit(plan, "stm32f746")
    assert fit.fits
    assert fit.ram_left == 320 * 1024 - plan.arena
    assert fit.flash_left == 1024 * 1024 - len(residual)
    assert re.fullmatch(r"fits on STM32F746: 3\d\d\.\d kB of RAM and 1,0\d\d\.\d kB of flash are left", str(fit))
    tight = boards.Fit(boards.BOARDS["stm32f746"], -1000, -500)
    assert str(tight) == "does not fit on STM32F746: 1.0 kB of RAM missing and 0.5 kB of flash missing"
    stopped = dataclasses.replace(plan, failure="TFLM was ended by signal 6 on the file")
    assert str(boards.fit(stopped, "stm32f746")) == "does not fit on STM32F746: TFLM was ended by signal 6 on the file"
    assert "The file will not run: TFLM was ended by signal 6 on the file." in stopped.to_markdown()
    with pytest.raises(boards.UnknownBoardError, match="'z80' is unknown; expected one of stm32f412, stm32f746"):
        boards.fit(plan, "z80")


def test_lifetimes_are_drawn(residual, tmp_path):
    boards.draw_memory(planner.plan(residual), tmp_path / "memory.png", "residual", boards.BOARDS["stm32f746"])
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")
