"""From a trained model to .tflite files, with accuracy, size, latency and arena on one page.

    python -m recipes.deploy --model=runs/train/model.keras              # float32 and int8; a minute on 2 cores
    python -m recipes.deploy --model=nasnet_a --weights=my.weights.h5 --schemes=int8,int16x8,dynamic,float16
    python -m recipes.deploy --model=model.keras --gate=0.01             # exit code 1 if int8 loses more than that
    python -m recipes.deploy --model=model.keras --board=stm32f746       # does it fit, and by how much
    python -m recipes.deploy --model=model.keras --board=corstone300     # also what runs on its neural processor
    python -m recipes.deploy --model=any.tflite --diagnose               # which operators lose accuracy, and why
    python -m recipes.deploy --model=model.keras --equalize              # the remedy for channels of unequal range
    python -m recipes.deploy --model=model.keras --compact=smallest      # also an int8 file with the smallest arena
    python -m recipes.deploy --model=model.keras --firmware=board        # a C++ project that classifies an image

Writes the files, deploy.json and deploy.md into runs/deploy; with --board also memory.png, with --diagnose noise.png.
All files are judged on the same held-out images; quantization ranges are measured on training images. Expect int8 to
lose about 0.01 of accuracy at most.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from recipes import _main, deployable
from recipes.deployable import ModelAndData
from recipes.models import find_output_shape
from recipes.training.progress import show_steps
from recipes.training.reading import Reading, find_reading
from recipes.training.results import find_class_names, find_origin, write_labels
from zoo.atomic import check_folder, write_atomically
from zoo.deploy import boards, planner, tflite_file

# TensorFlow, and what imports it, is imported inside functions: --help and errors then answer at once.
if TYPE_CHECKING:
    from recipes.images.sources import Data
    from zoo.deploy.compact import Region
    from zoo.deploy.report import Report

COMPACT = "int8 compact"  # the scheme of the compact file
_FOR_BOARDS = ("int8", "uint8", "int4")
_ROUNDED = ("int8", "int4", "int16x8", "uint8")  # the schemes that can be diagnosed
_UNJUDGED_IMAGES = 32  # on which a file that is not a classifier is diagnosed


@dataclasses.dataclass(frozen=True)
class Config(ModelAndData):
    """Options of the export."""

    # a .keras or .h5 file, a folder written by zoo.save_pretrained, hf://user/name, a genotype file, a name from
    # zoo.list_models(), or a .tflite file to measure as it is
    model: str = "runs/train/model.keras"
    reference: Path | None = None  # with a quantized .tflite file as model: the float .tflite file of the same network
    # the files to make besides float32; int4: int8 with weights of four bits (less flash, a larger arena); uint8: int8
    # with uint8 input and output, as MediaPipe needs it
    schemes: tuple[Literal["int8", "uint8", "int4", "int16x8", "dynamic", "float16"], ...] = ("int8",)
    pixels: bool = False  # build the normalisation into the files, which then read pixels of 0..255
    gate: float | None = None  # largest loss of accuracy allowed for any scheme, as a share; exit code 1 beyond it
    # show which operators of the int8 (or int4, int16x8, uint8) file lose the most accuracy, and remedies
    diagnose: bool = False
    # say which files fit on this board, and draw the arena of the file that needs the least RAM; for a board with a
    # neural processor (corstone300) also say what runs there
    board: (
        Literal[
            "stm32f412", "stm32f746", "stm32f765", "stm32h743", "nrf52840", "nrf5340", "rp2040", "esp32s3",
            "corstone300",
        ]
        | None
    ) = None  # fmt: skip
    # also make an int8 file with a small arena: operators reordered, tensors placed by a plan inside the file; upright
    # takes images as they are, turned takes them turned by 180 degrees (the page then says so), smallest is the
    # smallest of both and the plain int8 file
    compact: Literal["smallest", "upright", "turned"] | None = None
    # with compact: stages to run in strips of rows, as FIRST:LAST:COUNT with the names of layers, such as
    # stem_conv:block01_0_project_bn:8; less memory for more time
    strips: tuple[str, ...] = ()
    c_array: bool = False  # also write the compact or else the int8 file as C source, model.c and model.h
    # a new folder for a C++ project that classifies one image with TensorFlow Lite for Microcontrollers: the model that
    # c_array writes, preprocessing, a test image, CMakeLists.txt and README.md
    firmware: Path | None = None
    folder: Path = Path("runs/deploy")  # the files and the report

    def __post_init__(self):
        super().__post_init__()
        if len(set(self.schemes)) < len(self.schemes):
            raise ValueError(f"schemes={','.join(self.schemes)} repeats one; name each once")
        if self.gate is not None and not 0 <= self.gate <= 1:
            raise ValueError(f"gate is {self.gate}; expected a share from 0 to 1, such as 0.01, or none")
        if self.is_file and self.gate is not None and self.reference is None:
            raise ValueError("gate compares a .tflite file with its float file; give that file as reference=")
        if not self.is_file and self.reference is not None:
            raise ValueError(f"reference needs a .tflite file as model, and model={self.model} is none; leave it out")
        if self.diagnose and not self.is_file and not set(_ROUNDED) & set(self.schemes):
            raise ValueError("diagnose needs an int8, int4, int16x8 or uint8 file, and schemes has none; add one")
        for name in ("c_array", "firmware"):
            if getattr(self, name) and not self.is_file and not set(_FOR_BOARDS) & set(self.schemes):
                raise ValueError(f"{name} needs an int8, uint8 or int4 file, and schemes has none; add one")
        for name in ("compact", "equalize", "pixels"):
            if getattr(self, name) and self.is_file:
                raise ValueError(
                    f"{name} needs a Keras model, and model={self.model} is a converted file; give the Keras model"
                )
        if self.strips and self.compact is None:
            raise ValueError("strips are only for the compact file; add compact=smallest, or leave strips out")
        self._split_strips()

    @property
    def regions(self) -> "tuple[Region, ...]":
        """The `strips` as regions."""
        from zoo.deploy.compact import Region

        return tuple(Region(*parts) for parts in self._split_strips())

    def _split_strips(self) -> list[tuple[str, str, int]]:
        found = []
        for text in self.strips:
            first, last, count = text.split(":") if text.count(":") == 2 else ("", "", "")
            if not (first and last and count.isdecimal()):
                raise ValueError(f"strips has {text!r}; expected FIRST:LAST:COUNT, two layer names and a number")
            found.append((first, last, int(count)))
        return found

    @property
    def is_file(self) -> bool:
        """Whether the model is a .tflite file."""
        return Path(self.model).suffix == ".tflite"


PRESETS = {
    "laptop": Config(),
    "paper": Config(images=None, calibration=512),
    "smoke": Config(model="mcunet_in0", image_size=48, images=8, calibration=4),
}


def deploy(config: Config) -> "Report":
    """Makes or measures the files that the config names, writes the page and returns its numbers."""
    from recipes.training.evaluation import warn_near_chance
    from zoo.deploy import c_array, firmware
    from zoo.deploy.report import export

    if config.firmware is not None:
        check_folder(config.firmware, firmware.MARKER)  # fails before the work, not after
    if config.board is not None and boards.BOARDS[config.board].npu:
        boards.require_vela()
    with show_steps("deploy") as tell:
        if config.is_file:
            deployment = _measure_file(config)
        else:
            subject = deployable.load(config, config.pixels)
            report = export(
                subject.model,
                subject.images,
                subject.labels,
                config.folder,
                calibration=subject.calibration,
                schemes=config.schemes,
                also=_plan_compact(config, subject),
                metadata=subject.make_metadata(config),
                output=config.output_key,
                threshold=subject.threshold,
                threads=config.threads,
                progress=tell,
            )
            files = {row.scheme: tflite_file.read(config.folder / row.file) for row in report.rows}
            deployment = _Deployment(
                report, files, subject.images, subject.describe(config), subject.data, subject.reading
            )
        result, files, images, about = deployment[:4]
        if about is not None:
            accuracy = result.rows[0].accuracy if result.accuracy is None else result.accuracy
            warn_near_chance(accuracy, len(about["class_names"]), result.n, result.model)
        page = result.to_markdown()
        if config.diagnose:
            tell("signal to noise of each operator")
            page += _describe_noise(config, result.model, files, images)
        if config.board is not None:
            tell("memory")
            page += _describe_memory(config, result, files)
            if boards.BOARDS[config.board].npu:
                tell("compiling for the neural processor")
                page += _compile_for_npu(config, files)
        write_atomically(config.folder / "deploy.md", page)
        if about is not None:
            write_labels(config.folder, about)
        if config.c_array:
            names = () if about is None else about["class_names"]
            c_array.write(_choose_for_boards(files), config.folder, "model", class_names=names)
        if config.firmware is not None:
            tell(f"C++ project in {config.firmware}")
            _write_firmware(config, deployment)
    return result


class _Deployment(NamedTuple):
    """A report, its files by scheme, and the images that they were measured on."""

    report: "Report"
    files: dict[str, bytes]
    images: np.ndarray | None  # preprocessed; None for a file that takes no images
    about: dict[str, Any] | None  # what source.json says of model and images; None if the file is not their classifier
    source: "Data | None"
    reading: Reading | None


def _choose_for_boards(files: dict[str, bytes]) -> bytes:
    """Returns the file to run on a board: the compact one, otherwise the first of int8, uint8 and int4."""
    return next((files[scheme] for scheme in (COMPACT, *_FOR_BOARDS) if scheme in files), list(files.values())[-1])


def _write_firmware(config: Config, deployment: _Deployment) -> None:
    from zoo.deploy import firmware

    if deployment.about is None or deployment.source is None or deployment.reading is None:
        raise ValueError(f"firmware needs a classifier of images: {deployment.report.unjudged}")
    image = deployment.reading.take_middle(deployment.source.test.first(1).head(1)[0])[0]
    firmware.write(
        _choose_for_boards(deployment.files),
        config.firmware or "",
        name=deployment.report.model,
        image=np.asarray(image, np.uint8),
        normalize=deployment.reading.normalize,
        class_names=deployment.about["class_names"],
        output=config.output_key,
        resize=deployment.reading.resize,
        interpolation=deployment.reading.interpolation,
    )


def _plan_compact(config: Config, subject: deployable.Deployable) -> dict[str, Callable[[], bytes]]:
    """Returns a function that makes the compact file, by its scheme, if the config asks for that file."""
    from zoo.deploy import compact

    if config.compact is None:
        return {}
    turned = {} if config.compact == "smallest" else {"turned": config.compact == "turned"}
    make = compact.convert if turned else compact.convert_smallest
    return {COMPACT: lambda: make(subject.model, subject.calibration, regions=config.regions, **turned)}


def _measure_file(config: Config) -> _Deployment:
    """Measures a .tflite file as it is, and its float file if that is given."""
    from zoo.deploy import report

    path = Path(config.model).expanduser()
    reference = None if config.reference is None else config.reference.expanduser()
    for name, file in (("model", path), ("reference", reference)):
        if file is not None and not file.is_file():
            raise FileNotFoundError(f"{name}: there is no file {file}; give the path of a .tflite file")
    files = {} if reference is None else {"float32": tflite_file.read(reference)}
    given = tflite_file.read(path)
    given_scheme = planner.find_scheme(given)
    if given_scheme in files:
        raise ValueError(
            f"reference needs a quantized .tflite file as model, and {path} is {given_scheme}; leave reference out"
        )
    files[given_scheme] = given
    images = labels = about = source = reading = None
    unjudged = _find_obstacle(given, config)
    diagnosed = config.diagnose and given_scheme in _ROUNDED
    if not unjudged or (diagnosed and _takes_images(given)):
        origin = find_origin(path)
        shape = planner.find_input_shape(given)
        source = deployable.load_data(config, shape, origin, find_class_names(path))
        if not unjudged and (mismatch := deployable.find_mismatch(find_output_shape(given, config.output_key), source)):
            unjudged = f"it {mismatch}"
        reading = find_reading((shape[1], shape[2]), config.preprocess, origin, given, config.model)
        wanted = dataclasses.replace(config, images=_UNJUDGED_IMAGES) if unjudged else config
        images, labels = deployable.load_held_out(wanted, source, reading)
        about = deployable.describe(config, source, reading)
    if unjudged and config.gate is not None:
        raise ValueError(f"gate compares accuracies, and the accuracy of {path} is unknown: {unjudged}")
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
    return _Deployment(result, files, images, None if unjudged else about, source, reading)


def _takes_images(file: bytes) -> bool:
    graph = tflite_file.parse(file).subgraphs[0]
    shapes = [tflite_file.shape_of(graph.tensors[number]) for number in graph.inputs]
    return len(shapes) == 1 and len(shapes[0]) == 4 and shapes[0][0] == 1 and shapes[0][3] in (1, 3)


def _find_obstacle(file: bytes, config: Config) -> str:
    """Returns why a file is not an image classifier, or an empty text if it is one."""
    from zoo.deploy import measure

    graph = tflite_file.parse(file).subgraphs[0]
    if not _takes_images(file):
        inputs = [graph.tensors[number] for number in graph.inputs]
        names = ", ".join(f"{tflite_file.text(tensor.name)} {list(tflite_file.shape_of(tensor))}" for tensor in inputs)
        return f"it takes {names}; expected one image [1, height, width, 1 or 3]"
    try:
        shape = find_output_shape(file, config.output_key)
    except measure.MeasureError as error:
        return str(error).replace("output=", "--output=").removesuffix(".")
    if len(shape) != 2:
        return f"its output is {list(shape)}; expected a row of classes [1, classes]"
    if shape[1] == 1 and config.threshold is None:
        try:
            measure.find_threshold(file, config.output_key)
        except measure.MeasureError:
            return "its single output is not known to be a probability; give --threshold, such as 0 for logits"
    return ""


def _describe_noise(config: Config, name: str, files: dict[str, bytes], images: np.ndarray | None) -> str:
    """Returns the page's section on rounding noise, and draws noise.png."""
    from zoo.deploy import compact, doctor, turn
    from zoo.deploy.measure import MeasureError

    scheme = next((scheme for scheme in _ROUNDED if scheme in files), None)
    if scheme is None:
        schemes = ", ".join(files)
        return (
            f"\n## Rounding noise\n\nNone: {config.model} is {schemes}, and only int8, int4, int16x8 and uint8 files "
            "round.\n"
        )
    if images is not None:
        images = turn.images(images) if compact.is_turned(files[scheme]) else images
    try:
        diagnosis = doctor.diagnose(files[scheme], images, files.get("float32"))
    except (doctor.DoctorError, MeasureError) as error:
        return f"\n## Rounding noise of {scheme}\n\nUnknown: {error}.\n"
    doctor.draw_noise(diagnosis, config.folder / "noise.png", f"{name}, {scheme}")
    inputs = "" if images is not None else "On random inputs, which are not typical: the file takes no images.\n\n"
    return f"\n## Rounding noise of {scheme}\n\n{inputs}{diagnosis.to_markdown()}"


def _describe_memory(config: Config, result: "Report", files: dict[str, bytes]) -> str:
    """Returns the page's section on memory: whether each file fits, and details of the best, with memory.png.

    The best file is the one that TFLM runs in the least RAM.
    """
    plans, lines = {}, []
    for scheme, file in files.items():
        try:
            plans[scheme] = planner.plan(file)
        except planner.PlannerError as error:
            lines.append(f"- {scheme}: {error}")
            continue
        row = result.row(scheme)
        if row.arena is None and not plans[scheme].refusals:
            plans[scheme] = dataclasses.replace(plans[scheme], failure=row.note)
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
    """Compiles the file for boards with vela, writes vela.tflite, and returns the page's section about it."""
    board = boards.BOARDS[config.board or ""]
    try:
        compiled = boards.compile_file(_choose_for_boards(files), board.npu or "")
    except boards.VelaError as error:
        return f"\n## On the neural processor of {board.chip}\n\nUnknown: {error}.\n"
    write_atomically(config.folder / "vela.tflite", compiled.file)
    return f"\n## On the neural processor of {board.chip}\n\n{compiled.to_markdown()}\nCompiled file: vela.tflite.\n"


def main(config: Config) -> None:
    """Runs `deploy` and prints the page; exits with code 1 if a scheme loses more accuracy than the gate allows."""
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
