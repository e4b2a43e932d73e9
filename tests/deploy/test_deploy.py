"""Conversion to TensorFlow Lite, and what is measured on the file."""

import re
import subprocess
import types

import keras
import numpy as np
import pytest

from zoo import deploy, graph
from zoo.deploy import c_array, measure, planner, quantize, tflite, tflite_file, tflm

layers = keras.layers


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (32, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="stem")(image)
    x = layers.BatchNormalization(name="stem_bn")(x)
    x = layers.ReLU(6.0, name="stem_relu")(x)
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="dw")(x)
    y = layers.BatchNormalization(name="dw_bn")(y)
    y = layers.Dropout(0.2, noise_shape=(None, 1, 1, 1), name="drop_path")(y)
    x = layers.Add(name="add")([x, y])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(image, layers.Dense(10, activation="softmax", name="logits")(x), name="tiny")
    rng = np.random.default_rng(0)
    for layer in model.layers:  # as if trained: no BatchNormalization that does nothing
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_mean.assign(rng.uniform(-0.2, 0.3, layer.moving_mean.shape))
            layer.moving_variance.assign(rng.uniform(0.5, 1.5, layer.moving_mean.shape))
    return model


@pytest.fixture(scope="module")
def float_file(model) -> bytes:
    return tflite.convert(model)


@pytest.fixture(scope="module")
def int8_file(model, images) -> bytes:
    return tflite.convert(model, quantize="int8", calibration=images)


def operators(data: bytes) -> list[str]:
    return tflite_file.kinds_of(tflite_file.parse(data))


def test_float_file_computes_what_the_model_computes(model, images, float_file):
    np.testing.assert_allclose(measure.predict(float_file, images), measure.predict(model, images), atol=1e-6)


def test_normalization_activation_and_drop_path_leave_no_operator_behind(float_file):
    assert operators(float_file) == ["CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "MEAN", "FULLY_CONNECTED", "SOFTMAX"]


def test_file_has_a_fixed_batch_of_one_and_a_named_input(float_file):
    runner = measure.interpret(float_file, threads=1).get_signature_runner("serving_default")
    assert list(runner.get_input_details()) == ["image"]
    details = runner.get_input_details()["image"]
    assert (details["shape"].tolist(), details["shape_signature"].tolist()) == ([1, 16, 16, 3], [1, 16, 16, 3])


def test_int8_file_is_int8_from_input_to_output_with_one_weight_scale_a_channel(int8_file):
    interpreter = measure.interpret(int8_file, threads=1)
    assert interpreter.get_input_details()[0]["dtype"] == interpreter.get_output_details()[0]["dtype"] == np.int8
    scales = [len(tensor["quantization_parameters"]["scales"]) for tensor in interpreter.get_tensor_details()]
    assert scales.count(8) >= 2  # the weights of both convolutions, 8 output channels each
    assert all(tensor["dtype"] in (np.int8, np.int32) for tensor in interpreter.get_tensor_details())


@pytest.mark.parametrize(
    ("scheme", "tolerance"), [("int8", 0.01), ("int4", 0.05), ("int16x8", 1e-3), ("dynamic", 0.01), ("float16", 1e-3)]
)
def test_each_scheme_stays_near_the_float_model(model, images, scheme, tolerance):
    calibration = images if scheme in tflite.CALIBRATED_SCHEMES else None
    data = tflite.convert(model, quantize=scheme, calibration=calibration)
    np.testing.assert_allclose(measure.predict(data, images), measure.predict(model, images), atol=tolerance)


def test_calibration_takes_images_batches_labelled_batches_and_the_first_of_an_endless_data_set(
    model, images, monkeypatch
):
    labelled = [(batch, np.zeros(len(batch))) for batch in np.split(images, 4)]
    for given in (images, list(images), labelled):
        np.testing.assert_array_equal(tflite.load_calibration(model, given), images)
    monkeypatch.setattr(tflite, "CALIBRATION_LIMIT", 3)
    endless = (image for _ in iter(int, 1) for image in images)
    np.testing.assert_array_equal(tflite.load_calibration(model, endless), images[:3])


def test_conversion_prints_nothing(model, images, capfd):
    tflite.convert(model, quantize="int8", calibration=images)
    assert capfd.readouterr() == ("", "")


def test_open_height_and_width_are_fixed_by_input_shape_or_calibration_images():
    image = keras.Input((None, None, 3))
    model = keras.Model(image, layers.Conv2D(4, 3)(image))
    with pytest.raises(tflite.ConversionError, match=re.escape("(None, None, 3) is not a fixed shape")):
        tflite.convert(model)
    data = tflite.convert(model, input_shape=(8, 9, 3))
    assert measure.predict(data, np.zeros((1, 8, 9, 3))).shape == (1, 6, 7, 4)
    with pytest.raises(tflite.ConversionError, match=re.escape("(8, 9, 1) is not a fixed shape")):
        tflite.convert(model, input_shape=(8, 9, 1))
    data = tflite.convert(model, quantize="int8", calibration=np.ones((2, 7, 9, 3)))
    assert measure.predict(data, np.zeros((1, 7, 9, 3))).shape == (1, 5, 7, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int2"}, "quantize='int2' is unknown; expected None or one of int8, uint8, int4, int16x8, dyn"),
        ({"quantize": "int8"}, "Pass calibration=images of shape (n, 16, 16, 3)"),
        ({"quantize": "int8", "calibration": np.zeros((0, 16, 16, 3))}, "Pass calibration=images of shape"),
        ({"quantize": "float16", "calibration": np.zeros((1, 16, 16, 3))}, "measures no ranges"),
        ({"quantize": "int8", "calibration": np.zeros((1, 8, 8, 3))}, "has the shape (8, 8, 3)"),
        ({"quantize": "int8", "calibration": np.full((1, 16, 16, 3), np.nan)}, "not finite"),
    ],
)
def test_options_that_cannot_work_are_refused(model, options, message):
    with pytest.raises(tflite.ConversionError, match=re.escape(message)):
        tflite.convert(model, **options)


@pytest.mark.parametrize(
    "start",
    [
        lambda model: tflite.convert(model),
        lambda model: quantize.prepare(model, np.zeros((1, 4, 4, 3))),
        lambda model: quantize.cluster(model, np.zeros((1, 4, 4, 3)), np.zeros(1)),
    ],
)
def test_weights_that_are_not_finite_or_too_many_are_refused_before_any_work(start, monkeypatch):
    image = keras.Input((4, 4, 3))
    model = keras.Model(image, layers.Conv2D(2, 1, name="broken")(image))
    with monkeypatch.context() as patch:
        patch.setattr(tflite, "LARGEST_FILE", 31)  # 8 weights of 4 bytes
        with pytest.raises(tflite.ConversionError, match="Use fewer filters"):
            start(model)
    model.get_layer("broken").kernel.assign(np.full((1, 1, 3, 2), np.inf))
    with pytest.raises(tflite.ConversionError, match=r"'broken/kernel' has 6 values that are not finite"):
        start(model)


def test_operation_that_tensorflow_lite_lacks_is_named_with_its_layer():
    class Inverse(layers.Layer):
        def call(self, x):
            return keras.ops.erfinv(x)

    image = keras.Input((8, 8, 3))
    with pytest.raises(tflite.ConversionError, match=r"no tf\.Erfinv \(in odd_one_1?\)\. Use another layer"):
        tflite.convert(keras.Model(image, Inverse(name="odd_one")(image)))


def test_half_precision_and_a_model_inside_a_model_are_converted_flat_and_in_float32():
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, layers.Conv2D(2, 1, dtype="mixed_bfloat16", name="half")(image))
    nested = keras.Sequential([keras.Input((8, 8, 3)), model])
    pictures = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3))
    found = measure.predict(tflite.convert(nested), pictures)
    np.testing.assert_allclose(found, measure.predict(graph.flatten(model), pictures), atol=1e-6)


@pytest.mark.parametrize("make", [layers.LSTM, layers.GRU, lambda units: layers.Bidirectional(layers.SimpleRNN(units))])
def test_recurrent_layers_are_written_out_for_int8(make):
    keras.utils.set_random_seed(0)
    sequence = keras.Input((None, 3))
    model = keras.Model(sequence, layers.Dense(2)(make(4)(sequence)))
    given = np.random.default_rng(0).normal(size=(16, 6, 3)).astype(np.float32)
    file = tflite.convert(model, quantize="int8", calibration=given)
    assert "WHILE" not in operators(file)
    interpreter = measure.interpret(file, threads=1)
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    interpreter.set_tensor(source["index"], measure.quantize(given[:1], source))
    interpreter.invoke()
    found = measure.dequantize(interpreter.get_tensor(target["index"]), target)
    np.testing.assert_allclose(found, np.asarray(model(given[:1])), atol=0.03)


@pytest.mark.slow
def test_converter_that_dies_leaves_an_error_and_loops_that_it_can_convert_a_file(monkeypatch):
    monkeypatch.setattr(tflite, "MOST_STEPS", 4)
    sequence = keras.Input((6, 3))
    model = keras.Model(sequence, layers.Dense(2)(layers.LSTM(4)(sequence)))
    with pytest.raises(tflite.ConversionError, match=r"ended by signal \d+: .* of up to 4 steps"):
        tflite.convert(model, quantize="int8", calibration=np.ones((2, 6, 3)))

    class Halved(layers.Layer):
        def call(self, x):
            return keras.ops.fori_loop(0, 3, lambda _, value: value / 2, x)

    assert "WHILE" in operators(
        tflite.convert(keras.Model(sequence, Halved()(sequence)), quantize="int8", calibration=np.ones((2, 6, 3)))
    )


def test_layer_that_keeps_a_state_from_call_to_call_is_refused():
    sequence = keras.Input((6, 3), batch_size=1)
    with pytest.raises(tflite.ConversionError, match="'memory' keeps its state from call to call"):
        tflite.convert(keras.Model(sequence, layers.LSTM(2, stateful=True, name="memory")(sequence)))


def test_calls_come_in_running_order_and_a_shared_layer_comes_twice():
    image = keras.Input((4, 4, 1))
    shared = layers.Conv2D(1, 1, name="shared")
    model = keras.Model(image, layers.Add(name="sum")([shared(image), shared(shared(image))]))
    assert [call.layer.name for call in graph.calls(model)] == ["shared", "shared", "shared", "sum"]


def test_accuracy_counts_the_same_images_for_model_and_file(model, images, float_file):
    labels = measure.predict(model, images).argmax(axis=1)
    labels[:8] = (labels[:8] + 1) % 10
    assert measure.accuracy(model, images, labels) == measure.accuracy(float_file, images, labels) == 0.75
    assert measure.accuracy(float_file, images, np.eye(10)[labels]) == 0.75


def test_accuracy_refuses_what_does_not_fit(float_file, images):
    with pytest.raises(measure.MeasureError, match="32 images and 3 labels"):
        measure.accuracy(float_file, images, [1, 2, 3])
    with pytest.raises(measure.MeasureError, match=re.escape("(8, 8, 3) each; the file takes (16, 16, 3)")):
        measure.predict(float_file, np.zeros((1, 8, 8, 3)))
    with pytest.raises(measure.MeasureError, match="with n >= 1"):
        measure.predict(float_file, np.zeros((0, 16, 16, 3)))


def test_values_are_rounded_to_the_nearest_step_and_clipped():
    details = {"dtype": np.int8, "quantization": (0.5, -1)}
    stored = measure.quantize(np.array([0.0, 0.6, -0.7, 100.0, -100.0]), details)
    assert stored.tolist() == [-1, 0, -2, 127, -128]
    assert measure.dequantize(stored, details).tolist() == [0.0, 0.5, -0.5, 64.0, -63.5]


def test_latency_reports_median_and_p90_of_the_runs(int8_file):
    latency = measure.latency(int8_file, threads=1, runs=10, warmup=1)
    assert 0 < latency.median_ms <= latency.p90_ms
    assert (latency.threads, latency.runs) == (1, 10)
    with pytest.raises(measure.MeasureError, match="runs=0"):
        measure.latency(int8_file, runs=0)


def test_arena_holds_the_three_tensors_of_the_residual_at_once(int8_file):
    arena = measure.arena(int8_file)
    assert arena.total == arena.head + arena.tail
    assert arena.head == 3 * 8 * 8 * 8  # ADD reads two tensors of 8x8 pixels and 8 channels and writes a third


def test_tflm_and_litert_differ_by_at_most_two_steps(int8_file, images):
    step = measure.interpret(int8_file, threads=1).get_output_details()[0]["quantization"][0]
    difference = measure.predict(int8_file, images[:4]) - measure.predict_tflm(int8_file, images[:4])
    assert np.abs(difference).max() <= 2 * step


def test_tflm_says_what_it_cannot_run(model):
    with pytest.raises(tflm.TflmError, match="DEQUANTIZE"):
        measure.arena(tflite.convert(model, quantize="float16"))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_file_that_is_cut_off_is_refused(int8_file, share):
    with pytest.raises(tflite_file.TfliteFileError, match=r"damaged or cut off"):
        measure.latency(int8_file[: int(share * len(int8_file))])


def test_other_files_are_refused_by_name(tmp_path):
    path = tmp_path / "notes.tflite"
    path.write_bytes(b"not a network")
    with pytest.raises(tflite_file.TfliteFileError, match=r"notes\.tflite \(13 bytes\) is not a TensorFlow Lite file"):
        measure.size(path)


def test_parsed_and_packed_file_runs_the_same(int8_file, images):
    packed = tflite_file.pack(tflite_file.parse(int8_file))
    np.testing.assert_array_equal(measure.predict(packed, images), measure.predict(int8_file, images))


def test_missing_package_says_what_to_install():
    with pytest.raises(tflite_file.MissingPackageError, match="pip install 'no-such-package', or the project"):
        tflite_file.require("no_such_module", "no-such-package")


def compile_and_run(folder, source, main: str) -> subprocess.CompletedProcess:
    """Builds a C program of the source file and `main`, every warning an error, and runs it."""
    (folder / "main.c").write_text(main)
    command = ["gcc", "-std=c11", "-Wall", "-Wextra", "-pedantic", "-Werror", folder / "main.c", source, "-o"]
    subprocess.run([*command, folder / "program"], check=True, timeout=60)
    return subprocess.run([folder / "program"], check=True, capture_output=True, timeout=60)


def test_c_array_compiles_and_holds_the_bytes_of_the_file(int8_file, tmp_path):
    header, source = c_array.write(int8_file, tmp_path, "tiny_int8")
    done = compile_and_run(
        tmp_path,
        source,
        f'#include <stdio.h>\n#include <stdint.h>\n#include "{header.name}"\n'
        "int main(void) { fwrite(tiny_int8, 1, tiny_int8_len, stdout); return (uintptr_t)tiny_int8 % 16; }\n",
    )
    assert done.stdout == int8_file


def test_c_header_says_what_a_program_needs_and_compiles_as_c_and_cpp(int8_file, tmp_path):
    names = [f"class {number}" for number in range(9)] + ['the "last" one, é']
    header, source = c_array.write(int8_file, tmp_path, "net", class_names=names)
    details = measure.interpret(int8_file, threads=1).get_input_details()[0]
    scale, zero = details["quantization"]
    text = header.read_text()
    assert f"#define NET_ARENA_SIZE {planner.plan(int8_file).arena} " in text
    assert "#define NET_INPUT_SHAPE {1, 16, 16, 3}  /* int8 */" in text
    assert f"#define NET_INPUT_ZERO_POINT ({zero})" in text
    assert "ADD, CONV_2D, DEPTHWISE_CONV_2D, FULLY_CONNECTED, MEAN, SOFTMAX" in text
    calls = re.findall(r"\(resolver\)\.(\w+)\(\) == kTfLiteOk", text)
    assert calls == ["AddAdd", "AddConv2D", "AddDepthwiseConv2D", "AddFullyConnected", "AddMean", "AddSoftmax"]
    done = compile_and_run(
        tmp_path,
        source,
        f'#include <stdio.h>\n#include "{header.name}"\n'
        "static const int shape[] = NET_OUTPUT_SHAPE;\n"
        'int main(void) { printf("%d %d %.9g %s", shape[1], NET_OPERATORS, (double)NET_INPUT_SCALE, '
        "net_class_names[9]); return 0; }\n",
    )
    assert done.stdout.decode() == f"10 6 {np.float32(scale):.9g} {names[-1]}"
    subprocess.run(["g++", "-fsyntax-only", "-Wall", "-Werror", "-x", "c++", header], check=True, timeout=60)


@pytest.mark.parametrize(("name", "suggestion"), [("my-net", "my_net"), ("3net", "model_3net"), ("int", "model_int")])
def test_c_array_name_must_be_an_identifier(int8_file, tmp_path, name, suggestion):
    with pytest.raises(ValueError, match=f"try '{suggestion}'"):
        c_array.write(int8_file, tmp_path, name)
    assert not list(tmp_path.iterdir())


def test_quiet_catches_what_any_process_prints_and_restores_the_console_after_an_error_too(capfd):
    with tflite_file.quiet() as printed:
        subprocess.run(["echo", "hidden"], check=True)
    with pytest.raises(RuntimeError), tflite_file.quiet():
        raise RuntimeError
    subprocess.run(["echo", "shown"], check=True)
    assert printed.text == "hidden\n"
    assert capfd.readouterr().out == "shown\n"


def test_arena_recording_of_another_version_is_reported():
    with pytest.raises(tflm.TflmError, match="recorded no arena"):
        tflm._parse_recording("nothing here")
    done = types.SimpleNamespace(returncode=1, stderr="Didn't find op for builtin opcode 'ERF'", stdout="")
    assert "no operator ERF" in tflm._explain_failure(done)


@pytest.mark.parametrize(("module", "name"), [("compress", "prune"), ("graph", "calls"), ("strips", "split")])
def test_modules_of_version_0_1_are_found_by_their_names(module, name):
    assert callable(getattr(getattr(deploy, module), name))
