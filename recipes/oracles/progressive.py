"""The progressive search of PNASNet (Liu et al., ECCV 2018): simple architectures first, then the most promising."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from recipes.oracles.base import _LARGEST_ENUMERATION, SearchOracle, Wait
from recipes.oracles.choices import Genome
from recipes.oracles.layout import Grid, Layout
from recipes.oracles.networks import OTHER_VERSION, encode_array
from recipes.oracles.predictors import Fitting, Predictor
from recipes.training import check_at_least, check_options

_MOST_COMBINATIONS = 1_000_000  # of one level's choices
_MOST_CANDIDATES = 4_000_000  # to rank; if there are more, only those of the best parents


@dataclasses.dataclass(eq=False, repr=False, kw_only=True)
class ProgressiveOracle(SearchOracle):
    """Grows architectures level by level; a level's candidates are all one-level expansions of the level before.

    All architectures of the first level are tried. Then a predictor (`recipes.oracles.predictors`) learns from all
    scores and ranks every expansion of the level's architectures; the `beam` best are tried, the predictor learns
    again, and so on (Algorithm 1). Expansions with a known key are skipped. An architecture that fails counts in its
    level, but is not expanded and teaches nothing.

    Beyond the paper: while `max_trials` allows, the last level continues in rounds of `round_size`. Before each round
    the predictor learns again and ranks the remaining candidates: all complete architectures if the space has up to
    100,000, otherwise all expansions of the level before.

    A level starts when the last trial of the level before has ended. Workers that ask earlier wait (status IDLE), so
    a worker that dies holds up the others; KerasTuner runs its trial again when the search is restarted.

    Args:
        objective, max_trials, hyperparameters, seed, key, check, max_redraws: see SearchOracle. Without `max_trials`
            the search ends with the last level's beam.
        levels: names of the choices that each level adds; all choices but `depth`.
        depth: name of the choice of how many levels an architecture has, its values in the order of the levels. If
            None, choices of later levels have their defaults, which must make a valid architecture.
        kinds: kind -> names of choices whose equal values share an embedding.
        pooled: the levels are alike; see `recipes.oracles.layout.Layout`.
        beam: K, architectures per level (paper: 256).
        first: architectures of the first level, drawn at random; None takes all (paper).
        round_size: trials between two fits after the last level; `beam` by default.
        explore: candidates are ranked by a normal draw around their prediction, of this many standard deviations of the
            ensemble. The paper has none, with a wide beam; a narrow beam without it soon repeats one idea.
        fitting: how the predictor is built and trained; by default as in the paper.
    """

    levels: Sequence[Sequence[str]]
    depth: str | None = None
    kinds: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    pooled: bool = False
    beam: int = 256
    first: int | None = None
    round_size: int | None = None
    explore: float = 0.0
    fitting: Fitting = dataclasses.field(default_factory=Fitting)

    relearns: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, {"beam": 1, "first": 1, "round_size": 1})
        check_options(self, "explore", "0 or more", lambda value: value >= 0)
        self.stage = 0  # the level, from 0; then the rounds, which count on
        self._results: list[tuple[Genome, float | None, int]] = []  # genome, fitness, stage
        self._position = 0  # of the next candidate in the stage's ranking
        self._ended = 0  # finished trials of the stage
        self._ranking: tuple[Grid, np.ndarray] | None = None  # the stage's candidates; computed again on resume
        self._layout: Layout | None = None
        self._predictor: Predictor | None = None
        self._fitted = 0  # the stage that the predictor was fitted for

    @property
    def layout(self) -> Layout:
        """How the predictor reads genomes; created when the first proposal makes the choices known."""
        if self._layout is None:
            self._layout = self._make_layout()
        if sum(map(len, self.levels)) + (self.depth is not None) != len(self.choices):
            raise ValueError("the search space has grown; this oracle needs all choices before the first trial")
        return self._layout

    def _make_layout(self) -> Layout:
        names, counts = self.choices.names, self.choices.counts
        layout = Layout(self.choices, self.levels, self.kinds, self.pooled, self.depth is not None)
        expected = set(names) - {self.depth}
        if missing := sorted(expected - {name for level in self.levels for name in level}):
            raise ValueError(f"levels leave out {missing}; expected all choices but depth={self.depth!r}")
        found = dict(zip(names, counts.tolist(), strict=True))
        if self.depth is not None and found.get(self.depth) != len(self.levels):
            raise ValueError(
                f"depth is {self.depth!r} and there are {len(self.levels)} levels; expected a choice with a value for "
                f"each level, of {found}"
            )
        for level in self.levels:
            ways = math.prod(found[name] for name in level)
            if ways > _MOST_COMBINATIONS:
                raise ValueError(f"the level {level} has {ways:,} combinations; expected up to {_MOST_COMBINATIONS:,}")
        return layout

    def propose(self) -> Genome | None:
        """Returns the next candidate of the level's ranking; starts the next level when this one has ended.

        Raises:
            Wait: trials of this level are still running.
        """
        depth = self.layout.depth
        while True:
            quota, dry = self._get_quota(), False
            if quota is None or self._ended + self.running < quota:
                genome = self._take_next()
                if genome is not None:
                    return genome
                dry = True
            if self.running:
                raise Wait
            if dry and self.stage >= depth:
                self.message = f"no candidate is left after {len(self._results):,} trials"
                return None
            if self.stage >= depth - 1 and self.max_trials is None:
                self.message = f"done: all {depth} levels, {len(self._results):,} trials"
                return None
            self.stage, self._ended, self._position, self._ranking = self.stage + 1, 0, 0, None

    def _get_quota(self) -> int | None:
        """Returns the number of trials in the stage; None for all candidates."""
        if self.stage == 0:
            return self.first
        return self.beam if self.stage < self.layout.depth else self.round_size or self.beam

    def _take_next(self) -> Genome | None:
        """Returns the most promising of the stage's remaining candidates that is not known; None if none is left."""
        if self._ranking is None:
            grid = self._make_grid()
            self._ranking = (grid, self._rank(grid))
        grid, order = self._ranking
        while self._position < len(order):
            genome = grid.genome(order[self._position])
            self._position += 1
            if self._is_open(genome):
                return genome
        return None

    def _make_grid(self) -> Grid:
        """Returns the candidates of the stage."""
        choices, depth = self.choices, self.layout.depth
        level = min(self.stage, depth - 1)
        free = [choices.names.index(name) for name in self.levels[level]]
        parents = [choices.genome({})]
        every = math.prod(choices.counts[token.place].item() for token in self.layout.tokens)
        if self.stage >= depth and every <= _LARGEST_ENUMERATION:
            free = [token.place for token in self.layout.tokens]
        elif level > 0:
            grown = [
                (fitness, genome)
                for genome, fitness, stage in self._results
                if stage == level - 1 and fitness is not None
            ]
            parents = [genome for _, genome in sorted(grown, key=lambda entry: -entry[0])]
        counts = tuple(choices.counts[free].tolist())
        most = max(1, _MOST_CANDIDATES // math.prod(counts))
        rows = np.array(parents[:most], np.int64).reshape(-1, len(choices))
        if self.depth is not None:
            rows[:, choices.names.index(self.depth)] = level
        return Grid(rows, tuple(free), counts, level + 1)

    def _rank(self, grid: Grid) -> np.ndarray:
        """Returns the numbers of the candidates, most promising first; in random order if there is no data."""
        data = [(genome, fitness) for genome, fitness, _ in self._results if fitness is not None]
        if self.stage == 0 or not data or not len(grid):
            return np.random.default_rng([self.seed, self.stage]).permutation(len(grid))
        if self._fitted != self.stage:
            self._fit(data)
        means, deviations = self.predictor.predict(grid)
        if self.explore:
            rng = np.random.default_rng([self.seed, self.stage, 1])
            means += self.explore * deviations * rng.normal(size=len(means)).astype(np.float32)
        return np.argsort(-means, kind="stable")

    @property
    def predictor(self) -> Predictor:
        """The predictor, as last fitted."""
        if self._predictor is None:
            self._predictor = Predictor(self.layout, self.fitting)
        return self._predictor

    def _fit(self, data: Sequence[tuple[Genome, float]]) -> None:
        genomes = np.array([genome for genome, _ in data])
        depths = np.full(len(data), self.layout.depth)
        if self.depth is not None:
            depths = genomes[:, self.choices.names.index(self.depth)] + 1
        scores = np.array([fitness for _, fitness in data])
        self.predictor.fit(genomes, depths, scores, np.random.default_rng([self.seed, self.stage]))
        self._fitted = self.stage

    def learn(self, genome: Genome, fitness: float | None) -> None:
        """Collects the level's results."""
        self._results.append((genome, fitness, self.stage))
        self._ended += 1

    def learned(self) -> dict[str, Any]:
        """Returns the stage, the position in its ranking, all results, and the weights that ranked it."""
        state: dict[str, Any] = {
            "stage": self.stage,
            "position": self._position,
            "results": list(self._results),
        }
        if self._predictor is not None:
            state |= {"fitted": self._fitted, "fits": self._predictor.fits}
            state["network"] = [encode_array(self._predictor.state[0])]  # each fit has a new optimizer
        return state

    def restore(self, learned: Mapping[str, Any]) -> None:
        """Restores what `learned` returned.

        Raises:
            ValueError: the state is of another network, such as an earlier version's.
        """
        self.stage, self._position, self._ranking = learned["stage"], learned["position"], None
        self._results = [(tuple(genome), fitness, stage) for genome, fitness, stage in learned["results"]]
        self._ended = sum(stage == self.stage for _, _, stage in self._results)
        self._predictor, self._fitted = None, 0
        if "weights" in learned:  # a version whose network was not a Keras one
            raise ValueError(OTHER_VERSION)
        if "network" in learned:
            self.predictor.state = self.predictor.network.decode_state(learned["network"])
            self._fitted, self.predictor.fits = learned["fitted"], learned["fits"]
