"""The whole way once, on real images: searches a cell, draws it, trains its network and makes an int8 file for a phone.

    python -m recipes.tour                   # `make tour`: about 6 minutes on 2 cores
    python -m recipes.tour --preset=smoke    # half a minute; expect no accuracy from it

Each step is a recipe of its own, called with its own Config; this program only passes the results on. Writes tour.md
(the page that it prints), cell.png, search/genotype.json, train/model.keras and deploy/*.tflite into the folder. If the
program is stopped, the same command resumes.

Expect an accuracy of at least 0.85 on the 2,000 held-out images of the embedded Fashion-MNIST, and int8 within 0.01.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rich.console import Console

import zoo
from recipes import _main, amoebanet, deploy, train
from recipes.training import check_options
from recipes.training.progress import duration
from recipes.training.tensorflow_options import run_branches_side_by_side
from zoo.atomic import write_atomically
from zoo.genotype import Genotype

if TYPE_CHECKING:
    from zoo.deploy.report import Report

EXPECTED_ACCURACY = 0.85  # of the float network on the held-out images, at least
EXPECTED_DROP = 0.01  # from float to int8, at most


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the tour; the presets of the steps' recipes give the rest."""

    trials: int = 12  # networks that the search trains
    epochs: int = 8  # for the final training of the best network
    seed: int = 0  # of search and training
    steps: Literal["laptop", "smoke"] = "laptop"  # the preset of each step's recipe
    folder: Path = Path("runs/tour")  # results, and the state to resume from

    def __post_init__(self):
        check_options(self, "trials epochs", "a whole number from 1", lambda value: value >= 1)


PRESETS = {
    "laptop": Config(),
    "smoke": Config(trials=2, epochs=1, steps="smoke", folder=Path("runs/tour-smoke")),
}


class Tour(NamedTuple):
    """The results of the steps."""

    genotype: Genotype
    training: dict[str, Any]  # results.json of recipes.train
    report: "Report"


def tour(config: Config) -> Tour:
    """Runs all steps, writes and prints the page, and returns the steps' results."""
    console = Console(stderr=True, highlight=False)
    start = time.monotonic()

    def announce(number: int, text: str) -> None:
        console.print(f"\n[bold]Step {number} of 4: {text}[/bold]", soft_wrap=True)

    announce(1, f"search, {config.trials} small networks of evolving cells")
    half = max(1, config.trials // 2)  # the first half of the networks is random, the others evolve from it
    genotype = amoebanet.search(
        dataclasses.replace(
            amoebanet.PRESETS[config.steps],
            trials=config.trials,
            population=half,
            sample=half,
            seed=config.seed,
            folder=config.folder / "search",
        )
    )
    announce(2, "draw the best cells")
    zoo.draw(genotype, config.folder / "cell.png")
    announce(3, f"build their network and train it for {config.epochs} epochs")
    train.train(_configure_training(config))
    announce(4, "export it as float32 and int8, and judge both files on the same held-out images")
    report = deploy.deploy(
        deploy.Config(
            model=str(config.folder / "train" / "model.keras"), board="stm32f746", folder=config.folder / "deploy"
        )
    )
    training = json.loads((config.folder / "train" / "results.json").read_text(encoding="utf-8"))
    result = Tour(genotype, training, report)
    page = to_markdown(result, config.folder, time.monotonic() - start)
    write_atomically(config.folder / "tour.md", page)
    print(f"\n{page}")
    return result


def _configure_training(config: Config) -> train.Config:
    genotype = str(config.folder / "search" / "genotype.json")
    return dataclasses.replace(
        train.PRESETS[config.steps],
        model=genotype,
        epochs=config.epochs,
        seed=config.seed,
        folder=config.folder / "train",
    )


def to_markdown(result: Tour, folder: Path, seconds: float) -> str:
    """Returns the page: what was found and how good it is, the files, and what to do next."""
    genotype, training, report = result
    rows = "\n".join(
        f"| {row.scheme} | {row.accuracy:.4f} | {row.size / 1000:,.0f} kB | "
        f"{row.latency.median_ms:.2f}, {row.builtin_latency.median_ms:.2f} ms | "
        f"{'none' if row.arena is None else f'{row.arena / 1000:,.0f} kB'} |"
        for row in report.rows
    )
    accuracy, drop = report.row("float32").accuracy or 0.0, report.drop("int8")
    source, files = genotype.source, ", ".join(str(folder / "deploy" / row.file) for row in report.rows)
    found, model = folder / "search" / "genotype.json", folder / "train" / "model.keras"
    return f"""\
# Tour: from a search to an int8 file in {duration(seconds)}

- Data: {training["data"]}
- Searched: {source["config"]["trials"]} networks; the best has a validation accuracy of {source["score"]:.4f}.
- Trained: {training["params"]:,} parameters; an accuracy of {training["test_accuracy"]:.4f} on the \
{training["test_images"]:,} held-out images.

| file | accuracy, n = {report.n:,} | size | LiteRT latency with and without XNNPACK | TFLM arena |
|---|---|---|---|---|
{rows}

As expected: float at least {EXPECTED_ACCURACY}: {_verdict(accuracy >= EXPECTED_ACCURACY)}; \
int8 at most {EXPECTED_DROP} worse: {_verdict(drop <= EXPECTED_DROP)} ({-drop:+.4f}).

| result | where |
|---|---|
| cells, as data and as a picture | {found}, {folder / "cell.png"} |
| Keras model | {model} |
| TensorFlow Lite files, report | {files}, {folder / "deploy" / "deploy.md"} |

Next: `zoo.build("{found}")` in Python; `python -m recipes.finetune --help` for your own
images; `python -m recipes.deploy --model={model} --diagnose` for where int8 loses accuracy.
"""


def _verdict(holds: bool) -> str:
    return "yes" if holds else "no"


if __name__ == "__main__":
    run_branches_side_by_side()
    _main.run(tour, PRESETS)
