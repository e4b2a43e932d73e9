"""What of a .tflite file runs on Arm's Ethos-U, by Arm's compiler vela: which operators, how much memory, how long."""

import csv
import dataclasses
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

from zoo.deploy import tflite_file
from zoo.deploy.metadata import detach
from zoo.deploy.tflite_file import MissingPackageError, Source, kind_of, parse
from zoo.markdown import join_blocks, make_table

TIMEOUT_SECONDS = 1200
_ETHOS_U = "CUSTOM ethos-u"  # the operator that stands for all that runs there
_SYSTEMS = {"ethos-u55": "Ethos_U55_High_End_Embedded", "ethos-u65": "Ethos_U65_High_End",
            "ethos-u85": "Ethos_U85_SYS_Flash_High"}  # fmt: skip


class VelaError(RuntimeError):
    """Vela cannot compile the file."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What vela made of a file. Cycles and time are vela's estimate, with the clock and memories of its `system`."""

    file: bytes  # the .tflite file to give to TFLM, which needs the operator ethos-u for it
    accelerator: str
    system: str
    npu_operators: int  # of the given file's operators
    cpu_operators: tuple[tuple[str, str], ...]  # kind and layer of those that stay for the CPU
    sram: int  # bytes
    flash: int  # bytes of the weights and commands
    cycles: int
    milliseconds: float

    def to_markdown(self) -> str:
        """Returns a table, and what stays for the CPU."""
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
            f"By vela, for {self.system} with SRAM shared between CPU and NPU. Operators are those of the given file.",
        )


def require() -> None:
    """Raises MissingPackageError where vela is not installed."""
    if importlib.util.find_spec("ethosu") is None:
        raise MissingPackageError(
            "this needs vela, Arm's compiler for Ethos-U: pip install ethos-u-vela, or the project with its extra "
            "ethos-u"
        )


def compile_file(tflite: Source, accelerator: str = "ethos-u55-128") -> Compiled:
    """Compiles a quantized .tflite file for an Ethos-U, by its name in vela's --accelerator-config.

    Raises:
        MissingPackageError: vela is not installed.
        VelaError: it refuses the file, or takes more than 20 minutes.
    """
    require()
    data = detach(tflite)
    system = _SYSTEMS.get(accelerator.rpartition("-")[0])
    if system is None:
        raise ValueError(f"accelerator={accelerator!r} is unknown; expected one such as ethos-u55-128 or ethos-u65-256")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model.tflite").write_bytes(data)
        _run(folder, accelerator, system)
        compiled = Path(folder, "model_vela.tflite").read_bytes()
        with next(Path(folder).glob("model_summary_*.csv")).open(encoding="utf-8", newline="") as stream:
            (summary,) = csv.DictReader(stream)
    graph = parse(compiled)
    operators = [(kind_of(graph, one), one) for one in graph.subgraphs[0].operators]
    tensors = graph.subgraphs[0].tensors
    cpu = tuple(
        (kind, tflite_file.text(tensors[one.outputs[0]].name).split(";")[0])
        for kind, one in operators
        if kind != _ETHOS_U
    )
    given = len(tflite_file.kinds_of(parse(data)))
    kib = 1024
    return Compiled(
        compiled,
        accelerator,
        system,
        given - len(cpu),
        cpu,
        sram=round(kib * float(summary["sram_memory_used"])),
        flash=round(kib * (float(summary["off_chip_flash_memory_used"]) + float(summary["on_chip_flash_memory_used"]))),
        cycles=round(float(summary["cycles_total"])),
        milliseconds=1000 * float(summary["inference_time"]),
    )


def _run(folder: str, accelerator: str, system: str) -> None:
    options = {"output-dir": folder, "accelerator-config": accelerator, "config": "Arm/vela.ini",
               "system-config": system, "memory-mode": "Shared_Sram"}  # fmt: skip
    flags = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-P", "-m", "ethosu.vela", str(Path(folder, "model.tflite")), *flags]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise VelaError(f"vela took over {TIMEOUT_SECONDS} s") from error
    if done.returncode != 0 or not Path(folder, "model_vela.tflite").is_file():
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise VelaError(f"vela ended with code {done.returncode}: {' | '.join(lines[-5:])[-600:]}")
