"""Does a .tflite file fit on a board, where does its memory go, and what of it runs on Arm's Ethos-U?

The data sheets' memory sizes are compared with the planner's estimate. Vela, Arm's compiler, reports which operators
run on the neural processor, how much memory they need and how long they take.
"""

import csv
import dataclasses
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from zoo.atomic import replacing
from zoo.deploy import memory_plan, planner
from zoo.deploy.metadata import detach
from zoo.deploy.planner import Plan
from zoo.deploy.tflite_file import MissingPackageError, Source, kinds_of, parse
from zoo.markdown import join_blocks, make_table

KIB = 1024
_COLOURS = {"input": "#4c78a8", "tensor": "#9ecae9", "peak": "#f58518", "scratch": "#bab0ac", "ram": "#e45756"}
_MEANINGS = {"peak": "alive at the peak", "input": "input", "tensor": "tensor", "scratch": "scratch"}
_MOST_NAMED = 12  # buffers in the list next to the chart
_FAR = 2.0  # times the head: a RAM line above this is only mentioned, as drawing it would flatten the picture
_VELA_SECONDS = 1200
_SYSTEMS = {"ethos-u55": "Ethos_U55_High_End_Embedded", "ethos-u65": "Ethos_U65_High_End",
            "ethos-u85": "Ethos_U85_SYS_Flash_High"}  # fmt: skip


class Board(NamedTuple):
    """A chip's own RAM and flash in bytes, and vela's name for its neural processor."""

    chip: str
    ram: int
    flash: int
    npu: str | None = None


class UnknownBoardError(ValueError):
    """The table has no board of that name."""


# From the makers' data sheets. If the RAM has several banks, the largest contiguous block.
BOARDS = {
    "stm32f412": Board("STM32F412", 256 * KIB, 1024 * KIB),
    "stm32f746": Board("STM32F746", 320 * KIB, 1024 * KIB),
    "stm32f765": Board("STM32F765", 512 * KIB, 2048 * KIB),
    "stm32h743": Board("STM32H743", 512 * KIB, 2048 * KIB),
    "nrf52840": Board("nRF52840 (Arduino Nano 33 BLE)", 256 * KIB, 1024 * KIB),
    "nrf5340": Board("nRF5340", 512 * KIB, 1024 * KIB),
    "rp2040": Board("RP2040 (Raspberry Pi Pico)", 264 * KIB, 2048 * KIB),
    "esp32s3": Board("ESP32-S3 (8 MB module)", 512 * KIB, 8192 * KIB),
    # RAM is the internal SRAM; models are stored in DDR memory.
    "corstone300": Board("Corstone-300 (Cortex-M55 and Ethos-U55)", 2048 * KIB, 256 * 1024 * KIB, "ethos-u55-128"),
}


class Fit(NamedTuple):
    """Bytes left of each memory (negative: bytes missing), and why TFLM cannot run the file, if so."""

    board: Board
    ram_left: int
    flash_left: int
    refusals: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether both memories suffice and TFLM runs the file."""
        return self.ram_left >= 0 and self.flash_left >= 0 and not self.refusals

    def __str__(self) -> str:
        ram, flash = (f"{abs(left) / 1000:,.1f} kB of" for left in (self.ram_left, self.flash_left))
        if self.fits:
            return f"fits on {self.board.chip}: {ram} RAM and {flash} flash are left"
        missing = [f"{ram} RAM missing"] if self.ram_left < 0 else []
        missing += [f"{flash} flash missing"] if self.flash_left < 0 else []
        return f"does not fit on {self.board.chip}: {' and '.join([*self.refusals, *missing])}"


def fit(plan: Plan, board: str) -> Fit:
    """Compares the file's arena and size with a board of `BOARDS`; the program's own code and data are not counted."""
    if board not in BOARDS:
        raise UnknownBoardError(f"board={board!r} is unknown; expected one of {', '.join(BOARDS)}")
    found = BOARDS[board]
    return Fit(found, found.ram - plan.arena, found.flash - plan.flash, plan.refusals)


def draw_memory(plan: Plan, path: str | os.PathLike, title: str, board: Board | None = None) -> None:
    """Writes a PNG of the arena over time: the operators run along the x axis, the arena's bytes along the y axis.

    The buffers alive at the peak are orange. They and the highest ones are numbered; the list on the right names them.
    With a board, a line shows the RAM left for buffers once TFLM has taken its persistent part.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    figure = Figure((13, 6), layout="constrained")
    axes = figure.add_subplot()
    at_peak = {id(buffer) for buffer in plan.alive_at_peak()}
    named = []
    for buffer, offset in zip(plan.buffers, plan.offsets, strict=True):
        kind = "peak" if id(buffer) in at_peak else _kind_of(buffer)
        corner, width, height = (buffer.first - 0.5, offset / 1000), buffer.last - buffer.first + 1, buffer.size / 1000
        axes.add_patch(Rectangle(corner, width, height, facecolor=_COLOURS[kind], edgecolor="white", linewidth=0.5))
        if id(buffer) in at_peak or offset + memory_plan.aligned(buffer.size) == plan.head:
            named.append((buffer, corner[0] + width / 2, corner[1] + height / 2))
    named = sorted(named, key=lambda entry: -entry[0].size)[:_MOST_NAMED]
    for number, (_, x, y) in enumerate(named, start=1):
        circle = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "black", "linewidth": 0.6}
        axes.text(x, y, str(number), ha="center", va="center", fontsize=7, bbox=circle, zorder=3)
    names = [f"{number}  {buffer.name}, {buffer.size / 1000:,.1f} kB" for number, (buffer, *_) in enumerate(named, 1)]
    axes.text(1.01, 1, "\n".join(names), transform=axes.transAxes, va="top", fontsize=8, linespacing=1.5)
    axes.axhline(plan.head / 1000, color="black", linewidth=1)
    axes.axhline(plan.bound / 1000, color="black", linewidth=1, linestyle=":")
    axes.set_xlim(-0.5, len(plan.operators) + 0.5)
    axes.set_ylim(0, max(plan.head / 1000 * 1.12, 0.1))
    axes.set_xlabel("operator, in execution order (0: the input is filled)")
    axes.set_ylabel("address in the arena, kB")
    axes.set_title(
        f"{title}: head {plan.head / 1000:,.1f} kB (solid), peak of live bytes {plan.bound / 1000:,.1f} kB (dotted, at "
        f"{plan.peak or 'the input'})",
        fontsize=10,
    )
    handles: list[Any] = [Patch(color=_COLOURS[kind], label=label) for kind, label in _MEANINGS.items()]
    if board is not None:
        handles.append(_draw_ram(axes, plan, board))
    figure.legend(handles=handles, loc="outside lower center", ncols=5)
    with replacing(path) as stream:
        figure.savefig(stream, format="png", dpi=120)


def _draw_ram(axes: Any, plan: Plan, board: Board) -> Any:
    """Draws the RAM that the board leaves for buffers, unless it is far above them; returns the legend's handle."""
    left = (board.ram - plan.tail) / 1000
    drawn = left <= _FAR * plan.head / 1000
    if drawn:
        axes.set_ylim(0, max(axes.get_ylim()[1], left * 1.08))
    label = f"{board.chip}: {board.ram / 1000:,.1f} kB of RAM minus {plan.tail / 1000:,.1f} kB that TFLM keeps"
    label += "" if drawn else f", far above: {left:,.1f} kB"
    return axes.axhline(left if drawn else -1, color=_COLOURS["ram"], linewidth=1.5, linestyle="--", label=label)


def _kind_of(buffer: memory_plan.Buffer) -> str:
    if buffer.first == 0:
        return "input"
    return "scratch" if buffer.name.startswith("scratch of ") else "tensor"


class VelaError(RuntimeError):
    """Vela cannot compile the file."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A file as compiled by vela. Cycles and time are vela's estimates for the clock and memories of `system`."""

    file: bytes  # the .tflite file for TFLM, which needs the operator ethos-u to run it
    accelerator: str
    system: str
    npu_operators: int  # how many of the original file's operators
    cpu_operators: tuple[tuple[str, str], ...]  # kind and layer of those left to the CPU
    sram: int  # bytes
    flash: int  # bytes of the weights and commands
    cycles: int
    milliseconds: float

    def to_markdown(self) -> str:
        """Returns a table, and a list of what is left to the CPU."""
        total = self.npu_operators + len(self.cpu_operators)
        rows = [
            ("operators on the NPU", f"{self.npu_operators} of {total}"),
            ("operators on the CPU", str(len(self.cpu_operators))),
            ("SRAM, kB", f"{self.sram / 1000:,.1f}"),
            ("flash, kB", f"{self.flash / 1000:,.1f}"),
            ("cycles, estimated", f"{self.cycles:,}"),
            ("ms an image, estimated", f"{self.milliseconds:.3f}"),
        ]
        stay = "; ".join(f"{kind} ({layer})" for kind, layer in self.cpu_operators)
        return join_blocks(
            make_table(("what", self.accelerator), rows, numbers_from=1),
            f"On the CPU: {stay}." if stay else "",
            f"By vela, for {self.system} with SRAM shared between CPU and NPU. Operators are counted in the original "
            "file.",
        )


def require_vela() -> None:
    """Raises MissingPackageError if vela, the package ethos-u-vela, is not installed."""
    if importlib.util.find_spec("ethosu") is None:
        raise MissingPackageError(
            "this needs vela, Arm's compiler for Ethos-U: pip install ethos-u-vela, or the project with its extra "
            "ethos-u"
        )


def compile_file(tflite: Source, accelerator: str = "ethos-u55-128") -> Compiled:
    """Compiles a quantized .tflite file for an Ethos-U, named as in vela's --accelerator-config.

    Raises:
        MissingPackageError: vela is not installed.
        ValueError: the accelerator is unknown.
        VelaError: vela refuses the file, or takes more than 20 minutes.
    """
    require_vela()
    data = detach(tflite)
    system = _SYSTEMS.get(accelerator.rpartition("-")[0])
    if system is None:
        raise ValueError(f"accelerator={accelerator!r} is unknown; expected one such as ethos-u55-128 or ethos-u65-256")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model.tflite").write_bytes(data)
        _run_vela(folder, accelerator, system)
        compiled = Path(folder, "model_vela.tflite").read_bytes()
        with next(Path(folder).glob("model_summary_*.csv")).open(encoding="utf-8", newline="") as stream:
            (summary,) = csv.DictReader(stream)
    model = parse(compiled)
    # one operator, CUSTOM ethos-u, stands for everything that runs on the NPU
    operators = planner.list_operators(model)
    cpu = tuple((operator.kind, operator.output) for operator in operators if operator.kind != "CUSTOM ethos-u")
    return Compiled(
        compiled,
        accelerator,
        system,
        len(kinds_of(parse(data))) - len(cpu),
        cpu,
        sram=round(KIB * float(summary["sram_memory_used"])),
        flash=round(KIB * (float(summary["off_chip_flash_memory_used"]) + float(summary["on_chip_flash_memory_used"]))),
        cycles=round(float(summary["cycles_total"])),
        milliseconds=1000 * float(summary["inference_time"]),
    )


def _run_vela(folder: str, accelerator: str, system: str) -> None:
    options = {"output-dir": folder, "accelerator-config": accelerator, "config": "Arm/vela.ini",
               "system-config": system, "memory-mode": "Shared_Sram"}  # fmt: skip
    flags = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-P", "-m", "ethosu.vela", str(Path(folder, "model.tflite")), *flags]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=_VELA_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise VelaError(f"vela took over {_VELA_SECONDS} s") from error
    if done.returncode != 0 or not Path(folder, "model_vela.tflite").is_file():
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise VelaError(f"vela ended with code {done.returncode}: {' | '.join(lines[-5:])[-600:]}")
