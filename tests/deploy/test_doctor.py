"""Where an int8 file loses accuracy."""

import re

import keras
import numpy as np
import pytest

from zoo.deploy import doctor, measure, tflite, tflite_file

layers = keras.layers
IMAGES = np.random.default_rng(0).uniform(-1, 1, (24, 16, 16, 3)).astype(np.float32)


def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(image)
    y = layers.Conv2D(8, 1, name="middle")(x)
    y = layers.DepthwiseConv2D(3, padding="same", activation="relu6", name="depthwise")(y)
    x = layers.Concatenate(name="concat")([x, layers.Add(name="add")([x, y])])
    x = layers.MaxPooling2D(2, name="pool")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(layers.Conv2D(16, 3, activation="relu", name="last")(x))
    return keras.Model(image, layers.Dense(5, activation="softmax", name="logits")(x))


def int8(model: keras.Model, calibration: np.ndarray = IMAGES) -> bytes:
    return tflite.convert(model, quantize="int8", calibration=calibration)


@pytest.fixture(scope="module")
def healthy() -> bytes:
    return int8(network())


def found(diagnosis: doctor.Diagnosis, name: str) -> doctor.Finding:
    return next(finding for finding in diagnosis.findings if name in finding.operator.output)


def test_decibels_of_a_hundredth_of_noise_are_forty():
    signal = np.full(1000, 2.0)
    assert doctor.decibels(signal, signal * 1.01) == pytest.approx(40)
    assert doctor.decibels(signal, signal) == doctor.EXACT_DB


def test_float_twin_computes_what_the_file_means(healthy):
    twin, kept = doctor.make_float(tflite_file.parse(healthy))
    assert measure.interpret(twin, threads=1).get_input_details()[0]["dtype"] == np.float32
    np.testing.assert_allclose(measure.predict(twin, IMAGES), measure.predict(healthy, IMAGES), atol=0.02)
    np.testing.assert_allclose(measure.predict(twin, IMAGES), measure.predict(network(), IMAGES), atol=0.01)
    assert len(kept) == len(tflite_file.kinds_of(tflite_file.parse(twin)))


def test_healthy_file_has_its_eight_bits_in_every_operator(healthy):
    diagnosis = doctor.diagnose(healthy, IMAGES)
    assert diagnosis.n == len(IMAGES)
    assert min(finding.own_db for finding in diagnosis.findings) > doctor.LOST_DB
    assert not any(finding.remedies for finding in diagnosis.findings)
    assert "No operator loses much." in diagnosis.to_markdown()
    assert found(diagnosis, "pool").own_db == doctor.EXACT_DB  # a maximum of rounded numbers is one of them
    assert diagnosis.output_db == diagnosis.findings[-1].total_db


def test_channel_that_dwarfs_the_others_is_found_with_the_remedy():
    model = network()
    kernel, bias = model.get_layer("middle").get_weights()
    kernel[..., 0] *= 200
    model.get_layer("middle").set_weights([kernel, bias])
    diagnosis = doctor.diagnose(int8(model), IMAGES)
    finding = found(diagnosis, "middle")
    assert any(remedy.startswith("channels of very different range") for remedy in finding.remedies)
    assert found(diagnosis, "depthwise").own_db > 25  # the noise is not of its making
    assert found(diagnosis, "depthwise").total_db < 25


def test_branch_that_fills_little_of_a_shared_range_is_found():
    model = network()
    kernel, bias = model.get_layer("stem").get_weights()
    model.get_layer("stem").set_weights([kernel * 100, bias])
    finding = found(doctor.diagnose(int8(model), IMAGES), "depthwise")  # at most 6, beside values of some 150
    assert finding.own_db < 32
    assert any("uses little of its range" in remedy for remedy in finding.remedies)


def test_operands_of_very_different_scale_are_found():
    image = keras.Input((16, 16, 3))
    large = layers.Rescaling(50.0)(layers.ReLU()(image))
    model = keras.Model(image, layers.Add(name="add")([image, layers.Conv2D(3, 1)(large)]))
    model.layers[-2].set_weights([np.eye(3).reshape(1, 1, 3, 3), np.zeros(3)])
    finding = found(doctor.diagnose(int8(model), IMAGES), "output")
    assert any("scales differ" in remedy for remedy in finding.remedies)


def test_calibration_images_that_miss_the_range_are_found(healthy):
    finding = doctor.diagnose(int8(network(), calibration=0.1 * IMAGES), IMAGES).findings[0]
    assert str(finding.operator) == "INPUT (image)"
    assert finding.own_db < 3
    assert any("calibrate on more" in remedy for remedy in finding.remedies)


def test_float_file_as_reference_shows_the_noise_of_the_weights_too(healthy):
    with_weights = doctor.diagnose(healthy, IMAGES, reference=tflite.convert(network()))
    without = doctor.diagnose(healthy, IMAGES)
    assert found(with_weights, "stem").own_db < found(without, "stem").own_db
    image = keras.Input((16, 16, 3))
    other = tflite.convert(keras.Model(image, layers.ReLU()(image)))
    with pytest.raises(doctor.DoctorError, match=r"does not run the same operators: .* Leave it out"):
        doctor.diagnose(healthy, IMAGES, reference=other)


def test_int16_activations_are_diagnosed_and_have_more_bits(healthy):
    file = tflite.convert(network(), quantize="int16x8", calibration=IMAGES)
    assert doctor.diagnose(file, IMAGES).findings[0].own_db > doctor.diagnose(healthy, IMAGES).findings[0].own_db + 20


def test_float_file_and_odd_images_are_refused(healthy):
    with pytest.raises(doctor.DoctorError, match="give the int8 file"):
        doctor.diagnose(tflite.convert(network()), IMAGES)
    with pytest.raises(measure.MeasureError, match="Resize them"):
        doctor.diagnose(healthy, IMAGES[:, :8])
    with pytest.raises(tflite_file.TfliteFileError, match="damaged or cut off"):
        doctor.diagnose(healthy[:-500], IMAGES)


def test_page_lists_the_worst_first_with_n_remedies_and_what_the_columns_say():
    diagnosis = doctor.diagnose(int8(network(), calibration=0.1 * IMAGES), IMAGES)
    page = diagnosis.to_markdown(count=2).splitlines()
    assert "n = 24 images" in page[0]
    assert re.search(r"[1-9]\d? of 11 operators lose something", page[0])
    worst = diagnosis.worst(1)[0]
    assert page[4] == f"| {worst.operator} | {worst.own_db:.1f} | {worst.total_db:.1f} | {worst.remedies[0]} |"
    assert len([line for line in page if line.startswith("|")]) == 2 + 2
    assert page[-1].startswith("Own: the noise that this operator adds to exact inputs. So far: all the noise")


def test_range_is_blamed_on_a_concatenation_only_where_there_is_one():
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, name="stem")(image)
    chain = keras.Model(image, layers.Dense(3)(layers.Flatten()(layers.ReLU()(x))))
    remedies = found(doctor.diagnose(int8(chain, calibration=20 * IMAGES), IMAGES), "re_lu").remedies
    assert any(remedy == "it uses little of its range: calibrate on more typical images" for remedy in remedies)
    large = layers.Conv2D(4, 3, kernel_initializer=keras.initializers.RandomNormal(stddev=20.0))(image)
    joined = keras.Model(
        image, layers.Concatenate(name="joint")([layers.MaxPooling2D(2)(x), layers.MaxPooling2D(2)(large)])
    )
    remedies = found(doctor.diagnose(int8(joined), IMAGES), "stem").remedies
    assert any("which it shares with larger values in CONCATENATION (output)" in remedy for remedy in remedies)


def test_constant_that_is_added_is_no_branch():
    image = keras.Input((16, 16, 3))
    shifted = layers.BatchNormalization(name="shift", beta_initializer=keras.initializers.Constant(100.0))(image)
    model = keras.Model(image, layers.Conv2D(2, 1)(layers.MaxPooling2D(2)(shifted)))
    diagnosis = doctor.diagnose(int8(model), IMAGES)
    additions = [finding for finding in diagnosis.findings if finding.operator.kind == "ADD"]
    assert [finding.operator.output for finding in additions] == ["shift"]  # its layer's, not "batchnorm"
    assert not any("operands" in remedy for finding in additions for remedy in finding.remedies)


def test_values_that_an_activation_cuts_off_are_not_lost():
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 1, activation="relu6", name="full", kernel_initializer=keras.initializers.RandomNormal(0, 20))(
        image
    )
    diagnosis = doctor.diagnose(int8(keras.Model(image, layers.Conv2D(2, 1)(x))), IMAGES)
    assert not found(diagnosis, "full").remedies


def test_two_inputs_are_diagnosed_on_random_numbers():
    import tensorflow as tf

    weights = tf.constant(np.random.default_rng(0).normal(size=(4, 4)), tf.float32)
    function = tf.function(lambda image, more: tf.matmul(image, weights) + tf.nn.relu(more))
    shapes = (tf.TensorSpec((1, 4), tf.float32, "image"), tf.TensorSpec((1, 4), tf.float32, "more"))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function(*shapes)], tf.Module())
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    draw = np.random.default_rng(0)
    samples = [
        [draw.normal(size=(1, 4)).astype(np.float32), draw.normal(size=(1, 3)).astype(np.float32)] for _ in "ten"
    ]
    converter.representative_dataset = lambda: samples
    with tflite_file.quiet():
        file = converter.convert()
    diagnosis = doctor.diagnose(file, None)
    assert diagnosis.n == doctor.IMAGES
    assert [finding.operator.kind for finding in diagnosis.findings][:2] == ["INPUT", "INPUT"]
    assert diagnosis.output_db > 20
    with pytest.raises(measure.MeasureError, match="takes 2 inputs, and images are only one; give None"):
        doctor.diagnose(file, IMAGES)


def test_worst_operators_are_drawn(healthy, tmp_path):
    doctor.draw_noise(doctor.diagnose(healthy, IMAGES), tmp_path / "noise.png", "network")
    assert (tmp_path / "noise.png").read_bytes().startswith(b"\x89PNG")
