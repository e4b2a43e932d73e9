"""Searches with shared weights, one per seed: trains their results as trials, and random networks for comparison."""

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

# (seed, state file, report) -> {"values": decision -> choice, "history": one record per epoch, ...} as JSON values;
# "others" has the values of further results, if there are any
Find = Callable[[int, Path, Report], Mapping[str, Any]]
# (seed -> state file, architectures) -> (seed, accuracies of the architectures with its shared weights) for each seed
# whose weights still exist
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
    """Searches once for each of `trials` seeds, trains the results, and returns the best.

    The results of a seed are points of the scorer's space, and the training of each is an ordinary trial. Afterwards,
    random architectures of the space are trained in the same way, in folder/baseline; if there are enough of them,
    folder/ranking.json shows how well each seed's shared weights rank them. A killed search resumes where it was.

    Args:
        scorer: of the whole space, with the options of the search.
        recipe: its name.
        find: searches with one seed, and resumes from its state file; folder/seeds/seedN.json keeps the result. An
            exception ends only this seed.
        judge: scores architectures with the shared weights of the seeds.
        baseline: number of random architectures.
        observe: see `recipes._search.run_trials`.
        finds: most results per seed.
    """
    config, last = scorer.config, Status(0, finds * scorer.config.trials, None, None, 0.0, "")
    # without a check: a result that is refused could not be replaced by another draw
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

        searched = len(list((config.folder / "seeds").glob("seed*.json")))  # perhaps by a run with more trials
        oracle = SeedOracle(
            **arguments, find=find_or_read, first=SEEDS * config.seed, count=max(config.trials, searched)
        )
        rank = functools.partial(_rank, config.folder, scorer.space, judge)
        genotype = _search.run_trials(oracle, scorer, recipe, show, rank=rank)
    if baseline:
        # algorithm is a field of each program's own Config
        options: dict[str, Any] = {"algorithm": "random", "trials": baseline, "folder": config.folder / BASELINE}
        baseline_scorer = dataclasses.replace(scorer, config=dataclasses.replace(config, **options))
        with _search.watch_search(observe, f"{recipe}, baseline", scorer.objective) as watch:
            _search.search_randomly(baseline_scorer, recipe, watch)
        if config.table is None:
            _rank_baseline(config.folder, scorer.space, judge)
        write_card([config.folder])
    if observe is None:
        _search.print_result(config.folder, genotype)
    return genotype


@dataclasses.dataclass(eq=False, repr=False, kw_only=True)
class SeedOracle(SearchOracle):
    """Proposes the results of the search with each seed; equal architectures become one trial.

    Args in addition to those of SearchOracle:
        find: seed -> {"values": decision -> choice, "others": values of further results} or {"failed": reason}; called
            again for each result, and when a search resumes.
        first: the first seed.
        count: number of seeds.
    """

    find: Callable[[int], Mapping[str, Any]]
    first: int
    count: int

    relearns: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        self._searched = 0  # seeds whose results were all proposed
        self._proposed = 0  # results of the next seed that were proposed
        self._failures: list[str] = []

    def propose(self) -> Genome | None:
        """Returns the next result; the first one of a seed takes as long as its search."""
        while self._searched < self.count:
            seed = self.first + self._searched
            found = self.find(seed)
            if "values" not in found:
                self._failures.append(f"; seed {seed} failed: {found.get('failed', 'its file is of another version')}")
            elif self._proposed <= len(found.get("others", [])):
                self._proposed += 1
                return self.choices.genome([found["values"], *found.get("others", [])][self._proposed - 1])
            self._searched, self._proposed = self._searched + 1, 0
        self.message = f"exhausted: the results of all seeds are trained{''.join(self._failures)}"
        return None

    def learned(self) -> dict[str, Any]:
        """Returns the number of finished seeds, and of proposed results of the next seed."""
        return {"searched": self._searched, "proposed": self._proposed}

    def restore(self, learned: Mapping[str, Any]) -> None:
        """Restores what `learned` returned."""
        self._searched = learned["searched"]
        self._proposed = learned.get("proposed", 0)  # the version before proposed one result per seed


def _find_or_read(folder: Path, seed: int, find: Find, report: Report) -> Mapping[str, Any]:
    """Returns the results of the search with this seed, perhaps from an earlier process, or why it failed."""
    file = folder / f"seed{seed}.json"
    if not file.exists():
        begun = time.monotonic()
        try:
            found = dict(find(seed, _get_state_file(folder, seed), report))
        except Exception as error:  # whatever makes one seed fail, the next may succeed
            if is_fatal(error) or isinstance(error, StateError):  # the user has to move the state file
                raise
            found = {"failed": describe_failure(error), "history": []}
        atomic.write_atomically(file, json.dumps(found | {"seconds": round(time.monotonic() - begun, 3)}))
    return json.loads(file.read_text(encoding="utf-8"))


def _get_state_file(folder: Path, seed: int) -> Path:
    return folder / f"seed{seed}.state.npz"


def _rank_baseline(folder: Path, space: Any, judge: Judge) -> None:
    """Writes how well each seed's shared weights rank the baseline's networks, if there are enough of them."""
    baseline = read_search(folder / BASELINE)
    trials = [trial for trial in baseline.trials if trial.score is not None]
    if len(trials) < LEAST_NETWORKS:
        return
    shared = _rank(folder, space, judge, [trial.values(space.decisions) for trial in trials])
    _search.write_ranking(folder, shared, baseline.scores)


def _rank(
    folder: Path, space: Any, judge: Judge, values: Sequence[Mapping[str, Any]]
) -> Iterable[tuple[int, Sequence[float]]]:
    """Returns (seed, accuracies of architectures with its shared weights) for each seed whose weights still exist."""
    numbers = sorted(int(path.stem.removeprefix("seed")) for path in (folder / "seeds").glob("seed*.json"))
    seeds = {seed: _get_state_file(folder / "seeds", seed) for seed in numbers}
    return judge(seeds, [space.body(each) for each in values])
