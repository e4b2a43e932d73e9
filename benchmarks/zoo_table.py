"""Tabulates every network of the zoo: parameters, multiply-adds, published numbers, build time, LiteRT file.

    python -m benchmarks.zoo_table --names="mcunet*"     # some of them
    python -m benchmarks.zoo_table --readme=README.md    # all, also in the document; half an hour on 2 cores

Writes table.md into the folder, and table.json, from which a stopped run resumes. Parameters and multiply-adds
(convolutions and dense layers, one image) are counted on the built network. Next to them are the published numbers, if
a paper or its code has them, with top-1 as a percentage (for CIFAR-10, 100 minus the published test error). Build time
in processor seconds and the size of the float32 LiteRT file are measured with fresh weights.
"""

import contextlib
import dataclasses
import gc
import hashlib
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import keras

import zoo
from benchmarks.machine import describe_machine
from recipes import _main
from recipes.training.progress import duration
from zoo import genotype_json
from zoo.atomic import write_atomically
from zoo.genotype import Genotype
from zoo.markdown import make_table

HEAD = (
    "network", "preset", "parameters, M", "published", "multiply-adds, M", "published", "top-1 published, %",
    "build, s", "LiteRT, MB",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the table."""

    names: str = "*"  # which networks: a pattern with *, ? and [..] as for zoo.list_models()
    sizes: bool = True  # convert each network; otherwise the last column is empty
    largest: float = 100.0  # million parameters; for larger networks, leave out build time and file
    readme: Path | None = None  # document in which the table replaces the text between its two marker comments
    folder: Path = Path("runs/table")  # table.md, and table.json to resume from

    def __post_init__(self):
        if self.largest <= 0:
            raise ValueError(f"largest is {self.largest}; expected millions of parameters, above 0")


PRESETS = {
    "laptop": Config(),
    "smoke": Config(names="mcunet_vww0", folder=Path("runs/table-smoke")),
}


def write_table(config: Config) -> str:
    """Measures what is not in the folder yet; prints, writes and returns the table as Markdown.

    Raises:
        ValueError: no network matches the names, or the document lacks the markers.
    """
    wanted = [(name, preset) for name in zoo.list_models(config.names) for preset in zoo.load(name).presets]
    if not wanted:
        raise ValueError(f"names={config.names!r} matches no network; zoo.list_models() shows all")
    if config.readme is not None:
        replace_between(config.readme.read_text(encoding="utf-8"), "table", "")  # raises before the work
    store = config.folder / "table.json"
    known: dict[str, Any] = json.loads(store.read_text(encoding="utf-8")) if store.exists() else {}
    _warm_up()
    rows, start, measured = [], time.perf_counter(), 0
    with _make_measure(config) as measure_named:
        for number, (name, preset) in enumerate(wanted):
            genotype = zoo.load(name)
            key, digest = f"{name} {preset}", _digest(genotype, preset, config)
            if not _is_valid(known.get(key), digest, config):
                left = (time.perf_counter() - start) / measured * (len(wanted) - number) if measured else None
                rest = "" if left is None else f", about {duration(left)} left"
                print(f"network {number + 1} of {len(wanted)}: {key}{rest}", file=sys.stderr, flush=True)
                known[key] = {"digest": digest, **measure_named(name, preset)}
                write_atomically(store, json.dumps(known, indent=1) + "\n")
                measured += 1
            rows.append(_format_row(genotype, preset, known[key]))
    text = f"{make_table(HEAD, rows, numbers_from=2)}\n\n{_describe_method()}\n"
    publish("table", text, config.folder, config.readme)
    return text


def publish(name: str, text: str, folder: Path, readme: Path | None) -> None:
    """Prints a table, writes it to folder/table.md and, in the document `readme`, between the markers of `name`."""
    write_atomically(folder / "table.md", text)
    if readme is not None:
        write_atomically(readme, replace_between(readme.read_text(encoding="utf-8"), name, text))
    print(text)


def replace_between(document: str, name: str, text: str) -> str:
    """Returns the document with `text` in place of the text between the two marker comments of `name`.

    Raises:
        ValueError: the document does not have each marker once, in this order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, opened, rest = document.partition(begin)
    _, closed, after = rest.partition(end)
    if not (opened and closed) or begin in rest or end in after or end in before:
        raise ValueError(f"the document needs the lines {begin} and {end} once each, in this order")
    return f"{before}{begin}\n{text}{end}{after}"


@contextlib.contextmanager
def _make_measure(config: Config) -> Iterator[Callable[[str, str], dict[str, Any]]]:
    """Yields a function that measures a network by its name and preset.

    Conversions leak gigabytes, so they run in a process that is replaced after two of them.
    """
    if not config.sizes:
        yield lambda name, preset: measure(zoo.load(name), preset, config)
        return
    spawn = multiprocessing.get_context("spawn")
    with futures.ProcessPoolExecutor(1, spawn, _warm_up, max_tasks_per_child=2) as process:
        yield lambda name, preset: process.submit(_measure_named, name, preset, config).result()


def _warm_up() -> None:
    zoo.build("mcunet_vww0")  # the first build of a process imports what all builds need


def _measure_named(name: str, preset: str, config: Config) -> dict[str, Any]:
    return measure(zoo.load(name), preset, config)


def measure(genotype: Genotype, preset: str, config: Config) -> dict[str, Any]:
    """Returns params, macs and, if the network is not too large, build seconds and bytes of its LiteRT file."""
    with keras.StatelessScope():  # no weights yet: those of some networks do not fit in memory
        cost = zoo.cost.of(zoo.build(genotype, preset))
    found: dict[str, Any] = {"params": cost.trainable_params, "macs": cost.macs, "seconds": None, "bytes": None}
    if cost.trainable_params <= config.largest * 1e6:
        start = time.process_time()  # not wall time, which depends on other programs
        model = zoo.build(genotype, preset)
        found["seconds"] = time.process_time() - start
        if config.sizes:
            from zoo.deploy import tflite  # imports TensorFlow's converter only if it is needed

            found["bytes"] = len(tflite.convert(model))
        del model
        keras.backend.clear_session()
        gc.collect()
    return found


def _format_row(genotype: Genotype, preset: str, found: dict[str, Any]) -> tuple[str, ...]:
    published = genotype.published.get(preset, {})
    top1 = published.get("top1", 100 - published["test_error"] if "test_error" in published else None)
    return (
        genotype.name,
        preset,
        f"{found['params'] / 1e6:.2f}",
        _format(published.get("params_millions"), "g"),
        f"{found['macs'] / 1e6:,.0f}",
        _format(published.get("macs_millions"), ",g"),
        _format(top1, ".2f"),
        _format(found["seconds"], ".1f"),
        _format(None if found["bytes"] is None else found["bytes"] / 1e6, ".1f"),
    )


def _format(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _describe_method() -> str:
    return (
        f"`python -m benchmarks.zoo_table`: {describe_machine('keras')}, {keras.backend.backend()}; one run each, "
        "processor seconds. M: millions, MB: 10^6 bytes. Empty: not published, or too large to measure here."
    )


def _digest(genotype: Genotype, preset: str, config: Config) -> str:
    """Returns a hash of the network and the options, to recognize rows that an earlier run measured in the same way."""
    facts = [genotype_json.body_as_dict(genotype.body), dict(genotype.presets[preset]), config.sizes]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _is_valid(found: dict[str, Any] | None, digest: str, config: Config) -> bool:
    """Returns whether a row of an earlier run is still valid."""
    if found is None or found["digest"] != digest:
        return False
    return (found["seconds"] is not None) == (found["params"] <= config.largest * 1e6)


if __name__ == "__main__":
    _main.run(write_table, PRESETS)
