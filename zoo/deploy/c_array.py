"""A .tflite file as C source, the way a microcontroller without a file system carries it."""

import os
import re
from pathlib import Path

from zoo.atomic import write_atomically
from zoo.deploy import compact
from zoo.deploy.tflite_file import Source, read

_KEYWORDS = frozenset(
    "alignas auto break case char class const continue default delete do double else enum extern float for goto if "
    "inline int long namespace new register restrict return short signed sizeof static struct switch template this "
    "typedef union unsigned "
    "using virtual void volatile while".split()
)
_BYTES_A_LINE = 12


def write(tflite: Source, folder: str | os.PathLike, name: str = "model") -> tuple[Path, Path]:
    """Writes `folder/NAME.h` and `folder/NAME.c` and returns their paths.

    They define `const unsigned char NAME[]`, aligned to 16 bytes as TFLM asks, and `const unsigned int NAME_len`, for
    C11 and C++. The header says so where the file takes its image turned by 180 degrees.

    Raises:
        ValueError: `name` is no C identifier.
        TfliteFileError: not a .tflite file.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or name in _KEYWORDS:
        suggestion = re.sub(r"\W", "_", name, flags=re.ASCII)
        suggestion = (
            suggestion if re.match(r"[A-Za-z_]", suggestion) and suggestion not in _KEYWORDS else f"model_{suggestion}"
        )
        raise ValueError(
            f"name={name!r} is no C identifier (letters, digits, underscores, no keyword); try {suggestion!r}"
        )
    data = read(tflite)
    header, source = Path(folder, f"{name}.h"), Path(folder, f"{name}.c")
    write_atomically(header, _header(name, compact.is_turned(data)))
    write_atomically(source, _source(name, data))
    return header, source


def _header(name: str, turned: bool) -> str:
    guard = f"{name.upper()}_H_"
    note = "/* Takes its image turned by 180 degrees: the pixels from the last to the first. */\n" if turned else ""
    return f"""#ifndef {guard}
#define {guard}

#ifdef __cplusplus
extern "C" {{
#endif

{note}extern const unsigned char {name}[];
extern const unsigned int {name}_len;

#ifdef __cplusplus
}}
#endif

#endif  /* {guard} */
"""


def _source(name: str, data: bytes) -> str:
    lines = (
        "    " + " ".join(f"0x{byte:02x}," for byte in data[start : start + _BYTES_A_LINE])
        for start in range(0, len(data), _BYTES_A_LINE)
    )
    rows = "\n".join(lines)
    return f"""#include <stdalign.h>

#include "{name}.h"

alignas(16) const unsigned char {name}[] = {{
{rows}
}};
const unsigned int {name}_len = {len(data)}u;
"""
