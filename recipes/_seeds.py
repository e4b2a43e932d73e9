"""Searches with shared weights, one a seed: what they find is trained as trials, and random networks beside it."""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from recipes import _search
from recipes.cards.card import BASELINE, write_card
from recipes.cards.compare import LEAST_NETWORKS
from recipes.cards.read import read_search
from recipes.engine.children import NetworkScorer
from recipes.engine.config import SEEDS
from recipes.engine.workers import Report, describe_failure, is_fatal
from recipes.oracles import SearchOracle
from recipes.oracles.choices import Genome
from recipes.training.progress import Observe, Status
from recipes.training.state import StateError
from zoo import atomic
from zoo.genotype import Genotype

# (seed, file of the state, report) -> {"values": of the space's decisions, "history": a record an epoch, ...}; JSON.
# "others" has the values of more finds, where there are some.
Find = Callable[[int, Path, Report], Mapping[str, Any]]
# (seed -> file of the state, architectures) -> each seed whose shared weights are there still, with the architectures'
# accuracies by them
Judge = Callable[[Mapping[int, Path], Sequence[Any]], Iterable[tuple[int, Sequence[float]]]]


def search_by_seeds(
    scorer: NetworkScorer,
    recipe: str,
    find: Find,
    judge: Judge,
    baseline: int,
    observe: Observe | None = None,
    finds: int = 1,
) -> Genotype:
    """Searches once for each of `trials` seeds, trains what is found, and returns the best of it.

    What a seed finds are points of the scorer's space, and the training of each is a trial like any other. Afterwards
    random architectures of the space are trained alike, in folder/baseline; with enough of them folder/ranking.json
    says how well each seed's shared weights rank them. Killed at any moment and started again, it resumes where it was.

    Args:
        scorer: of the whole space, with the options of the search.
        recipe: its name.
        find: what the search with one seed finds, which folder/seeds/seedN.json keeps; it resumes from its state file.
            An exception ends that seed and not the others.
        judge: scores architectures by the shared weights of the seeds.
        baseline: how many random architectures.
        observe: see `recipes._search.run_trials`.
        finds: of a seed, at most.
    """
    config, last = scorer.config, Status(0, finds * scorer.config.trials, None, None, 0.0, "")
    # what was found cannot be drawn again
    arguments: dict[str, Any] = scorer.oracle_arguments() | {"check": None, "max_trials": finds * config.trials}
    with _search.watch_search(observe, recipe, scorer.objective) as watch:

        def show(status: Status) -> None:
            nonlocal last
            last = status
            watch(status)

        def report(fraction: float, text: str) -> None:
            watch(dataclasses.replace(last, share=fraction, text=text, seconds_left=None))

        def find_or_read(seed: int) -> Mapping[str, Any]:
            return _find_or_read(config.folder / "seeds", seed, find, report)

        searched = len(list((config.folder / "seeds").glob("seed*.json")))  # by a run with more trials, perhaps
        oracle = SeedOracle(
            **arguments, find=find_or_read, first=SEEDS * config.seed, count=max(config.trials, searched)
        )
        rank = functools.partial(_rank, config.folder, scorer.space, judge)
        genotype = _search.run_trials(oracle, scorer, recipe, show, rank=rank)
    if baseline:
        # algorithm is a field of the programs' own configurations
        options: dict[str, Any] = {"algorithm": "random", "trials": baseline, "folder": config.folder / BASELINE}
        alike = dataclasses.replace(scorer, config=dataclasses.replace(config, **options))
        with _search.watch_search(observe, f"{recipe}, baseline", scorer.objective) as watch:
            _search.search_randomly(alike, recipe, watch)
        if config.table is None:
            _rank_baseline(config.folder, scorer.space, judge)
        write_card([config.folder])
    if observe is None:
        _search.print_result(config.folder, genotype)
    return genotype


@dataclasses.dataclass(eq=False, repr=False, kw_only=True)
class SeedOracle(SearchOracle):
    """Proposes what the search with each seed finds; equal architectures are one trial.

    Args beside those of SearchOracle:
        find: seed -> {"values": of the space's decisions, "others": values of more finds} or {"failed": reason}; called
            again for each find, and when a search is resumed.
        first: of the seeds.
        count: how many there are.
    """

    find: Callable[[int], Mapping[str, Any]]
    first: int
    count: int

    relearns: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        self._searched = 0  # seeds all of whose finds were proposed
        self._proposed = 0  # finds of the next one
        self._failures: list[str] = []

    def propose(self) -> Genome | None:
        """Returns the next find; the first of a seed takes as long as the search."""
        while self._searched < self.count:
            seed = self.first + self._searched
            found = self.find(seed)
            if "values" not in found:
                self._failures.append(f"; seed {seed} failed: {found.get('failed', 'its file is of another version')}")
            elif self._proposed <= len(found.get("others", [])):
                self._proposed += 1
                return self.choices.genome([found["values"], *found.get("others", [])][self._proposed - 1])
            self._searched, self._proposed = self._searched + 1, 0
        self.message = f"exhausted: what the seeds found is trained{''.join(self._failures)}"
        return None

    def learned(self) -> dict[str, Any]:
        """Returns how many seeds are done with, and how many finds of the next one."""
        return {"searched": self._searched, "proposed": self._proposed}

    def restore(self, learned: Mapping[str, Any]) -> None:
        """Takes back what `learned` returned."""
        self._searched, self._proposed = learned["searched"], learned.get("proposed", 0)  # before, one find a seed


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
    _search.write_ranking(folder, shared, baseline.scores)


def _rank(
    folder: Path, space: Any, judge: Judge, values: Sequence[Mapping[str, Any]]
) -> Iterable[tuple[int, Sequence[float]]]:
    """Returns each seed whose shared weights are there still, with the accuracies of architectures by them."""
    numbers = sorted(int(path.stem.removeprefix("seed")) for path in (folder / "seeds").glob("seed*.json"))
    seeds = {seed: _state_file(folder / "seeds", seed) for seed in numbers}
    return judge(seeds, [space.body(each) for each in values])
