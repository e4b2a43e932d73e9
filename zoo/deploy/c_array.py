"""A .tflite file as C source, for microcontrollers without a file system."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.atomic import write_atomically
from zoo.deploy import compact, planner, tflite_file
from zoo.deploy.metadata import detach
from zoo.deploy.tflite_file import Source, parse

_KEYWORDS = frozenset(
    "alignas auto break case char class const continue default delete do double else enum extern float for goto if "
    "inline int long namespace new register restrict return short signed sizeof static struct switch template this "
    "typedef union unsigned "
    "using virtual void volatile while".split()
)
_BYTES_A_LINE = 12
TYPES = {"int8": "int8_t", "uint8": "uint8_t", "int16": "int16_t", "int32": "int32_t", "float32": "float"}
# Operators whose method of TFLM's resolver is not named as `_camel_case` would
_METHODS = {"BATCH_MATMUL": "BatchMatMul", "CUMSUM": "CumSum", "PADV2": "PadV2",
            "UNIDIRECTIONAL_SEQUENCE_LSTM": "UnidirectionalSequenceLSTM", "CUSTOM ethos-u": "EthosU",
            "CUSTOM TFLite_Detection_PostProcess": "DetectionPostprocess"}  # fmt: skip


def write(
    tflite: Source, folder: str | os.PathLike, name: str = "model", class_names: Sequence[str] = ()
) -> tuple[Path, Path]:
    """Writes `folder/NAME.h` and `folder/NAME.c`, for C11 and C++, and returns their paths.

    They define `const unsigned char NAME[]`, aligned to 16 bytes as TFLM requires, `const unsigned int NAME_len`, and
    `NAME_class_names` if class names are given. The header's macros give the arena size, the shapes, scales and zero
    points of inputs and outputs, whether the model expects images turned by 180 degrees, and the operators that TFLM's
    resolver needs. Metadata would only cost flash and are left out (`zoo.deploy.metadata.detach`).

    Raises:
        ValueError: `name` is not a C identifier.
        TfliteFileError: not a .tflite file.
    """
    files = {Path(folder, file): content for file, content in render(tflite, name, class_names).items()}
    for path, content in files.items():
        write_atomically(path, content)
    header, source = files
    return header, source


def render(tflite: Source, name: str, class_names: Sequence[str] = ()) -> dict[str, str]:
    """Returns the contents of the header and the source that `write` writes, by file name."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or name in _KEYWORDS:
        suggestion = re.sub(r"\W", "_", name, flags=re.ASCII)
        if not re.match(r"[A-Za-z_]", suggestion) or suggestion in _KEYWORDS:
            suggestion = f"model_{suggestion}"
        raise ValueError(
            f"name={name!r} is not a C identifier (letters, digits, underscores, no keyword); try {suggestion!r}"
        )
    data = detach(tflite)
    return {f"{name}.h": _render_header(name, data, class_names), f"{name}.c": _render_source(name, data, class_names)}


def _render_header(name: str, data: bytes, class_names: Sequence[str]) -> str:
    guard = f"{name.upper()}_H_"
    turned = "/* Expects images turned by 180 degrees: the pixels from the last to the first. */\n"
    names = f"extern const char *const {name}_class_names[{len(class_names)}];\n" if class_names else ""
    return f"""#ifndef {guard}
#define {guard}

#include <stdint.h>

{_render_macros(name.upper(), data)}
#ifdef __cplusplus
extern "C" {{
#endif

{turned if compact.is_turned(data) else ""}extern const unsigned char {name}[];
extern const unsigned int {name}_len;
{names}
#ifdef __cplusplus
}}
#endif

#endif  /* {guard} */
"""


def _render_macros(prefix: str, data: bytes) -> str:
    """Returns what a program needs to know besides the bytes."""
    model = parse(data)
    graph = model.subgraphs[0]
    try:
        estimate = "bytes, estimated for a 64-bit machine; a board needs less"
        lines = [f"#define {prefix}_ARENA_SIZE {planner.plan(data).arena}  /* {estimate} */"]
    except planner.PlannerError as error:
        lines = [f"/* {prefix}_ARENA_SIZE: {error} */"]
    outputs = [number for _, number in tflite_file.outputs_of(model)]
    for side, numbers in (("INPUT", list(graph.inputs)), ("OUTPUT", outputs)):
        for place, number in enumerate(numbers):
            what = f"{prefix}_{side}" if len(numbers) == 1 else f"{prefix}_{side}{place}"
            lines += _define_tensor(what, graph.tensors[number])
    lines.append(f"#define {prefix}_INPUT_TURNED {int(compact.is_turned(data))}")
    kinds = list_kinds(model)
    lines.append(f"#define {prefix}_OPERATORS {len(kinds)}  /* {', '.join(kinds)} */")
    methods = [_METHODS.get(kind, _camel_case(kind)) for kind in kinds]
    calls = [f"(resolver).Add{method}() == kTfLiteOk" for method in methods if " " not in method]
    lines.append("/* Adds them to TFLM's MicroMutableOpResolver; true if it took all of them. */")
    lines.append(f"#define {prefix}_ADD_OPERATORS(resolver) ({' && '.join(calls)})")
    return "\n".join(lines) + "\n"


def list_kinds(model: Any) -> list[str]:
    """Returns the kinds of operators in a parsed file, each once, in alphabetical order."""
    return sorted({tflite_file.kind_of(model, operator) for graph in model.subgraphs for operator in graph.operators})


def _define_tensor(what: str, tensor: Any) -> list[str]:
    shape = tflite_file.shape_of(tensor)
    type_ = tflite_file.type_of(tensor)
    lines = [f"#define {what}_SHAPE {{{', '.join(map(str, shape))}}}  /* {type_} */"]
    lines.append(f"#define {what}_TYPE {TYPES[type_]}" if type_ in TYPES else f"/* {what}_TYPE: {type_} */")
    if len(shape) == 4:
        sides = zip(("HEIGHT", "WIDTH", "CHANNELS"), shape[1:], strict=True)
        lines += [f"#define {what}_{side} {length}" for side, length in sides]
    if tflite_file.is_quantized(tensor):  # a number is (stored - zero point) * scale
        lines.append(f"#define {what}_SCALE {float(tensor.quantization.scale[0]):.9g}f")
        lines.append(f"#define {what}_ZERO_POINT ({int(tensor.quantization.zeroPoint[0])})")
    return lines


def _camel_case(kind: str) -> str:
    """Returns "DepthwiseConv2D" for DEPTHWISE_CONV_2D, as TFLM's resolver names it."""
    return "".join(part if part == "2D" else part.capitalize() for part in kind.split("_"))


def _render_source(name: str, data: bytes, class_names: Sequence[str]) -> str:
    lines = (
        "    " + " ".join(f"0x{byte:02x}," for byte in data[start : start + _BYTES_A_LINE])
        for start in range(0, len(data), _BYTES_A_LINE)
    )
    rows = "\n".join(lines)
    texts = "".join(f"    {json.dumps(class_name, ensure_ascii=False)},\n" for class_name in class_names)
    names = f"const char *const {name}_class_names[{len(class_names)}] = {{\n{texts}}};\n" if class_names else ""
    return f"""#include <stdalign.h>

#include "{name}.h"

alignas(16) const unsigned char {name}[] = {{
{rows}
}};
const unsigned int {name}_len = {len(data)}u;
{names}"""
