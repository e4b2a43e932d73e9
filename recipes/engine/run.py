"""A trial-based search from its oracle to its files: genotype, Pareto front, reproduction card.

The recipes give the space and the oracle; what a child network is stands in `recipes.engine.children`.
"""

import contextlib
import datetime
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import keras_tuner

import zoo
from recipes.cards import about as report_about
from recipes.cards import card as report_card
from recipes.cards import tensorboard_logs
from recipes.engine import children as child_networks
from recipes.engine import parallel, spaces, tuner
from recipes.engine.children import ChildConfig, Children
from recipes.engine.dry_run import dry_run
from recipes.engine.tasks import Evaluate
from recipes.oracles import SearchOracle
from recipes.training import progress
from zoo import atomic
from zoo.genotype import Genotype

_SCORE_NAMES = {"val_accuracy": "validation accuracy"}


def of_cells(
    config: Any,
    space: spaces.CellSpace,
    family: str,
    recipe: str,
    oracle: Callable[[Any, Any, Children], SearchOracle],
    observe: Callable[[tuner.Status], None] | None = None,
) -> Genotype:
    """Searches a space of cells, or makes a dry run where `config` asks for one; returns the best cells.

    Args:
        config: the recipe's; with `repeats` and `filters`, the networks' size.
        space: of the cells.
        family: the builder of the networks.
        recipe: its name.
        oracle: (config, space, children) -> what proposes the trials.
        observe: see `run`.
    """
    presets = child_networks.cell_presets(config.repeats, config.filters)
    children = Children(config, space, family, presets, child_networks.load_images(config))
    if config.dry_run:
        return dry_run(children, spaces.uniform_cells(space))
    return run(oracle(config, space, children), children, recipe, observe)


def oracle_arguments(
    config: ChildConfig, space: Any, children: Children, objective: str = child_networks.OBJECTIVE
) -> dict[str, Any]:
    """Returns what every oracle of a search of child networks is given; see `recipes.oracles.SearchOracle`."""
    return {
        "objective": keras_tuner.Objective(objective, "max"),
        "max_trials": config.trials,
        "hyperparameters": space.hyperparameters(),
        "seed": config.seed,
        "key": space.key,
        "check": children.check,
    }


def run(
    oracle: SearchOracle,
    children: Children,
    recipe: str,
    observe: Callable[[tuner.Status], None] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Genotype:
    """Runs the search to its end and returns the best architecture, which is in folder/genotype.json too.

    The Pareto front is in folder/pareto, a genotype file each; the reproduction card is folder/card/card.md.

    Args:
        oracle: what to try; its objective is the score.
        children: how to score it.
        recipe: its name, for the provenance.
        observe: gets a Status when something has changed; a progress bar on stderr unless given.
        provenance: what else the score depends on; a search goes on only where it is the same.
    """
    config, objective = children.config, str(oracle.objective.name)
    provenance = dict(provenance or {})
    score_name = _SCORE_NAMES.get(objective, objective)
    try:
        with _watched(observe, recipe, score_name) as watch:
            logs = config.folder / "tensorboard"
            evaluate = tensorboard_logs.logged(children.score, logs) if config.tensorboard else children.score
            crew = _crew(config, children, evaluate)
            runner = tuner.Tuner(
                oracle,
                None if crew else evaluate,
                config.folder,
                settings={"recipe": recipe, **config.settings(), **provenance},
                keep=config.keep,
                observe=watch,
                workers=crew,
                retries=config.retries,
            )
            report_about.write(config, recipe)
            runner.search()
    finally:
        children.close()
    best, source = runner.best, _source(config, recipe, runner, provenance)
    genotype = children.genotype(best.values, name=f"{recipe}_seed{config.seed}", source=source)
    zoo.save(genotype, config.folder / "genotype.json")
    _save_front(runner.history, children, f"{recipe}_seed{config.seed}", source)
    page = report_card.write([config.folder])
    if observe is None:
        print(f"{score_name} {best.score:.4g} in trial {best.number + 1}: {config.folder / 'genotype.json'}")
        print(f"reproduction card: {page}")
    return genotype


def _crew(config: ChildConfig, children: Children, evaluate: Evaluate) -> parallel.Workers | None:
    """Returns the workers that `config` asks for, if this search can have any."""
    if config.elsewhere and not children.portable:
        raise ValueError(
            f"workers is {config.workers}, and the trials of this search need what only this process has: shared "
            "weights, or latencies measured on a machine that does nothing else. Use --workers=0"
        )
    if config.elsewhere and config.max_latency is not None:
        raise ValueError(
            f"max_latency is {config.max_latency}, measured on this machine, and workers {config.workers}: trials "
            "would disturb the measurements. Use --workers=0, or no max_latency"
        )
    return config.crew(evaluate)


def _source(config: ChildConfig, recipe: str, runner: tuner.Tuner, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Returns where the best architecture of a search comes from."""
    best, oracle = runner.best, runner.oracle
    return {
        "recipe": f"recipes/{recipe}.py",
        "config": config.settings() | {"trials": len(runner.history)},
        "seed": config.seed,
        "score": best.score,
        "score_name": str(oracle.objective.name),
        "metrics": dict(best.metrics),
        **provenance,
        "trial": best.number,
        "stopped": oracle.message or f"after {len(runner.history):,} trials",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "keras": keras.__version__,
    }


def _save_front(history: Sequence[tuner.Record], children: Children, name: str, source: Mapping[str, Any]) -> None:
    """Writes a genotype file for each trial of the Pareto front, and the front itself; what was there goes."""
    objectives, folder = children.config.objectives(), children.config.folder / "pareto"
    shutil.rmtree(folder, ignore_errors=True)
    if not objectives:
        return
    front = []
    for record in tuner.pareto_front(history, objectives):
        file = f"trial_{record.number:05d}.json"
        own = {"score": record.score, "metrics": dict(record.metrics), "trial": record.number}
        genotype = children.genotype(record.values, f"{name}_trial{record.number}", dict(source) | own)
        zoo.save(genotype, folder / file)
        front.append({"file": file, "trial": record.number, **{key: record.metrics[key] for key in objectives}})
    atomic.write_atomically(
        folder / "front.json", json.dumps({"objectives": objectives, "front": front}, indent=1) + "\n"
    )


@contextlib.contextmanager
def _watched(
    observe: Callable[[tuner.Status], None] | None, recipe: str, score_name: str
) -> Iterator[Callable[[tuner.Status], None]]:
    if observe is not None:
        yield observe
        return
    with progress.shown(recipe, score_name) as show:
        yield show
