"""From a trained model to .tflite files, measured: accuracy, size, latency, arena on one page.

    python -m recipes.deploy --model=runs/train/model.keras              # float32 and int8; a minute on 2 cores
    python -m recipes.deploy --model=nasnet_a --weights=my.weights.h5 --schemes=int8,int16x8,dynamic,float16
    python -m recipes.deploy --model=model.keras --gate=0.01             # exit code 1 if int8 loses more than that
    python -m recipes.deploy --model=model.keras --board=stm32f746       # does it fit, and by how much
    python -m recipes.deploy --model=model.keras --board=corstone300     # what runs on its neural processor, too
    python -m recipes.deploy --model=any.tflite --diagnose               # which operators lose the accuracy, and why
    python -m recipes.deploy --model=model.keras --equalize              # where it says that channels' ranges differ
    python -m recipes.deploy --model=model.keras --compact=smallest      # an int8 file of least memory on a board, too
    python -m recipes.deploy --model=model.keras --firmware=board        # a C++ project that classifies an image

Writes into runs/deploy: the files, deploy.json, deploy.md, each as a whole; with --board memory.png, with --diagnose
noise.png. Float and int8 are judged on the same held-out images; ranges are measured on training images. A trained
network should keep its accuracy in int8 to about 0.01.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from recipes import _main, deployable
from recipes.deployable import ModelAndData
from recipes.training.progress import show_steps
from recipes.training.reading import Reading, find_reading
from recipes.training.results import find_class_names, find_origin, write_labels
from zoo.atomic import check_folder, write_atomically
from zoo.deploy import boards, planner, tflite_file

# TensorFlow, and what imports it, is imported where it is used: --help and errors then answer at once.
if TYPE_CHECKING:
    from recipes.images.sources import Data
    from zoo.deploy.compact import Region
    from zoo.deploy.report import Report

COMPACT = "int8 compact"  # the scheme of the compact file
_FOR_BOARDS = ("int8", "uint8", "int4")
_ROUNDED = ("int8", "int4", "int16x8", "uint8")  # schemes that the doctor looks into
_UNJUDGED_IMAGES = 32  # that a file is diagnosed on which is no classifier


@dataclasses.dataclass(frozen=True)
class Config(ModelAndData):
    """Options of the export."""

    # a .keras file, a folder of zoo.save_pretrained or hf://user/name, a genotype file, a name of zoo.list_models(), or
    # a .tflite file to judge as it is
    model: str = "runs/train/model.keras"
    reference: Path | None = None  # for a quantized .tflite file: the float .tflite file of the same model
    # besides float32; int4 is int8 with weights of four bits: less flash, a larger arena; uint8 is int8 with uint8 in
    # and out, as MediaPipe takes it
    schemes: tuple[Literal["int8", "uint8", "int4", "int16x8", "dynamic", "float16"], ...] = ("int8",)
    pixels: bool = False  # the files normalise by themselves and read pixels of 0..255
    gate: float | None = None  # largest loss of accuracy, as a share, that any scheme may have; exit code 1 beyond
    diagnose: bool = False  # shows the operators of the int8 (or int4, int16x8) file that lose the most
    # says which files fit, and draws the lifetimes of the tensors of that which takes the least RAM; of a board with a
    # neural processor (corstone300) also what runs there
    board: (
        Literal[
            "stm32f412", "stm32f746", "stm32f765", "stm32h743", "nrf52840", "nrf5340", "rp2040", "esp32s3",
            "corstone300",
        ]
        | None
    ) = None  # fmt: skip
    # an int8 file of least arena, too: its operators in order, its tensors placed by a plan that the file brings along;
    # smallest takes the smallest: upright, of the image turned by 180 degrees (as the page then says), or as converted
    compact: Literal["smallest", "upright", "turned"] | None = None
    # with compact: stages that run in strips of rows, as FIRST:LAST:COUNT by the names of layers, such as
    # stem_conv:block01_0_project_bn:8; less memory for more time
    strips: tuple[str, ...] = ()
    c_array: bool = False  # writes the int8 file, the compact one if there is one, as C source too, model.c and model.h
    # a new folder for a program that classifies one image with TensorFlow Lite for Microcontrollers, with the file that
    # c_array writes: sources, preprocessing, test image, CMakeLists.txt and README.md
    firmware: Path | None = None
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
        if self.diagnose and not self.is_file and not set(_ROUNDED) & set(self.schemes):
            raise ValueError("diagnose looks into the int8, int4 or int16x8 file, and schemes has none; add one")
        for name in ("c_array", "firmware"):
            if getattr(self, name) and not self.is_file and not set(_FOR_BOARDS) & set(self.schemes):
                raise ValueError(f"{name} writes the int8, uint8 or int4 file, and schemes has none; add one")
        if self.compact is not None and self.is_file:
            raise ValueError(f"compact makes a file of a Keras model, and model={self.model} is one already; give that")
        for name in ("equalize", "pixels"):
            if getattr(self, name) and self.is_file:
                raise ValueError(
                    f"{name} changes a Keras model, and model={self.model} is converted already; give that"
                )
        if self.strips and self.compact is None:
            raise ValueError("strips are for the compact file; add compact=smallest, or leave them out")
        self._split_strips()

    @property
    def regions(self) -> "tuple[Region, ...]":
        """The `strips` as regions."""
        from zoo.deploy.compact import Region

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
    from recipes.training.evaluation import warn_near_chance
    from zoo.deploy import c_array, firmware
    from zoo.deploy.report import export

    if config.firmware is not None:
        check_folder(config.firmware, firmware.MARKER)  # before the work
    if config.board is not None and boards.BOARDS[config.board].npu:
        boards.require_vela()
    with show_steps("deploy") as tell:
        if config.is_file:
            judged = _judge(config)
        else:
            subject = deployable.load(config, config.pixels)
            report = export(
                subject.model,
                subject.images,
                subject.labels,
                config.folder,
                calibration=subject.calibration,
                schemes=config.schemes,
                also=_compact(config, subject),
                metadata=subject.make_metadata(config),
                output=config.output_key,
                threshold=subject.threshold,
                threads=config.threads,
                progress=tell,
            )
            files = {row.scheme: tflite_file.read(config.folder / row.file) for row in report.rows}
            found = subject.describe(config)
            judged = _Judged(report, files, subject.images, found, subject.data, subject.reading)
        result, files, images, found = judged[:4]
        if found is not None:
            accuracy = result.rows[0].accuracy if result.accuracy is None else result.accuracy
            warn_near_chance(accuracy, len(found["class_names"]), result.n, result.model)
        page = result.to_markdown()
        if config.diagnose:
            tell("signal to noise of each operator")
            page += _diagnosed(config, result.model, files, images)
        if config.board is not None:
            tell("memory")
            page += _planned(config, result, files)
            if boards.BOARDS[config.board].npu:
                tell("what runs on the neural processor")
                page += _compile_for_npu(config, files)
        write_atomically(config.folder / "deploy.md", page)
        if found is not None:
            write_labels(config.folder, found)
        if config.c_array:
            names = () if found is None else found["class_names"]
            c_array.write(_file_for_boards(files), config.folder, "model", class_names=names)
        if config.firmware is not None:
            tell(f"a project in {config.firmware}")
            _write_firmware(config, judged)
    return result


def _file_for_boards(files: dict[str, bytes]) -> bytes:
    return next((files[scheme] for scheme in (COMPACT, *_FOR_BOARDS) if scheme in files), list(files.values())[-1])


def _write_firmware(config: Config, judged: "_Judged") -> None:
    from zoo.deploy import firmware

    if judged.found is None or judged.source is None or judged.reading is None:
        raise ValueError(f"firmware needs a classifier of images: {judged.report.unjudged}")
    image = judged.reading.take_middle(judged.source.test.first(1).head(1)[0])[0]
    firmware.write(
        _file_for_boards(judged.files),
        config.firmware or "",
        name=judged.report.model,
        image=np.asarray(image, np.uint8),
        normalize=judged.reading.normalize,
        class_names=judged.found["class_names"],
        output=config.output_key,
        resize=judged.reading.resize,
        interpolation=judged.reading.interpolation,
    )


def _compact(config: Config, subject: deployable.Deployable) -> dict[str, Callable[[], bytes]]:
    """Returns what makes the compact file, if it is wanted."""
    from zoo.deploy import compact

    if config.compact is None:
        return {}
    turned = {} if config.compact == "smallest" else {"turned": config.compact == "turned"}
    make = compact.convert if turned else compact.convert_smallest
    return {COMPACT: lambda: make(subject.model, subject.calibration, regions=config.regions, **turned)}


class _Judged(NamedTuple):
    """The report, the files by scheme, and the images that they take; None for a file that takes none."""

    report: "Report"
    files: dict[str, bytes]
    images: np.ndarray | None
    found: dict[str, Any] | None  # what is known of the images; None if the file is no classifier of theirs
    source: "Data | None"
    reading: Reading | None


def _judge(config: Config) -> _Judged:
    """Measures a .tflite file, and the float one where it is given, as they are."""
    from zoo.deploy import report

    path = Path(config.model).expanduser()
    files = {"float32": tflite_file.read(config.reference.expanduser())} if config.reference is not None else {}
    given = tflite_file.read(path)
    files[planner.find_scheme(given)] = given
    images = labels = found = source = reading = None
    unjudged = _find_obstacle(given, config)
    rounds = config.diagnose and planner.find_scheme(given) in _ROUNDED
    if not unjudged or (rounds and _takes_images(given)):
        origin = find_origin(path)
        shape = planner.find_input_shape(given)
        source = deployable.load_data(config, shape, origin, find_class_names(path))
        if not unjudged and (mismatch := deployable.find_mismatch(_output_shape(given, config), source)):
            unjudged = f"it {mismatch}"
        reading = find_reading((shape[1], shape[2]), config.preprocess, origin, given, config.model)
        wanted = dataclasses.replace(config, images=_UNJUDGED_IMAGES) if unjudged else config
        images, labels = deployable.held_out(wanted, source, reading)
        found = deployable.describe(config, source, reading)
    if unjudged and config.gate is not None:
        raise ValueError(f"gate compares accuracies, and that of {path} cannot be known: {unjudged}")
    names = {"float32": str(config.reference or path)}
    judged = (None, None) if unjudged else (images, labels)
    rows = [
        report.measure_file(
            data, scheme, names.get(scheme, str(path)), *judged, output=config.output_key, threshold=config.threshold,
            threads=config.threads,
        )
        for scheme, data in files.items()
    ]  # fmt: skip
    float_accuracy = next((row.accuracy for row in rows if row.scheme == "float32"), None)
    n = 0 if images is None else len(images)
    result = report.Report(path.stem, None, n, float_accuracy, tuple(rows), unjudged)
    result.save(config.folder)
    return _Judged(result, files, images, None if unjudged else found, source, reading)


def _takes_images(file: bytes) -> bool:
    graph = tflite_file.parse(file).subgraphs[0]
    shapes = [tflite_file.shape_of(graph.tensors[number]) for number in graph.inputs]
    return len(shapes) == 1 and len(shapes[0]) == 4 and shapes[0][0] == 1 and shapes[0][3] in (1, 3)


def _output_shape(file: bytes, config: Config) -> tuple[int, ...]:
    from zoo.deploy import measure

    model = tflite_file.parse(file)
    return tflite_file.shape_of(model.subgraphs[0].tensors[measure.choose_output(model, config.output_key)])


def _find_obstacle(file: bytes, config: Config) -> str:
    """Returns why a file is no classifier of images, or an empty text."""
    from zoo.deploy import measure

    graph = tflite_file.parse(file).subgraphs[0]
    if not _takes_images(file):
        inputs = [graph.tensors[number] for number in graph.inputs]
        names = ", ".join(f"{tflite_file.text(one.name)} {list(tflite_file.shape_of(one))}" for one in inputs)
        return f"it takes {names}, and one image [1, height, width, 1 or 3] was expected"
    try:
        shape = _output_shape(file, config)
    except measure.MeasureError as error:
        return str(error).replace("output=", "--output=").removesuffix(".")
    if len(shape) != 2:
        return f"its output is {list(shape)}, and a row of classes [1, classes] was expected"
    if shape[1] == 1 and config.threshold is None:
        try:
            measure.find_threshold(file, config.output_key)
        except measure.MeasureError:
            return "its one output is no probability as far as can be seen; give --threshold, such as 0 for logits"
    return ""


def _diagnosed(config: Config, name: str, files: dict[str, bytes], images: np.ndarray | None) -> str:
    from zoo.deploy import compact, doctor, turn
    from zoo.deploy.measure import MeasureError

    scheme = next((one for one in _ROUNDED if one in files), None)
    if scheme is None:
        kinds = ", ".join(files)
        return f"\n## Rounding noise\n\nNone: {config.model} is {kinds}, and only int8, int4 and int16x8 files round.\n"
    if images is not None:
        images = turn.images(images) if compact.is_turned(files[scheme]) else images
    try:
        diagnosis = doctor.diagnose(files[scheme], images, files.get("float32"))
    except (doctor.DoctorError, MeasureError) as error:
        return f"\n## Rounding noise of {scheme}\n\nUnknown: {error}.\n"
    doctor.draw_noise(diagnosis, config.folder / "noise.png", f"{name}, {scheme}")
    inputs = "" if images is not None else "On random inputs, which are no typical ones: the file takes no images.\n\n"
    return f"\n## Rounding noise of {scheme}\n\n{inputs}{diagnosis.to_markdown()}"


def _planned(config: Config, result: "Report", files: dict[str, bytes]) -> str:
    """Returns what a board says of each file, and the memory of the best one: that runs, in the least RAM."""
    plans, lines = {}, []
    for scheme, file in files.items():
        try:
            plans[scheme] = planner.plan(file)
        except planner.PlannerError as error:
            lines.append(f"- {scheme}: {error}")
            continue
        row = result.row(scheme)
        if row.arena is None and not plans[scheme].refusals:
            plans[scheme] = dataclasses.replace(plans[scheme], unsupported=(row.note,))
        lines.append(f"- {scheme}: {boards.fit(plans[scheme], config.board or '')}")
    if not plans:
        return "\n## Memory\n\n" + "\n".join(lines) + "\n"
    best = min(plans, key=lambda scheme: (bool(plans[scheme].refusals), plans[scheme].arena))
    board, fit = boards.BOARDS[config.board or ""], boards.fit(plans[best], config.board or "")
    boards.draw_memory(plans[best], config.folder / "memory.png", f"{result.model}, {best}", board)
    text = plans[best].to_markdown(planner.find_padding_savings(files[best]))
    verdicts = "" if len(lines) == 1 else "\n".join(lines) + "\n\n"
    return f"\n## Memory of {best}: {fit}\n\n{verdicts}{text}"


def _compile_for_npu(config: Config, files: dict[str, bytes]) -> str:
    """Returns what vela says of the file for boards; writes that which it makes of it."""
    board = boards.BOARDS[config.board or ""]
    try:
        compiled = boards.compile_file(_file_for_boards(files), board.npu or "")
    except boards.VelaError as error:
        return f"\n## On the neural processor of {board.chip}\n\nUnknown: {error}.\n"
    write_atomically(config.folder / "vela.tflite", compiled.file)
    return f"\n## On the neural processor of {board.chip}\n\n{compiled.to_markdown()}\nThe file for it: vela.tflite.\n"


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
