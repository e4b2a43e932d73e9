"""The controller of NASNet (Zoph et al., CVPR 2018, appendix A) and MnasNet: an LSTM trained by reinforcement."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import keras
import numpy as np
import tensorflow as tf

from recipes.oracles.base import SearchOracle
from recipes.oracles.choices import Genome
from recipes.oracles.networks import (
    OTHER_VERSION,
    SharedNetwork,
    StackedDense,
    State,
    decode_array,
    encode_array,
    run_lstm,
)
from recipes.training import check_at_least, check_options

_INITIAL = 0.1  # weights are uniform in -0.1 .. 0.1 (A.2)
_LEAST = 1e-6  # least probability to divide by
_MASKED = -1e9  # logit of a choice that a decision lacks
_MOST_REDRAWS = 3  # each draws four times as many architectures


@dataclasses.dataclass(eq=False, repr=False, kw_only=True)
class ControllerOracle(SearchOracle):
    """Draws architectures choice by choice from an LSTM, and makes choices that score above the average likelier.

    It learns whenever `batch` architectures have been scored. Known architectures are drawn again but not learned
    again: a controller that has found a good point would soon draw nothing else. Every decision has its own softmax
    and its own embedding of the choices.

    The paper states neither PPO's clip nor its passes over a batch; those here are PPO's usual ones.

    Args:
        objective, max_trials, hyperparameters, seed, key, check, max_redraws: see SearchOracle.
        algorithm: "ppo" (paper), or "reinforce": one pass over a batch, without clipping.
        hidden: units of the LSTM and of its inputs (paper: 100).
        learning_rate: Adam's (paper: 0.00035, for 20,000 trials; a search of 1,000 needs more).
        batch: architectures per update (paper: 20).
        entropy: weight of the decisions' entropy in the objective (paper: 0.00001).
        baseline: decay of the moving average of rewards (paper: 0.95).
        clip: PPO's: how far a decision's probability may move within a batch, relative to its value before.
        passes: PPO's: gradient steps per batch.
        standardize: divides a batch's advantages by their standard deviation, so that `entropy` weighs the same
            whatever the scale of the rewards.
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
        self._decisions = 0  # number in the space, once known
        self._average: float | None = None
        self._queue: list[Genome] = []
        self._redraws = 0
        self._results: list[tuple[Genome, float | None]] = []

    @property
    def network(self) -> "ControllerNetwork":
        """The LSTM for the choices, which are known at the first proposal."""
        if self._decisions not in (0, len(self.choices)):
            raise ValueError("the search space has grown; this oracle needs all choices before the first trial")
        self._decisions = len(self.choices)
        return get_controller_network(tuple(self.choices.counts.tolist()), self.hidden)

    @property
    def state(self) -> State:
        """The network's weights and its optimizer's moments."""
        if self._state is None:
            self._state = self.network.new_state(lambda weight: self.rng.uniform(-_INITIAL, _INITIAL, weight.shape))
        return self._state

    def propose(self) -> Genome:
        """Returns the next drawn architecture; when none is left, draws more, and ever more while all are known."""
        if not self._queue:
            state, count = self.state, self.batch * 4**self._redraws
            self._redraws = min(self._redraws + 1, _MOST_REDRAWS)
            uniform = self.rng.random((count, len(self.choices)), np.float32)
            drawn, _ = self.network.sample(state, uniform)
            self._queue = [tuple(row) for row in drawn.numpy()[::-1].tolist()]
        return self._queue.pop()

    def learn(self, genome: Genome, fitness: float | None) -> None:
        """Collects a batch and updates the controller; a failed trial counts in the batch but teaches nothing."""
        self._results.append((genome, fitness))
        if len(self._results) < self.batch:
            return
        results = [(row, reward) for row, reward in self._results if reward is not None]
        self._results = []
        if not results:
            return
        # Finish the batch in progress; drop the draws beyond it, which come from the old policy.
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
        """Returns the weights, the optimizer's moments, the average reward and the batch in progress."""
        state: dict[str, Any] = {
            "average": self._average,
            "queue": encode_array(np.array(self._queue, np.int32)),
            "redraws": self._redraws,
            "results": list(self._results),
        }
        if self._state is not None:
            state["network"] = [encode_array(array) for array in self._state]
        return state

    def restore(self, learned: Mapping[str, Any]) -> None:
        """Restores what `learned` returned.

        Raises:
            ValueError: the state is of another network, such as an earlier version's.
        """
        if "redraws" not in learned:  # a version whose network was not a Keras one
            raise ValueError(OTHER_VERSION)
        self._state = self.network.decode_state(learned["network"]) if "network" in learned else None
        self._average, self._redraws = learned["average"], learned["redraws"]
        self._queue = [tuple(genome) for genome in decode_array(learned["queue"]).tolist()]
        self._results = [(tuple(genome), fitness) for genome, fitness in learned["results"]]


class ControllerNetwork(SharedNetwork):
    """Embedding -> LSTM -> a softmax for each decision; at each decision it reads the previous choice.

    Genomes are int32 (batch, decisions). `sample` and `update` take a `State` and return their result and the next one.
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
        """Returns the log probability of every choice at each decision, given the choices before it.

        The shape is (decisions, batch, choices of the largest decision); choices that a decision lacks have about -1e9.
        """
        rows = tf.transpose(genomes + self._first_rows)
        rows = tf.concat([tf.zeros_like(rows[:1]), rows[:-1]], axis=0)
        return tf.nn.log_softmax(self.heads(run_lstm(self.cell, self.embedding(rows))) + self._masks)

    def _sample(self, uniform: Any) -> Any:
        """Draws a genome for each row of uniform numbers (batch, decisions) from 0 to 1.

        Genomes with equal beginnings share a row of the LSTM: a trained controller draws few different ones.
        """
        width = self._masks.shape[-1]
        beginning = tf.zeros_like(uniform[:, 0], tf.int32)  # each genome's row of the LSTM
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
        """Takes `passes` ascent steps on PPO's objective; an infinite clip and one pass make it REINFORCE."""
        self.optimizer.learning_rate.assign(learning_rate)
        with self.with_weights():
            before = self._chosen(self.log_probs(genomes), genomes)
        for _ in tf.range(passes):
            self.descend(self.loss, genomes, before, advantages, entropy, clip)
        return before

    def loss(self, genomes: Any, before: Any, advantages: Any, entropy: Any, clip: Any) -> Any:
        """Returns minus the objective of PPO: the mean over genomes of the sum over decisions.

        A decision contributes min(r A, clipped r A) + entropy x H, where r is the probability of its choice divided by
        the probability before the update, whose logarithm is `before` (decisions, batch), and A is the genome's
        advantage. Probabilities below a millionth belong to random points, not to draws, and count for almost nothing.
        """
        log_probs = self.log_probs(genomes)
        ratio = tf.exp(self._chosen(log_probs, genomes) - tf.maximum(before, np.log(_LEAST)))
        gain = tf.minimum(ratio * advantages, tf.clip_by_value(ratio, 1 - clip, 1 + clip) * advantages)
        entropies = -tf.reduce_sum(tf.exp(log_probs) * log_probs, axis=-1)
        return -tf.reduce_mean(tf.reduce_sum(gain + entropy * entropies, axis=0))

    def _chosen(self, log_probs: Any, genomes: Any) -> Any:
        return tf.reduce_sum(log_probs * tf.one_hot(tf.transpose(genomes), log_probs.shape[-1]), axis=-1)


@functools.lru_cache(maxsize=16)
def get_controller_network(counts: tuple[int, ...], hidden: int) -> ControllerNetwork:
    """Returns the network shared by all controllers of this shape; `counts` are the choices of each decision."""
    return ControllerNetwork(counts, hidden)
