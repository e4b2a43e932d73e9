"""The memory told from a file: lifetimes, TFLM's greedy placement, better plans, boards."""

import random
import re

import keras
import numpy as np
import pytest

from zoo.deploy import boards, compact, measure, memory_chart, memory_plan, planner, tflite, tflite_file
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
    assert str(plan.peak) == "CONV_2D 2 (project_1)"
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
    savings = planner.padding_savings(convert(layers.Conv2D(1, 3, strides=2)(x), image))
    assert [saving.operator.output for saving in savings] == ["large_pad_1", "small_pad_1"]
    # With it 8 x 8 x 16 and 10 x 10 x 16 bytes live together. Without: 8 x 8 x 16 at 0, the 18 x 18 x 2 that it is made
    # of above, and above both what those are made of, as the image leaves no room below.
    padded = memory_plan.aligned(18 * 18 * 2)
    assert savings[0].bytes == 8 * 8 * 16 + 10 * 10 * 16 - (8 * 8 * 16 + padded + 16 * 16 * 2)
    assert savings[1].bytes == 0


def test_greedy_puts_the_largest_first_and_each_into_the_lowest_gap():
    buffers = [Buffer("a", 32, 0, 1), Buffer("b", 64, 1, 2), Buffer("c", 16, 2, 3), Buffer("d", 48, 3, 4)]
    assert memory_plan.greedy(buffers) == [64, 0, 64, 0]
    assert memory_plan.live_bytes(buffers) == [32, 96, 80, 64, 48]


def test_sizes_are_rounded_up_to_sixteen_bytes():
    assert [memory_plan.aligned(size) for size in (0, 1, 16, 17)] == [0, 16, 16, 32]


def test_best_plan_reaches_the_bound_where_greedy_wastes():
    # Greedy puts the long-lived 32 bytes above the 64 of its first step; the 64 of its last, then, above both.
    buffers = [Buffer("a", 64, 0, 1), Buffer("b", 32, 1, 2), Buffer("c", 80, 2, 3), Buffer("d", 48, 3, 4),
               Buffer("e", 80, 4, 5)]  # fmt: skip
    bound = max(memory_plan.live_bytes(buffers))
    assert memory_plan.end_of(buffers, memory_plan.best(buffers)) == bound


def test_no_two_live_buffers_share_a_byte_in_any_plan():
    draw = random.Random(0)
    for _ in range(50):
        buffers = [Buffer("x", draw.randint(1, 300), first, first + draw.randint(0, 4)) for first in range(12)]
        bound = max(memory_plan.live_bytes(buffers))
        greedy, best = memory_plan.greedy(buffers), memory_plan.best(buffers, tries=50)
        assert bound <= memory_plan.end_of(buffers, best) <= memory_plan.end_of(buffers, greedy)
        for offsets in (greedy, best):
            placed = list(zip(buffers, offsets, strict=True))
            for number, (one, start) in enumerate(placed):
                for other, other_start in placed[:number]:
                    apart = start + one.size <= other_start or other_start + other.size <= start
                    assert apart or not one.overlaps(other)


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


def test_operator_that_tflm_lacks_is_named():
    image = keras.Input((16, 16, 3))
    assert planner.plan(convert(layers.UpSampling2D(2)(image), image)).unsupported == ("TILE",)


def test_truncated_file_and_control_flow_are_refused(residual):
    with pytest.raises(tflite_file.TfliteFileError, match="damaged or cut off"):
        planner.plan(residual[:-1000])
    model = tflite_file.parse(residual)
    model.subgraphs *= 2
    with pytest.raises(planner.PlannerError, match="2 subgraphs"):
        planner.plan(tflite_file.pack(model))


def test_board_says_by_how_much_it_fits_or_not(residual):
    plan = planner.plan(residual)
    fit = boards.fit(plan, "stm32f746")
    assert fit.fits
    assert fit.ram_left == 320 * 1024 - plan.arena
    assert fit.flash_left == 1024 * 1024 - len(residual)
    assert re.fullmatch(r"fits on STM32F746: 3\d\d\.\d KiB of RAM and 1,0\d\d\.\d KiB of flash are left", str(fit))
    tight = boards.Fit(boards.BOARDS["stm32f746"], -1024, -512)
    assert str(tight) == "does not fit on STM32F746: 1.0 KiB of RAM too much and 0.5 KiB of flash too much"
    with pytest.raises(boards.UnknownBoardError, match="'z80' is unknown; expected one of stm32f412, stm32f746"):
        boards.fit(plan, "z80")


def test_lifetimes_are_drawn(residual, tmp_path):
    memory_chart.draw(planner.plan(residual), tmp_path / "memory.png", "residual")
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")
