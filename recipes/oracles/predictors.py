"""The networks that predict scores for PNASNet's search: an LSTM, the paper's, and a perceptron, each as an ensemble.

Both are small numpy networks: scoring the 590,000 expansions of the paper's last level takes seconds, for what
candidates have in common is computed once.
"""

from typing import Any

import numpy as np

from recipes.oracles.layout import Grid, Layout
from recipes.oracles.networks import Lstm, Parameters, sigmoid
from recipes.oracles.surrogate import Fitting, Surrogate


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
        self.parameters["last_bias"][...] = self.first_bias(target)

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
        error = self.error(raw, targets[rows])[..., None]
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
            weights["last_bias"][...] = self.first_bias(target)

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
        error = self.error((last @ weights["last"] + weights["last_bias"])[:, 0], targets)[:, None]
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


def _turned(matrices: np.ndarray) -> np.ndarray:
    return np.swapaxes(matrices, -1, -2)
