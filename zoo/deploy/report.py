"""One page about the files made from one model: size, latency, memory, and accuracy on the same images."""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np

from zoo.atomic import write_atomically
from zoo.deploy import compact, measure, planner, tflite, tflm, turn
from zoo.deploy import metadata as tflite_metadata
from zoo.markdown import join_blocks, make_table


@dataclasses.dataclass(frozen=True)
class Row:
    """One file. `arena` is in bytes, as TFLM recorded it, or None if TFLM cannot run the file (`note` says why).

    `planned` is the planner's estimate of the arena, or None if there is none (`note` says why).
    """

    scheme: str  # "float32", "int8", ...; "int8 QAT" after quantization-aware training
    file: str
    size: int  # bytes of the model without metadata, as in C source
    accuracy: float | None  # None if it is unknown; see `Report.unjudged`
    latency: measure.Latency  # with LiteRT's default kernels, XNNPACK's
    builtin_latency: measure.Latency  # with LiteRT's own kernels
    arena: int | None
    planned: int | None
    note: str = ""
    turned: bool = False  # whether the file takes its images turned by 180 degrees (`zoo.deploy.compact`)
    contents: str = ""  # what its metadata say (`zoo.deploy.metadata`)


@dataclasses.dataclass(frozen=True)
class Report:
    """The files made from one model.

    `accuracy` is the float model's, on the same `n` images as the rows'; None if there is only a quantized file, or if
    accuracy is unknown: `unjudged` then says why.
    """

    model: str
    params: int | None  # None for a file without its Keras model
    n: int
    accuracy: float | None
    rows: tuple[Row, ...]
    unjudged: str = ""

    def row(self, scheme: str) -> Row:
        """Returns the row of a scheme, or raises KeyError."""
        if scheme not in self.schemes:
            raise KeyError(f"no file with scheme {scheme!r} in the report of {self.model!r}; it has {self.schemes}")
        return self.rows[self.schemes.index(scheme)]

    @property
    def schemes(self) -> tuple[str, ...]:
        """The schemes of the rows, in order."""
        return tuple(row.scheme for row in self.rows)

    def drop(self, scheme: str) -> float:
        """Returns by how much the float model is more accurate than the file, or raises ValueError if unknown."""
        found = self.row(scheme).accuracy
        if self.accuracy is None or found is None:
            reason = self.unjudged or "give its float file or Keras model too"
            raise ValueError(f"nothing to compare {self.model} with: {reason}")
        return self.accuracy - found

    def to_json(self) -> str:
        """Returns the report as JSON, with the fields' names as keys."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def to_markdown(self) -> str:
        """Returns the report as one page of Markdown."""
        head = ("file", "scheme", "accuracy", "against float", "size kB", "latency ms (median, p90)", "without XNNPACK",
                "arena kB: estimated, measured")  # fmt: skip
        threads = sorted({row.latency.threads for row in self.rows})
        turned = [
            f"{row.file} takes its image turned by 180 degrees, as its metadata {turn.METADATA} say: use "
            "zoo.deploy.turn.images(images) in Python, and on a board the pixels from the last to the first."
            for row in self.rows
            if row.turned
        ]
        return join_blocks(
            f"# {self.model}",
            ("" if self.params is None else f"{self.params:,} parameters. ") + self._describe_accuracy(),
            make_table(head, [self._cells(row) for row in self.rows], numbers_from=2),
            *(f"{row.file}: {row.note}." for row in self.rows if row.note),
            f"Latency: LiteRT on this machine, {', '.join(map(str, threads))} thread(s), one image at a time, "
            "with XNNPACK, its default, and without. "
            "Arena: estimated from the file, and measured by TensorFlow Lite for Microcontrollers (TFLM), for a 64-bit "
            "machine. 1 kB is 1,000 bytes.",
            self._explain_slowness(),
            *turned,
            *self._describe_contents(),
        )

    def _explain_slowness(self) -> str:
        """Returns why quantized files are slower than the float file, if any are."""
        float_ms = next((row.latency.median_ms for row in self.rows if row.scheme == "float32"), math.inf)
        slower = [row.scheme for row in self.rows if row.latency.median_ms > float_ms]
        if not slower:
            return ""
        return (
            f"{', '.join(slower)} took longer than float32 on this machine. This says nothing about a phone or a "
            "board: quantized kernels are optimised for Arm first. On x86, for example, XNNPACK has no fast int8 "
            "depthwise convolution of 7 x 7, and small networks spend their time on overhead. If the column without "
            "XNNPACK is lower, switch XNNPACK off."
        )

    def _describe_contents(self) -> list[str]:
        """Returns a line for each different content of the files' metadata."""
        places = {row.contents: ", ".join(other.file for other in self.rows if other.contents == row.contents)
                  for row in self.rows if row.contents}  # fmt: skip
        lines = [f"TFLite Metadata in {files}: {contents}." for contents, files in places.items()]
        return [*lines, "Size: the model without metadata, as in C source."] if lines else []

    def _describe_accuracy(self) -> str:
        if self.unjudged:
            return f"Accuracy unknown: {self.unjudged}."
        float_model = "." if self.accuracy is None else f"; the float model has {self.accuracy:.4f}."
        return f"Accuracy on the same n = {self.n} held-out images for all{float_model}"

    def _cells(self, row: Row) -> tuple[str | None, ...]:
        known = self.accuracy is not None and row.accuracy is not None
        return (
            row.file,
            row.scheme,
            None if row.accuracy is None else f"{row.accuracy:.4f}",
            f"{row.accuracy - self.accuracy:+.4f}" if known else None,  # pyright: ignore
            f"{row.size / 1000:,.1f}",
            f"{row.latency.median_ms:.3f}, {row.latency.p90_ms:.3f}",
            f"{row.builtin_latency.median_ms:.3f}, {row.builtin_latency.p90_ms:.3f}",
            ", ".join("-" if size is None else f"{size / 1000:,.1f}" for size in (row.planned, row.arena)),
        )

    def save(self, folder: str | os.PathLike) -> None:
        """Writes `deploy.json` and `deploy.md` into the folder, each atomically."""
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
    metadata: tflite_metadata.Metadata | None = None,
    output: str | int | None = None,
    threshold: float | None = None,
    threads: int = 1,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Converts the model to float32 and each scheme, measures all of them, writes files and report into `folder`.

    Nothing is written before every conversion has succeeded. The files are `MODEL_float32.tflite`, `MODEL_int8.tflite`,
    ..., `deploy.json` and `deploy.md`; those of an earlier run are replaced.

    Args:
        images: held-out images (n, height, width, channels), preprocessed as in training; they only measure accuracy.
        labels: the images' labels, as `measure.accuracy` takes them.
        calibration: training images (never held-out ones) for measuring the ranges of the quantized schemes.
        schemes: from `zoo.deploy.tflite.SCHEMES`, in addition to float32.
        also: for each further scheme, by the name of its row, a function that makes the file.
        metadata: for the files; a note is added to those that take turned images.
        output, threshold: how outputs are judged, as `measure.accuracy` takes them.
        progress: called with a description of each step before it begins.

    Raises:
        ConversionError, GraphError: as `tflite.convert`.
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
    return assemble(
        model, files, images, labels, folder, metadata=metadata, output=output, threshold=threshold, threads=threads,
        progress=progress,
    )  # fmt: skip


def assemble(
    model: keras.Model,
    files: dict[str, bytes],
    images: np.ndarray,
    labels: np.ndarray,
    folder: str | os.PathLike,
    *,
    metadata: tflite_metadata.Metadata | None = None,
    output: str | int | None = None,
    threshold: float | None = None,
    threads: int = 1,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Measures .tflite files made from `model`, given by scheme; writes them and their report as `export` does."""
    tell = progress or (lambda text: None)
    tell(f"accuracy of the Keras model on {len(images)} images")
    accuracy, unjudged = None, ""
    if threshold is None:
        with contextlib.suppress(measure.MeasureError):  # from the model's loss, which its files do not have
            threshold = measure.find_threshold(model, output)
    try:
        accuracy = measure.accuracy(model, images, labels, output=output, threshold=threshold)
    except measure.MeasureError as error:
        unjudged = str(error)
    if metadata is not None:
        files = {scheme: _attach(data, metadata) for scheme, data in files.items()}
    rows = []
    for scheme, data in files.items():
        tell(f"accuracy, latency and arena of the {scheme} file")
        name = f"{model.name}_{scheme.replace(' ', '_').lower()}.tflite"
        judged = (None, None) if unjudged else (images, labels)
        rows.append(measure_file(data, scheme, name, *judged, output=output, threshold=threshold, threads=threads))
    report = Report(model.name, model.count_params(), len(images), accuracy, tuple(rows), unjudged)
    for row in rows:
        write_atomically(Path(folder, row.file), files[row.scheme])
    report.save(folder)
    return report


def _attach(data: bytes, metadata: tflite_metadata.Metadata) -> bytes:
    note = " Takes its image turned by 180 degrees." if compact.is_turned(data) else ""
    return tflite_metadata.attach(data, dataclasses.replace(metadata, description=metadata.description + note))


def measure_file(
    data: bytes,
    scheme: str,
    name: str,
    images: np.ndarray | None,
    labels: np.ndarray | None,
    *,
    output: str | int | None = None,
    threshold: float | None = None,
    threads: int = 1,
) -> Row:
    """Measures one file and returns its row, without accuracy if `images` or `labels` is None.

    The images are given upright; for a file that takes turned images they are turned here.

    Raises:
        MeasureError: as `measure.accuracy`; LiteRT cannot run the file.
    """
    turned, accuracy, notes = compact.is_turned(data), None, []
    if images is not None and labels is not None:
        shown = turn.images(images) if turned else images
        accuracy = measure.accuracy(data, shown, labels, output=output, threshold=threshold, threads=threads)
    arena = planned = None
    try:
        plan = planner.plan(data)
        planned = plan.arena
        notes += plan.refusals
    except planner.PlannerError as error:
        notes.append(f"not estimated: {error}".removesuffix("."))
    try:
        arena = measure.arena(data).total
    except tflm.TflmError as error:
        if not notes or planned is None:
            notes.append(str(error).splitlines()[0].removesuffix("."))
    return Row(
        scheme,
        name,
        measure.size(data),
        accuracy,
        measure.latency(data, threads=threads),
        measure.latency(data, threads=threads, kernels="builtin"),
        arena,
        planned,
        "; ".join(notes),
        turned,
        _list_contents(data),
    )


def _list_contents(data: bytes) -> str:
    found = tflite_metadata.read(data)
    if found is None:
        return ""
    parts = [f"the names of {len(found.class_names)} classes"] if found.class_names else []
    for name, values in (("mean", found.mean), ("std", found.std)):
        parts += [f"{name} {' '.join(f'{value:.6g}' for value in values)}"] if values else []
    return ", ".join([*parts, *found.files]) or "no known field"
