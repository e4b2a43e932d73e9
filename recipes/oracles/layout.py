"""How the predictors of `recipes.oracles.predictors` read genomes, and the candidates that they rank."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recipes.oracles.choices import Choices


@dataclasses.dataclass(frozen=True)
class Token:
    """One decision as a predictor sees it.

    Attributes:
        place: index of the decision in a genome.
        level: the level that adds the decision, from 0.
        kind: decisions of one kind share one embedding of their values.
        slots: slot of the MLP's input -> this decision's share of the slot.
        words: choice in the genome -> row of the embedding.
    """

    place: int
    level: int
    kind: int
    slots: dict[int, float]
    words: np.ndarray


class Layout:
    """Maps genomes to the inputs of a predictor.

    Args:
        choices: the search space.
        levels: names of the decisions that each level adds.
        kinds: name of a kind -> decisions whose equal values share an embedding; any other decision is its own kind.
        pooled: if true, all levels have the same kinds of decisions in the same order, and the MLP reads the mean over
            the levels; otherwise it reads them side by side.
        partial: whether an architecture may have only the first levels; if not, all decisions are always read.

    Raises:
        ValueError: levels do not match the space, or are pooled and differ.
    """

    def __init__(
        self,
        choices: Choices,
        levels: Sequence[Sequence[str]],
        kinds: Mapping[str, Sequence[str]],
        pooled: bool,
        partial: bool,
    ):
        self.pooled, self.partial, self.depth = pooled, partial, len(levels)
        kind_of = {name: kind for kind, names in kinds.items() for name in names}
        names = [name for level in levels for name in level]
        if unknown := sorted({*names, *kind_of} - set(choices.names)):
            raise ValueError(f"levels and kinds name {unknown}; the search space has {choices.names}")
        if len(names) != len(set(names)) or not all(levels):
            raise ValueError(f"levels is {levels}; expected one or more decisions in each, and each decision once")
        patterns = {tuple(kind_of.get(name, name) for name in level) for level in levels}
        if pooled and len(patterns) > 1:
            raise ValueError(f"pooled levels need the same kinds in the same order; these have {sorted(patterns)}")
        vocabularies: dict[str, dict[Any, int]] = {}
        self.tokens: list[Token] = []
        for number, level in enumerate(levels):
            for slot, name in enumerate(level):
                words = vocabularies.setdefault(kind_of.get(name, name), {})
                place = choices.names.index(name)
                rows = np.array([words.setdefault(value, len(words)) for value in choices.options[place]])
                kind = list(vocabularies).index(kind_of.get(name, name))
                own = slot if pooled else len(self.tokens)
                self.tokens.append(Token(place, number, kind, {own: 1.0}, rows))
        self.sizes = [len(words) for words in vocabularies.values()]  # values of each kind
        self.slots = [token.kind for token in self.tokens if token.level == 0 or not pooled]  # kind of each slot
        if not pooled:
            self._add_bags()

    def _add_bags(self) -> None:
        """Adds a slot for each kind that has several decisions: their mean over all positions."""
        for kind in range(len(self.sizes)):
            members = [token for token in self.tokens if token.kind == kind]
            if len(members) > 1:
                for token in members:
                    token.slots[len(self.slots)] = 1 / len(members)
                self.slots.append(kind)

    def read(self, depth: int) -> list[Token]:
        """Returns the tokens of an architecture of `depth` levels."""
        return [token for token in self.tokens if token.level < depth or not self.partial]

    def count_pooled(self, depths: Any) -> Any:
        """Returns the divisor of the sum over levels for architectures of these depths: 1 unless pooled."""
        if not self.pooled:
            return np.ones_like(depths)
        return depths if self.partial else np.full_like(depths, self.depth)


@dataclasses.dataclass(frozen=True)
class Grid:
    """Candidates: each parent with each combination of the free decisions.

    Attributes:
        parents: genomes of shape (parents, decisions).
        free: indices of the decisions that are combined.
        counts: number of values of each free decision.
        depth: number of levels of the candidates.
    """

    parents: np.ndarray
    free: tuple[int, ...]
    counts: tuple[int, ...]
    depth: int

    @property
    def combinations(self) -> int:
        """Number of candidates per parent."""
        return int(np.prod(self.counts, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.parents) * self.combinations

    def genome(self, number: int) -> tuple[int, ...]:
        """Returns candidate `number`; they are numbered parent by parent."""
        parent, combination = divmod(int(number), self.combinations)
        genome = self.parents[parent].copy()
        genome[list(self.free)] = np.unravel_index(combination, self.counts)
        return tuple(genome.tolist())
