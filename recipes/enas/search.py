"""One ENAS search: epochs of the shared weights and updates of the controller by turns, then the choice of a path.

All draws depend on the seed and their place alone, so a search that was killed goes on from the saved step on the same
way, to the same result.
"""

import dataclasses
import json
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from recipes.enas import controller as enas_controller
from recipes.enas.controller import Controller
from recipes.enas.shared_weights import SharedWeights
from recipes.images import augment
from recipes.images import sources as image_data
from zoo import atomic

_WEIGHTS, _PATHS, _DROPOUT, _REWARDS, _CANDIDATES = range(5)  # what is drawn, each from a stream of its own
_MOST_REFUSED = 100  # candidates in a row; to refuse one may cost building it


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long a search is, and in which steps.

    Attributes:
        epochs: of the shared weights.
        batch_size: images in a step, and in a reward.
        updates, samples: of the controller after each epoch, and paths in each; no updates where paths are uniform.
        candidates: paths that are scored at the end.
        reward_images: training images that are kept for rewards and the choice at the end.
        augment: crop and flip what the weights learn from.
        uniform: draw all paths uniformly.
        save_seconds: between two saved states.
    """

    epochs: int
    batch_size: int
    updates: int
    samples: int
    candidates: int
    reward_images: int
    augment: bool = False
    uniform: bool = False
    save_seconds: float = 60.0


class Images:
    """Batches that depend on the seed and their place alone."""

    def __init__(self, images: image_data.Data, plan: Plan, seed: int):
        self._seed, self._size = seed, plan.batch_size
        share = plan.reward_images / len(images.train)
        if not 0 < share < 1 or plan.reward_images < plan.batch_size:
            raise ValueError(
                f"reward_images is {plan.reward_images} of {len(images.train)} training images; expected fewer than "
                f"these, and a batch of {plan.batch_size} at least"
            )
        self.train, rewarding = images.train.split(share, seed)
        normalize = augment.Normalization.of(images.train.images)
        self._normalize = normalize
        self.rewarding = np.asarray(normalize(rewarding.images), np.float32), rewarding.labels
        self._augment = augment.cifar(images.input_shape[0] // 8, cutout_length=0) if plan.augment else None
        self.steps = len(self.train) // plan.batch_size
        if self.steps == 0:
            raise ValueError(
                f"{len(self.train)} images make no batch of {plan.batch_size}; lower the batch size, or take more "
                "training_images"
            )

    def batch(self, epoch: int, number: int) -> tuple[Any, Any]:
        """Returns images and labels of one step of an epoch."""
        order = np.random.default_rng([self._seed, _WEIGHTS, epoch]).permutation(len(self.train))
        chosen = order[number * self._size : (number + 1) * self._size]
        images = self.train.images[chosen]
        if self._augment is not None:
            images = self._augment(tf.constant(images), tf.constant([self._seed, epoch * self.steps + number]))
        return tf.cast(self._normalize(images), tf.float32), tf.constant(self.train.labels[chosen], tf.int32)

    def reward_batch(self, rng: np.random.Generator) -> tuple[Any, Any]:
        """Returns a batch of the images that are kept for rewards."""
        images, labels = self.rewarding
        chosen = rng.choice(len(labels), self._size, replace=False)
        return images[chosen], labels[chosen]

    def reward_batches(self) -> list[tuple[Any, Any]]:
        """Returns all images that are kept for rewards, in batches of nearly one size."""
        return self.in_batches(*self.rewarding)

    def in_batches(self, images: np.ndarray, labels: np.ndarray) -> list[tuple[Any, Any]]:
        """Cuts normalised images into batches of nearly one size, for their statistics are used."""
        parts = np.array_split(np.arange(len(labels)), -(-len(labels) // self._size))
        return [(tf.constant(images[part]), tf.constant(labels[part], tf.int32)) for part in parts]


class Search:
    """A search in progress: shared weights, controller, and how many steps of all are done."""

    def __init__(self, shared: SharedWeights, controller: Controller, images: Images, plan: Plan, seed: int):
        self.shared, self.controller, self.images, self.plan, self.seed = shared, controller, images, plan, seed
        self.done = 0
        self.history: list[dict[str, Any]] = []  # a record an epoch
        self._losses: list[float] = []  # of this epoch
        self._draws: list[list[float]] = []  # reward, entropy and penalty of each path of this epoch
        self.scores: list[float] = []  # of the candidates that have been scored

    @property
    def epoch_steps(self) -> int:
        """Steps of the weights and updates of the controller in an epoch."""
        return self.images.steps + (0 if self.plan.uniform else self.plan.updates)

    @property
    def candidates(self) -> int:
        """Paths to score at the end: without a controller, as many more as its rewards would have cost."""
        plan = self.plan
        saved = plan.epochs * plan.updates * plan.samples // len(self.images.reward_batches()) if plan.uniform else 0
        return plan.candidates + saved

    def step(self) -> None:
        """Takes the next step of the shared weights, or the next update of the controller."""
        epoch, number = divmod(self.done, self.epoch_steps)
        rng = np.random.default_rng([self.seed, _PATHS, epoch, number])
        if number < self.images.steps:
            path = self._draw(rng)
            key = np.random.default_rng([self.seed, _DROPOUT, epoch, number]).integers(2**31, size=2)
            rate = self.shared.descent.at(epoch)
            self._losses.append(self.shared.step(path, *self.images.batch(epoch, number), rate, key))
        else:
            draw = self.controller.draw(self.plan.samples, rng)
            rng = np.random.default_rng([self.seed, _REWARDS, epoch, number])
            rewards = [self.shared.accuracy(path, *self.images.reward_batch(rng)) for path in draw.paths]
            penalty = self.controller.penalty(draw)
            self.controller.learn(draw, np.array(rewards))
            self._draws += [list(map(float, row)) for row in zip(rewards, draw.entropy, penalty, strict=True)]
        self.done += 1
        if self.done % self.epoch_steps == 0:
            self._end_epoch()

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        if self.plan.uniform:
            return enas_controller.random_path(self.controller, rng)
        return self.controller.draw(1, rng).paths[0]

    def _end_epoch(self) -> None:
        record: dict[str, Any] = {"step": self.done, "loss": round(float(np.mean(self._losses)), 5)}
        if self._draws:
            names = ("reward", "entropy", "skip_penalty")
            record |= {name: round(float(value), 5) for name, value in zip(names, np.mean(self._draws, 0), strict=True)}
        if self.controller.average is not None:
            record["baseline"] = round(self.controller.average, 5)
        self.history.append(record)
        self._losses, self._draws = [], []

    def candidate(self, number: int, refused: Callable[[np.ndarray], str | None]) -> np.ndarray:
        """Returns the path that is scored as number `number`, the first of a stream that `refused` has nothing against.

        Raises:
            ValueError: a hundred in a row were refused.
        """
        rng = np.random.default_rng([self.seed, _CANDIDATES, number])
        reason = None
        for _ in range(_MOST_REFUSED):
            path = self._draw(rng)
            reason = refused(path)
            if reason is None:
                return path
        raise ValueError(f"{_MOST_REFUSED:,} paths in a row were refused, the last for {reason}; raise the limits")

    def score(self, path: np.ndarray, batches: Sequence[tuple[Any, Any]]) -> float:
        """Returns the accuracy of a path over batches."""
        right = sum(round(self.shared.accuracy(path, *batch) * len(batch[1])) for batch in batches)
        return right / sum(len(labels) for _, labels in batches)

    def save(self, path: Path) -> None:
        """Writes the state, whole or not at all."""
        arrays: dict[str, Any] = self.shared.arrays() | self.controller.arrays()
        progress = json.dumps([self.done, self.history, self._losses, self._draws, self.scores])
        with atomic.replacing(path) as stream:
            np.savez(stream, progress=progress, **arrays)

    def restore(self, path: Path) -> None:
        """Takes over the state of the file; does nothing where there is none that fits."""
        ours = self.shared.arrays() | self.controller.arrays()
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as found:
                arrays = {name: found[name] for name in ours}
                progress = json.loads(str(found["progress"]))
        except (FileNotFoundError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
            return
        if any(array.shape != ours[name].shape for name, array in arrays.items()):
            return
        self.shared.restore(arrays)
        self.controller.restore(arrays)
        self.done, self.history, self._losses, self._draws, self.scores = progress


def find_path(
    search: Search,
    file: Path,
    report: Callable[[float, str], None],
    refused: Callable[[np.ndarray], str | None] = lambda path: None,
) -> dict[str, Any]:
    """Runs a search to its end and returns its path, the score of that and the history, as JSON holds them.

    Args:
        search: at its beginning; it goes on from the state in `file`, where there is one.
        file: where the state is kept.
        report: called with the finished share and a few words.
        refused: path -> why it must not be chosen, or None.

    Raises:
        FloatingPointError: the loss is not a number any more.
    """
    plan, saved = search.plan, time.monotonic()
    search.restore(file)
    steps = plan.epochs * search.epoch_steps
    while search.done < steps:
        epoch = search.done // search.epoch_steps
        loss = f", loss {search.history[-1]['loss']:.3g}" if search.history else ""
        report(0.9 * search.done / steps, f"shared weights, epoch {epoch + 1} of {plan.epochs}{loss}")
        search.step()
        if search.done % search.epoch_steps == 0 or time.monotonic() - saved > plan.save_seconds:
            search.save(file)
            saved = time.monotonic()
    batches, count = search.images.reward_batches(), search.candidates
    paths = [search.candidate(number, refused) for number in range(count)]
    while len(search.scores) < count:
        number = len(search.scores)
        report(0.9, f"scoring path {number + 1} of {count}")
        search.scores.append(search.score(paths[number], batches))
        if time.monotonic() - saved > plan.save_seconds:
            search.save(file)
            saved = time.monotonic()
    search.save(file)
    best = int(np.argmax(search.scores))
    return {
        "path": paths[best].tolist(),
        "score": search.scores[best],
        "candidates": search.scores,
        "history": search.history,
    }
