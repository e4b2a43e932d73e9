"""Runs a search from its oracle to its files: genotype, Pareto front, reproduction card.

Child networks are defined in `recipes.engine.children`; each program brings its own space and oracle.
"""

import contextlib
import datetime
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

import zoo
from recipes import tables
from recipes.cards import tensorboard_logs
from recipes.cards.card import CARD, write_card
from recipes.cards.compare import compare_rankings, find_front
from recipes.cards.pictures import name_metric
from recipes.cards.read import JOURNAL, read_search, write_about
from recipes.cards.truth import RANKED_NETWORKS, Truth
from recipes.engine import children as child_networks
from recipes.engine import spaces, tuner
from recipes.engine.children import NetworkScorer
from recipes.engine.config import ChildConfig, PlaceConfig, TrialConfig
from recipes.engine.dry_run import dry_run
from recipes.engine.workers import Evaluate, LocalWorkers, Workers
from recipes.oracles import RandomSearch, SearchOracle, SuccessiveHalving
from recipes.training import progress
from recipes.training.progress import Observe
from zoo import atomic
from zoo.genotype import Genotype

# architectures, as values -> (seed, accuracies of the architectures with its shared weights) for each seed
Rank = Callable[[Sequence[Mapping[str, Any]]], Iterable[tuple[int, Sequence[float]]]]


def search_cells(
    config: Any,
    space: spaces.CellSpace,
    family: str,
    recipe: str,
    make_oracle: Callable[[Any, Any, NetworkScorer], SearchOracle],
    observe: Observe | None = None,
) -> Genotype:
    """Searches a space of cells, or makes a dry run if `config` asks for one; returns the best cells.

    make_oracle(config, space, scorer) returns the oracle; for `observe` see `run_trials`.
    """
    presets = child_networks.cell_presets(config.repeats, config.filters)
    scorer = NetworkScorer(config, space, family, presets, child_networks.load_images(config))
    if config.dry_run:
        return dry_run(scorer, spaces.uniform_cells(space))
    return run_trials(make_oracle(config, space, scorer), scorer, recipe, observe)


def run_trials(
    oracle: SearchOracle,
    scorer: NetworkScorer,
    recipe: str,
    observe: Observe | None = None,
    provenance: Mapping[str, Any] | None = None,
    rank: Rank | None = None,
) -> Genotype:
    """Runs a search to its end and returns the best architecture, which it also writes to folder/genotype.json.

    Writes the Pareto front to folder/pareto, one genotype file each, and the reproduction card to folder/card/card.md.

    Args:
        oracle: proposes the trials; its objective is the score.
        scorer: scores them.
        recipe: its name, for the provenance.
        observe: called with a Status when something changes; by default a progress bar on stderr.
        provenance: what else the score depends on; a search only resumes if this is unchanged.
        rank: scores the networks of a table with shared weights, if the search has any.
    """
    config, provenance = scorer.config, provenance or {}
    file = config.folder / "genotype.json"
    if file.exists() and not (config.folder / JOURNAL).exists():
        raise ValueError(
            f"{file} belongs to no search (there is no {JOURNAL} next to it) and would be lost: move it away, or "
            "give another folder="
        )
    if isinstance(config, TrialConfig) and config.fidelity == "halving":
        oracle = SuccessiveHalving(oracle, config.rungs, config.halving_factor)
    table = None if config.table is None else _read_table(config.table, scorer.space)
    with watch_search(observe, recipe, scorer.objective) as watch:
        try:
            runner = _make_tuner(oracle, scorer, {"recipe": recipe, **config.settings(), **provenance}, watch)
            counts = {"training": len(scorer.images.train), "validation": len(scorer.images.validation)}
            write_about(config, recipe, counts, scorer.space)
            if len(runner.history) > (oracle.max_trials or math.inf):
                ended = f"--trials={config.trials}, and {len(runner.history)} trials have ended: nothing left to do"
                runner.report_status("", ended)
            runner.search()
        finally:
            scorer.close()
        best, source = runner.best, _describe_source(config, recipe, runner, provenance)
        genotype = scorer.genotype(best.values, name=f"{recipe}_seed{config.seed}", source=source)
        zoo.save(genotype, file)
        _save_front(runner.history, scorer, f"{recipe}_seed{config.seed}", source)
        if table is not None:
            _rate_by_table(scorer, table, rank)
        write_card([config.folder])
    if observe is None:
        print_result(config.folder, genotype)
    return genotype


def _make_tuner(
    oracle: SearchOracle, scorer: NetworkScorer, settings: Mapping[str, Any], watch: Observe
) -> tuner.Tuner:
    config = scorer.config
    logs = config.folder / "tensorboard"
    evaluate = tensorboard_logs.LoggedEvaluate(scorer.score, logs) if config.tensorboard else scorer.score
    _check_place(config, scorer)
    workers = make_workers(config, evaluate, config.folder / "workers")
    return tuner.Tuner(
        oracle,
        None if workers else evaluate,
        config.folder,
        settings=settings,
        keep=config.keep,
        observe=watch,
        workers=workers,
        retries=config.retries,
    )


def print_result(folder: Path, genotype: Genotype) -> None:
    """Prints where the best architecture and the card of a search are."""
    source = genotype.source
    name, file = name_metric(source["score_name"]), folder / "genotype.json"
    print(f"{name} {source['score']:.4g} in trial {source['trial']}: {file}")
    print(f"reproduction card: {folder / CARD / 'card.md'}")


def search_randomly(scorer: NetworkScorer, recipe: str, observe: Observe | None = None) -> Genotype:
    """Trains uniform draws from the scorer's space and returns the best; the baseline of every search."""
    return run_trials(RandomSearch(**scorer.oracle_arguments()), scorer, recipe, observe)


def write_ranking(folder: Path, shared: Iterable[tuple[int, Sequence[float]]], alone: Sequence[float]) -> None:
    """Writes ranking.json: accuracies with each seed's shared weights and stand-alone, and their tau."""
    found = {str(seed): compare_rankings(scores, alone) for seed, scores in shared}
    tuner.forget_models()
    atomic.write_atomically(folder / "ranking.json", json.dumps(found, indent=1) + "\n")


def _read_table(path: str, space: spaces.Space) -> tuple[dict[str, Any], list[tables.TableRow]]:
    """Returns a table as recipes.tables.read_networks does; raises ValueError if it is of another space."""
    about, networks = tables.read_networks(path)
    counts = [
        f"{len(decisions)} decisions of {' x '.join(str(len(each.choices)) for each in decisions)} choices"
        for decisions in (tables.read_decisions(about), space.decisions)
    ]
    if tables.read_decisions(about) != tuple(space.decisions):
        raise ValueError(
            f"the table {path} is of {counts[0]}, the search of {counts[1]}; expected the same space. "
            f"The table was made by: {about['command']}"
        )
    return about, networks


def _rate_by_table(
    scorer: NetworkScorer, table: tuple[dict[str, Any], list[tables.TableRow]], rank: Rank | None
) -> None:
    """Writes the table's rating of the result, and how well shared weights rank the table's networks."""
    folder, space, (about, networks) = scorer.config.folder, scorer.space, table
    search = read_search(folder)
    assert search.best is not None
    truth = Truth.of(networks, about["training_seconds"], tuple(about.get("images", (1, 1))))
    found = truth.rate(space.key(search.best.values(space.decisions)), search.seconds)
    facts = {"table": about["name"], "networks": len(networks)}
    atomic.write_atomically(folder / "truth.json", json.dumps(facts | found, indent=1) + "\n")
    if rank is not None:
        drawn = np.random.default_rng(0).permutation(len(networks))[:RANKED_NETWORKS]
        values = [spaces.choose(space.decisions, networks[place].genomes[0]) for place in drawn]
        write_ranking(folder, rank(values), truth.worth[drawn].tolist())


def make_workers(config: PlaceConfig, evaluate: Evaluate, logs: Path | None = None) -> Workers | None:
    """Returns the workers that `config` asks for, or None for this process; for errors see RayWorkers."""
    if not config.runs_elsewhere:
        return None
    if config.workers != "ray":
        return LocalWorkers(evaluate, int(config.workers), silence=config.silence, logs=logs)
    from recipes.engine.ray import RayWorkers

    return RayWorkers(
        evaluate,
        cpus=config.trial_cpus,
        gpus=config.trial_gpus,
        at_once=config.trials_at_once,
        retries=config.retries,
        silence=config.silence,
    )


def _check_place(config: ChildConfig, scorer: NetworkScorer) -> None:
    """Raises ValueError if the trials of this search cannot run where `config` asks for."""
    if not config.runs_elsewhere:
        return
    if not scorer.portable:
        raise ValueError(
            f"workers is {config.workers}, but the trials of this search need what only this process has: shared "
            "weights, or latencies measured on a machine that does nothing else. Use --workers=0"
        )
    if config.max_latency is not None:
        raise ValueError(
            f"max_latency is {config.max_latency}, measured on this machine, and workers is {config.workers}: trials "
            "would disturb the measurements. Use --workers=0, or leave out max_latency"
        )


def _describe_source(
    config: ChildConfig, recipe: str, runner: tuner.Tuner, provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the provenance of a search's best architecture."""
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


def _save_front(
    history: Sequence[tuner.FinishedTrial], scorer: NetworkScorer, name: str, source: Mapping[str, Any]
) -> None:
    """Writes a genotype file for each trial of the Pareto front, and the front itself, replacing earlier ones.

    With successive halving, only the networks that were trained longest are compared. The front is sorted by the first
    objective, best first.
    """
    objectives, folder = scorer.config.trade_off(), scorer.config.folder / "pareto"
    shutil.rmtree(folder, ignore_errors=True)
    if not objectives:
        return
    front = []
    records = [record for record in history if record.score is not None and objectives.keys() <= record.metrics.keys()]
    records = [record for record in records if record.epochs == max(each.epochs for each in records)]
    signs = [1.0 if direction == "max" else -1.0 for direction in objectives.values()]
    points = np.array([[record.metrics[name] for name in objectives] for record in records]) * signs
    for place in sorted(np.flatnonzero(find_front(points)), key=lambda place: tuple(points[place]), reverse=True):
        record = records[place]
        file = f"trial_{record.number:05d}.json"
        own = {"score": record.score, "metrics": dict(record.metrics), "trial": record.number}
        genotype = scorer.genotype(record.values, f"{name}_trial{record.number}", dict(source) | own)
        zoo.save(genotype, folder / file)
        front.append({"file": file, "trial": record.number, **{key: record.metrics[key] for key in objectives}})
    atomic.write_atomically(
        folder / "front.json", json.dumps({"objectives": objectives, "front": front}, indent=1) + "\n"
    )


@contextlib.contextmanager
def watch_search(observe: Observe | None, recipe: str, objective: str) -> Iterator[Observe]:
    """Yields the observer of a search: `observe`, or a progress bar if it is None."""
    if observe is not None:
        yield observe
        return
    with progress.show_progress(recipe, name_metric(objective)) as show:
        yield show
