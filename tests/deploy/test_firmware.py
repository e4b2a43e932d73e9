"""The project for a board: it compiles, and computes what Python computes, with TFLM's own library where it is there.

TFLM_DIR=/path/to/tree compiles TFLM's sources. Else the headers are the few lines below, and the library is that of the
package tflite-micro: the real kernels run in the arena that the planner estimated.
"""

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from recipes import deploy
from recipes.images import files
from recipes.images.augment import IMAGENET, PIXELS, UNIT
from zoo import atomic
from zoo.deploy import firmware, measure, planner, tflite, turn

layers = keras.layers

# What the program calls, of the classes as they are in the library; their sizes are larger than the real ones.
_STUBS = {
    "micro_interpreter.h": """
#pragma once
#include <cstddef>
#include <cstdint>
enum TfLiteStatus { kTfLiteOk, kTfLiteError };
struct TfLiteTensor {
  void* unused[3];
  union { void* data; } data;
};
namespace tflite {
struct Model;
class PythonOpsResolver {
 public:
  PythonOpsResolver();
  alignas(16) char storage[1 << 17];
};
NAMESPACE_BEGIN
class MicroOpResolver;
class MicroResourceVariables;
class MicroProfilerInterface;
class MicroInterpreter {
 public:
  MicroInterpreter(const Model*, const MicroOpResolver&, unsigned char*, std::size_t,
                   MicroResourceVariables* = nullptr, MicroProfilerInterface* = nullptr, bool = false);
  ~MicroInterpreter();
  TfLiteStatus AllocateTensors();
  TfLiteStatus Invoke();
  TfLiteTensor* input(std::size_t);
  TfLiteTensor* output(std::size_t);
  alignas(16) char storage[1 << 14];
};
NAMESPACE_END
}  // namespace tflite
""",
    "micro_mutable_op_resolver.h": """
#pragma once
#include "tensorflow/lite/micro/micro_interpreter.h"
namespace tflite {
NAMESPACE_BEGIN
template <unsigned size>
class MicroMutableOpResolver {
 public:
  ADDERS
  operator const MicroOpResolver&() const { return reinterpret_cast<const MicroOpResolver&>(all); }
 private:
  TfLiteStatus add() { return used++ < size ? kTfLiteOk : kTfLiteError; }
  unsigned used = 0;
  PythonOpsResolver all;
};
NAMESPACE_END
}  // namespace tflite
""",
    "system_setup.h": "namespace tflite { inline void InitializeTarget() {} }\n",
    "../schema/schema_generated.h": """
#pragma once
#include <cstring>
namespace tflite {
inline const Model* GetModel(const void* file) {
  unsigned offset;
  std::memcpy(&offset, file, 4);
  return reinterpret_cast<const Model*>(static_cast<const char*>(file) + offset);
}
}  // namespace tflite
""",
}
_ADDERS = "Add AveragePool2D Concatenation Conv2D DepthwiseConv2D FullyConnected Mean Pad Relu6 Reshape Softmax".split()
_PROGRAM = """
#include <stdio.h>
#include <stdlib.h>
#include "preprocess.h"
int main(int count, char **arguments) {
    const int width = atoi(arguments[1]), height = atoi(arguments[2]);
    uint8_t *pixels = malloc(3 * width * height);
    static MODEL_INPUT_TYPE input[MODEL_INPUT_HEIGHT * MODEL_INPUT_WIDTH * MODEL_INPUT_CHANNELS];
    if (fread(pixels, 3, width * height, stdin) != (size_t)(width * height)) return 1;
    preprocess(pixels, width, height, input);
    fwrite(input, sizeof input, 1, stdout);
    free(pixels);
    return count != 3;
}
"""


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(1)
    image = keras.Input((20, 28, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="stem")(image)
    y = layers.DepthwiseConv2D(3, padding="same", name="dw")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Add(name="add")([x, y]))
    return keras.Model(image, layers.Dense(5, activation="softmax", name="logits")(x), name="tiny")


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (20, 28, 3), np.uint8)


@pytest.fixture(scope="module")
def int8_file(model) -> bytes:
    images = np.random.default_rng(0).integers(0, 256, (16, 20, 28, 3)).astype(np.float32)
    return tflite.convert(model, quantize="int8", calibration=IMAGENET(images))


def write(folder: Path, file: bytes, photo: np.ndarray, normalize=IMAGENET, names="abcde") -> Path:
    return firmware.write(file, folder, name="tiny", image=photo, normalize=normalize, class_names=tuple(names))


@pytest.fixture(scope="module")
def project_folder(int8_file, photo, tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("firmware") / "board", int8_file, photo)


def compile_preprocessing(project: Path, folder: Path) -> Path:
    """Returns a program that reads pixels and writes what the C code makes of them."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc on this machine")
    (folder / "main.c").write_text(_PROGRAM)
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-ffp-contract=off", "-I", project]
    command = ["gcc", *flags, folder / "main.c", project / "preprocess.c", "-lm", "-o", folder / "preprocess"]
    subprocess.run(command, check=True, timeout=60)
    return folder / "preprocess"


@pytest.fixture(scope="module")
def program(project_folder, tmp_path_factory) -> Path:
    return compile_preprocessing(project_folder, tmp_path_factory.mktemp("preprocessing"))


def preprocessed(program: Path, pixels: np.ndarray, dtype) -> np.ndarray:
    height, width, _ = pixels.shape
    arguments = [program, str(width), str(height)]
    done = subprocess.run(arguments, input=pixels.tobytes(), check=True, capture_output=True, timeout=60)
    return np.frombuffer(done.stdout, dtype)


@pytest.mark.parametrize(("height", "width"), [(20, 28), (40, 56), (97, 61), (11, 90), (7, 5), (20, 40), (1, 1)])
def test_c_preprocessing_of_any_size_equals_python_to_the_last_bit(program, int8_file, height, width):
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    fitted = files.fit(Image.fromarray(pixels), (20, 28))
    (details,) = measure.interpret(int8_file, threads=1).get_input_details()
    expected = measure.quantize(IMAGENET(fitted), details)
    np.testing.assert_array_equal(preprocessed(program, pixels, np.int8), expected.ravel())


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(97, 61), (11, 30), (25, 31)])
def test_c_preprocessing_reads_the_middle_of_a_larger_image_by_either_filter(
    int8_file, photo, size, interpolation, tmp_path
):
    project = firmware.write(
        int8_file, tmp_path / "board", name="tiny", image=photo, normalize=IMAGENET, class_names=tuple("abcde"),
        resize=(25, 31), interpolation=interpolation,
    )  # fmt: skip
    pixels = np.random.default_rng(size[0]).integers(0, 256, (*size, 3), np.uint8)
    resized = files.fit(Image.fromarray(pixels), (25, 31), interpolation)
    (details,) = measure.interpret(int8_file, threads=1).get_input_details()
    expected = measure.quantize(IMAGENET(resized[2:22, 1:29]), details)
    program = compile_preprocessing(project, tmp_path)
    np.testing.assert_array_equal(preprocessed(program, pixels, np.int8), expected.ravel())


def test_c_preprocessing_makes_gray_and_turns_where_the_file_wants_that(tmp_path, monkeypatch):
    image = keras.Input((12, 12, 1))
    x = layers.Flatten()(layers.Conv2D(2, 3, name="conv")(image))
    net = keras.Model(image, layers.Dense(2, name="logits")(x))
    file = tflite.convert(net)
    monkeypatch.setattr(firmware.compact, "is_turned", lambda data: True)
    monkeypatch.setattr(firmware.c_array.compact, "is_turned", lambda data: True)
    shown = np.zeros((12, 12, 1), np.uint8)
    project = write(tmp_path / "board", file, shown, UNIT, "ab")
    pixels = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
    fitted = files.fit(Image.fromarray(pixels).convert("L"), 12)
    expected = turn.images(UNIT(fitted)[None]).astype(np.float32)
    program = compile_preprocessing(project, tmp_path)
    np.testing.assert_array_equal(preprocessed(program, pixels, np.float32), expected.ravel())


def build(project: Path, folder: Path) -> subprocess.CompletedProcess:
    """Builds the project in `folder` and runs it there."""
    for program in ("cmake", "g++"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} on this machine")
    options = [f"-DTFLM_DIR={os.environ['TFLM_DIR']}"] if "TFLM_DIR" in os.environ else stub_options(folder / "stubs")
    subprocess.run(
        ["cmake", "-S", project, "-B", folder / "build", *options], check=True, capture_output=True, timeout=120
    )
    subprocess.run(["cmake", "--build", folder / "build"], check=True, capture_output=True, timeout=1200)
    return subprocess.run([folder / "build" / "classify"], capture_output=True, text=True, timeout=60)


def stub_options(folder: Path) -> list[str]:
    """Writes the headers, and returns CMake's options that link with the library of the package tflite-micro."""
    found = importlib.util.find_spec("tflite_micro")
    python = Path(sysconfig.get_config_var("LIBDIR") or "", sysconfig.get_config_var("LDLIBRARY") or "")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package tflite-micro, whose library is linked with, is not installed")
    if python.suffix != ".so" or not python.is_file():
        pytest.skip("this Python has no shared library, which that of tflite-micro needs")
    library = next(Path(found.submodule_search_locations[0]).rglob("_runtime*.so"))
    inner = b"_ZN6tflite5micro16MicroInterpreter6InvokeEv" in library.read_bytes()
    adders = "\n  ".join(f"TfLiteStatus Add{name}() {{ return add(); }}" for name in _ADDERS)
    for name, text in _STUBS.items():
        file = folder / "tensorflow" / "lite" / "micro" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        (folder / "tensorflow" / "lite" / "schema").mkdir(exist_ok=True)
        text = text.replace("NAMESPACE_BEGIN", "namespace micro {" if inner else "")
        file.write_text(text.replace("NAMESPACE_END", "}" if inner else "").replace("ADDERS", adders))
    library = Path(shutil.copyfile(library, folder / "libtflm.so"))  # a name that linkers find
    return [
        f"-DTFLM_DIR={folder}",
        f"-DTFLM_LIBRARY={library};{python}",
        f"-DCMAKE_BUILD_RPATH={library.parent};{python.parent}",
    ]


def test_project_compiles_and_tflm_computes_the_expected_scores_in_the_planned_arena(
    project_folder, int8_file, photo, tmp_path
):
    done = build(project_folder, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    scores = {name: float(score) for score, name in re.findall(r"([\d.]+)  (\w)$", done.stdout, re.MULTILINE)}
    expected = measure.predict_tflm(int8_file, IMAGENET(photo)[None])[0]
    np.testing.assert_allclose([scores[name] for name in "abcde"], expected, atol=1e-4)
    assert done.stdout.endswith("as expected\n")
    assert re.search(r"^\* .*  (\w)$", done.stdout, re.MULTILINE)[1] == "abcde"[expected.argmax()]
    arena = planner.plan(int8_file).arena
    assert f"#define MODEL_ARENA_SIZE {arena} " in (project_folder / "model.h").read_text()


def test_program_fails_where_the_scores_are_others(int8_file, photo, tmp_path):
    project = write(tmp_path / "board", int8_file, photo)
    test = (project / "test_image.h").read_text()
    first = re.search(r"expected_output\[RESULT_SIZE\] = \{\s+(-?\d+)", test)
    changed = test[: first.start(1)] + str((int(first[1]) + 140) % 256 - 128) + test[first.end(1) :]
    (project / "test_image.h").write_text(changed)
    done = build(project, tmp_path)
    assert (done.returncode, "1 of 5 scores are not as expected" in done.stdout) == (1, True), done.stdout


def test_resolver_has_exactly_the_operators_of_the_file(project_folder):
    header = (project_folder / "model.h").read_text()
    assert "#define MODEL_OPERATORS 6 " in header
    assert re.findall(r"\.Add(\w+)\(\) == kTfLiteOk", header) == [
        "Add", "Conv2D", "DepthwiseConv2D", "FullyConnected", "Mean", "Softmax",
    ]  # fmt: skip


def test_second_run_replaces_its_own_files_and_no_others(project_folder, int8_file, photo, tmp_path):
    project = write(tmp_path / "board", int8_file, photo)
    (project / "build").mkdir()
    write(project, int8_file, photo, PIXELS)
    assert (project / "build").is_dir()
    assert (project / "normalization.h").read_text() != (project_folder / "normalization.h").read_text()
    (project / "main.cc").write_text("// mine")
    with pytest.raises(
        atomic.ForeignFolderError, match=r"main\.cc was changed after it was written, and the changes would be lost"
    ):
        write(project, int8_file, photo)
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "holiday.jpg").write_bytes(b"")
    with pytest.raises(atomic.ForeignFolderError, match=r"photos is not empty and holds no firmware\.json"):
        write(foreign, int8_file, photo)
    assert [path.name for path in foreign.iterdir()] == ["holiday.jpg"]


def test_new_folder_appears_with_all_files_or_not_at_all(int8_file, photo, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "board", int8_file, photo)
    assert list(tmp_path.iterdir()) == []
    names = {path.name for path in write(tmp_path / "board", int8_file, photo).iterdir()}
    listed = set(json.loads((tmp_path / "board" / "firmware.json").read_text())["files"])
    assert names == listed | {"firmware.json"} >= {"main.cc", "model.c", "CMakeLists.txt", "README.md"}


def test_what_tflm_cannot_run_is_refused(photo, tmp_path):
    image = keras.Input((20, 28, 3))
    wide = layers.GlobalAveragePooling2D()(layers.Conv2D(5, 3, activation="relu6")(image))
    file = tflite.convert(keras.Model(image, wide), quantize="float16")
    with pytest.raises(firmware.FirmwareError, match="cannot run tiny: TFLM has no DEQUANTIZE of float16"):
        write(tmp_path / "board", file, photo)
    with pytest.raises(firmware.FirmwareError, match="3 class names were given"):
        write(tmp_path / "board", tflite.convert(keras.Model(image, wide)), photo, names="abc")
    assert list(tmp_path.iterdir()) == []


def test_recipe_writes_the_project_of_the_held_out_image(tmp_path):
    image = keras.Input((28, 28, 1))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu")(image))
    keras.Model(image, layers.Dense(10, activation="softmax")(x), name="small").save(tmp_path / "small.keras")
    model, out, board = str(tmp_path / "small.keras"), tmp_path / "out", tmp_path / "board"
    config = deploy.Config(model=model, images=4, calibration=4, folder=out, firmware=board)
    deploy.deploy(config)
    assert "Trouser" in (tmp_path / "board" / "model.c").read_text()
    assert "cmake -S board -B build" in (tmp_path / "board" / "README.md").read_text()
    done = build(tmp_path / "board", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("")
    with pytest.raises(atomic.ForeignFolderError, match="other is not empty"):
        deploy.deploy(dataclasses.replace(config, firmware=tmp_path / "other", folder=tmp_path / "never"))
    assert not (tmp_path / "never").exists()
