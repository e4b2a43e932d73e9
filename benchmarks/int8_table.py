"""Trains a small network of each family, converts it to int8 in both ways, and tabulates accuracy, size and latency.

    python -m benchmarks.int8_table --families=mcunet,darts    # some of them
    python -m benchmarks.int8_table --readme=README.md         # all, also in the document; 20 minutes on 2 cores

Each network is trained on the embedded images with the same epochs and options, converted to int8 after training
("PTQ"), and fine-tuned for int8 ("QAT", `zoo.deploy.quantize`). All three are evaluated on the same held-out images.
Writes table.md into the folder, and for each row a JSON file and the two .tflite files; a stopped run resumes after the
last epoch. Only latencies are measured again each time, one row after the other. Expected: int8 at most 0.01 below
float in either way, and the arena predicted within 5 %.
"""

import dataclasses
import gc
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import keras
import numpy as np

import zoo
from benchmarks.machine import describe_machine
from benchmarks.zoo_table import publish, replace_between
from recipes import _main
from recipes.images import augment
from recipes.images import sources as data
from recipes.training import child_training as trial
from zoo import genotype_json
from zoo.atomic import write_atomically
from zoo.deploy import measure, quantize, report, tflite
from zoo.genotype import Genotype
from zoo.markdown import make_table
from zoo.weights.published import transfer

WEIGHTS = "model.weights.h5"  # file in which recipes.training.child_training saves a finished training
RUNS = 250  # to measure the latency of a file
HEAD = (
    "network", "image", "parameters, k", "multiply-adds, M", "float", "int8, PTQ", "int8, QAT", "file, kB",
    "arena predicted, kB", "measured, kB", "latency, ms",
    "without XNNPACK",
)  # fmt: skip


class Small(NamedTuple):
    """A network of the zoo at a small scale: its name, its preset, and the side of its images in pixels."""

    name: str
    preset: dict[str, Any]
    side: int

    def genotype(self) -> Genotype:
        """Returns the genotype with the small preset only."""
        return dataclasses.replace(zoo.load(self.name), presets={"small": self.preset})


_CELLS = {"repeats": 1, "filters": 8, "stem": "cifar", "stem_filters": 16}
# Networks of cells halve an image twice, networks of mobile blocks five times.
NETWORKS = {
    "nasnet": Small("nasnet_a", _CELLS, 14),
    "pnasnet": Small("pnasnet_5", _CELLS, 14),
    "amoebanet": Small("amoebanet_a", _CELLS, 14),
    "darts": Small("darts", {"cells": 5, "filters": 8, "stem": "cifar"}, 14),
    "enas": Small("enas_micro", {"cells": 3, "filters": 8}, 14),
    "enas_macro": Small("enas_macro", {"filters": 8, "separable": True}, 14),
    "mnasnet": Small("mnasnet_a1", {"width_multiplier": 0.35}, 28),
    "mcunet": Small("mcunet_in0", {}, 28),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the table."""

    families: tuple[
        Literal["nasnet", "pnasnet", "amoebanet", "darts", "enas", "enas_macro", "mnasnet", "mcunet"], ...
    ] = ("nasnet", "pnasnet", "amoebanet", "darts", "enas", "enas_macro", "mnasnet", "mcunet")  # rows of the table
    seeds: int = 1  # trainings of each network, with seeds from 0; accuracies are means
    epochs: int = 4  # of the float training
    aware_epochs: int = 1  # of quantization-aware training
    training_images: int | None = None  # none takes all 9,000
    images: int | None = None  # held-out images to evaluate all files on; none takes all 2,000
    calibration: int = 256  # training images to measure int8 ranges on
    readme: Path | None = None  # document in which the table replaces the text between its two marker comments
    folder: Path = Path("runs/deploy-table")  # table.md, the rows to resume from, the .tflite files

    def __post_init__(self):
        for name in ("seeds", "epochs", "aware_epochs", "training_images", "images", "calibration"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected a whole number from 1")
        if not self.families or len(set(self.families)) < len(self.families):
            raise ValueError(f"families={','.join(self.families)}; name one or more, each once")


PRESETS = {
    "laptop": Config(),
    "smoke": Config(
        families=("mcunet",), epochs=1, training_images=64, images=20, calibration=8, folder=Path("runs/deploy-smoke")
    ),
}


def write_table(config: Config) -> str:
    """Measures the rows that are not in the folder yet; prints, writes and returns the table as Markdown.

    Raises:
        ValueError: the document lacks the markers `<!-- deploy-table:begin -->` and `end`.
    """
    if config.readme is not None:
        replace_between(config.readme.read_text(encoding="utf-8"), "deploy-table", "")  # raises before the work
    wanted = [(family, seed) for family in config.families for seed in range(config.seeds)]
    found: dict[str, list[dict[str, Any]]] = {}
    for number, (family, seed) in enumerate(wanted):
        store, digest = config.folder / f"{family}-seed{seed}.json", _digest(NETWORKS[family], config)
        row: dict[str, Any] = json.loads(store.read_text(encoding="utf-8")) if store.exists() else {}
        if row.get("digest") != digest:

            def tell(text: str, number: int = number, family: str = family, seed: int = seed) -> None:
                print(f"{number + 1} of {len(wanted)}: {family}, seed {seed}: {text}", file=sys.stderr, flush=True)

            row = {"digest": digest, **measure_row(NETWORKS[family], seed, config, store.with_suffix(""), digest, tell)}
            write_atomically(store, json.dumps(row, indent=1) + "\n")
        found.setdefault(family, []).append(row)
    lines = [
        _format_row(NETWORKS[family], rows, measure_latencies(config.folder / rows[0]["ptq"]["file"]))
        for family, rows in found.items()
    ]
    text = f"{make_table(HEAD, lines, numbers_from=2)}\n\n{_describe_method(config, found)}\n"
    publish("deploy-table", text, config.folder, config.readme)
    return text


def measure_row(
    small: Small, seed: int, config: Config, path: Path, digest: str, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Trains one network and returns the measurements.

    Its files are `path` with suffixes. Until they exist, a folder next to them, with `digest` in its name, holds the
    training to resume from.
    """
    folder = path.with_name(f"{path.name}-{digest[:8]}")
    source = data.load(size=small.side)
    train, test = source.train.first(config.training_images), source.test.first(config.images)
    model = _train(small, source, train, seed, config, folder, tell)
    pixels, labels = (np.asarray(part) for part in train.head(len(train)))
    seen, held_out = _preprocess(pixels), _preprocess(test.head(len(test))[0])
    truth = np.asarray(test.head(len(test))[1])
    calibration = _preprocess(train.head(config.calibration)[0])
    tell("int8 after training")
    after = tflite.convert(model, quantize="int8", calibration=calibration)
    tell("int8 by training")
    aware = quantize.prepare(model, calibration)
    quantize.fine_tune(aware, seen, labels, epochs=config.aware_epochs, seed=seed)
    trained = quantize.convert(aware)
    tell("measuring")
    rows = {
        scheme: report.measure_file(file, "int8", path.with_suffix(f".{scheme}.tflite").name, held_out, truth)
        for scheme, file in (("ptq", after), ("qat", trained))
    }
    result = {
        "params": model.count_params(),
        "macs": zoo.cost.of(model).macs,
        "n": len(test),
        "training": len(train),
        "float": measure.accuracy(model, held_out, truth),
        **{scheme: dataclasses.asdict(row) for scheme, row in rows.items()},
    }
    for scheme, file in (("ptq", after), ("qat", trained)):
        write_atomically(path.with_name(rows[scheme].file), file)
    (folder / WEIGHTS).unlink()
    folder.rmdir()
    del model, aware
    keras.backend.clear_session()
    gc.collect()
    return result


def _train(
    small: Small,
    source: data.Data,
    train: Any,
    seed: int,
    config: Config,
    folder: Path,
    tell: Callable[[str], None],
) -> keras.Model:
    """Returns the trained network, with probabilities as its output like that of `zoo.build`."""
    size: dict[str, Any] = {"classes": source.classes, "input_shape": source.input_shape}
    made: list[keras.Model] = []

    def make() -> keras.Model:
        made.append(zoo.build(small.genotype(), classifier_activation=None, **size))
        return made[-1]

    if (folder / WEIGHTS).exists():
        make().load_weights(folder / WEIGHTS)
    else:
        tell(f"training for {_epochs(config.epochs)} on {len(train):,} images")
        settings = trial.make_child_settings(len(train), config.epochs, 64, 0.05, 1e-4)
        trial.train(make, train, source.validation, settings, seed=seed, folder=folder)
    model = zoo.build(small.genotype(), **size)
    transfer(made[-1], model)
    return model


def _preprocess(images: Any) -> np.ndarray:
    return np.asarray(augment.UNIT(images), np.float32)


def measure_latencies(file: Path) -> tuple[float, float]:
    """Returns LiteRT's median latencies in ms over `RUNS` runs on one thread, with XNNPACK and without."""
    return measure.latency(file, runs=RUNS).median_ms, measure.latency(file, runs=RUNS, kernels="builtin").median_ms


def _format_row(small: Small, rows: list[dict[str, Any]], milliseconds: tuple[float, float]) -> tuple[str, ...]:
    first = rows[0]
    file = first["ptq"]
    accuracies = [_format_mean([row["float"] for row in rows])]
    accuracies += [_format_mean([row[scheme]["accuracy"] for row in rows]) for scheme in ("ptq", "qat")]
    scale = ", ".join(f"{name} {value}" for name, value in small.preset.items() if name not in ("stem", "stem_filters"))
    return (
        f"{small.name} ({scale})" if scale else small.name,
        f"{small.side} x {small.side}",
        f"{first['params'] / 1e3:,.0f}",
        f"{first['macs'] / 1e6:.1f}",
        *accuracies,
        f"{file['size'] / 1000:,.0f}",
        _format_kilobytes(file["planned"]),
        _format_kilobytes(file["arena"]),
        *(f"{each:.2f}" for each in milliseconds),
    )


def _format_mean(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def _format_kilobytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1000:,.1f}"


def _describe_method(config: Config, found: dict[str, list[dict[str, Any]]]) -> str:
    first = next(iter(found.values()))[0]
    seeds = "seed 0" if config.seeds == 1 else f"means ± standard deviations over the seeds 0 to {config.seeds - 1}"
    return (
        f"`python -m benchmarks.int8_table`, {describe_machine()}: accuracy on the same "
        f"n = {first['n']:,} held-out images of the embedded Fashion-MNIST, {seeds}. Each network is trained on the "
        f"same {first['training']:,} images for {_epochs(config.epochs)}, for QAT {_epochs(config.aware_epochs)} more. "
        "Size, memory and latency are those of the PTQ file: memory predicted from the file by zoo.deploy.planner, and "
        "measured by TensorFlow Lite for Microcontrollers on a 64-bit machine; latency LiteRT's median of "
        f"{RUNS} runs on one thread, with XNNPACK, its default, and without. kB: 1,000 bytes."
    )


def _epochs(count: int) -> str:
    return "one epoch" if count == 1 else f"{count} epochs"


def _digest(small: Small, config: Config) -> str:
    """Returns a hash of the network and the options, to recognize rows that an earlier run measured in the same way."""
    free = ("families", "seeds", "readme", "folder")
    options = {name: value for name, value in dataclasses.asdict(config).items() if name not in free}
    facts = [genotype_json.body_as_dict(small.genotype().body), small.preset, small.side, options]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
    _main.run(write_table, PRESETS)
