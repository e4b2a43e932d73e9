"""Concatenations of many tensors become nested ones that TFLM can run, and nothing else changes."""

import keras
import numpy as np
import pytest

from zoo.deploy import compact, float_twin, joins, measure, planner, tflite, tflite_file

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
    kinds = float_twin.kinds(model)
    return [
        len(one.inputs)
        for one, kind in zip(model.subgraphs[0].operators, kinds, strict=True)
        if kind == "CONCATENATION"
    ]


@pytest.fixture(scope="module")
def as_converted() -> bytes:
    """A file as the converter writes it, thirteen tensors in one concatenation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joins, "narrow", lambda data: data)
        return tflite.convert(joining(13), quantize="int8", calibration=IMAGES)


def test_ten_tensors_are_left_alone():
    file = tflite.convert(joining(10), quantize="int8", calibration=IMAGES)
    assert widths(file) == [10]
    assert joins.narrow(file) is file


def test_as_many_as_are_too_many_are_joined_first_the_smallest_of_them(as_converted):
    file = joins.narrow(as_converted)
    assert (widths(as_converted), widths(file)) == ([13], [4, 10])
    model = tflite_file.parse(file)
    inner = model.subgraphs[0].tensors[-1]
    assert list(inner.shape) == [1, 6, 6, 1 + 1 + 1 + 2]


def test_outputs_stay_the_same_bit_by_bit_and_tflm_computes_them_too(as_converted):
    with pytest.raises(measure.TflmError, match="cannot run CONCATENATION"):
        measure.arena(as_converted)
    file = joins.narrow(as_converted)
    np.testing.assert_array_equal(measure.predict(file, IMAGES), measure.predict(as_converted, IMAGES))
    step = measure.interpret(file, threads=1).get_output_details()[0]["quantization"][0]
    np.testing.assert_allclose(measure.predict_tflm(file, IMAGES), measure.predict(file, IMAGES), atol=2.01 * step)
    assert planner.plan(file).head == measure.arena(file).head


@pytest.mark.parametrize("count", [11, 25])
def test_any_number_is_nested_to_any_depth_in_the_same_order(count):
    model = joining(count)
    file = tflite.convert(model)
    assert max(widths(file)) == joins.MOST_INPUTS
    assert sum(widths(file)) - (len(widths(file)) - 1) == count
    np.testing.assert_allclose(measure.predict(file, IMAGES), measure.predict(model, IMAGES), atol=1e-5)
    measure.arena(file)


def test_planner_names_the_operator_and_the_remedy(as_converted):
    plan = planner.plan(as_converted)
    assert "joins at most 10 tensors, and CONCATENATION 13 (join_1) more" in plan.to_markdown()
    assert "zoo.deploy.joins.narrow rewrites it" in plan.to_markdown()
    assert planner.plan(joins.narrow(as_converted)).too_wide == ()


def test_plan_of_other_tensors_stays_behind(as_converted):
    file = joins.narrow(compact.with_best_plan(as_converted))
    assert tflite_file.metadata(tflite_file.parse(file), planner.OFFLINE_PLAN) is None
    assert planner.plan(compact.with_best_plan(file)).head == planner.plan(compact.with_best_plan(file)).bound
