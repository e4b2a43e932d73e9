"""The predictors of PNASNet (Liu et al., ECCV 2018, section 3.3): ensembles that learn scores from architectures.

The paper's LSTM reads the decisions one after the other; its MLP reads the mean of their embeddings. The members of an
ensemble are one network with an extra axis, so that one step trains all of them.
"""

import dataclasses
import functools
import statistics
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from recipes.oracles.layout import Grid, Layout
from recipes.oracles.networks import SharedNetwork, StackedDense, State
from recipes.training import check_at_least, check_options

_CHUNK = 16_384  # candidates scored at once


@dataclasses.dataclass(frozen=True)
class Fitting:
    """How predictors are built and trained; the paper's numbers where it gives them.

    Attributes:
        network: "mlp" or "lstm".
        members: of the ensemble.
        share: share of the data that each member is trained on.
        embedding, hidden: units.
        first_rate, rate: Adam's learning rates, of the first fit and of later ones.
        steps: per fit; not in the paper.
        batch: architectures per step; not in the paper.
        from_scratch: whether every fit starts from new weights, with the first rate; the paper keeps the old weights.
        target: "accuracy": the score itself, through a sigmoid, as in the paper; "ranks": the normal quantile of its
            rank, which works for any objective and tells the best apart even if the worst are far away.
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
    from_scratch: bool = False
    target: Literal["accuracy", "ranks"] = "ranks"

    def __post_init__(self):
        check_options(self, "network", "mlp or lstm", ("mlp", "lstm").__contains__)
        check_options(self, "target", "accuracy or ranks", ("accuracy", "ranks").__contains__)
        check_at_least(self, {"members": 1, "embedding": 1, "hidden": 1, "steps": 1, "batch": 1})
        check_options(self, "share", "a share above 0, at most 1", lambda value: 0 < value <= 1)
        check_options(self, "first_rate rate", "a rate above 0", lambda value: value > 0)


class Predictor:
    """An ensemble that predicts the score of an architecture; `state` holds its weights after the first fit."""

    def __init__(self, layout: Layout, fitting: Fitting):
        self.layout, self.fitting, self.fits = layout, fitting, 0
        self.state: State = []
        get = _get_mlp if fitting.network == "mlp" else _get_lstm
        inputs = len(layout.slots if fitting.network == "mlp" else layout.tokens)
        squashed = fitting.target == "accuracy"
        sizes = tuple(layout.sizes)
        self.network: Ensemble = get(fitting.members, sizes, fitting.embedding, fitting.hidden, inputs, squashed)

    def fit(self, genomes: np.ndarray, depths: np.ndarray, scores: np.ndarray, rng: np.random.Generator) -> None:
        """Trains each member on its own share of the data, by the absolute error.

        Args:
            genomes: (n, decisions).
            depths: (n,) number of levels of each.
            scores: (n,), larger is better.
            rng: draws the shares, the weights and the batches.

        Raises:
            ValueError: a score outside 0 to 1, with target="accuracy".
        """
        fitting, count = self.fitting, len(genomes)
        targets = self._targets(scores)
        rate, state = fitting.rate, self.state[:1]
        if self.fits == 0 or fitting.from_scratch:
            rate, state = fitting.first_rate, self.network.draw_state(rng, self._first_bias(float(np.median(targets))))
        size = max(1, round(fitting.share * count))
        rows = np.stack([rng.permutation(count)[:size] for _ in range(fitting.members)])
        data = [array[rows] for array in (*self.network.read(self.layout, genomes, depths), targets)]
        state = self.network.make_state(state[0])
        if size > fitting.batch:
            batches = rng.integers(size, size=(fitting.steps, fitting.members, fitting.batch), dtype=np.int32)
            _, self.state = self.network.fit_batches(state, *data, rate, batches)
        else:
            _, self.state = self.network.fit(state, *data, rate, fitting.steps)
        self.fits += 1

    def _targets(self, scores: np.ndarray) -> np.ndarray:
        if self.fitting.target == "ranks":
            return map_to_quantiles(scores)
        if scores.min() < 0 or scores.max() > 1:
            raise ValueError(
                f"scores from {scores.min():.4g} to {scores.max():.4g} with target='accuracy'; "
                "expected 0 to 1. Use target='ranks' for other objectives"
            )
        return scores.astype(np.float32)

    def _first_bias(self, target: float) -> float:
        """Returns the output bias for a first prediction of `target`; the paper's 1.8 is for an accuracy of 0.86."""
        if self.fitting.target == "ranks":
            return target
        target = min(max(target, 0.01), 0.99)
        return float(np.log(target / (1 - target)))

    def predict(self, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ensemble's mean and standard deviation for each candidate: (len(grid),) each."""
        step = max(1, _CHUNK // grid.combinations)
        means, deviations = [], []
        for first in range(0, len(grid.parents), step):
            part = dataclasses.replace(grid, parents=grid.parents[first : first + step])
            members = self.network.predict(self.state, self.layout, part)
            means.append(members.mean(axis=0))
            deviations.append(members.std(axis=0))
        return np.concatenate(means), np.concatenate(deviations)


class Ensemble(SharedNetwork):
    """Base of both networks: embeddings of the values of each kind of decision, an output layer, and the training.

    Args:
        members: of the ensemble.
        sizes: number of values of each kind of decision.
        units: of an embedding.
        layers: between embeddings and output.
        features: width of the output layer's input.
        squashed: whether the output is a sigmoid.
        data: shapes and types of the inputs for one architecture.
    """

    def __init__(
        self,
        members: int,
        sizes: tuple[int, ...],
        units: int,
        layers: list[keras.layers.Layer],
        features: int,
        squashed: bool,
        data: list[tuple[list[int], tf.DType]],
    ):
        self.offsets = np.cumsum([0, *sizes])  # first row of each kind's values
        with tf.device("CPU:0"):
            self.embeddings = StackedDense(members, sum(sizes), units, use_bias=False)
            self.output = StackedDense(members, features, 1)
        self._squashed = squashed
        layers = [self.embeddings, *layers, self.output]
        weights = [weight for layer in layers for weight in layer.trainable_variables]
        super().__init__(weights, keras.optimizers.Adam(epsilon=1e-8))
        given = [tf.TensorSpec([members, None, *shape], dtype) for shape, dtype in data]
        given += [tf.TensorSpec([members, None]), tf.TensorSpec([])]
        self.fit = self.on_state(self._fit, *given, tf.TensorSpec([], tf.int32))
        self.fit_batches = self.on_state(self._fit_batches, *given, tf.TensorSpec([None, members, None], tf.int32))

    def draw_state(self, rng: np.random.Generator, bias: float) -> State:
        """Draws new weights; the output starts at `bias`, before a sigmoid."""
        state = self.new_state(functools.partial(self.draw_weight, rng))
        self.split_weights(state)[-1][...] = bias
        return state

    def draw_weight(self, rng: np.random.Generator, weight: keras.Variable) -> np.ndarray:
        """Draws the initial values of a weight."""
        raise NotImplementedError

    def read(self, layout: Layout, genomes: np.ndarray, depths: np.ndarray) -> tuple[np.ndarray, ...]:
        """Returns the inputs of `raw` for each architecture."""
        raise NotImplementedError

    def raw(self, *inputs: Any) -> Any:
        """Returns (members, batch) predictions before the sigmoid, for inputs (members, batch, ..)."""
        raise NotImplementedError

    def predict(self, state: State, layout: Layout, grid: Grid) -> np.ndarray:
        """Returns (members, len(grid)) predictions; computes the parts that candidates share only once."""
        raise NotImplementedError

    def head(self, features: Any) -> Any:
        """Returns predictions before the sigmoid, for features (members, batch, features)."""
        return self.output(features)[..., 0]

    def squash(self, raw: Any) -> Any:
        """Returns predictions, after the sigmoid if there is one."""
        return tf.sigmoid(raw) if self._squashed else raw

    def error(self, *data: Any) -> Any:
        """Returns the mean absolute error, summed over members; the last of `data` are the targets."""
        *inputs, targets = data
        return tf.reduce_sum(tf.reduce_mean(tf.abs(self.squash(self.raw(*inputs)) - targets), axis=1))

    def _fit(self, *arguments: Any) -> Any:
        """Takes `steps` steps on all data, which are inputs and targets of (members, batch, ..)."""
        *data, learning_rate, steps = arguments
        self.optimizer.learning_rate.assign(learning_rate)
        for _ in tf.range(steps):
            self.descend(self.error, *data)
        return steps

    def _fit_batches(self, *arguments: Any) -> Any:
        """Takes a step on each of `batches` (steps, members, batch), which are indices into the data."""
        *data, learning_rate, batches = arguments
        self.optimizer.learning_rate.assign(learning_rate)
        for batch in batches:
            self.descend(self.error, *(tf.gather(array, batch, batch_dims=1) for array in data))
        return len(batches)


class MlpEnsemble(Ensemble):
    """Embeddings of a level's decisions side by side, their mean over the levels, two hidden layers."""

    def __init__(self, members: int, sizes: tuple[int, ...], units: int, hidden: int, slots: int, squashed: bool):
        self._joined = slots * units
        with tf.device("CPU:0"):
            self.first = StackedDense(members, self._joined, hidden)
            self.second = StackedDense(members, hidden, hidden)
        data = [([slots, sum(sizes)], tf.float32)]
        super().__init__(members, sizes, units, [self.first, self.second], hidden, squashed, data)
        self._score = self.on_state(self._combine, *(tf.TensorSpec([members, None, hidden]) for _ in range(2)))

    def draw_weight(self, rng: np.random.Generator, weight: keras.Variable) -> np.ndarray:
        """Draws weights with variance 2 / inputs, and embeddings with variance 1 / units."""
        if "bias" in weight.path:
            return np.zeros(weight.shape)
        fan = weight.shape[-1] if weight is self.embeddings.kernel else weight.shape[1] / 2
        return rng.normal(size=weight.shape) / np.sqrt(fan)

    def read(self, layout: Layout, genomes: np.ndarray, depths: np.ndarray) -> tuple[np.ndarray]:
        """Returns (n, slots, values of all kinds): the share of the levels that have each value."""
        found = np.zeros((len(genomes), len(layout.slots), self.offsets[-1]), np.float32)
        for token in layout.tokens:
            present = np.flatnonzero((depths > token.level) | (not layout.partial))
            words = self.offsets[token.kind] + token.words[genomes[present, token.place]]
            for slot, share in token.slots.items():
                found[present, slot, words] += share / layout.count_pooled(depths[present])
        return (found,)

    def raw(self, *inputs: Any) -> Any:
        """See Ensemble."""
        (shares,) = inputs
        members, *_, values = shares.shape
        joined = self.embeddings(tf.reshape(shares, [members, -1, values]))
        joined = tf.reshape(joined, [members, -1, self._joined])
        return self.head(tf.nn.relu(self.second(tf.nn.relu(self.first(joined)))))

    def predict(self, state: State, layout: Layout, grid: Grid) -> np.ndarray:
        """See Ensemble; the first layer is linear in the decisions, so parents and combinations just add up."""
        embeddings, first, bias = self.split_weights(state)[:3]
        members, _, units = embeddings.shape
        parents = np.zeros((members, len(grid.parents), first.shape[-1]), np.float32) + bias
        combined = np.zeros((members, 1, first.shape[-1]), np.float32)
        tokens = {token.place: token for token in layout.read(grid.depth)}
        for place in [*(place for place in tokens if place not in grid.free), *grid.free]:
            token = tokens[place]
            rows = sum(share * first[:, slot * units : (slot + 1) * units] for slot, share in token.slots.items())
            table = embeddings[:, self.offsets[token.kind] + token.words] @ rows
            table /= layout.count_pooled(np.float32(grid.depth))
            if place in grid.free:
                combined = (combined[:, :, None] + table[:, None]).reshape(members, -1, first.shape[-1])
            else:
                parents += table[:, grid.parents[:, place]]
        scores, _ = self._score(state, parents, combined)
        return scores.numpy()

    def _combine(self, parents: Any, combined: Any) -> Any:
        first = tf.nn.relu(parents[:, :, None] + combined[:, None])
        first = tf.reshape(first, [first.shape[0], -1, first.shape[-1]])
        with self.with_weights():
            return self.squash(self.head(tf.nn.relu(self.second(first))))


class LstmEnsemble(Ensemble):
    """An LSTM that reads the decisions one after the other; its last output gives the score."""

    def __init__(self, members: int, sizes: tuple[int, ...], units: int, hidden: int, tokens: int, squashed: bool):
        self._hidden = hidden
        with tf.device("CPU:0"):
            self.project = StackedDense(members, units, 4 * hidden)
            self.recur = StackedDense(members, hidden, 4 * hidden, use_bias=False)
        data = [([tokens], tf.int32), ([], tf.int32)]
        super().__init__(members, sizes, units, [self.project, self.recur], hidden, squashed, data)

    def draw_weight(self, rng: np.random.Generator, weight: keras.Variable) -> np.ndarray:
        """Draws weights uniformly from -0.1 .. 0.1, as in the paper."""
        return rng.uniform(-0.1, 0.1, weight.shape)

    def read(self, layout: Layout, genomes: np.ndarray, depths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (n, decisions) rows of the embeddings, and (n,) how many of these are read."""
        words = [self.offsets[token.kind] + token.words[genomes[:, token.place]] for token in layout.tokens]
        lengths = [len(layout.read(depth)) for depth in depths]
        return np.stack(words, axis=1).astype(np.int32), np.array(lengths, np.int32)

    def raw(self, *inputs: Any) -> Any:
        """See Ensemble."""
        words, lengths = inputs
        embeddings, (members, _, tokens) = tf.convert_to_tensor(self.embeddings.kernel), words.shape
        x = tf.gather(embeddings, tf.reshape(words, [members, -1]), batch_dims=1)
        x = tf.reshape(self.project(x), [members, -1, tokens, 4 * self._hidden])
        output = memory = last = tf.zeros([members, tf.shape(words)[1], self._hidden])
        for place in tf.range(tokens):
            output, memory = self.step(x[:, :, place] + self.recur(output), memory)
            last = tf.where((lengths == place + 1)[..., None], output, last)
        return self.head(last)

    def step(self, gates: Any, memory: Any) -> tuple[Any, Any]:
        """Returns output and memory from the gates' pre-activations, in Keras' order."""
        opened, kept, new, shown = tf.split(gates, 4, axis=-1)
        memory = tf.sigmoid(kept) * memory + tf.sigmoid(opened) * tf.tanh(new)
        return tf.sigmoid(shown) * tf.tanh(memory), memory

    def predict(self, state: State, layout: Layout, grid: Grid) -> np.ndarray:
        """See Ensemble; a beginning that candidates share is read once."""
        with tf.device("CPU:0"), self.with_weights(state[0]):
            embeddings = tf.convert_to_tensor(self.embeddings.kernel)
            output = memory = tf.zeros([embeddings.shape[0], len(grid.parents), self._hidden])
            parents = np.arange(len(grid.parents))
            for token in layout.read(grid.depth):
                table = self.project(tf.gather(embeddings, self.offsets[token.kind] + token.words, axis=1))
                recurrent = self.recur(output)
                if token.place in grid.free:
                    gates = recurrent[:, :, None] + table[:, None]
                    gates = tf.reshape(gates, [gates.shape[0], -1, gates.shape[-1]])
                    count = len(token.words)
                    memory, parents = tf.repeat(memory, count, axis=1), np.repeat(parents, count)
                else:
                    gates = recurrent + tf.gather(table, grid.parents[parents, token.place], axis=1)
                output, memory = self.step(gates, memory)
            return self.squash(self.head(output)).numpy()


_get_mlp = functools.lru_cache(maxsize=8)(MlpEnsemble)
_get_lstm = functools.lru_cache(maxsize=8)(LstmEnsemble)


def map_to_quantiles(scores: np.ndarray) -> np.ndarray:
    """Maps scores to the standard normal quantiles of their ranks; equal scores share that of their mean rank."""
    _, ranks, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2
    normal = statistics.NormalDist()
    return np.array([normal.inv_cdf(rank / len(scores)) for rank in middle], np.float32)[ranks]
