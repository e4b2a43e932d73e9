"""TensorFlow Lite for Microcontrollers in a process of its own: outputs, and the arena that it records.

TFLM aborts the whole process where it meets a file that it cannot run, and prints its recording from C++. So this file
is also a program, `python tflm.py FOLDER`, that imports nothing of the project.
"""

import dataclasses
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

TIMEOUT_SECONDS = 600  # its reference kernels take about 100 times as long as LiteRT
DTYPES = {0: np.float32, 3: np.uint8, 7: np.int16, 9: np.int8}  # TensorType in schema.fbs


class TflmError(RuntimeError):
    """TFLM cannot run the file."""


@dataclasses.dataclass(frozen=True)
class Arena:
    """Bytes of RAM: `head` holds activations and scratch buffers, `tail` what TFLM keeps for good (tensor tables,
    operator data).

    Recorded on a 64-bit machine. On a microcontroller pointers are half as long, so `tail` is smaller there; `head` is
    the same.
    """

    total: int
    head: int
    tail: int


def run(tflite, inputs: np.ndarray) -> tuple[np.ndarray, Arena]:
    """Runs each of `inputs` (n, ...), already in the input's own type; returns the first outputs and the arena.

    With n = 0 nothing is run, and the arena is known all the same: TFLM plans it before the first image.

    Raises:
        TflmError: an operator is unknown to TFLM, it stopped, or took over 600 s.
        MissingPackageError: the package tflite-micro is not installed.
    """
    from zoo.deploy import tflite_file

    tflite_file.require("tflite_micro", "tflite-micro")
    model = tflite_file.parse(tflite)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model.tflite").write_bytes(tflite_file.read(tflite))
        np.save(Path(folder, "inputs.npy"), inputs)
        np.save(Path(folder, "arena_size.npy"), _enough_arena(model))
        try:
            done = subprocess.run(
                [sys.executable, "-P", __file__, folder],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise TflmError(f"TFLM took over {TIMEOUT_SECONDS} s for {len(inputs)} images; give it fewer") from error
        if done.returncode != 0:
            raise TflmError(_reason(done))
        return np.load(Path(folder, "outputs.npy")), _parse_recording(done.stderr + done.stdout)


def _enough_arena(model) -> int:
    """An arena that cannot be too small: all tensors at once, twice for scratch, and 4 kB for each table entry."""
    graph = model.subgraphs[0]
    lengths = [int(np.prod(tensor.shape)) if tensor.shape is not None else 1 for tensor in graph.tensors]
    return 2 * 4 * sum(lengths) + 4096 * (len(graph.tensors) + len(graph.operators)) + (1 << 20)


def _parse_recording(text: str) -> Arena:
    found = {part: re.search(rf"Arena allocation {part} (\d+) bytes", text) for part in ("total", "head", "tail")}
    if not all(found.values()):
        raise TflmError(
            f"TFLM ran, but recorded no arena: {text.strip()[-300:]!r}. Another tflite-micro version may print it"
        )
    return Arena(**{part: int(match.group(1)) for part, match in found.items() if match})


def _reason(done: subprocess.CompletedProcess) -> str:
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    missing = re.search(r"Didn't find op for builtin opcode '(\w+)'", "\n".join(lines))
    if missing:
        return f"TFLM has no operator {missing.group(1)}, which the file uses. zoo.deploy.planner names where"
    failed = re.search(r"Node (\w+) \(number (\d+)\) failed to prepare", "\n".join(lines))
    if failed:
        return (
            f"TFLM cannot run {failed.group(1)}, operator {failed.group(2)} of the file, as it is there\n"
            f"{' | '.join(lines)[-600:]}"
        )
    how = f"was stopped by signal {-done.returncode}" if done.returncode < 0 else f"ended with code {done.returncode}"
    hint = (
        " It stops where a scale is out of its range, as those of an untrained network can be"
        if done.returncode == -6
        else ""
    )
    return f"TFLM {how} on the file.{hint} {' | '.join(lines)[-600:]}".strip()


def _main(folder: Path) -> None:
    from tflite_micro.python.tflite_micro import runtime

    arena_size = int(np.load(folder / "arena_size.npy"))
    try:
        interpreter = runtime.Interpreter.from_bytes((folder / "model.tflite").read_bytes(), arena_size=arena_size)
    except RuntimeError as error:  # what TFLM has printed before says more than a traceback
        sys.exit(str(error))
    outputs = []
    for one in np.load(folder / "inputs.npy"):
        interpreter.set_input(one[None], 0)
        interpreter.invoke()
        outputs.append(interpreter.get_output(0)[0].copy())
    np.save(folder / "outputs.npy", np.stack(outputs) if outputs else np.zeros(0))
    interpreter.print_allocations()


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
