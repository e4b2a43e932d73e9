"""Which output of a model is judged, and by what: largest unit, threshold, several labels, or not at all."""

import keras
import numpy as np
import pytest

from zoo.deploy import measure, tflite, tflite_file

layers = keras.layers
IMAGES = np.random.default_rng(0).random((6, 8, 8, 1)).astype(np.float32)


def network(outputs) -> keras.Model:
    """A model of the named layers on the mean of the image's pixels."""
    image = keras.Input((8, 8, 1))
    mean = layers.GlobalAveragePooling2D()(image)
    made = keras.tree.map_structure(lambda layer: layer(mean), outputs)
    return keras.Model(image, made)


def constant(values, name: str | None = None, activation: str | None = None) -> layers.Dense:
    """A layer that gives these values whatever the image is."""
    bias = keras.initializers.Constant(np.asarray(values, np.float32))
    return layers.Dense(len(values), activation, kernel_initializer="zeros", bias_initializer=bias, name=name)


def without_signature(data: bytes) -> bytes:
    model = tflite_file.parse(data)
    graph = model.subgraphs[0]
    for name, number in tflite_file.outputs_of(model):
        graph.tensors[number].name = f"Identity_{name[-1]}".removesuffix("_0").encode()
    model.signatureDefs = None
    return tflite_file.pack(model)


@pytest.mark.parametrize("names", [("predictions", "box", "mask"), ("box", "predictions", "mask"), ("z", "y", "x")])
def test_first_output_of_the_file_is_the_first_of_the_model_whatever_its_place_in_the_file(names):
    model = network([constant([number, 9], name) for number, name in enumerate(names)])
    file = tflite.convert(model)
    for data in (file, without_signature(file)):
        for number in range(3):
            assert measure.predict(data, IMAGES, output=number)[0].tolist() == [number, 9]
        assert measure.predict(data, IMAGES)[0].tolist() == [0, 9]
        np.testing.assert_array_equal(measure.predict_tflm(data, IMAGES[:1], output=2), [[2, 9]])
    assert measure.predict(model, IMAGES, output=names[1])[0].tolist() == [1, 9]


def test_outputs_by_name_have_no_first_one_and_are_asked_for():
    model = network({"scores": constant([1, 0, 0]), "area": constant([7])})
    with pytest.raises(measure.MeasureError, match=r"2 outputs: area, scores; which is the first is unknown"):
        measure.predict(model, IMAGES)
    with pytest.raises(measure.MeasureError, match=r"output='box' is unknown; there are 2 outputs: area, scores"):
        measure.predict(model, IMAGES, output="box")
    parsed = tflite_file.parse(tflite.convert(model))
    for entry, name in zip(parsed.signatureDefs[0].outputs, ("area", "scores"), strict=True):
        assert tflite_file.text(entry.name).startswith("output_")
        entry.name = name
    for subject in (model, tflite_file.pack(parsed)):
        assert measure.predict(subject, IMAGES, output="area")[0].tolist() == [7]
        assert measure.accuracy(subject, IMAGES, np.zeros(6), output="scores") == 1
    with pytest.raises(measure.MeasureError, match="which is the first is unknown"):
        measure.predict(tflite_file.pack(parsed), IMAGES)


def with_brightness(activation: str | None, bias: float) -> keras.Model:
    """One unit: 100 times the mean of the image less a half, so that it says whether the image is bright."""
    head = layers.Dense(1, activation, bias_initializer=keras.initializers.Constant(bias), kernel_initializer="ones")
    return network(head)


BRIGHT = np.stack([np.full((8, 8, 1), value, np.float32) for value in (0.1, 0.3, 0.7, 0.9)])
LABELS = np.array([0, 0, 1, 1])


def test_one_sigmoid_unit_says_class_1_above_a_half():
    model = with_brightness("sigmoid", -0.5)
    for subject in (model, tflite.convert(model), tflite.convert(model, quantize="int8", calibration=BRIGHT)):
        assert measure.accuracy(subject, BRIGHT, LABELS) == 1
        assert measure.accuracy(subject, BRIGHT, 1 - LABELS) == 0
        assert measure.accuracy(subject, BRIGHT, LABELS[:, None]) == 1


@pytest.mark.parametrize("last", [layers.Activation("sigmoid"), keras.ops.sigmoid, layers.Reshape((1,))])
def test_sigmoid_is_found_as_a_layer_as_an_operation_and_before_a_reshape(last):
    logit = with_brightness("sigmoid" if isinstance(last, layers.Reshape) else None, -0.5)
    assert measure.find_threshold(keras.Model(logit.inputs, last(logit.outputs[0]))) == 0.5


@pytest.mark.parametrize(
    ("loss", "bias"),
    [(keras.losses.BinaryCrossentropy(from_logits=True), -0.5), ("hinge", -0.5), ("binary_crossentropy", 0.0)],
)
def test_one_linear_unit_is_judged_by_the_loss_that_it_was_trained_with(loss, bias):
    model = with_brightness(None, bias)
    model.compile(loss=loss)
    assert measure.accuracy(model, BRIGHT, LABELS) == 1


def test_one_linear_unit_alone_is_asked_about():
    file = tflite.convert(with_brightness(None, -0.5))
    with pytest.raises(measure.MeasureError, match=r"does not end in a sigmoid.* Give threshold=0\.0 for logits"):
        measure.accuracy(file, BRIGHT, LABELS)
    assert measure.accuracy(file, BRIGHT, LABELS, threshold=0.0) == 1
    assert measure.accuracy(file, BRIGHT, LABELS, threshold=0.35) == 0.75


@pytest.mark.parametrize("loss", ["mse", keras.losses.Huber(), ["mean_absolute_error"]])
def test_regression_has_no_accuracy(loss):
    model = with_brightness(None, 0.0)
    model.compile(loss=loss)
    with pytest.raises(measure.MeasureError, match="trained for a regression"):
        measure.accuracy(model, BRIGHT, LABELS)
    with pytest.raises(measure.MeasureError, match=r"range from 0.5 to 3.5 and are not class numbers"):
        measure.accuracy(model, BRIGHT, np.array([0.5, 1.5, 2.5, 3.5]))


def test_several_labels_an_image_are_compared_one_by_one():
    model = network(constant([3, -3, 3], activation="sigmoid"))
    labels = np.array([[1, 0, 1], [1, 1, 1], [0, 0, 0]])
    for subject in (model, tflite.convert(model)):
        assert measure.accuracy(subject, IMAGES[:3], labels) == pytest.approx((3 + 2 + 1) / 9)
    with pytest.raises(measure.MeasureError, match=r"labels have the shape \(3, 2\) and the outputs \(3, 3\)"):
        measure.accuracy(model, IMAGES[:3], labels[:, :2])


def test_one_hot_rows_are_class_numbers_even_after_a_sigmoid():
    model = network(constant([0.2, 0.4, 0.3], activation="sigmoid"))
    assert measure.accuracy(model, IMAGES[:3], np.eye(3)) == pytest.approx(1 / 3)


@pytest.mark.parametrize(("units", "told"), [(2, 2), (1, 2), (3, 3)])
def test_labels_beyond_the_output_are_refused(units, told):
    file = tflite.convert(network(constant([0.0] * units, activation="sigmoid")))
    with pytest.raises(measure.MeasureError, match=f"go up to 9, and the output has {told} classes"):
        measure.accuracy(file, IMAGES, np.array([0, 1, 2, 3, 4, 9]))


def test_output_that_is_no_row_of_classes_is_refused():
    image = keras.Input((8, 8, 1))
    file = tflite.convert(keras.Model(image, layers.Conv2D(10, 1)(image)))
    with pytest.raises(measure.MeasureError, match=r"has the shape \(8, 8, 10\) per image.*this is not a classifier"):
        measure.accuracy(file, IMAGES, np.zeros(6))
