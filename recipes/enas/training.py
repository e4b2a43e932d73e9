"""An ENAS search: in each epoch the shared weights are trained and the controller is updated; then paths are ranked.

Random numbers depend only on the seed and the step, so a search that was killed resumes at the saved step and ends with
the same result.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from recipes.enas.config import Config
from recipes.enas.supernet import PathSupernet, draw_weights
from recipes.images import augment
from recipes.images import sources as image_data
from recipes.images.parts import Batches
from recipes.oracles.attention import AttentionController
from recipes.training.evaluation import Scores, evaluate
from recipes.training.loop import Record, run_epochs
from recipes.training.optimizer import Optimizer, Schedule
from recipes.training.progress import Report, Status, report_part
from recipes.training.state import TrainingState

_WEIGHTS, _PATHS, _DROPOUT, _REWARDS, _CANDIDATES = range(5)  # the streams of random numbers
_MOST_REFUSED = 100  # candidates in a row; checking one may require building it
_VERSION = 2  # of the format of a search's state
_CLIP = 5.0  # largest norm of the gradient (melodyguan/enas, child_grad_bound)


class SharedWeights:
    """The weights of a supernet and their momentum; one trace serves all paths.

    Args:
        net: the supernet.
        input_shape: height, width and channels of the images.
        decay: the factor w of w/2 x |weights|^2 in the loss, twice ENAS' l2_reg.
        dropout: the share of the features before the classifier that a step drops.
        seed: for the initial weights.
    """

    def __init__(
        self, net: PathSupernet, input_shape: tuple[int, int, int], decay: float = 2e-4, dropout: float = 0.1,
        seed: int = 0,
    ):  # fmt: skip
        self.net, self._dropout = net, dropout
        self._optimizer = Optimizer("sgd", nesterov=True, weight_decay=decay, decay_all=True, clip=_CLIP)
        self.weights: Any = tf.Variable(tf.constant(draw_weights(net.packing, seed)))
        self.slots = self._optimizer.make_slots([self.weights])
        path = tf.TensorSpec(net.space.draw_path(np.random.default_rng(0)).shape, tf.int32)
        images, labels = tf.TensorSpec([None, *input_shape]), tf.TensorSpec([None], tf.int32)
        step = [path, images, labels, tf.TensorSpec([]), tf.TensorSpec([2], tf.int32)]
        self._step = tf.function(self._one_step, step, autograph=False)
        self._logits = tf.function(lambda *given: self.net.logits(self.weights, *given), [path, images], False)

    def step(self, path: Any, images: Any, labels: Any, rate: float, key: Any) -> float:
        """Trains the weights of a path on a batch and returns its loss; `key`, two integers, is the seed of dropout.

        Raises:
            FloatingPointError: the loss is no longer finite.
        """
        loss = float(self._step(path, images, labels, tf.constant(rate, tf.float32), tf.constant(key, tf.int32)))
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss of the shared weights is {loss}: they diverged; lower --search_rate, and choose another "
                "folder or delete the state in this one"
            )
        return loss

    def _one_step(self, path: Any, images: Any, labels: Any, rate: Any, key: Any) -> Any:
        def drop(features: Any) -> Any:
            return tf.nn.experimental.stateless_dropout(features, self._dropout, key)

        with tf.GradientTape() as tape:
            logits = self.net.logits(self.weights, path, images, drop if self._dropout else None)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        self._optimizer.apply([self.weights], self.slots, [tape.gradient(loss, self.weights)], rate)
        return loss

    def score(self, path: Any, batches: Sequence[tuple[Any, Any]]) -> Scores:
        """Returns accuracy and loss of a path; each batch is normalised by its own statistics."""
        return evaluate(functools.partial(self._logits, path), batches)


class SearchImages:
    """Training images in two parts: batches for the weights, ordered by `seed`, and reward images, drawn by `split`."""

    def __init__(self, config: Config, images: image_data.Data, seed: int, split: int):
        self._size = config.search_batch_size
        share = config.reward_images / len(images.train)
        if not 0 < share < 1 or config.reward_images < self._size:
            raise ValueError(
                f"reward_images is {config.reward_images} of {len(images.train)} training images; expected fewer, and "
                f"at least a batch of {self._size}"
            )
        train, rewarding = images.train.split(share, split)
        if len(train) < self._size:
            raise ValueError(
                f"{len(train)} images do not make a batch of {self._size}; lower search_batch_size, or raise "
                "training_images"
            )
        normalize = augment.Normalization.of(images.train.images)
        policy = augment.cifar(images.input_shape[0] // 8, cutout_length=0) if config.augment else None
        self.training = Batches(train, self._size, seed, stream=(_WEIGHTS,), normalize=normalize, augment=policy)
        self._rewarding = np.asarray(normalize(rewarding.images), np.float32), rewarding.labels

    def reward_batch(self, rng: np.random.Generator) -> tuple[Any, Any]:
        """Returns a random batch of the reward images."""
        images, labels = self._rewarding
        chosen = rng.choice(len(labels), self._size, replace=False)
        return images[chosen], labels[chosen]

    def reward_batches(self) -> list[tuple[Any, Any]]:
        """Returns all reward images, in batches of nearly equal size."""
        return self.make_batches(*self._rewarding)

    def make_batches(self, images: np.ndarray, labels: np.ndarray) -> list[tuple[Any, Any]]:
        """Splits normalised images into batches of nearly equal size, since their statistics are used."""
        parts = np.array_split(np.arange(len(labels)), -(-len(labels) // self._size))
        return [(tf.constant(images[part]), labels[part]) for part in parts]


class PathSearch:
    """The search for a path with one supernet: its shared weights, its controller, and its steps."""

    def __init__(
        self, config: Config, shared: SharedWeights, controller: AttentionController, images: SearchImages, seed: int
    ):
        self.config, self.shared, self.controller, self.images, self.seed = config, shared, controller, images, seed
        self._schedule = Schedule("restarts", config.search_rate, config.least_rate, period=config.rate_period)
        self._uniform = config.algorithm == "uniform"
        self._epoch_paths: tuple[int, np.ndarray] = (-1, np.empty(0))  # an epoch, and the path of each of its steps

    @property
    def epoch_steps(self) -> int:
        """Number of steps in an epoch: those of the weights plus the updates of the controller."""
        return self.images.training.steps + (0 if self._uniform else self.config.updates)

    @property
    def candidates(self) -> int:
        """Number of paths to score at the end; a uniform search scores more, in the time of the rewards it saves."""
        config, saved = self.config, 0
        if self._uniform:
            rewards = config.search_epochs * config.updates * config.samples
            saved = rewards // len(self.images.reward_batches())
        return config.candidates + saved

    def take_step(self, epoch: int, number: int) -> tuple[float, ...]:
        """Takes step `number` of an epoch: first come those of the shared weights, then updates of the controller.

        Returns the loss of a step of the weights; or for an update, the means over its paths of reward, entropy and
        skip penalty.
        """
        if number < self.images.training.steps:
            key = np.random.default_rng([self.seed, _DROPOUT, epoch, number]).integers(2**31, size=2)
            batch, rate = self.images.training.batch(epoch, number), self._schedule.at(epoch, self.config.search_epochs)
            return (self.shared.step(self._path_of_step(epoch, number), *batch, rate, key),)
        rng = np.random.default_rng([self.seed, _PATHS, epoch, number])
        paths = self.controller.sample(self.config.samples, rng)
        rng = np.random.default_rng([self.seed, _REWARDS, epoch, number])
        rewards = [self.shared.score(path, [self.images.reward_batch(rng)]).accuracy for path in paths]
        found = self.controller.update(paths, rewards)
        return tuple(float(np.mean(each)) for each in (rewards, found["entropy"], found["skip_penalty"]))

    def end_epoch(self, history: list[Record], values: list[Sequence[float]]) -> Record:
        """Returns the record of an epoch, from what its steps returned."""
        steps = self.images.training.steps
        record: Record = {
            "step": (len(history) + 1) * self.epoch_steps,
            "loss": round(float(np.mean(values[:steps])), 5),
        }
        if values[steps:]:
            means = zip(("reward", "entropy", "skip_penalty"), np.mean(values[steps:], 0), strict=True)
            record |= {name: round(float(value), 5) for name, value in means}
        if self.controller.average is not None:
            record["baseline"] = round(self.controller.average, 5)
        return record

    def _path_of_step(self, epoch: int, number: int) -> np.ndarray:
        """Returns the path of a step of the weights; the controller draws all paths of an epoch before its updates."""
        if self._uniform or epoch < self.config.uniform_epochs:
            return self.shared.net.space.draw_path(np.random.default_rng([self.seed, _PATHS, epoch, number]))
        if self._epoch_paths[0] != epoch:
            rng = np.random.default_rng([self.seed, _PATHS, epoch, 0])
            self._epoch_paths = epoch, self.controller.sample(self.images.training.steps, rng)
        return self._epoch_paths[1][number]

    def _draw_path(self, rng: np.random.Generator) -> np.ndarray:
        return self.shared.net.space.draw_path(rng) if self._uniform else self.controller.sample(1, rng)[0]

    def draw_candidate(self, number: int, refuse: Callable[[np.ndarray], str | None]) -> np.ndarray:
        """Returns candidate `number`, the first random path for which `refuse` returns None.

        Raises:
            ValueError: a hundred paths in a row were refused.
        """
        rng = np.random.default_rng([self.seed, _CANDIDATES, number])
        reason = None
        for _ in range(_MOST_REFUSED):
            path = self._draw_path(rng)
            reason = refuse(path)
            if reason is None:
                return path
        raise ValueError(f"{_MOST_REFUSED:,} paths in a row were refused, the last for {reason}; raise the limits")

    def file(self, path: Path) -> TrainingState:
        """Returns the file that a search with this seed resumes from."""
        return TrainingState(path, {"recipe": "enas", "seed": self.seed, "version": _VERSION})

    @property
    def variables(self) -> dict[str, Sequence[Any]]:
        """Everything that a step reads and changes, in the groups that are saved."""
        return {"weights": [self.shared.weights], "slots": self.shared.slots, "controller": self.controller.arrays}


def find_paths(
    searches: Mapping[Path, PathSearch],
    report: Report,
    refuse: Callable[[np.ndarray], str | None] = lambda path: None,
) -> dict[str, Any]:
    """Trains all supernets, then scores candidate paths by the mean over the supernets.

    Returns "paths", best first; "score", of the best path; "candidates", the scores of all candidates in the order of
    drawing; and "history", of the first supernet.

    Args:
        searches: file of the state -> search in its initial state, which resumes from that file. The candidates' scores
            are saved next to the first file.
        report: called with the finished share and a few words.
        refuse: path -> why it must not be chosen, or None.

    Raises:
        FloatingPointError: the loss is no longer finite.
        StateError: the state is of another search, or damaged.
    """
    supernets, file = list(searches.values()), next(iter(searches))
    first, histories = supernets[0], []

    def report_training(share: float, text: str) -> None:
        report(0.9 * share, text)

    for number, (path, search) in enumerate(searches.items()):
        part = report_part(report_training, number, len(supernets), "supernet")
        histories.append(_train_supernet(search, path, part))
    batches, space = first.images.reward_batches(), first.shared.net.space
    networks: dict[str, np.ndarray] = {}  # network -> the first path drawn for it
    for number in range(first.candidates):
        path = supernets[number % len(supernets)].draw_candidate(number, refuse)
        networks.setdefault(space.key(space.values(space.decode(path))), path)
    paths = list(networks.values())
    (scored,) = run_epochs(
        lambda epoch, number: (score_path(supernets, paths[number], batches),),
        lambda history, values: {"scores": [score for (score,) in values]},
        epochs=1,
        steps=len(paths),
        state=first.file(file.with_suffix(".candidates.npz")),
        save_seconds=first.config.save_seconds,
        observe=lambda status: report(0.9 + 0.1 * (status.done + status.share), f"scoring {len(paths)} paths"),
    )
    ranked = np.argsort(np.negative(scored["scores"]), kind="stable")
    return {
        "paths": [paths[place].tolist() for place in ranked],
        "score": scored["scores"][ranked[0]],
        "candidates": scored["scores"],
        "history": histories[0],
    }


def score_path(searches: Sequence[PathSearch], path: Any, batches: Sequence[tuple[Any, Any]]) -> float:
    """Returns the mean over supernets of a path's accuracy, or of minus its loss, by the option `score`."""
    accuracy, loss = np.mean([search.shared.score(path, batches) for search in searches], axis=0)
    return float(-loss if searches[0].config.score == "loss" else accuracy)


def _train_supernet(search: PathSearch, path: Path, report: Report) -> list[Record]:
    """Trains a supernet and its controller, from their state at `path`; returns one record per epoch."""
    config, loss = search.config, ""

    def end_epoch(history: list[Record], values: list[Sequence[float]]) -> Record:
        nonlocal loss
        record = search.end_epoch(history, values)
        loss = f", loss {record['loss']:.3g}"
        return record

    def observe(status: Status) -> None:
        if status.done < config.search_epochs:
            share = (status.done + status.share) / config.search_epochs
            report(share, f"epoch {status.done + 1} of {config.search_epochs}{loss}")

    return run_epochs(
        search.take_step,
        end_epoch,
        epochs=config.search_epochs,
        steps=search.epoch_steps,
        variables=search.variables,
        state=search.file(path),
        save_seconds=config.save_seconds,
        observe=observe,
    )
