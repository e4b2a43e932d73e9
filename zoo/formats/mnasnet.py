"""Block strings of the TPU code (r2_k3_s22_e6_i16_o24_se0.25) and of timm (ir_r2_k3_s2_e6_c24_se0.25).

r repeats, k kernel, s strides (the TPU code has one digit for each direction), e expansion, i input and o or c output
filters, se squeeze-and-excite ratio, noskip: no residual. timm marks a depthwise separable block by ds and an inverted
residual by ir; in the TPU code the former has e1.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal

from zoo.formats import literals
from zoo.genotype import Block, Blocks, Genotype, GenotypeError, locating

_TOKEN = re.compile(r"(se|[rkseioc])([0-9]{1,5}(?:\.[0-9]{1,4})?)")
_EXAMPLES = "'r2_k3_s22_e6_i16_o24_se0.25' or 'ir_r2_k3_s2_e6_c24_se0.25'"


def from_mnasnet(
    strings: Sequence[str | Sequence[str]] | str,
    stem_filters: int = 32,
    head_filters: int | None = 1280,
    name: str = "mnasnet_blocks",
) -> Genotype:
    """Returns the genotype of the family "mnasnet" with these rows; strings do not give the widths of stem and head.

    The strings may be grouped by stage, as in timm's arch_def, and the whole list may be given as text. An input width
    (i) is checked, except in a depthwise separable block: the released list of mnasnet_small gives 16 there after a
    stem of 8.

    Raises:
        GenotypeError: an invalid string, or an input width that is not the preceding output width.
    """
    rows, inputs = [], stem_filters
    for number, text in enumerate(_list_strings(strings), start=1):
        with locating(f"row {number}, {text!r:.100}"):
            row, declared = _read_row(text)
        if declared is not None and declared != inputs and row.op == "mb_conv":
            raise GenotypeError(
                f"row {number}, {text!r:.100}: it reads {declared} filters, but those before it give {inputs}. "
                "Correct one of them, or stem_filters"
            )
        rows.append(row)
        inputs = row.filters
    return Genotype(name, "mnasnet", Blocks(tuple(rows), stem_filters, head_filters), source={"notation": "MnasNet"})


def to_mnasnet(genotype: Genotype | Blocks, dialect: Literal["tpu", "timm"] = "tpu") -> list[str]:
    """Returns a string for each row, in the TPU code's dialect or in timm's.

    Raises:
        GenotypeError: a row that the notation cannot express: a plain convolution, a pooled skip, mid_filters or, in
            the TPU code, an expansion that is not a whole number.
    """
    body = literals.get_body(genotype, Blocks, "MnasNet's")
    if dialect not in ("tpu", "timm"):
        raise GenotypeError(f"dialect is {dialect!r}; expected 'tpu' or 'timm'")
    strings, inputs = [], body.stem_filters
    for number, row in enumerate(body.rows, start=1):
        if row.op == "conv" or row.skip == "pool" or row.mid_filters is not None:
            raise GenotypeError(
                f"row {number} ({row}) has no block string: expected sep_conv or mb_conv without pool and mid_filters"
            )
        if dialect == "tpu" and (row.expansion != int(row.expansion) or row.strides > 9):
            raise GenotypeError(f"row {number} ({row}): the TPU code needs a whole expansion, and strides up to 9")
        if dialect == "tpu":
            text = f"r{row.repeats}_k{row.kernel_size}_s{row.strides}{row.strides}_e{int(row.expansion)}"
            text += f"_i{inputs}_o{row.filters}"
        else:
            kind = "ds" if row.op == "sep_conv" else "ir"
            text = f"{kind}_r{row.repeats}_k{row.kernel_size}_s{row.strides}_e{row.expansion:.6g}_c{row.filters}"
        text += f"_se{row.se_ratio:.6g}" if row.se_ratio else ""
        strings.append(text + ("_noskip" if row.skip == "none" else ""))
        inputs = row.filters
    return strings


def _list_strings(given: Any) -> list[Any]:
    """Returns the block strings of all stages as one list."""
    if isinstance(given, str) and {"[", "("} & set(given):
        given = literals.read_text(given, "a list", f"[{_EXAMPLES}]")
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise GenotypeError(f"block strings are {given!r:.200}; expected a list of them, such as [{_EXAMPLES}]")
    return [text for stage in given for text in (stage if isinstance(stage, (list, tuple)) else [stage])]


def _read_row(text: str) -> tuple[Block, int | None]:
    """Returns the row, and the input filters that its string gives."""
    tokens = text.split("_") if isinstance(text, str) else []
    kind = tokens.pop(0) if tokens and tokens[0] in ("ds", "ir") else None
    values: dict[str, str] = {}
    for token in tokens:
        match = _TOKEN.fullmatch(token)
        key, value = ("noskip", "") if token == "noskip" else (match[1], match[2]) if match else ("", "")
        if not key or key in values:
            raise GenotypeError(f"{token!r} is unknown or occurs twice; expected a string such as {_EXAMPLES}")
        values[key] = value
    output = "c" if kind else "o"
    missing = [key for key in ("r", "k", "s", output) if key not in values]
    if missing or (kind and "i" in values) or {"c", "o"} <= set(values):
        problem = f"lacks {', '.join(missing)}" if missing else "mixes two dialects"
        raise GenotypeError(f"it {problem}; expected a string such as {_EXAMPLES}")
    strides = values["s"] if kind or len(values["s"]) == 1 else _read_strides(values["s"])
    expansion = _read_number(values.get("e", "1"))
    if kind == "ds" and expansion != 1:
        raise GenotypeError(f"a ds block has the expansion {expansion}; only ir blocks have one")
    separable = kind == "ds" or expansion == 1
    block = Block(
        "sep_conv" if separable else "mb_conv",
        kernel_size=_read_whole(values["k"]),
        filters=_read_whole(values[output]),
        strides=_read_whole(strides),
        expansion=expansion,
        repeats=_read_whole(values["r"]),
        se_ratio=_read_number(values.get("se", "0")),
        skip="none" if "noskip" in values else "identity",
    )
    return block, _read_whole(values["i"]) if "i" in values else None


def _read_strides(strides: str) -> str:
    if len(strides) != 2 or strides[0] != strides[1]:
        raise GenotypeError(f"s{strides}: expected the same strides down and across, such as s22")
    return strides[0]


def _read_whole(text: str) -> int:
    if not text.isdigit():
        raise GenotypeError(f"{text} is not a whole number")
    return int(text)


def _read_number(text: str) -> float:
    return float(text) if "." in text else int(text)
