"""The controller of NASNet (Zoph et al., CVPR 2018, appendix A) and MnasNet: an LSTM that learns by reinforcement."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import keras
import numpy as np
import tensorflow as tf

from recipes.oracles.base import SearchOracle
from recipes.oracles.choices import Genome
from recipes.oracles.networks import OTHER_VERSION, Network, StackedDense, State, lstm_outputs, packed, unpacked
from recipes.training import check_at_least, check_options

_INITIAL = 0.1  # weights are uniform in -0.1 .. 0.1 (A.2)
_LEAST = 1e-6  # of a probability that is divided by
_MASKED = -1e9  # logit of a choice that a decision does not have
_MOST_REDRAWS = 3  # each is of four times as many architectures


@dataclasses.dataclass(eq=False, repr=False, kw_only=True)
class ControllerOracle(SearchOracle):
    """Draws architectures choice by choice from an LSTM, and makes choices likelier that scored above the average.

    It learns whenever `batch` architectures have been scored. What is known is drawn again, but not learned again: a
    controller that has found a good point would soon draw nothing else. Every decision has a softmax and an embedding
    of its choices of its own.

    The paper states neither PPO's clip nor its passes over a batch; those here are PPO's usual ones.

    Args:
        objective, max_trials, hyperparameters, seed, key, check, max_redraws: see SearchOracle.
        algorithm: "ppo" (paper), or "reinforce": one pass over a batch, without clipping.
        hidden: units of the LSTM and of its inputs (paper: 100).
        learning_rate: Adam's (paper: 0.00035, for 20,000 trials; a search of 1,000 needs more).
        batch: architectures an update (paper: 20).
        entropy: weight of the decisions' entropy in the objective (paper: 0.00001).
        baseline: how much of the moving average of rewards stays at each update of it (paper: 0.95).
        clip: PPO's: how far a decision's probability may move within a batch, relative to what it was.
        passes: PPO's: gradient steps a batch.
        standardize: divides a batch's advantages by their standard deviation; then `entropy` and failures of wildly
            different size weigh the same in every space.
    """

    algorithm: Literal["ppo", "reinforce"] = "ppo"
    hidden: int = 100
    learning_rate: float = 0.00035
    batch: int = 20
    entropy: float = 0.00001
    baseline: float = 0.95
    clip: float = 0.2
    passes: int = 10
    standardize: bool = False

    relearns: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        check_options(self, "algorithm", "ppo or reinforce", ("ppo", "reinforce").__contains__)
        check_at_least(self, {"batch": 1, "passes": 1, "hidden": 1})
        check_options(self, "learning_rate clip", "a number above 0", lambda value: value > 0)
        check_options(self, "baseline", "a number from 0 to less than 1", lambda value: 0 <= value < 1)
        if self.algorithm == "reinforce":
            self.clip, self.passes = np.inf, 1
        self._state: State | None = None  # of the network
        self._decisions = 0  # of the space, once they are known
        self._average: float | None = None
        self._queue: list[Genome] = []
        self._redraws = 0
        self._results: list[tuple[Genome, float | None]] = []

    @property
    def network(self) -> "ControllerNetwork":
        """The LSTM for the choices, which are known at the first draw."""
        if self._decisions not in (0, len(self.choices)):
            raise ValueError("the search space has grown; this oracle needs all choices before the first trial")
        self._decisions = len(self.choices)
        return controller_network(tuple(self.choices.counts.tolist()), self.hidden)

    @property
    def state(self) -> State:
        """The network's weights and its optimizer's moments."""
        if self._state is None:
            self._state = self.network.new_state(lambda weight: self.rng.uniform(-_INITIAL, _INITIAL, weight.shape))
        return self._state

    def propose(self) -> Genome:
        """Returns the next of the architectures that were drawn last; draws ever more while they are known."""
        if not self._queue:
            state, count = self.state, self.batch * 4**self._redraws
            self._redraws = min(self._redraws + 1, _MOST_REDRAWS)
            uniform = self.rng.random((count, len(self.choices)), np.float32)
            drawn, _ = self.network.sample(state, uniform)
            self._queue = [tuple(row) for row in drawn.numpy()[::-1].tolist()]
        return self._queue.pop()

    def learn(self, genome: Genome, fitness: float | None) -> None:
        """Collects a batch and updates the controller; what failed takes a place and teaches nothing."""
        self._results.append((genome, fitness))
        if len(self._results) < self.batch:
            return
        results = [(row, reward) for row, reward in self._results if reward is not None]
        self._results = []
        if not results:
            return
        # The batch that was begun is tried to its end; what was drawn beyond it is of the policy as it was.
        self._queue = self._queue[len(self._queue) - len(self._queue) % self.batch :]
        self._redraws = max(0, self._redraws - 1)
        rewards = np.array([reward for _, reward in results])
        if self._average is None:
            self._average = float(rewards.mean())
        advantages = rewards - self._average
        for reward in rewards:
            self._average = self.baseline * self._average + (1 - self.baseline) * float(reward)
        if self.standardize:
            advantages = advantages / max(float(advantages.std()), 1e-8)
        genomes = np.array([row for row, _ in results], np.int32)
        update = (genomes, advantages.astype(np.float32), self.learning_rate, self.entropy, self.clip, self.passes)
        _, self._state = self.network.update(self.state, *update)

    def learned(self) -> dict[str, Any]:
        """Returns the weights, the optimizer's moments, the baseline and the batch in progress."""
        state: dict[str, Any] = {
            "average": self._average,
            "queue": packed(np.array(self._queue, np.int32)),
            "redraws": self._redraws,
            "results": list(self._results),
        }
        if self._state is not None:
            state["network"] = [packed(array) for array in self._state]
        return state

    def restore(self, learned: Mapping[str, Any]) -> None:
        """Takes back what `learned` returned.

        Raises:
            ValueError: it is the state of another network, such as that of an earlier version.
        """
        if "redraws" not in learned:  # of the version whose network was not Keras'
            raise ValueError(OTHER_VERSION)
        self._state = self.network.unpacked(learned["network"]) if "network" in learned else None
        self._average, self._redraws = learned["average"], learned["redraws"]
        self._queue = [tuple(genome) for genome in unpacked(learned["queue"]).tolist()]
        self._results = [(tuple(genome), fitness) for genome, fitness in learned["results"]]


class ControllerNetwork(Network):
    """Embedding -> LSTM -> a softmax for each decision; what it reads at a decision is the choice before.

    Genomes are int32 (batch, decisions). The functions are of a `State` and return their result with the next state.
    """

    def __init__(self, counts: tuple[int, ...], hidden: int):
        decisions, most = len(counts), max(counts)
        self.hidden, self.counts = hidden, np.array(counts, np.int32)
        self._first_rows = np.cumsum([1, *counts[:-1]], dtype=np.int32)  # row 0 is read before the first decision
        self._masks = np.where(np.arange(most) < self.counts[:, None], 0, _MASKED).astype(np.float32)[:, None]
        with tf.device("CPU:0"):
            self.embedding = keras.layers.Embedding(1 + sum(counts), hidden, dtype="float32")
            self.cell = keras.layers.LSTMCell(hidden, dtype="float32")
            self.heads = StackedDense(decisions, hidden, most)
            self.embedding.build()
            self.cell.build((None, hidden))
        layers = (self.embedding, self.cell, self.heads)
        weights = [weight for layer in layers for weight in layer.trainable_variables]
        super().__init__(weights, keras.optimizers.Adam(epsilon=1e-8))
        genomes, number = tf.TensorSpec([None, decisions], tf.int32), tf.TensorSpec([])
        self.sample = self.on_state(self._sample, tf.TensorSpec([None, decisions]))
        self.update = self.on_state(
            self._update, genomes, tf.TensorSpec([None]), number, number, number, tf.TensorSpec([], tf.int32)
        )

    def log_probs(self, genomes: Any) -> Any:
        """Returns the logarithm of the probability of every choice at each decision, given the choices before it.

        The result is (decisions, batch, choices of the largest decision), -1e9 or so where a decision has fewer.
        """
        rows = tf.transpose(genomes + self._first_rows)
        rows = tf.concat([tf.zeros_like(rows[:1]), rows[:-1]], axis=0)
        return tf.nn.log_softmax(self.heads(lstm_outputs(self.cell, self.embedding(rows))) + self._masks)

    def _sample(self, uniform: Any) -> Any:
        """Draws a genome for each row of uniform numbers (batch, decisions) from 0 to 1.

        Genomes that begin alike are one row of the LSTM: a controller that has learned draws few different ones.
        """
        width = self._masks.shape[-1]
        beginning = tf.zeros_like(uniform[:, 0], tf.int32)  # of each genome, a row of the LSTM
        rows = tf.zeros([1], tf.int32)
        states = [tf.zeros([1, self.hidden])] * 2
        drawn = tf.TensorArray(tf.int32, len(self.counts), element_shape=[None])
        with self.with_weights():
            kernels, biases = tf.convert_to_tensor(self.heads.kernel), self.heads.bias + self._masks
            for place in tf.range(len(self.counts)):
                tf.autograph.experimental.set_loop_options(
                    shape_invariants=[
                        (rows, tf.TensorShape([None])),
                        (states, [tf.TensorShape([None, self.hidden])] * 2),
                    ]
                )
                output, states = self.cell(self.embedding(rows), states)
                cumulated = tf.cumsum(tf.nn.softmax(output @ kernels[place] + biases[place]), axis=1)
                below = tf.gather(cumulated, beginning) < uniform[:, place, None]
                last = tf.gather(self.counts, place) - 1
                chosen = tf.minimum(tf.reduce_sum(tf.cast(below, tf.int32), axis=1), last)
                drawn = drawn.write(place, chosen)
                different, beginning = tf.unique(beginning * width + chosen)
                states = [tf.gather(state, different // width) for state in states]
                rows = different % width + tf.gather(self._first_rows, place)
        return tf.transpose(drawn.stack())

    def _update(self, genomes: Any, advantages: Any, learning_rate: Any, entropy: Any, clip: Any, passes: Any) -> Any:
        """Takes `passes` steps up the objective of PPO, which with an infinite clip and one pass is REINFORCE's."""
        self.optimizer.learning_rate.assign(learning_rate)
        with self.with_weights():
            before = self._chosen(self.log_probs(genomes), genomes)
        for _ in tf.range(passes):
            self.descend(self.loss, genomes, before, advantages, entropy, clip)
        return before

    def loss(self, genomes: Any, before: Any, advantages: Any, entropy: Any, clip: Any) -> Any:
        """Returns minus the objective of PPO: the mean over genomes of the sum over decisions.

        A decision's part is min(r A, clipped r A) + entropy x H; r is the probability of its choice over that which it
        had, of which `before` (decisions, batch) is the logarithm, and A the genome's advantage. What had less than a
        millionth was no draw of the controller's but a random point, and counts for next to nothing.
        """
        log_probs = self.log_probs(genomes)
        ratio = tf.exp(self._chosen(log_probs, genomes) - tf.maximum(before, np.log(_LEAST)))
        gain = tf.minimum(ratio * advantages, tf.clip_by_value(ratio, 1 - clip, 1 + clip) * advantages)
        entropies = -tf.reduce_sum(tf.exp(log_probs) * log_probs, axis=-1)
        return -tf.reduce_mean(tf.reduce_sum(gain + entropy * entropies, axis=0))

    def _chosen(self, log_probs: Any, genomes: Any) -> Any:
        return tf.reduce_sum(log_probs * tf.one_hot(tf.transpose(genomes), log_probs.shape[-1]), axis=-1)


@functools.lru_cache(maxsize=16)
def controller_network(counts: tuple[int, ...], hidden: int) -> ControllerNetwork:
    """Returns the one network of its shape; `counts` are the choices of each decision."""
    return ControllerNetwork(counts, hidden)
