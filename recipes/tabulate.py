r"""Trains every architecture of a small space, and writes a table by which searches of this space are judged.

    python -m recipes.tabulate                            # DARTS' cells of two nodes and three operations
    python -m recipes.tabulate --preset=enas              # ENAS' cells of two nodes and two operations
    python -m recipes.tabulate --preset=tinynas           # sub-networks of four stages of MobileNetV2's
    python -m recipes.tabulate --data=path/to/images --workers=16 --folder=runs/mine      # on images of your own
    python -m recipes.tabulate --repeats=5 --known=darts  # two more trainings of each network of an existing table
    python -m recipes.tabulate --nodes=4 --ops=max_pool_3x3,skip_connect,sep_conv_3x3,dil_conv_3x3 --sample=300
                                                          # a part of a space that is too large to train

Each architecture is trained `repeats` times from scratch, with the same seeds for all; equal ones are trained once.
runs/tabulate/table.csv has one row for each: validation and test accuracies of each training, parameters,
multiply-accumulates, the memory that the int8 file is predicted to need under TFLM, and the latency measured with
LiteRT on this machine. Memory and latency are left out if the package ai-edge-litert is not installed.
`recipes.tables.load` reads the table, and every oracle can search it. runs/tabulate/page/page.md shows the space: how
much its networks differ, how well one training predicts another, and which choices help. Killed and started again with
the same command, it resumes, also on another machine to which the folder was copied.

The shipped tables are those of the presets laptop (darts), enas and tinynas.
"""

import contextlib
import dataclasses
import datetime
import importlib.util
import itertools
import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from recipes import _main
from recipes.darts.space import OPS as DARTS_OPS
from recipes.darts.space import DartsSpace
from recipes.enas.space import MicroSpace
from recipes.engine.config import ChildConfig, check_ops
from recipes.engine.spaces import NASNET_OPS, Space, nasnet
from recipes.tinynas.space import SMALL_STRIDES, TinySpace
from recipes.training import check_at_least, check_options
from recipes.training.progress import Observe, Status, show_progress
from zoo.formats.enas import MICRO_OPS

# TensorFlow, and modules that import it, are imported where they are used, so that --help and errors are fast.
if TYPE_CHECKING:
    from recipes.tables import TableRow
    from recipes.tables.repeated import RepeatedScorer

_MOST_LISTED = 200_000  # points of a space for which all encodings of a network are listed
_OPS = {"darts": DARTS_OPS[1:], "enas": MICRO_OPS, "nasnet": NASNET_OPS}


@dataclasses.dataclass(frozen=True)
class Config(ChildConfig):
    """Options of a table; options of spaces other than `space` have no effect."""

    trials: int = dataclasses.field(init=False, default=1)
    space: Literal["darts", "enas", "nasnet", "tinynas"] = "darts"  # search space whose architectures are trained
    repeats: int = 2  # trainings of each architecture
    known: str | None = None  # file or name of a table of fewer repeats, whose trainings and latencies are reused
    sample: int | None = None  # architectures to draw at random; none takes all
    latency: bool = True  # measure latencies with LiteRT on this machine, after all trainings
    nodes: int = 2  # nodes per cell
    ops: tuple[str, ...] = ("max_pool_3x3", "skip_connect", "sep_conv_3x3")  # choices for an edge of a cell
    fixed_reduction: bool = True  # vary only the normal cell (darts, enas); the reduction cell has pools, identities
    cells: int = 3  # cells per network; with enas and nasnet, cells between reductions
    filters: int = 8  # filters of the nodes before the first reduction
    width: float = 0.25  # multiple of ProxylessNAS' filters (tinynas)
    stages: int = 4  # how many of MobileNetV2's six stages to keep, from the first (tinynas)
    kernels: tuple[int, ...] = (3, 5)  # choices for a block's kernel size (tinynas)
    expansions: tuple[int, ...] = (2, 6)  # choices for a block's expansion factor (tinynas)
    depths: tuple[int, ...] = (1,)  # choices for a stage's number of blocks (tinynas)
    shares: tuple[float, ...] = (1.0,)  # choices for the share of its filters that a stage keeps (tinynas)
    training_images: int | None = 4000  # images per training, classes in proportion; none takes all
    validation_images: int | None = 5000  # images for the accuracy that searches of the table see; none takes all
    validation_fraction: float = 0.5  # of the training images, if the source has no validation images
    epochs: int = 5  # epochs per training
    keep: int = 0  # how many of the best trials' checkpoints to keep
    folder: Path = Path("runs/tabulate")  # table, page, and the state to resume from

    free: ClassVar[tuple[str, ...]] = ("sample", "latency", "known")  # a sample may grow; latencies come last

    def __post_init__(self):
        object.__setattr__(self, "trials", 1)
        super().__post_init__()
        check_at_least(self, {"repeats": 1, "sample": 1, "nodes": 1, "cells": 1, "filters": 2})
        if self.space in _OPS:
            check_ops(self.ops, _OPS[self.space])
        check_options(self, "validation_fraction", "a share between 0 and 1", lambda value: 0 < value < 1)
        object.__setattr__(self, "trials", self.sample or self.make_space().size)

    def make_space(self) -> Space:
        """Returns the space of all architectures."""
        if self.space == "tinynas":
            choices = (self.kernels, self.expansions, self.depths, self.shares)
            return TinySpace(self.width, SMALL_STRIDES, *choices, stages=self.stages)
        ops = tuple(op for op in _OPS[self.space] if op in self.ops)
        if self.space == "nasnet":
            return dataclasses.replace(nasnet(self.nodes), ops=ops)
        return {"darts": DartsSpace, "enas": MicroSpace}[self.space](self.nodes, ops, self.fixed_reduction)


PRESETS = {
    "laptop": Config(repeats=3),
    "tinynas": Config(
        space="tinynas", repeats=3, image_size=20, epochs=4, learning_rate=0.2, folder=Path("runs/tabulate-tinynas"),
    ),
    "enas": Config(space="enas", ops=("max_pool_3x3", "sep_conv_3x3"), folder=Path("runs/tabulate-enas")),
    "smoke": Config(
        nodes=1, ops=("max_pool_3x3", "skip_connect"), filters=2, image_size=8, training_images=60,
        validation_images=50, epochs=1, folder=Path("runs/tabulate-smoke"),
    ),
}  # fmt: skip


def tabulate(config: Config, observe: Observe | None = None) -> Path:
    """Trains the architectures of a space, writes table and page, and returns the table's path.

    `observe` is called with the state of the trainings; by default there is a progress bar.
    """
    from recipes import _search, tables
    from recipes.engine.dry_run import dry_run
    from recipes.oracles import RandomSearch
    from recipes.tables import page

    scorer = make_scorer(config)
    if config.dry_run:
        dry_run(scorer, [{each.name: each.choices[-1] for each in scorer.space.decisions}])
        return config.folder
    _search.run_trials(RandomSearch(**scorer.oracle_arguments()), scorer, "tabulate", observe)
    path = config.folder / "table.csv"
    about, networks = _gather(config, scorer, observe)
    tables.write_networks(path, about, networks)
    shown = page.write_page(about, networks, config.folder / "page")
    if observe is None:
        print(f"table of {len(networks):,} networks: {path}\npage: {shown}")
    return path


def make_scorer(config: Config) -> "RepeatedScorer":
    """Returns the scorer that trains the networks of the table."""
    from recipes.engine.children import OBJECTIVE
    from recipes.tables.repeated import RepeatedScorer, load_all_images

    about, networks = _read_known(config)
    done = {
        row.key: [
            {OBJECTIVE: validation / 100, "test_accuracy": test / 100, "seconds": about["training_seconds"]}
            for validation, test in zip(row.validation, row.test, strict=True)
        ]
        for row in networks
    }
    images = load_all_images(config, config.validation_fraction)
    family, preset = _describe_networks(config, images.input_shape, images.classes)
    return RepeatedScorer(
        config, config.make_space(), family, {"search": preset}, images, repeats=config.repeats,
        validation_fraction=config.validation_fraction, known=done,
    )  # fmt: skip


def _read_known(config: Config) -> tuple[dict[str, Any], list["TableRow"]]:
    """Returns the contents of the table `known`, empty if there is none.

    Raises:
        ValueError: the table was made with other options, or has no fewer trainings.
    """
    from recipes import tables

    if config.known is None:
        return {"machines": [], "latencies": None}, []
    about, networks = tables.read_networks(config.known)
    settings = json.loads(json.dumps(config.settings())) | {"sample": None}
    different = [name for name, value in (about["config"] | {"sample": None}).items() if value != settings.get(name)]
    if set(different) != {"repeats"} or len(about["seeds"]) > config.repeats:
        raise ValueError(
            f"known is {config.known!r}, a table of {about['command']}; expected one of fewer repeats than "
            f"{config.repeats} that differs in nothing else, and not in {', '.join(different) or 'nothing'}"
        )
    return about, networks


def _describe_networks(config: Config, input_shape: tuple[int, ...], classes: int) -> tuple[str, dict[str, Any]]:
    """Returns the family of the networks, and the preset with which they are trained."""
    if config.space == "tinynas":
        return "mcunet", {"input_shape": list(input_shape), "classes": classes}
    scale: dict[str, Any] = {"filters": config.filters}
    if config.space == "nasnet":
        return "nasnet", scale | {"repeats": config.cells, "stem": "cifar", "stem_filters": 3 * config.filters}
    return config.space, scale | {"cells": config.cells} | ({"stem": "cifar"} if config.space == "darts" else {})


def _gather(
    config: Config, scorer: "RepeatedScorer", observe: Observe | None
) -> tuple[dict[str, Any], list["TableRow"]]:
    """Returns the table's first line, and a row for each trained network."""
    from recipes.cards.read import read_search
    from recipes.engine.latency import name_machine
    from recipes.tables import METRICS, TableRow

    space, search = scorer.space, read_search(config.folder)
    decisions, written = space.decisions, _list_genomes(space)
    known, known_networks = _read_known(config)
    trials = [trial for trial in search.trials if trial.score is not None]
    values = [trial.values(decisions) for trial in trials]
    costs = _measure_costs(config, scorer, values, known_networks, observe)
    networks = []
    for trial, each in zip(trials, values, strict=True):
        key = space.key(each)
        validation, test = (
            tuple(100 * trial.metrics[f"{part}_accuracy_{number}"] for number in range(config.repeats))
            for part in ("val", "test")
        )
        metrics = {name: {**trial.metrics, **costs.get(key, {})}.get(name) for name in METRICS}
        networks.append(TableRow(key, tuple(written.get(key, [trial.genome])), validation, test, metrics))
    seconds = [trial.metrics[f"seconds_{number}"] for trial in trials for number in range(config.repeats)]
    levels: dict[str, list[str]] = {}  # node by node across all cells, or stage by stage
    for decision in decisions:
        levels.setdefault(decision.name.split("/")[0 if config.space == "tinynas" else 1], []).append(decision.name)
    settings, usual = (each.settings() | {"sample": each.sample} for each in (config, Config()))
    changed = [f"--{name}={_main.show_value(value)}" for name, value in settings.items() if value != usual[name]]
    about = {
        "name": f"{config.space}, {len(networks)} networks",
        "command": shlex.join(["python", "-m", "recipes.tabulate", *changed]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seeds": [config.seed + repeat for repeat in range(config.repeats)],
        "config": settings,
        "machines": known["machines"] + search.about["machines"],
        "images": [len(scorer.images.validation), len(scorer.images.test)],  # behind the accuracies
        "training_seconds": round(sum(seconds) / len(seconds), 3),  # mean of one training
        "latencies": known["latencies"] or (name_machine() if config.latency and costs else None),
        "decisions": [dataclasses.astuple(decision) for decision in decisions],
        "levels": list(levels.values()),
    }
    return about, sorted(networks)


def _list_genomes(space: Space) -> dict[str, list[tuple[int, ...]]]:
    """Returns key -> all encodings of the architecture; empty if the space is too large to list."""
    found: dict[str, list[tuple[int, ...]]] = {}
    counts = [len(decision.choices) for decision in space.decisions]
    if math.prod(counts) <= _MOST_LISTED:
        for genome in itertools.product(*map(range, counts)):
            chosen = zip(space.decisions, genome, strict=True)
            found.setdefault(space.key({each.name: each.choices[n] for each, n in chosen}), []).append(genome)
    return found


def _measure_costs(
    config: Config,
    scorer: "RepeatedScorer",
    values: Sequence[Mapping[str, Any]],
    known: Sequence["TableRow"],
    observe: Observe | None,
) -> dict[str, dict[str, float]]:
    """Returns key -> memory and latency, one network after the other; empty if LiteRT is not installed.

    Numbers of `known` networks are reused, and those of an earlier process, in plans.jsonl and latency.jsonl.
    """
    from recipes.engine.journal import Journal
    from recipes.engine.tuner import forget_models

    if importlib.util.find_spec("ai_edge_litert") is None:
        print("no memory and no latency: the package ai-edge-litert is not installed", file=sys.stderr)
        return {}
    watching = show_progress("deployment", unit="network") if observe is None else contextlib.nullcontext(observe)
    with watching as watch, contextlib.closing(Journal(config.folder / "plans.jsonl", {})) as journal:
        found = {record.pop("network"): record for record in journal.records}
        for row in known:
            metrics = {name: value for name, value in row.metrics.items() if value is not None}
            found.setdefault(row.key, {}).update(metrics)
        for number, each in enumerate(values):
            watch(Status(number, len(values), None, None))
            key = scorer.space.key(each)
            metrics = found.setdefault(key, {})
            if "sram" not in metrics:
                metrics |= scorer.predict_memory(each)
                journal.append({"network": key, **metrics})
            if config.latency and "latency_ms" not in metrics:
                metrics["latency_ms"] = float(f"{scorer.latency(each):.4g}")
                forget_models()
    scorer.close()
    return found


if __name__ == "__main__":
    _main.run(tabulate, PRESETS)
