"""A search from its oracle to its files: genotype, Pareto front, reproduction card. Over trials, or over seeds.

What a child network is stands in `recipes.engine.children`; a program brings its space and its oracle.
"""

import contextlib
import dataclasses
import datetime
import functools
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

import zoo
from recipes import tables
from recipes.cards import tensorboard_logs
from recipes.cards.card import BASELINE, CARD, write_card
from recipes.cards.compare import LEAST_NETWORKS, compare_rankings
from recipes.cards.read import read_search, write_about
from recipes.cards.truth import RANKED_NETWORKS, Truth
from recipes.engine import children as child_networks
from recipes.engine import spaces, tuner
from recipes.engine.children import NetworkScorer
from recipes.engine.config import SEEDS, ChildConfig, PlaceConfig, TrialConfig
from recipes.engine.dry_run import dry_run
from recipes.engine.workers import Evaluate, LocalWorkers, Report, Workers, describe_failure, is_fatal
from recipes.oracles import RandomSearch, SearchOracle, SuccessiveHalving
from recipes.oracles.choices import Genome
from recipes.training import progress
from recipes.training.progress import Observe, Status
from recipes.training.state import StateError
from zoo import atomic
from zoo.genotype import Genotype

_SCORE_NAMES = {"val_accuracy": "validation accuracy"}

# (seed, file of the state, report) -> {"values": of the space's decisions, "history": a record an epoch, ...}; JSON
Find = Callable[[int, Path, Report], Mapping[str, Any]]
# (seed -> file of the state, architectures) -> each seed whose shared weights are there still, with the architectures'
# accuracies by them
Judge = Callable[[Mapping[int, Path], Sequence[Any]], Iterable[tuple[int, Sequence[float]]]]
# architectures, as values -> each seed whose shared weights there are, with the architectures' accuracies by them
Rank = Callable[[Sequence[Mapping[str, Any]]], Iterable[tuple[int, Sequence[float]]]]


def search_cells(
    config: Any,
    space: spaces.CellSpace,
    family: str,
    recipe: str,
    make_oracle: Callable[[Any, Any, NetworkScorer], SearchOracle],
    observe: Observe | None = None,
) -> Genotype:
    """Searches a space of cells, or makes a dry run where `config` asks for one; returns the best cells.

    Args:
        config: the recipe's; with `repeats` and `filters`, the networks' size.
        space: of the cells.
        family: the builder of the networks.
        recipe: its name.
        make_oracle: (config, space, scorer) -> what proposes the trials.
        observe: see `run_trials`.
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
    """Runs the search to its end and returns the best architecture, which is in folder/genotype.json too.

    The Pareto front is in folder/pareto, a genotype file each; the reproduction card is folder/card/card.md.

    Args:
        oracle: what to try; its objective is the score.
        scorer: how to score it.
        recipe: its name, for the provenance.
        observe: gets a Status when something has changed; a progress bar on stderr unless given.
        provenance: what else the score depends on; a search resumes only where it is the same.
        rank: scores the networks of a table by shared weights, where the search has some.
    """
    config = scorer.config
    if isinstance(config, TrialConfig) and config.fidelity == "halving":
        oracle = SuccessiveHalving(oracle, config.rungs, config.halving_factor)
    with _watch(observe, recipe, scorer.objective) as watch:
        genotype = _run(oracle, scorer, recipe, watch, provenance or {}, rank)
    if observe is None:
        _print_result(scorer.config.folder, genotype)
    return genotype


def _run(
    oracle: SearchOracle,
    scorer: NetworkScorer,
    recipe: str,
    watch: Observe,
    provenance: Mapping[str, Any],
    rank: Rank | None = None,
) -> Genotype:
    config = scorer.config
    table = None if config.table is None else _read_table(config.table, scorer.space)
    try:
        logs = config.folder / "tensorboard"
        evaluate = tensorboard_logs.logged(scorer.score, logs) if config.tensorboard else scorer.score
        _check_place(config, scorer)
        workers = make_workers(config, evaluate, config.folder / "workers")
        runner = tuner.Tuner(
            oracle,
            None if workers else evaluate,
            config.folder,
            settings={"recipe": recipe, **config.settings(), **provenance},
            keep=config.keep,
            observe=watch,
            workers=workers,
            retries=config.retries,
        )
        images = scorer.images
        counts = {"training": len(images.train), "validation": len(images.validation)}
        write_about(config, recipe, counts, scorer.space)
        if len(runner.history) > config.trials:
            runner.tell(
                "", f"--trials={config.trials}, and {len(runner.history)} trials have ended: nothing is left to do"
            )
        runner.search()
    finally:
        scorer.close()
    best, source = runner.best, _describe_source(config, recipe, runner, provenance)
    genotype = scorer.genotype(best.values, name=f"{recipe}_seed{config.seed}", source=source)
    zoo.save(genotype, config.folder / "genotype.json")
    _save_front(runner.history, scorer, f"{recipe}_seed{config.seed}", source)
    if table is not None:
        _judge_by_table(scorer, table, rank)
    write_card([config.folder])
    return genotype


def _print_result(folder: Path, genotype: Genotype) -> None:
    source = genotype.source
    name = _SCORE_NAMES.get(source["score_name"], source["score_name"])
    print(f"{name} {source['score']:.4g} in trial {source['trial']}: {folder / 'genotype.json'}")
    print(f"reproduction card: {folder / CARD / 'card.md'}")


def search_randomly(scorer: NetworkScorer, recipe: str, observe: Observe | None = None) -> Genotype:
    """Trains uniform draws from the scorer's space and returns the best: the baseline of every search."""
    return run_trials(RandomSearch(**scorer.oracle_arguments()), scorer, recipe, observe)


def search_by_seeds(
    scorer: NetworkScorer,
    recipe: str,
    find: Find,
    judge: Judge,
    baseline: int,
    observe: Observe | None = None,
) -> Genotype:
    """Searches once for each of `trials` seeds, trains what is found, and returns the best of it.

    What a seed finds is a point of the scorer's space, and its training a trial like any other. Afterwards random
    architectures of the space are trained alike, in folder/baseline; with enough of them folder/ranking.json says how
    well each seed's shared weights rank them. Killed at any moment and started again, it resumes where it was.

    Args:
        scorer: of the whole space, with the options of the search.
        recipe: its name.
        find: what the search with one seed finds, which folder/seeds/seedN.json keeps; it resumes from its state file.
            An exception ends that seed and not the others.
        judge: scores architectures by the shared weights of the seeds.
        baseline: how many random architectures.
        observe: see `run_trials`.
    """
    config = scorer.config
    arguments: dict[str, Any] = scorer.oracle_arguments() | {"check": None}  # what was found cannot be drawn again
    with _watch(observe, recipe, scorer.objective) as watch:
        last = Status(0, config.trials, None, None, 0.0, "")

        def show(status: Status) -> None:
            nonlocal last
            last = status
            watch(status)

        def find_or_read(seed: int) -> Mapping[str, Any]:
            def report(fraction: float, text: str) -> None:
                watch(dataclasses.replace(last, share=fraction, text=text, seconds_left=None))

            return _find_or_read(config.folder / "seeds", seed, find, report)

        searched = len(list((config.folder / "seeds").glob("seed*.json")))  # by a run with more trials, perhaps
        oracle = SeedOracle(find_or_read, SEEDS * config.seed, max(config.trials, searched), **arguments)
        rank = functools.partial(_rank, config.folder, scorer.space, judge)
        genotype = _run(oracle, scorer, recipe, show, {}, rank)
    if baseline:
        # algorithm is a field of the programs' own configurations
        options: dict[str, Any] = {"algorithm": "random", "trials": baseline, "folder": config.folder / BASELINE}
        alike = dataclasses.replace(scorer, config=dataclasses.replace(config, **options))
        with _watch(observe, f"{recipe}, baseline", scorer.objective) as watch:
            _run(RandomSearch(**alike.oracle_arguments()), alike, recipe, watch, {})
        if config.table is None:
            _rank_baseline(config.folder, scorer.space, judge)
        write_card([config.folder])
    if observe is None:
        _print_result(config.folder, genotype)
    return genotype


class SeedOracle(SearchOracle):
    """Proposes what the search with each seed finds; equal architectures are one trial.

    Args:
        find: seed -> {"values": of the space's decisions} or {"failed": reason}; called again for every seed when a
            search is resumed.
        first: of the seeds.
        count: how many there are.
        objective, max_trials, hyperparameters, seed, key, check: see SearchOracle.
    """

    relearns = False

    def __init__(
        self,
        find: Callable[[int], Mapping[str, Any]],
        first: int,
        count: int,
        objective: Any,
        max_trials: int,
        hyperparameters: Any,
        *,
        seed: int,
        key: Any,
        check: Any,
    ):
        super().__init__(objective, max_trials, hyperparameters, seed=seed, key=key, check=check)
        self._find, self._first, self._count = find, first, count
        self._searched = 0
        self._failures: list[str] = []

    def propose(self) -> Genome | None:
        """Returns what the next seed finds; that takes as long as the search."""
        while self._searched < self._count:
            self._searched += 1
            seed = self._first + self._searched - 1
            found = self._find(seed)
            if "values" in found:
                return self.choices.genome(found["values"])
            self._failures.append(f"; seed {seed} failed: {found.get('failed', 'its file is of another version')}")
        self.message = f"exhausted: what the seeds found is trained{''.join(self._failures)}"
        return None

    def learned(self) -> dict[str, Any]:
        """Returns how many seeds were searched with."""
        return {"searched": self._searched}

    def restore(self, learned: Mapping[str, Any]) -> None:
        """Takes back what `learned` returned."""
        self._searched = learned["searched"]


def _find_or_read(folder: Path, seed: int, find: Find, report: Report) -> Mapping[str, Any]:
    """Returns what the search with this seed finds, or found in an earlier process, or why it failed."""
    file = folder / f"seed{seed}.json"
    if not file.exists():
        begun = time.monotonic()
        try:
            found = dict(find(seed, _state_file(folder, seed), report))
        except Exception as error:  # whatever one seed fails of, the next one may not
            if is_fatal(error) or isinstance(error, StateError):  # it is for the user to move that file
                raise
            found = {"failed": describe_failure(error), "history": []}
        atomic.write_atomically(file, json.dumps(found | {"seconds": round(time.monotonic() - begun, 3)}))
    return json.loads(file.read_text(encoding="utf-8"))


def _state_file(folder: Path, seed: int) -> Path:
    return folder / f"seed{seed}.state.npz"


def _rank_baseline(folder: Path, space: Any, judge: Judge) -> None:
    """Writes how well each seed's shared weights rank the baseline's networks, if these are enough for that."""
    baseline = read_search(folder / BASELINE)
    trials = [trial for trial in baseline.trials if trial.score is not None]
    if len(trials) < LEAST_NETWORKS:
        return
    shared = _rank(folder, space, judge, [trial.values(space.decisions) for trial in trials])
    _write_ranking(folder, shared, baseline.scores)


def _rank(
    folder: Path, space: Any, judge: Judge, values: Sequence[Mapping[str, Any]]
) -> Iterable[tuple[int, Sequence[float]]]:
    """Returns each seed whose shared weights are there still, with the accuracies of architectures by them."""
    numbers = sorted(int(path.stem.removeprefix("seed")) for path in (folder / "seeds").glob("seed*.json"))
    seeds = {seed: _state_file(folder / "seeds", seed) for seed in numbers}
    return judge(seeds, [space.body(each) for each in values])


def _write_ranking(folder: Path, shared: Iterable[tuple[int, Sequence[float]]], alone: Sequence[float]) -> None:
    found = {str(seed): compare_rankings(scores, alone) for seed, scores in shared}
    tuner.forget_models()
    atomic.write_atomically(folder / "ranking.json", json.dumps(found, indent=1) + "\n")


def _read_table(path: str, space: spaces.Space) -> tuple[dict[str, Any], list[tables.Network]]:
    """Returns a table as recipes.tables.read_networks does.

    Raises:
        ValueError: it is of another space.
    """
    about, networks = tables.read_networks(path)
    decisions = tables.decisions_of(about)
    if decisions != tuple(space.decisions):
        raise ValueError(
            f"the table {path} is of {_count_choices(decisions)}, the search of {_count_choices(space.decisions)}; "
            f"expected one space. The table was made by: {about['command']}"
        )
    return about, networks


def _judge_by_table(
    scorer: NetworkScorer, table: tuple[dict[str, Any], list[tables.Network]], rank: Rank | None
) -> None:
    """Writes what the table says of the find, and how well shared weights rank the table's networks."""
    folder, space, (about, networks) = scorer.config.folder, scorer.space, table
    search = read_search(folder)
    assert search.best is not None
    truth = Truth.of(networks, about["training_seconds"], tuple(about.get("images", (1, 1))))
    found = truth.judge(space.key(search.best.values(space.decisions)), search.seconds)
    facts = {"table": about["name"], "networks": len(networks)}
    atomic.write_atomically(folder / "truth.json", json.dumps(facts | found, indent=1) + "\n")
    if rank is not None:
        drawn = np.random.default_rng(0).permutation(len(networks))[:RANKED_NETWORKS]
        genomes = [networks[place].genomes[0] for place in drawn]
        values = [
            {each.name: each.choices[place] for each, place in zip(space.decisions, genome, strict=True)}
            for genome in genomes
        ]
        _write_ranking(folder, rank(values), truth.worth[drawn].tolist())


def _count_choices(decisions: Sequence[spaces.Decision]) -> str:
    counts = " x ".join(str(len(decision.choices)) for decision in decisions)
    return f"{len(decisions)} decisions of {counts} choices"


def make_workers(config: PlaceConfig, evaluate: Evaluate, logs: Path | None = None) -> Workers | None:
    """Returns the workers that run `evaluate` where `config` says, None for this process.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: the cluster at RAY_ADDRESS does not answer.
    """
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
    """Raises ValueError where the trials of this search cannot run where `config` says."""
    if not config.runs_elsewhere:
        return
    if not scorer.portable:
        raise ValueError(
            f"workers is {config.workers}, and the trials of this search need what only this process has: shared "
            "weights, or latencies measured on a machine that does nothing else. Use --workers=0"
        )
    if config.max_latency is not None:
        raise ValueError(
            f"max_latency is {config.max_latency}, measured on this machine, and workers {config.workers}: trials "
            "would disturb the measurements. Use --workers=0, or no max_latency"
        )


def _describe_source(
    config: ChildConfig, recipe: str, runner: tuner.Tuner, provenance: Mapping[str, Any]
) -> dict[str, Any]:
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


def _save_front(history: Sequence[tuner.Record], scorer: NetworkScorer, name: str, source: Mapping[str, Any]) -> None:
    """Writes a genotype file for each trial of the Pareto front, and the front itself; what was there goes.

    Of a search by successive halving only the networks that were trained longest are compared.
    """
    objectives, folder = scorer.config.trade_off(), scorer.config.folder / "pareto"
    shutil.rmtree(folder, ignore_errors=True)
    if not objectives:
        return
    front = []
    longest = max((record.epochs for record in history if record.score is not None), default=0)
    for record in tuner.pareto_front([record for record in history if record.epochs == longest], objectives):
        file = f"trial_{record.number:05d}.json"
        own = {"score": record.score, "metrics": dict(record.metrics), "trial": record.number}
        genotype = scorer.genotype(record.values, f"{name}_trial{record.number}", dict(source) | own)
        zoo.save(genotype, folder / file)
        front.append({"file": file, "trial": record.number, **{key: record.metrics[key] for key in objectives}})
    atomic.write_atomically(
        folder / "front.json", json.dumps({"objectives": objectives, "front": front}, indent=1) + "\n"
    )


@contextlib.contextmanager
def _watch(observe: Observe | None, recipe: str, objective: str) -> Iterator[Observe]:
    if observe is not None:
        yield observe
        return
    with progress.show_progress(recipe, _SCORE_NAMES.get(objective, objective)) as show:
        yield show
