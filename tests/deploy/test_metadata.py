"""TFLite Metadata: what a file says of itself, by the schema of MediaPipe and LiteRT, without weighing on a device."""

import base64
import dataclasses
import io
import struct
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from zoo.deploy import c_array, measure, metadata, planner, tflite, tflite_file

layers = keras.layers

# Written by mediapipe.tasks.metadata.metadata_schema_py_generated (MediaPipe 1.2.3)
BY_MEDIAPIPE = base64.b64decode(
    "GAAAAE0wMDEQABgAFAAQAAAADAAIAAQAEAAAABQAAAAYAAAAJAAAAEQBAABcAQAAAwAAAE1JVAAJAAAAQS4gQXV0aG9yAAAAAQAAABAAAAAMAAwA"
    "AAAAAAgABAAMAAAACAAAAGwAAAABAAAAGAAAAAAAEgAMAAgAAAAAAAAAAAAAAAQAEgAAAAgAAAA0AAAAAQAAABAAAAAAAAoADAAIAAAABwAKAAAA"
    "AAAAAgQAAAALAAAAY2xhc3Nlcy50eHQACwAAAHByb2JhYmlsaXR5AAEAAAAUAAAAAAAOABAADAAAAAAACAAEAA4AAAAMAAAAWAAAAGwAAAABAAAA"
    "DAAAAAgADAALAAQACAAAABAAAAAAAAABCAAMAAgABAAIAAAACAAAABQAAAADAAAAAACAQgAAgkIAAIRCAQAAAAAA/0IIAAoACQAEAAgAAAAMAAAA"
    "AAIGAAgABwAGAAAAAAAAAQUAAABpbWFnZQAAABQAAAB0ZWxscyBjYXRzIGZyb20gZG9ncwAAAAAEAAAAY2F0cwAAAAA="
)
DESCRIBED = metadata.Metadata(
    "tiny", "Tells fruit apart.", "A. Author", "MIT", ("apple", "crème brûlée", "fig"), (127.5,), (64.0, 65.0, 66.0),
    {"genotype.json": '{"name": "tiny"}\n', "source.json": "{}\n"},
)  # fmt: skip


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (8, 10, 12, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    image = keras.Input((10, 12, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu")(image))
    return keras.Model(image, layers.Dense(3, activation="softmax")(x), name="tiny")


@pytest.fixture(scope="module", params=["float32", "int8"])
def file(request, model, images) -> bytes:
    return (
        tflite.convert(model, quantize="int8", calibration=images) if request.param == "int8" else tflite.convert(model)
    )


def test_what_is_attached_is_read_back_and_replaces_what_was_there(file):
    described = metadata.attach(file, DESCRIBED)
    assert metadata.read(file) is None
    assert metadata.read(described) == DESCRIBED
    other = dataclasses.replace(DESCRIBED, class_names=("a", "b", "c"), files={})
    assert metadata.attach(described, other) == metadata.attach(file, other)


def test_metadata_of_mediapipe_are_read(file):
    model = tflite_file.parse(file)
    tflite_file.set_metadata(model, "TFLITE_METADATA", BY_MEDIAPIPE)
    whole = io.BytesIO(tflite_file.pack(model))
    with zipfile.ZipFile(whole, "a") as archive:
        archive.writestr("classes.txt", "cat\ndog\n")
        archive.writestr("vector.bin", b"\xff\xfe")  # no text
    assert metadata.read(whole.getvalue()) == metadata.Metadata(
        "cats", "tells cats from dogs", "A. Author", "MIT", ("cat", "dog"), (127.5,), (64.0, 65.0, 66.0)
    )


def test_labels_and_limits_are_where_the_schema_has_them(file):
    described = metadata.attach(file, DESCRIBED)
    with zipfile.ZipFile(io.BytesIO(described)) as archive:
        assert archive.namelist() == ["genotype.json", "source.json", "labels.txt"]
        assert archive.read("labels.txt").decode() == "apple\ncrème brûlée\nfig\n"
        assert {one.compress_type for one in archive.infolist()} == {zipfile.ZIP_STORED}  # MediaPipe reads it in place
    stored = tflite_file.find_metadata(tflite_file.parse(described), "TFLITE_METADATA") or b""
    assert stored[4:8] == b"M001"
    table = metadata._Table(stored, struct.unpack_from("<I", stored)[0])
    image, scores = (table.tables(3)[0].tables(side)[0] for side in (2, 3))
    assert (image.table(3).byte(0), image.table(3).table(1).byte(0)) == (2, 1)  # ImageProperties, RGB
    highest, lowest = (image.table(5).floats(field) for field in (0, 1))
    graph = tflite_file.parse(file).subgraphs[0]
    source = graph.tensors[graph.inputs[0]]
    if tflite_file.is_quantized(source):
        scale, zero = source.quantization.scale[0], source.quantization.zeroPoint[0]
        assert lowest == pytest.approx([(-128 - zero) * scale])
        assert highest == pytest.approx([(127 - zero) * scale])
        assert scores.table(5).floats(0) == pytest.approx([255 / 256])
    else:
        assert lowest == pytest.approx([-127.5 / 64, -127.5 / 65, -127.5 / 66])
        assert highest == pytest.approx([127.5 / 64, 127.5 / 65, 127.5 / 66])


def test_device_gets_the_model_alone(file, images, tmp_path: Path):
    described = metadata.attach(file, DESCRIBED)
    alone = metadata.detach(described)
    assert alone == tflite_file.pack(tflite_file.parse(file))
    assert metadata.detach(file) == file
    assert measure.size(described) == planner.plan(described).flash == len(alone) < len(described) - 600
    c_array.write(described, tmp_path)
    assert f"model_len = {len(alone)}u" in (tmp_path / "model.c").read_text()
    assert planner.plan(described).arena == planner.plan(file).arena
    np.testing.assert_array_equal(measure.predict(described, images), measure.predict(file, images))
    np.testing.assert_array_equal(measure.predict_tflm(described, images), measure.predict_tflm(file, images))


def test_names_of_two_classes_of_one_unit_belong_to_the_whole_file():
    image = keras.Input((4, 4, 1))
    binary = keras.Model(image, layers.Dense(1, activation="sigmoid")(layers.Flatten()(image)))
    described = dataclasses.replace(DESCRIBED, class_names=("no", "yes"))
    assert metadata.read(metadata.attach(tflite.convert(binary), described)) == described


def test_damaged_metadata_are_named(file):
    model = tflite_file.parse(file)
    tflite_file.set_metadata(model, "TFLITE_METADATA", BY_MEDIAPIPE[:40])
    with pytest.raises(tflite_file.TfliteFileError, match=r"the file's metadata are damaged .* export it again"):
        metadata.read(tflite_file.pack(model))
