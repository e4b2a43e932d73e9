"""The predictors of PNASNet (Liu et al., ECCV 2018, section 3.3): ensembles that learn scores from architectures.

Both are small numpy networks: scoring the 590,000 expansions of the paper's last level takes seconds, for what
candidates have in common is computed once.
"""

import dataclasses
import statistics
from typing import Any, Literal

import numpy as np

from recipes.oracles.layout import Grid, Layout
from recipes.oracles.networks import Adam, Lstm, Parameters, sigmoid

_CHUNK = 16_384  # candidates that are scored at once


@dataclasses.dataclass(frozen=True)
class Fitting:
    """How predictors are made and trained; the numbers are the paper's where it has some.

    Attributes:
        network: "mlp" or "lstm".
        members: of the ensemble.
        share: of the data that each member is trained on.
        embedding, hidden: units.
        first_rate, rate: Adam's, of the first fit and of those after.
        steps: of a fit; not in the paper.
        batch: architectures a step; not in the paper.
        anew: every fit starts from new weights, with the first rate; the paper goes on from those that it has.
        target: "accuracy": the score itself, through a sigmoid, as the paper has it; "ranks": the normal quantile of
            its rank, which any objective has, and which tells the best apart where the worst are far away.
    """

    network: Literal["mlp", "lstm"] = "mlp"
    members: int = 5
    share: float = 0.8
    embedding: int = 100
    hidden: int = 100
    first_rate: float = 0.01
    rate: float = 0.002
    steps: int = 200
    batch: int = 256
    anew: bool = False
    target: Literal["accuracy", "ranks"] = "ranks"

    def __post_init__(self):
        if self.network not in ("mlp", "lstm") or self.target not in ("accuracy", "ranks"):
            raise ValueError(
                f"network is {self.network!r} and target {self.target!r}; expected mlp or lstm, accuracy or ranks"
            )
        for name in ("members", "embedding", "hidden", "steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a whole number from 1")
        if not 0 < self.share <= 1 or self.first_rate <= 0 or self.rate <= 0:
            raise ValueError(
                f"share is {self.share}, first_rate {self.first_rate} and rate {self.rate}; expected a share "
                "above 0 and up to 1, and rates above 0"
            )


class Surrogate:
    """An ensemble that predicts the score of an architecture; what differs is in its subclasses."""

    parameters: Parameters

    def __init__(self, layout: Layout, settings: Fitting):
        self.layout, self.settings, self.fits = layout, settings, 0

    def fit(self, genomes: np.ndarray, depths: np.ndarray, scores: np.ndarray, rng: np.random.Generator) -> None:
        """Trains each member on its own share of the data by the absolute error.

        Args:
            genomes: (n, decisions).
            depths: (n,) levels of each.
            scores: (n,), larger is better.
            rng: for the shares, the weights and the batches.

        Raises:
            ValueError: a score that no sigmoid can give.
        """
        settings, count = self.settings, len(genomes)
        targets = self._targets(scores)
        fresh = self.fits == 0 or settings.anew
        if fresh:
            self.start(rng, float(np.median(targets)))
        inputs = self.inputs(genomes, depths)
        size = max(1, round(settings.share * count))
        rows = np.stack([rng.permutation(count)[:size] for _ in range(settings.members)])
        vector = self.parameters.vector
        optimizer = Adam(vector.size, settings.first_rate if fresh else settings.rate)
        for _ in range(settings.steps):
            if size > settings.batch:
                drawn = rng.integers(size, size=(settings.members, settings.batch))
                batch = np.take_along_axis(rows, drawn, axis=1)
            else:
                batch = rows
            optimizer.step(vector, self.gradients(inputs, targets, batch))
        self.fits += 1

    def _targets(self, scores: np.ndarray) -> np.ndarray:
        if self.settings.target == "ranks":
            return quantiles(scores)
        if scores.min() < 0 or scores.max() > 1:
            raise ValueError(
                f"scores from {scores.min():.4g} to {scores.max():.4g} with target='accuracy'; "
                "expected 0 to 1. Use target='ranks' for other objectives"
            )
        return scores.astype(np.float32)

    def _first_bias(self, target: float) -> float:
        """Returns what makes the first prediction `target`; the paper's 1.8 is that of an accuracy of 0.86."""
        if self.settings.target == "ranks":
            return target
        target = min(max(target, 0.01), 0.99)
        return float(np.log(target / (1 - target)))

    def _head(self, raw: np.ndarray) -> np.ndarray:
        return sigmoid(raw) if self.settings.target == "accuracy" else raw

    def _error(self, raw: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Returns the gradient of the mean absolute error by what goes into the head; the batch is the last axis."""
        shown = self._head(raw)
        gradient = np.sign(shown - targets) / raw.shape[-1]
        return (gradient * shown * (1 - shown) if self.settings.target == "accuracy" else gradient).astype(np.float32)

    def start(self, rng: np.random.Generator, target: float) -> None:
        """Draws new weights; `target` is what the predictions begin at."""
        raise NotImplementedError

    def inputs(self, genomes: np.ndarray, depths: np.ndarray) -> Any:
        """Returns what the network reads."""
        raise NotImplementedError

    def gradients(self, inputs: Any, targets: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Returns the gradient of the error by all weights, valid until the next call; `rows` is (members, batch)."""
        raise NotImplementedError

    def predict(self, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ensemble's mean for each candidate, and its standard deviation: (len(grid),) each."""
        step = max(1, _CHUNK // grid.combinations)
        means, deviations = [], []
        for first in range(0, len(grid.parents), step):
            members = self._head(self.raw(dataclasses.replace(grid, parents=grid.parents[first : first + step])))
            means.append(members.mean(axis=0))
            deviations.append(members.std(axis=0))
        return np.concatenate(means), np.concatenate(deviations)

    def raw(self, grid: Grid) -> np.ndarray:
        """Returns (members, len(grid)) predictions before the head."""
        raise NotImplementedError


class MlpEnsemble(Surrogate):
    """Embeddings of a level's decisions side by side, their mean over the levels, two hidden layers; all at once."""

    def __init__(self, layout: Layout, settings: Fitting):
        super().__init__(layout, settings)
        members, units, hidden = settings.members, settings.embedding, settings.hidden
        shapes = {f"embedding{kind}": (members, size, units) for kind, size in enumerate(layout.sizes)}
        shapes |= {"first": (members, len(layout.slots) * units, hidden), "first_bias": (members, 1, hidden)}
        shapes |= {"second": (members, hidden, hidden), "second_bias": (members, 1, hidden)}
        shapes |= {"last": (members, hidden, 1), "last_bias": (members, 1, 1)}
        self._shapes = shapes
        self.parameters, self._gradients = Parameters(shapes), Parameters(shapes)

    def start(self, rng: np.random.Generator, target: float) -> None:
        """Draws weights of a variance of 2 / inputs, and embeddings of a variance of 1 / units."""
        for name, shape in self._shapes.items():
            fan = self.settings.embedding if name.startswith("embedding") else shape[1] / 2
            self.parameters[name][...] = 0 if "bias" in name else rng.normal(size=shape) / np.sqrt(fan)
        self.parameters["last_bias"][...] = self._first_bias(target)

    def inputs(self, genomes: np.ndarray, depths: np.ndarray) -> np.ndarray:
        """Returns (n, values of all slots): the share of the levels that have each value."""
        layout = self.layout
        found = np.zeros((len(genomes), layout.offsets[-1]), np.float32)
        for token in layout.tokens:
            present = np.flatnonzero((depths > token.level) | (not layout.partial))
            words = token.words[genomes[present, token.place]]
            for slot, share in token.slots.items():
                found[present, layout.offsets[slot] + words] += share / self._levels(depths[present])
        return found

    def _levels(self, depths: Any) -> Any:
        if not self.layout.pooled:
            return np.ones_like(depths)
        return depths if self.layout.partial else np.full_like(depths, self.layout.depth)

    def gradients(self, inputs: np.ndarray, targets: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """See Surrogate."""
        weights, layout = self.parameters, self.layout
        read = inputs[rows]
        slots = [read[..., layout.offsets[slot] : layout.offsets[slot + 1]] for slot in range(len(layout.slots))]
        parts = [x @ weights[f"embedding{kind}"] for x, kind in zip(slots, layout.slots, strict=True)]
        joined = np.concatenate(parts, axis=-1)
        first = np.maximum(joined @ weights["first"] + weights["first_bias"], 0)
        second = np.maximum(first @ weights["second"] + weights["second_bias"], 0)
        raw = (second @ weights["last"] + weights["last_bias"])[..., 0]
        found = self._gradients
        found.vector.fill(0)
        error = self._error(raw, targets[rows])[..., None]
        back_second = error @ _turned(weights["last"]) * (second > 0)
        back_first = back_second @ _turned(weights["second"]) * (first > 0)
        for name, x, back in (("first", joined, back_first), ("second", first, back_second), ("last", second, error)):
            found[name][...] = _turned(x) @ back
            found[f"{name}_bias"][...] = back.sum(axis=1, keepdims=True)
        back = back_first @ _turned(weights["first"])
        units = self.settings.embedding
        for slot, kind in enumerate(layout.slots):
            found[f"embedding{kind}"][...] += _turned(slots[slot]) @ back[..., slot * units : (slot + 1) * units]
        return found.vector

    def raw(self, grid: Grid) -> np.ndarray:
        """See Surrogate; the first layer is linear in the decisions, so that parents and combinations just add up."""
        weights, units, members = self.parameters, self.settings.embedding, self.settings.members
        parents = np.zeros((members, len(grid.parents), self.settings.hidden), np.float32)
        combined = np.zeros((members, 1, self.settings.hidden), np.float32)
        tokens = {token.place: token for token in self.layout.read(grid.depth)}
        for place in [*(place for place in tokens if place not in grid.free), *grid.free]:
            token = tokens[place]
            rows = sum(
                share * weights["first"][:, slot * units : (slot + 1) * units] for slot, share in token.slots.items()
            )
            table = (weights[f"embedding{token.kind}"] @ rows)[:, token.words]
            if place in grid.free:
                combined = (combined[:, :, None] + table[:, None]).reshape(members, -1, self.settings.hidden)
            else:
                parents += table[:, grid.parents[:, place]]
        first = (parents[:, :, None] + combined[:, None]).reshape(members, -1, self.settings.hidden)
        first /= self._levels(np.float32(grid.depth))
        first += weights["first_bias"]
        np.maximum(first, 0, out=first)
        second = first @ weights["second"]
        second += weights["second_bias"]
        np.maximum(second, 0, out=second)
        return (second @ weights["last"] + weights["last_bias"])[..., 0]


class LstmEnsemble(Surrogate):
    """An LSTM that reads the decisions one after the other; the last output gives the score."""

    def __init__(self, layout: Layout, settings: Fitting):
        super().__init__(layout, settings)
        shapes = {f"embedding{kind}": (size, settings.embedding) for kind, size in enumerate(layout.sizes)}
        shapes |= {**Lstm.shapes(settings.embedding, settings.hidden), "last": (settings.hidden, 1), "last_bias": (1,)}
        size = Parameters(shapes).vector.size
        self.parameters, self._gradients = (Parameters({"all": (settings.members, size)}) for _ in range(2))
        self._members = [Parameters(shapes, own) for own in self.parameters["all"]]
        self._member_gradients = [Parameters(shapes, own) for own in self._gradients["all"]]

    def start(self, rng: np.random.Generator, target: float) -> None:
        """Draws weights uniformly from -0.1 .. 0.1, the paper's."""
        vector = self.parameters.vector
        vector[:] = rng.uniform(-0.1, 0.1, vector.size)
        for weights in self._members:
            weights["last_bias"][...] = self._first_bias(target)

    def inputs(self, genomes: np.ndarray, depths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (n, decisions) rows of the embeddings, and (n,) how many of them are read."""
        words = np.stack([token.words[genomes[:, token.place]] for token in self.layout.tokens], axis=1)
        return words, np.array([len(self.layout.read(depth)) for depth in depths])

    def gradients(self, inputs: tuple[np.ndarray, np.ndarray], targets: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """See Surrogate."""
        self._gradients.vector.fill(0)
        for weights, found, own in zip(self._members, self._member_gradients, rows, strict=True):
            self._add_gradients(weights, found, inputs[0][own], inputs[1][own], targets[own])
        return self._gradients.vector

    def _add_gradients(
        self, weights: Parameters, found: Parameters, words: np.ndarray, lengths: np.ndarray, targets: np.ndarray
    ) -> None:
        tokens = self.layout.tokens[: lengths.max()]
        lstm = Lstm(weights, self.settings.hidden)
        output, memory = lstm.start(len(words))
        last, caches = output, []
        for place, token in enumerate(tokens):
            output, memory, cache = lstm.step(weights[f"embedding{token.kind}"][words[:, place]], output, memory)
            caches.append(cache)
            last = np.where((lengths == place + 1)[:, None], output, last)
        error = self._error((last @ weights["last"] + weights["last_bias"])[:, 0], targets)[:, None]
        found["last"][...] = last.T @ error
        found["last_bias"][...] = error.sum()
        output, memory = lstm.start(len(words))
        for place in reversed(range(len(tokens))):
            output = output + np.where((lengths == place + 1)[:, None], error @ weights["last"].T, 0)
            x, output, memory = lstm.back(caches[place], output, memory, found)
            np.add.at(found[f"embedding{tokens[place].kind}"], words[:, place], x)

    def raw(self, grid: Grid) -> np.ndarray:
        """See Surrogate; what candidates have in common at their beginning is read once."""
        found = []
        for weights in self._members:
            output, memory = Lstm(weights, self.settings.hidden).start(len(grid.parents))
            parents = np.arange(len(grid.parents))
            for token in self.layout.read(grid.depth):
                table = weights[f"embedding{token.kind}"][token.words] @ weights["lstm_input"] + weights["lstm_bias"]
                gates = output @ weights["lstm_state"]
                if token.place in grid.free:
                    gates = (gates[:, None] + table[None]).reshape(-1, gates.shape[1])
                    memory, parents = (np.repeat(x, len(table), axis=0) for x in (memory, parents))
                else:
                    gates += table[grid.parents[parents, token.place]]
                opened, kept, shown, new = np.split(gates, 4, axis=1)
                memory = sigmoid(kept) * memory + sigmoid(opened) * np.tanh(new)
                output = sigmoid(shown) * np.tanh(memory)
            found.append((output @ weights["last"] + weights["last_bias"])[:, 0])
        return np.stack(found)


def make(layout: Layout, settings: Fitting) -> Surrogate:
    """Returns the predictor that `settings` ask for, without weights."""
    return (MlpEnsemble if settings.network == "mlp" else LstmEnsemble)(layout, settings)


def quantiles(scores: np.ndarray) -> np.ndarray:
    """Returns the standard normal quantiles of the ranks; equal scores get the same, that of their mean rank."""
    _, ranks, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2
    normal = statistics.NormalDist()
    return np.array([normal.inv_cdf(rank / len(scores)) for rank in middle], np.float32)[ranks]


def _turned(matrices: np.ndarray) -> np.ndarray:
    return np.swapaxes(matrices, -1, -2)
