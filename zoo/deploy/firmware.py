"""A C++ project for TensorFlow Lite for Microcontrollers (TFLM): model, preprocessing, program and CMake file."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo import atomic
from zoo.deploy import c_array, compact, measure, planner, tflite_file, turn
from zoo.deploy.metadata import detach
from zoo.deploy.tflite_file import Source, parse

TEMPLATES = Path(__file__).with_name("firmware_files")
MARKER = "firmware.json"  # by which `atomic.write_folder` recognises its own folders
_NUMBERS_A_LINE = 16
_SUPPORTS = {"bilinear": 1, "bicubic": 2}  # pixels that a filter reads on each side
_TOLERANCE = 2  # steps of an integer output by which kernels of different boards may differ
_FLOAT_TOLERANCE = 1e-4


class FirmwareError(ValueError):
    """No project can be made from the file."""


def write(
    tflite: Source,
    folder: str | os.PathLike,
    *,
    name: str,
    image: np.ndarray,
    normalize: Callable[[np.ndarray], Any],
    class_names: Sequence[str],
    output: str | int | None = None,
    resize: tuple[int, int] | None = None,
    interpolation: str = "bilinear",
) -> Path:
    """Writes a classifier's project into a new folder or over an unchanged project written earlier; returns the folder.

    Args:
        name: of the model, for the README.
        image: uint8 pixels (height, width, channels) of the input's size, which the program classifies as a test.
        normalize: maps pixels of 0..255 (..., channels) to what the network reads; a table of its values is written.
        class_names: in the order of the labels.
        output: which of several outputs, as `measure.predict` takes it.
        resize: height and width that images are resized to before the model reads their centre; None is the input size.
        interpolation: of the resizing, bilinear or bicubic.

    Raises:
        FirmwareError: TFLM cannot run the file, or it is not a classifier.
        zoo.atomic.ForeignFolderError: the folder holds files of another origin, or files changed since.
    """
    data = detach(tflite)
    model = parse(data)
    graph = model.subgraphs[0]
    shape = tflite_file.shape_of(graph.tensors[graph.inputs[0]])
    if len(graph.inputs) != 1 or len(shape) != 4 or shape[0] != 1 or shape[3] not in (1, 3):
        raise FirmwareError(f"{name} takes {list(shape)}; expected one image [1, height, width, 1 or 3]")
    result = measure.choose_output(model, output)
    units = tflite_file.shape_of(graph.tensors[result])
    if len(units) != 2 or len(class_names) != (2 if units[1] == 1 else units[1]):
        raise FirmwareError(
            f"{name} has the output {list(units)}, and {len(class_names)} class names were given; expected one a class"
        )
    if image.shape != shape[1:] or image.dtype != np.uint8:
        raise FirmwareError(f"the image is {image.dtype} of shape {image.shape}; expected uint8 of shape {shape[1:]}")
    plan = planner.plan(data)
    if plan.refusals:
        raise FirmwareError(f"TFLM cannot run {name}: {'; '.join(plan.refusals)}. Try an int8 file")
    files: dict[str, bytes | str] = dict(c_array.render(data, "model", class_names))
    for path in TEMPLATES.iterdir():
        files[path.name] = path.read_text(encoding="utf-8")
    table = _make_table(data, shape[3], normalize)
    files["normalization.h"] = _render_table(table, resize or (shape[1], shape[2]), _SUPPORTS[interpolation])
    files["test_image.h"] = _render_test(data, result, table, image)
    files["README.md"] = str(files["README.md"]).format(
        name=name,
        size=len(data),
        arena=plan.arena,
        image=3 * image.shape[0] * image.shape[1],
        height=shape[1],
        width=shape[2],
        channels=shape[3],
        input_type=tflite_file.type_of(graph.tensors[graph.inputs[0]]),
        turned=", turned by 180 degrees (`preprocess` does this)" if compact.is_turned(data) else "",
        operators=", ".join(c_array.list_kinds(model)),
        folder=Path(folder).absolute().name,
    )
    return atomic.write_folder(folder, files, MARKER)


def _make_table(data: bytes, channels: int, normalize: Callable[[np.ndarray], Any]) -> np.ndarray:
    """Returns the model's stored input for each pixel value, (256, channels)."""
    (source,) = measure.interpret(data, threads=1).get_input_details()
    values = np.repeat(np.arange(256, dtype=np.float32)[:, None], channels, axis=1)
    return measure.quantize(np.asarray(normalize(values), np.float32), source)


def _render_table(table: np.ndarray, resize: tuple[int, int], support: int) -> str:
    rows = ",\n".join(f"    {{\n{_render_numbers(values)}\n    }}" for values in table.T)
    return f"""#include "model.h"

/* Images are resized to this size with a filter reaching this many pixels to each side; the model reads the centre. */
#define RESIZED_HEIGHT {resize[0]}
#define RESIZED_WIDTH {resize[1]}
#define FILTER_SUPPORT {support}

/* The model's input for each pixel value, channel by channel. */

static const MODEL_INPUT_TYPE normalized[MODEL_INPUT_CHANNELS][256] = {{
{rows}
}};
"""


def _render_test(data: bytes, result: int, table: np.ndarray, image: np.ndarray) -> str:
    interpreter = measure.interpret(data, threads=1, kernels="reference")  # which round as TFLM's
    details = next(output for output in interpreter.get_output_details() if output["index"] == result)
    stored = np.stack([table[image[..., channel], channel] for channel in range(table.shape[1])], axis=-1)[None]
    stored = turn.images(stored) if compact.is_turned(data) else stored
    expected = measure.run_interpreter(interpreter, [stored], [result])[result][0, 0]
    is_float = np.issubdtype(expected.dtype, np.floating)
    scale, zero = (1.0, 0) if is_float else details["quantization"]
    number = [int(tensor) for tensor in parse(data).subgraphs[0].outputs].index(result)
    return f"""/* A held-out image, and the output that LiteRT computes for it. */
#include <stdint.h>

enum {{ TEST_IMAGE_WIDTH = {image.shape[1]}, TEST_IMAGE_HEIGHT = {image.shape[0]} }};

/* The output that holds the class scores; a score is (stored - zero point) * scale. */
#define RESULT {number}
#define RESULT_TYPE {c_array.TYPES[expected.dtype.name]}
#define RESULT_SIZE {len(expected)}
#define RESULT_SCALE {float(scale):.9g}
#define RESULT_ZERO_POINT ({int(zero)})
#define TEST_TOLERANCE {_FLOAT_TOLERANCE if is_float else _TOLERANCE}

/* Red, green and blue of each pixel, row by row. */
static const uint8_t test_image[] = {{
{_render_numbers(np.broadcast_to(image, (*image.shape[:2], 3)).ravel())}
}};

static const RESULT_TYPE expected_output[RESULT_SIZE] = {{
{_render_numbers(expected)}
}};
"""


def _render_numbers(values: np.ndarray) -> str:
    texts = [f"{value:.9g}" for value in values.tolist()]
    lines = (texts[start : start + _NUMBERS_A_LINE] for start in range(0, len(texts), _NUMBERS_A_LINE))
    return ",\n".join("        " + ", ".join(line) for line in lines)
