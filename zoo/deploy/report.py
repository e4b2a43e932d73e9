"""One page about the files made from one model: accuracy of all of them on the same images, size, latency, memory."""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np

from zoo.atomic import write_atomically
from zoo.deploy import compact, measure, planner, tflite, tflm, turn


@dataclasses.dataclass(frozen=True)
class Row:
    """One file. `arena` is what TFLM recorded, in bytes, or None where TFLM cannot run the file (`note` says why).

    `planned` is what the planner predicted for it, None for a file with control flow.
    """

    scheme: str  # "float32", "int8", ...; "int8 QAT" after quantization-aware training
    file: str
    size: int  # bytes
    accuracy: float
    latency: measure.Latency  # by the kernels that LiteRT takes by default, XNNPACK's
    builtin_latency: measure.Latency  # by LiteRT's own
    arena: int | None
    planned: int | None
    note: str = ""
    turned: bool = False  # whether the file takes its images turned by 180 degrees (`zoo.deploy.compact`)


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of one model.

    `accuracy` is that of the float model on the same `n` images as the rows'; None where only a quantized file
    is known.
    """

    model: str
    params: int | None  # None for a file without its Keras model
    n: int
    accuracy: float | None
    rows: tuple[Row, ...]

    def row(self, scheme: str) -> Row:
        """Returns the row of a scheme.

        Raises:
            KeyError: there is none.
        """
        for row in self.rows:
            if row.scheme == scheme:
                return row
        raise KeyError(f"no file with scheme {scheme!r} in the report of {self.model!r}; it has {self.schemes}")

    @property
    def schemes(self) -> tuple[str, ...]:
        """The schemes of the rows, in order."""
        return tuple(row.scheme for row in self.rows)

    def drop(self, scheme: str) -> float:
        """Returns by how much the float model is more accurate than the file, as a share of the n images.

        Raises:
            ValueError: the float model's accuracy is unknown.
        """
        if self.accuracy is None:
            raise ValueError(f"nothing to compare {self.model} with; give its float file or Keras model too")
        return self.accuracy - self.row(scheme).accuracy

    def to_json(self) -> str:
        """Returns the report as JSON, the fields as they are here."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def to_markdown(self) -> str:
        """Returns the report as one page of Markdown."""
        lines = [
            f"# {self.model}",
            "",
            ("" if self.params is None else f"{self.params:,} parameters. ")
            + f"Accuracy on the same n = {self.n} held-out images everywhere"
            + ("." if self.accuracy is None else f"; the float model has {self.accuracy:.4f}."),
            "",
            "| file | scheme | accuracy | against float | size kB | latency ms (median, p90) | without XNNPACK | "
            "arena kB: told, found |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            told = "" if row.planned is None else f"{row.planned / 1000:,.1f}, "
            arena = row.note if row.arena is None else f"{row.arena / 1000:,.1f}"
            against = "" if self.accuracy is None else f"{row.accuracy - self.accuracy:+.4f}"
            lines.append(
                f"| {row.file} | {row.scheme} | {row.accuracy:.4f} | {against} | {row.size / 1000:,.1f} | "
                f"{row.latency.median_ms:.3f}, {row.latency.p90_ms:.3f} | "
                f"{row.builtin_latency.median_ms:.3f}, {row.builtin_latency.p90_ms:.3f} | {told}{arena} |"
            )
        threads = sorted({row.latency.threads for row in self.rows})
        lines += [
            "",
            f"Latency: LiteRT on this machine, {', '.join(map(str, threads))} thread(s), one image at a time, "
            "with XNNPACK, its default, and without. "
            "Arena: told from the file, and recorded by TensorFlow Lite for Microcontrollers on a 64-bit machine.",
        ]
        for row in self.rows:
            if row.turned:
                lines += [
                    "",
                    f"{row.file} takes its image turned by 180 degrees, as its metadata {turn.METADATA} say: in "
                    "Python zoo.deploy.turn.images(images), on a board the pixels from the last to the first.",
                ]
        return "\n".join(lines) + "\n"

    def save(self, folder: str | os.PathLike) -> None:
        """Writes `deploy.json` and `deploy.md` into the folder, each as a whole."""
        write_atomically(Path(folder, "deploy.json"), self.to_json())
        write_atomically(Path(folder, "deploy.md"), self.to_markdown())


def export(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    folder: str | os.PathLike,
    *,
    calibration: np.ndarray,
    schemes: Sequence[str] = ("int8",),
    also: Mapping[str, Callable[[], bytes]] | None = None,
    threads: int = 1,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Converts the model to float32 and each scheme, measures all of them, writes files and report into `folder`.

    Nothing is written before every conversion has succeeded. The files are `MODEL_float32.tflite`, `MODEL_int8.tflite`,
    ..., `deploy.json` and `deploy.md`; an earlier run's are replaced.

    Args:
        images: held-out images (n, height, width, channels), preprocessed as in training; they only measure accuracy.
        labels: their class numbers (n,).
        calibration: training images (never held-out ones), on which the ranges of "int8" and "int16x8" are measured.
        schemes: besides float32; of `zoo.deploy.tflite.SCHEMES`.
        also: further schemes, by the name that their rows get, and what makes their file.
        progress: called with what is about to be done.

    Raises:
        ConversionError, GraphError, MeasureError: as `tflite.convert` and `measure.accuracy`.
        OSError: the folder cannot be written to.
    """
    tell = progress or (lambda text: None)
    files = {}
    for scheme in ("float32", *schemes):
        tell(f"convert to {scheme}")
        options = {"calibration": calibration} if scheme in tflite.CALIBRATED_SCHEMES else {}
        files[scheme] = tflite.convert(model, quantize=None if scheme == "float32" else scheme, **options)  # pyright: ignore
    for scheme, make in (also or {}).items():
        tell(f"convert to {scheme}")
        files[scheme] = make()
    return assemble(model, files, images, labels, folder, threads=threads, progress=progress)


def assemble(
    model: keras.Model,
    files: dict[str, bytes],
    images: np.ndarray,
    labels: np.ndarray,
    folder: str | os.PathLike,
    *,
    threads: int = 1,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Measures .tflite files, by scheme, that were made from `model`; writes them and their report (see `export`)."""
    tell = progress or (lambda text: None)
    tell(f"accuracy of the Keras model on {len(images)} images")
    accuracy = measure.accuracy(model, images, labels)
    rows = []
    for scheme, data in files.items():
        tell(f"accuracy, latency and arena of the {scheme} file")
        name = f"{model.name}_{scheme.replace(' ', '_').lower()}.tflite"
        rows.append(measure_file(data, scheme, name, images, labels, threads=threads))
    report = Report(model.name, model.count_params(), len(images), accuracy, tuple(rows))
    for row in rows:
        write_atomically(Path(folder, row.file), files[row.scheme])
    report.save(folder)
    return report


def measure_file(
    data: bytes, scheme: str, name: str, images: np.ndarray, labels: np.ndarray, *, threads: int = 1
) -> Row:
    """Returns the measured row of one file; where it takes turned images they are turned here."""
    turned = compact.is_turned(data)
    try:
        arena, note = measure.arena(data).total, ""
    except tflm.TflmError as error:
        arena, note = None, f"none: {str(error).splitlines()[0]}"
    try:
        planned = planner.plan(data).arena
    except planner.PlannerError:
        planned = None
    return Row(
        scheme,
        name,
        measure.size(data),
        measure.accuracy(data, turn.images(images) if turned else images, labels, threads=threads),
        measure.latency(data, threads=threads),
        measure.latency(data, threads=threads, kernels="builtin"),
        arena,
        planned,
        note,
        turned,
    )
