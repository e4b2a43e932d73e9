"""From a trained model to .tflite files, measured: accuracy, size, latency, arena on one page.

    python -m recipes.deploy --model=runs/train/model.keras              # float32 and int8; a minute on 2 cores
    python -m recipes.deploy --model=nasnet_a --weights=my.weights.h5 --schemes=int8,int16x8,dynamic,float16
    python -m recipes.deploy --model=model.keras --gate=0.01             # exit code 1 if int8 loses more than that
    python -m recipes.deploy --model=model.keras --board=stm32f746       # does it fit, and by how much
    python -m recipes.deploy --model=any.tflite --diagnose               # which operators lose the accuracy, and why
    python -m recipes.deploy --model=model.keras --compact=smallest      # an int8 file of least memory on a board, too

Writes into runs/deploy: the files, deploy.json, deploy.md, each as a whole; with --board memory.png, with --diagnose
noise.png. Float and int8 are judged on the same held-out images; ranges are measured on training images. A trained
network should keep its accuracy in int8 to about 0.01.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from recipes import _main, deployable
from recipes.deployable import ModelAndData
from recipes.training.progress import show_steps
from zoo.atomic import write_atomically
from zoo.deploy import boards, planner, tflite_file

# TensorFlow, and what imports it, is imported where it is used: --help and errors then answer at once.
if TYPE_CHECKING:
    from zoo.deploy.report import Report
    from zoo.deploy.strips import Region

COMPACT = "int8 compact"  # the scheme of the compact file


@dataclasses.dataclass(frozen=True)
class Config(ModelAndData):
    """Options of the export."""

    # a .keras file, a genotype file, a name of zoo.list_models(), or a .tflite file to judge as it is
    model: str = "runs/train/model.keras"
    reference: Path | None = None  # for a quantized .tflite file: the float .tflite file of the same model
    schemes: tuple[Literal["int8", "int16x8", "dynamic", "float16"], ...] = ("int8",)  # besides float32
    gate: float | None = None  # largest loss of accuracy, as a share, that any scheme may have; exit code 1 beyond
    diagnose: bool = False  # shows the operators of the int8 (or int16x8) file that lose the most
    # says whether the compact file, else the int8 one, else the smallest, fits, and draws the lifetimes of its tensors
    board: (
        Literal["stm32f412", "stm32f746", "stm32f765", "stm32h743", "nrf52840", "nrf5340", "rp2040", "esp32s3"] | None
    ) = None
    # an int8 file of least arena, too: its operators in order, its tensors placed by a plan that the file brings along;
    # smallest takes the smaller of the two: upright, or of the image turned by 180 degrees (as the page then says)
    compact: Literal["smallest", "upright", "turned"] | None = None
    # with compact: stages that run in strips of rows, as FIRST:LAST:COUNT by the names of layers, such as
    # stem_conv:block01_0_project_bn:8; less memory for more time
    strips: tuple[str, ...] = ()
    c_array: bool = False  # writes the int8 file, the compact one if there is one, as C source too, model.c and model.h
    folder: Path = Path("runs/deploy")  # the files and the report

    def __post_init__(self):
        super().__post_init__()
        if len(set(self.schemes)) < len(self.schemes):
            raise ValueError(f"schemes={','.join(self.schemes)} names one twice; name each once")
        if self.gate is not None and not 0 <= self.gate <= 1:
            raise ValueError(f"gate is {self.gate}; expected a share from 0 to 1, such as 0.01, or none")
        if self.is_file and self.gate is not None and self.reference is None:
            raise ValueError("gate compares a .tflite file with its float one; give that as reference=, too")
        if not self.is_file and self.reference is not None:
            raise ValueError(f"reference goes with a .tflite file, and model={self.model} is none; leave it out")
        if self.diagnose and not self.is_file and not {"int8", "int16x8"} & set(self.schemes):
            raise ValueError("diagnose looks into the int8 or int16x8 file, and schemes has neither; add one")
        if self.c_array and not self.is_file and "int8" not in self.schemes:
            raise ValueError("c_array writes the int8 file, and schemes leaves int8 out; add it")
        if self.compact is not None and self.is_file:
            raise ValueError(f"compact makes a file of a Keras model, and model={self.model} is one already; give that")
        if self.strips and self.compact is None:
            raise ValueError("strips are for the compact file; add compact=smallest, or leave them out")
        self._split_strips()

    @property
    def regions(self) -> "tuple[Region, ...]":
        """The `strips` as regions."""
        from zoo.deploy.strips import Region

        return tuple(Region(*one) for one in self._split_strips())

    def _split_strips(self) -> list[tuple[str, str, int]]:
        found = []
        for one in self.strips:
            first, last, count = one.split(":") if one.count(":") == 2 else ("", "", "")
            if not (first and last and count.isdecimal()):
                raise ValueError(f"strips has {one!r}; expected FIRST:LAST:COUNT, two names of layers and a number")
            found.append((first, last, int(count)))
        return found

    @property
    def is_file(self) -> bool:
        """Whether the model is a .tflite file already."""
        return Path(self.model).suffix == ".tflite"


PRESETS = {
    "laptop": Config(),
    "paper": Config(images=None, calibration=512),
    "smoke": Config(model="mcunet_in0", image_size=48, images=8, calibration=4),
}


def deploy(config: Config) -> "Report":
    """Exports what the config names, writes the page and returns its numbers."""
    from zoo.deploy import c_array
    from zoo.deploy.report import export

    with show_steps("deploy") as tell:
        if config.is_file:
            result, files, images = _judge(config)
        else:
            subject = deployable.load(config)
            images = subject.images
            result = export(
                subject.model,
                images,
                subject.labels,
                config.folder,
                calibration=subject.calibration,
                schemes=config.schemes,
                also=_compact(config, subject),
                threads=config.threads,
                progress=tell,
            )
            files = {row.scheme: tflite_file.read(config.folder / row.file) for row in result.rows}
        page = result.to_markdown()
        if config.diagnose:
            tell("signal to noise of each operator")
            page += _diagnosed(config, result.model, files, images)
        if config.board is not None:
            tell("memory")
            page += _planned(config, result, files)
        write_atomically(config.folder / "deploy.md", page)
        if config.c_array:
            c_array.write(files.get(COMPACT) or files["int8"], config.folder, "model")
    return result


def _compact(config: Config, subject: deployable.Deployable) -> dict[str, Callable[[], bytes]]:
    """Returns what makes the compact file, if it is wanted."""
    from zoo.deploy import compact

    model, images, regions = subject.model, subject.calibration, config.regions
    make = {
        "smallest": lambda: compact.smallest(model, images, regions=regions),
        "upright": lambda: compact.convert(model, images, turned=False, regions=regions),
        "turned": lambda: compact.convert(model, images, turned=True, regions=regions),
    }
    return {} if config.compact is None else {COMPACT: make[config.compact]}


def _judge(config: Config) -> "tuple[Report, dict[str, bytes], np.ndarray]":
    """Measures a .tflite file, and the float one where it is given, as they are."""
    from zoo.deploy import report

    path = Path(config.model).expanduser()
    files = {"float32": tflite_file.read(config.reference.expanduser())} if config.reference is not None else {}
    given = tflite_file.read(path)
    files[planner.scheme(given)] = given
    source = deployable.load_data(config, planner.input_shape(given))
    images, labels = deployable.held_out(config, source)
    names = {"float32": str(config.reference or path)}
    rows = [
        report.measure_file(data, scheme, names.get(scheme, str(path)), images, labels, threads=config.threads)
        for scheme, data in files.items()
    ]
    float_accuracy = next((row.accuracy for row in rows if row.scheme == "float32"), None)
    result = report.Report(path.stem, None, len(images), float_accuracy, tuple(rows))
    result.save(config.folder)
    return result, files, images


def _diagnosed(config: Config, name: str, files: dict[str, bytes], images: np.ndarray) -> str:
    from zoo.deploy import charts, compact, doctor, turn

    scheme = "int8" if "int8" in files else "int16x8"
    if scheme not in files:
        raise ValueError(f"diagnose looks into an int8 or int16x8 file, and {config.model} is neither")
    images = turn.images(images) if compact.is_turned(files[scheme]) else images
    diagnosis = doctor.diagnose(files[scheme], images, files.get("float32"))
    charts.draw_noise(diagnosis, config.folder / "noise.png", f"{name}, {scheme}")
    return f"\n## Rounding noise of {scheme}\n\n{diagnosis.to_markdown()}"


def _planned(config: Config, result: "Report", files: dict[str, bytes]) -> str:
    from zoo.deploy import charts

    smallest = min(files, key=lambda name: len(files[name]))
    scheme = next((name for name in (COMPACT, "int8") if name in files), smallest)
    plan = planner.plan(files[scheme])
    board = boards.BOARDS[config.board or ""]
    charts.draw_memory(plan, config.folder / "memory.png", f"{result.model}, {scheme}", board)
    fit = boards.fit(plan, config.board or "")
    text = plan.to_markdown(planner.padding_savings(files[scheme]))
    return f"\n## Memory of {scheme}: {fit}\n\n{text}"


def main(config: Config) -> None:
    """`deploy`, with the page on stdout, and exit code 1 where a scheme loses more accuracy than the gate allows."""
    result = deploy(config)
    print((config.folder / "deploy.md").read_text(encoding="utf-8"))
    schemes = [scheme for scheme in result.schemes if scheme != "float32"]
    failed = [scheme for scheme in schemes if config.gate is not None and result.drop(scheme) > config.gate]
    for scheme in failed:
        print(
            f"gate: {scheme} is {result.drop(scheme):.4f} less accurate than the float model on n = {result.n} images; "
            f"{config.gate} is allowed. The files are in {config.folder}",
            file=sys.stderr,
        )
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    _main.run(main, PRESETS)
