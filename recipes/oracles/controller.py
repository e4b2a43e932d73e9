"""The controller of NASNet (Zoph et al., CVPR 2018, appendix A) and MnasNet: an LSTM that learns by reinforcement."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from recipes.oracles.base import SearchOracle
from recipes.oracles.choices import Genome
from recipes.oracles.networks import Adam, Lstm, Parameters, packed, softmax, unpacked

_LEAST = 1e-6  # of a probability that is divided by
_INITIAL = 0.1  # weights are uniform in -0.1 .. 0.1 (A.2)


class ControllerOracle(SearchOracle):
    """Draws architectures choice by choice from an LSTM, and makes choices likelier that scored above the average.

    It draws `batch` architectures at once and learns whenever that many have been scored. What is known is drawn again,
    but not learned again: a controller that has found a good point would soon draw nothing else. Every decision has a
    softmax and an embedding of its choices of its own.

    The paper states neither PPO's clip nor its passes over a batch; those here are PPO's usual ones.

    Args:
        objective, max_trials, hyperparameters, seed, key, check, max_redraws: see SearchOracle.
        algorithm: "ppo" (paper), or "reinforce": one pass over a batch, without clipping.
        hidden: units of the LSTM and of its inputs (paper: 100).
        learning_rate: Adam's (paper: 0.00035, for 20,000 trials; a search of 1,000 needs more).
        batch: architectures an update (paper: 20).
        entropy: weight of the decisions' entropy in the objective (paper: 0.00001).
        baseline: how much of the moving average of rewards stays at each update of it (paper: 0.95).
        clip: PPO's: how far a decision's probability may move within a batch, as a share.
        passes: PPO's: gradient steps a batch.
        standardize: divides a batch's advantages by their standard deviation; then `entropy` and failures of wildly
            different size weigh the same in every space.
    """

    relearns = False

    def __init__(
        self,
        objective: Any = "val_accuracy",
        max_trials: int | None = None,
        hyperparameters: Any = None,
        *,
        seed: int | None = None,
        key: Any = None,
        check: Any = None,
        max_redraws: int = 1000,
        algorithm: Literal["ppo", "reinforce"] = "ppo",
        hidden: int = 100,
        learning_rate: float = 0.00035,
        batch: int = 20,
        entropy: float = 0.00001,
        baseline: float = 0.95,
        clip: float = 0.2,
        passes: int = 10,
        standardize: bool = False,
    ):
        super().__init__(
            objective, max_trials, hyperparameters, seed=seed, key=key, check=check, max_redraws=max_redraws
        )
        if algorithm not in ("ppo", "reinforce"):
            raise ValueError(f"algorithm is {algorithm!r}; expected ppo or reinforce")
        if batch < 1 or passes < 1 or hidden < 1:
            raise ValueError(f"batch is {batch}, passes {passes} and hidden {hidden}; expected whole numbers from 1")
        if learning_rate <= 0 or not 0 <= baseline < 1 or clip <= 0:
            raise ValueError(
                f"learning_rate is {learning_rate}, baseline {baseline} and clip {clip}; expected a rate and a clip "
                "above 0 and a baseline from 0 up to, not including, 1"
            )
        self.batch, self.entropy, self.baseline = batch, entropy, baseline
        self.clip, self.passes = (clip, passes) if algorithm == "ppo" else (np.inf, 1)
        self.standardize = standardize
        self._hidden, self._learning_rate = hidden, learning_rate
        self._policy: Policy | None = None
        self._average: float | None = None
        self._queue: list[Genome] = []
        self._results: list[tuple[Genome, float | None]] = []

    @property
    def policy(self) -> "Policy":
        """The network and its optimizer; made at the first draw, when the choices are known."""
        if self._policy is None:
            counts = self.choices.counts.tolist()
            self._policy = Policy(counts, self._hidden, self._learning_rate)
            vector = self._policy.parameters.vector
            vector[:] = self.rng.uniform(-_INITIAL, _INITIAL, vector.size)
        if len(self._policy.counts) != len(self.choices):
            raise ValueError("the search space has grown; this oracle needs all choices before the first trial")
        return self._policy

    def propose(self) -> Genome:
        """Returns the next architecture of the batch that was drawn last."""
        if not self._queue:
            drawn = self.policy.sample(self.batch, self.rng)
            self._queue = [tuple(row) for row in drawn.tolist()]
        return self._queue.pop(0)

    def learn(self, genome: Genome, fitness: float | None) -> None:
        """Collects a batch and updates the controller; what failed takes a place and teaches nothing."""
        self._results.append((genome, fitness))
        if len(self._results) < self.batch:
            return
        results = [(row, reward) for row, reward in self._results if reward is not None]
        self._results = []
        if not results:
            return
        rewards = np.array([reward for _, reward in results])
        if self._average is None:
            self._average = float(rewards.mean())
        advantages = rewards - self._average
        for reward in rewards:
            self._average = self.baseline * self._average + (1 - self.baseline) * float(reward)
        if self.standardize:
            advantages = advantages / max(float(advantages.std()), 1e-8)
        genomes = np.array([row for row, _ in results])
        self.policy.update(genomes, advantages.astype(np.float32), self.entropy, self.clip, self.passes)

    def learned(self) -> dict[str, Any]:
        """Returns the weights, the optimizer's moments, the baseline and the batch in progress."""
        state: dict[str, Any] = {
            "average": self._average,
            "queue": [list(genome) for genome in self._queue],
            "results": [[list(genome), fitness] for genome, fitness in self._results],
        }
        if self._policy is not None:
            adam = self._policy.optimizer
            state["weights"] = packed([self._policy.parameters.vector, adam.mean, adam.square])
            state["steps"] = adam.steps
        return state

    def restore(self, learned: Mapping[str, Any]) -> None:
        """Takes back what `learned` returned."""
        self._average = learned["average"]
        self._queue = [tuple(genome) for genome in learned["queue"]]
        self._results = [(tuple(genome), fitness) for genome, fitness in learned["results"]]
        self._policy = None
        if "weights" in learned:
            self._policy = Policy(self.choices.counts.tolist(), self._hidden, self._learning_rate)
            adam = self._policy.optimizer
            self._policy.parameters.vector[:], adam.mean, adam.square = unpacked(learned["weights"])
            adam.steps = learned["steps"]


class Policy:
    """The LSTM: what it reads at each step is the embedding of the choice before, what it says a softmax."""

    def __init__(self, counts: list[int], hidden: int, learning_rate: float):
        self.counts = counts
        shapes = {"start": (1, hidden), **Lstm.shapes(hidden, hidden)}
        for place, count in enumerate(counts):
            shapes |= {f"embedding{place}": (count, hidden), f"softmax{place}": (hidden, count)}
            shapes |= {f"bias{place}": (count,)}
        self.parameters = Parameters(shapes)
        self.lstm = Lstm(self.parameters, hidden)
        self.optimizer = Adam(self.parameters.vector.size, learning_rate)

    def sample(self, batch: int, rng: np.random.Generator) -> np.ndarray:
        """Returns (batch, decisions) choices drawn from the softmaxes."""
        drawn = np.zeros((batch, len(self.counts)), np.int64)
        uniform = rng.random((len(self.counts), batch, 1))
        output, memory = self.lstm.start(batch)
        for place in range(len(self.counts)):
            output, memory, _ = self.lstm.step(self._input(drawn, place), output, memory)
            below = self._probabilities(output, place).cumsum(axis=1)
            drawn[:, place] = np.minimum((below < uniform[place]).sum(axis=1), self.counts[place] - 1)
        return drawn

    def probabilities(self, genomes: np.ndarray) -> np.ndarray:
        """Returns the probability of each choice of each genome, given those before it: (batch, decisions)."""
        chosen = np.zeros(genomes.shape, np.float32)
        output, memory = self.lstm.start(len(genomes))
        for place in range(len(self.counts)):
            output, memory, _ = self.lstm.step(self._input(genomes, place), output, memory)
            chosen[:, place] = self._probabilities(output, place)[np.arange(len(genomes)), genomes[:, place]]
        return chosen

    def update(self, genomes: np.ndarray, advantages: np.ndarray, entropy: float, clip: float, passes: int) -> None:
        """Takes `passes` steps up the clipped objective of PPO; clip = infinity and one pass is REINFORCE."""
        before = self.probabilities(genomes)
        for _ in range(passes):
            gradients = self.gradients(genomes, advantages, before, entropy, clip)
            self.optimizer.step(self.parameters.vector, gradients.vector)

    def gradients(
        self, genomes: np.ndarray, advantages: np.ndarray, before: np.ndarray, entropy: float, clip: float
    ) -> Parameters:
        """Returns the gradients of minus the objective: mean over genomes of the decisions' sum.

        A decision's part is min(r A, clipped r A) + entropy x H; r is its probability over that in `before`.
        """
        count, rows = len(genomes), np.arange(len(genomes))
        output, memory = self.lstm.start(count)
        caches, outputs, raw = [], [], []
        for place in range(len(self.counts)):
            output, memory, cache = self.lstm.step(self._input(genomes, place), output, memory)
            probabilities = self._probabilities(output, place)
            ratio = probabilities[rows, genomes[:, place]] / np.maximum(before[:, place], _LEAST)
            clipped = ((advantages > 0) & (ratio > 1 + clip)) | ((advantages < 0) & (ratio < 1 - clip))
            weight = np.where(clipped, 0.0, ratio * advantages).astype(np.float32)
            logs = np.log(probabilities + 1e-12)
            spread = -(probabilities * logs).sum(axis=1, keepdims=True)
            gradient = weight[:, None] * probabilities + entropy * probabilities * (logs + spread)
            gradient[rows, genomes[:, place]] -= weight
            caches.append(cache)
            outputs.append(output)
            raw.append((gradient / count).astype(np.float32))
        return self._back(genomes, caches, outputs, raw)

    def _back(self, genomes: np.ndarray, caches: list, outputs: list, raw: list) -> Parameters:
        gradients = self.parameters.like()
        output, memory = self.lstm.start(len(genomes))
        for place in reversed(range(len(self.counts))):
            gradients[f"softmax{place}"][...] += outputs[place].T @ raw[place]
            gradients[f"bias{place}"][...] += raw[place].sum(axis=0)
            output = output + raw[place] @ self.parameters[f"softmax{place}"].T
            x, output, memory = self.lstm.back(caches[place], output, memory, gradients)
            if place == 0:
                gradients["start"][...] += x.sum(axis=0)
            else:
                np.add.at(gradients[f"embedding{place - 1}"], genomes[:, place - 1], x)
        return gradients

    def _input(self, genomes: np.ndarray, place: int) -> np.ndarray:
        if place == 0:
            return np.repeat(self.parameters["start"], len(genomes), axis=0)
        return self.parameters[f"embedding{place - 1}"][genomes[:, place - 1]]

    def _probabilities(self, output: np.ndarray, place: int) -> np.ndarray:
        return softmax(output @ self.parameters[f"softmax{place}"] + self.parameters[f"bias{place}"])
