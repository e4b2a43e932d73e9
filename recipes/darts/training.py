"""The bilevel search of DARTS: alphas learn on one half of the images, weights on the other, by turns.

The state is five arrays and a step number, so a killed search resumes at the step that was saved, to the same result.
"""

import json
import math
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from recipes.darts.config import Config
from recipes.darts.space import OPS, DartsSpace
from recipes.darts.supernet import Supernet
from recipes.images import augment
from recipes.images import sources as image_data
from recipes.training import tensorflow_options
from zoo import atomic
from zoo.genotype import CellGraph, Cells

_ADAM_BETAS, _ADAM_EPSILON = (0.5, 0.999), 1e-8  # of the alphas (Liu et al. 2019, A.1.1)
_ALPHA_DECAY = 1e-3
_RATE, _LAST_RATE, _MOMENTUM, _WEIGHT_DECAY, _CLIP = 0.025, 0.001, 0.9, 3e-4, 5.0  # of the weights
_HESSIAN_STEP = 0.01  # over the norm of the gradient (Liu et al. 2019, footnote 2)
_EIGENVALUE_STEP = 0.01
_SCORED_BATCH = 250  # images; the supernet normalises by the statistics of a batch
_ARRAYS = ("weights", "velocity", "alphas", "alpha_mean", "alpha_square")


class SupernetSession:
    """Runs a supernet, and its gradients where they are asked for.

    A session of tf.compat.v1, for two tf.functions would each be traced and optimized for itself: from the start to the
    first step 145 s in place of 39 (8 cells of 8 filters, batch 16, 2 loaded cores).
    """

    def __init__(self, net: Supernet):
        self.net = net
        self._graphs: dict[tuple[int, ...], tuple[Any, dict[str, Any]]] = {}  # by the shape of the images

    def __call__(
        self,
        wanted: Sequence[str],
        batch: tuple[Any, Any],
        weights: np.ndarray,
        alphas: np.ndarray | None = None,
        strengths: np.ndarray | None = None,
    ) -> list[np.ndarray]:
        """Returns loss and accuracy (2,) on a batch (images, labels), then the gradients in what is `wanted`.

        Args:
            wanted: "alphas", "weights" or both, in any order.
            batch: normalised images, and labels.
            weights: the flat vector.
            alphas: (2, edges, ops), or instead
            strengths: what stands for their softmax.
        """
        images, labels = (np.asarray(part) for part in batch)
        session, tensors = self._graphs.get(images.shape) or self._make(images.shape)
        if wanted and "loss/weights" not in tensors:
            with session.graph.as_default():
                gradients = tf.compat.v1.gradients(tensors["loss"], [tensors["alphas"], tensors["weights"]])
            tensors |= {"loss/alphas": gradients[0], "loss/weights": gradients[1]}
        values = {"weights": weights, "alphas": alphas, "strengths": strengths, "images": images, "labels": labels}
        given = {tensors[name]: value for name, value in values.items() if value is not None}
        return session.run([tensors["metrics"], *(tensors[f"loss/{name}"] for name in wanted)], given)

    def _make(self, shape: tuple[int, ...]) -> tuple[Any, dict[str, Any]]:
        with tf.Graph().as_default() as graph:
            alphas_shape = (2, self.net.space.edges, len(OPS))
            weights, alphas, images = (
                tf.compat.v1.placeholder(tf.float32, each) for each in ((self.net.packing.size,), alphas_shape, shape)
            )
            labels = tf.compat.v1.placeholder(tf.int32, shape[:1])
            strengths = tf.nn.softmax(alphas)
            logits = self.net.logits(weights, strengths, images)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
            right = tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, -1, tf.int32), labels), tf.float32))
            metrics = tf.stack([loss, right])
        session = tf.compat.v1.Session(graph=graph, config=tensorflow_options.only_fusions())
        tensors = {"weights": weights, "alphas": alphas, "strengths": strengths, "images": images, "labels": labels}
        self._graphs[shape] = session, tensors | {"loss": loss, "metrics": metrics}
        return self._graphs[shape]


class Bilevel:
    """A supernet with the state of its search.

    `step` counts the steps that are done, `alpha_step` those of the alphas; `history` holds one record an epoch, and
    `metrics` loss and accuracy, then validation loss and accuracy where the alphas learn, of each step of this epoch.
    """

    def __init__(self, net: Supernet, order: int, alpha_rate: float, seed: int):
        self.net, self._order, self._alpha_rate = net, order, alpha_rate
        self.step = self.alpha_step = 0
        self.history: list[dict[str, Any]] = []
        self.metrics: list[list[float]] = []
        rng = np.random.default_rng([seed, 1])
        self.weights = net.packing.initial(seed)
        self.velocity = np.zeros_like(self.weights)
        self.alphas = 1e-3 * rng.standard_normal((2, net.space.edges, len(OPS))).astype(np.float32)
        self.alpha_mean, self.alpha_square = np.zeros_like(self.alphas), np.zeros_like(self.alphas)
        self.run: Callable[..., list[Any]] = SupernetSession(net)

    def learn(self, training: tuple[Any, Any], validation: tuple[Any, Any] | None, rate: float) -> None:
        """Takes one step of the alphas and one of the weights, on batches (images, labels), and notes both metrics.

        Without `validation` the alphas stay.
        """
        validation_metrics: Any = ()
        if validation is not None:
            validation_metrics, gradient = self.alpha_gradient(training, validation, rate)
            self._adam(gradient)
        metrics, gradient = self.run(["weights"], training, self.weights, self.alphas)
        norm = float(np.linalg.norm(gradient))
        gradient = gradient * min(1.0, _CLIP / (norm + 1e-6))
        self.velocity = _MOMENTUM * self.velocity + gradient + _WEIGHT_DECAY * self.weights
        self.weights = self.weights - np.float32(rate) * self.velocity
        self.step += 1
        self.metrics.append([float(value) for value in (*metrics, *validation_metrics)])

    def epoch_metrics(self, validation: tuple[Any, Any]) -> tuple[float, ...]:
        """Returns loss, accuracy, validation loss and accuracy of this epoch.

        While the alphas rest, the last two are those of the batch `validation`.
        """
        found = np.mean(self.metrics, axis=0).tolist()
        if len(found) == 2:
            found += self.run(["alphas"], validation, self.weights, self.alphas)[0].tolist()
        return tuple(found)

    def alpha_gradient(
        self, training: tuple[Any, Any], validation: tuple[Any, Any], rate: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns validation loss and accuracy (2,), and the gradient of this loss in alpha.

        In second order the loss is that of the weights after one more step at `rate`; the product of Hessian and
        gradient that this takes is a difference of two gradients (Liu et al. 2019, equations 7 and 8).
        """
        if self._order == 1:
            metrics, gradient = self.run(["alphas"], validation, self.weights, self.alphas)
            return metrics, gradient
        inner = self.run(["weights"], training, self.weights, self.alphas)[1]
        inner = _MOMENTUM * self.velocity + inner + _WEIGHT_DECAY * self.weights
        unrolled = self.weights - np.float32(rate) * inner
        metrics, gradient, direction = self.run(["alphas", "weights"], validation, unrolled, self.alphas)
        size = np.float32(_HESSIAN_STEP / max(float(np.linalg.norm(direction)), 1e-12))
        above = self.run(["alphas"], training, self.weights + size * direction, self.alphas)[1]
        below = self.run(["alphas"], training, self.weights - size * direction, self.alphas)[1]
        return metrics, gradient - np.float32(rate) * (above - below) / (2 * size)

    def _adam(self, gradient: np.ndarray) -> None:
        self.alpha_step += 1
        gradient = gradient + _ALPHA_DECAY * self.alphas
        first, second = _ADAM_BETAS
        self.alpha_mean = first * self.alpha_mean + (1 - first) * gradient
        self.alpha_square = second * self.alpha_square + (1 - second) * gradient**2
        mean = self.alpha_mean / (1 - first**self.alpha_step)
        root = np.sqrt(self.alpha_square / (1 - second**self.alpha_step))
        self.alphas = (self.alphas - self._alpha_rate * mean / (root + _ADAM_EPSILON)).astype(np.float32)

    def strengths(self) -> np.ndarray:
        """Returns the softmax of the alphas, (2, edges, ops)."""
        powers = np.exp(self.alphas - self.alphas.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)

    def cells(self) -> Cells:
        """Returns the cells that the alphas stand for now."""
        return self.net.space.derive(self.strengths())

    def eigenvalue(self, validation: tuple[Any, Any], iterations: int = 5) -> float:
        """Returns the dominant eigenvalue of the validation loss' Hessian in alpha; its growth announces collapse."""

        def gradient(alphas: np.ndarray) -> np.ndarray:
            return self.run(["alphas"], validation, self.weights, alphas)[1]

        return largest_eigenvalue(gradient, self.alphas, iterations, np.random.default_rng(self.step))

    def accuracy(self, cells: Cells, images: np.ndarray, labels: np.ndarray) -> float:
        """Returns the accuracy of cells with the weights of the supernet, 0 to 1.

        Args:
            cells: of the supernet's space.
            images, labels: validation data, normalised as in the search; what does not fill a batch is left out, for it
                would have other statistics.
        """
        size, strengths = min(_SCORED_BATCH, len(images)), self.net.space.strengths(cells)
        batches = [slice(start, start + size) for start in range(0, len(images) - size + 1, size)]
        found = [self.run([], (images[at], labels[at]), self.weights, strengths=strengths)[0][1] for at in batches]
        return float(np.mean(found))

    def save(self, path: Path) -> None:
        """Writes the state, whole or not at all."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        history = json.dumps([self.history, self.metrics])
        with atomic.replacing(path) as stream:
            np.savez(stream, steps=[self.step, self.alpha_step], history=history, **arrays)

    def restore(self, path: Path) -> None:
        """Takes over the state of the file; does nothing where there is none that fits."""
        try:
            with path.open("rb") as stream, np.load(stream) as found:
                arrays = {name: found[name] for name in _ARRAYS}
                steps, (history, metrics) = found["steps"].tolist(), json.loads(str(found["history"]))
        except (FileNotFoundError, KeyError, ValueError, zipfile.BadZipFile):
            return
        if any(array.shape != getattr(self, name).shape for name, array in arrays.items()):
            return
        for name, array in arrays.items():
            setattr(self, name, array)
        self.step, self.alpha_step = steps
        self.history, self.metrics = history, metrics


def largest_eigenvalue(
    gradient: Callable[[np.ndarray], np.ndarray], at: np.ndarray, iterations: int, rng: np.random.Generator
) -> float:
    """Returns the eigenvalue of largest magnitude of the Hessian, by power iteration on differences of gradients."""
    direction = rng.standard_normal(at.shape).astype(np.float32)
    value = 0.0
    for _ in range(iterations):
        direction /= max(float(np.linalg.norm(direction)), 1e-12)
        step = np.float32(_EIGENVALUE_STEP) * direction
        product = (gradient(at + step) - gradient(at - step)) / (2 * _EIGENVALUE_STEP)
        value = float((direction * product).sum())
        direction = product
    return value


class HalvedImages:
    """Training images in two halves drawn by the seed: 0 for the weights, 1 for the alphas."""

    def __init__(self, config: Config, images: image_data.Data, seed: int):
        self._seed, self._size = seed, config.search_batch_size
        self._halves = images.train.split(0.5, seed)
        self._normalize = augment.Normalization.of(images.train.images)
        self._augment = augment.cifar(images.input_shape[0] // 8, cutout_length=0) if config.augment else None
        self.steps = min(map(len, self._halves)) // self._size
        if self.steps == 0:
            raise ValueError(
                f"{len(images.train)} training images make no two batches of {self._size}; "
                "lower search_batch_size or take more training_images"
            )

    def batch(self, half: int, epoch: int, number: int) -> tuple[Any, Any]:
        """Returns batch `number` of an epoch; it depends on nothing that came before."""
        part = self._halves[half]
        order = np.random.default_rng([self._seed, half, epoch]).permutation(len(part))
        batch = part.take(order[number * self._size : (number + 1) * self._size])
        images = batch.images
        if self._augment is not None:
            step = 2 * (epoch * self.steps + number) + half
            images = self._augment(tf.constant(images), tf.constant([self._seed, step]))
        return self._normalize(images), batch.labels


def begin(config: Config, images: image_data.Data, seed: int) -> Bilevel:
    """Returns the search with this seed at its beginning."""
    space = DartsSpace(config.nodes)
    net = Supernet(space, config.search_cells, config.search_filters, images.classes, images.input_shape[2])
    return Bilevel(net, config.order, config.alpha_rate, seed)


def rate_at(epoch: int, epochs: int) -> float:
    """Returns the weights' learning rate in an epoch: one cosine period."""
    return _LAST_RATE + 0.5 * (_RATE - _LAST_RATE) * (1 + math.cos(math.pi * epoch / epochs))


def find_cells(
    config: Config, images: image_data.Data, seed: int, path: Path, report: Callable[[float, str], None]
) -> dict[str, Any]:
    """Trains a supernet and returns its cells, strengths and history, as JSON holds them.

    Args:
        config: the options.
        images: training images are halved.
        seed: of the search.
        path: of its state.
        report: called with the finished share and a few words.

    Raises:
        FloatingPointError: the loss is not a number any more.
    """
    halves = HalvedImages(config, images, seed)
    state = begin(config, images, seed)
    state.restore(path)
    saved, steps = time.monotonic(), config.search_epochs * halves.steps
    while state.step < steps:
        epoch, number = divmod(state.step, halves.steps)
        report(state.step / steps, f"supernet, epoch {epoch + 1}")
        validation = halves.batch(1, epoch, number) if epoch >= config.warm_up_epochs else None
        state.learn(halves.batch(0, epoch, number), validation, rate_at(epoch, config.search_epochs))
        if number + 1 == halves.steps:
            state.history.append(_record(config, state, halves.batch(1, epoch, 0)))
            state.metrics = []
            state.save(path)
            skips = state.history[-1]["normal_skips"]
            if config.stop_at_skips is not None and skips >= config.stop_at_skips:
                break
        elif time.monotonic() - saved > config.save_seconds:
            state.save(path)
            saved = time.monotonic()
    cells = state.cells()
    return {
        "values": DartsSpace(config.nodes).values(cells),
        "strengths": np.round(state.strengths(), 6).tolist(),
        "history": state.history,
    }


def _record(config: Config, state: Bilevel, validation: tuple[Any, Any]) -> dict[str, Any]:
    """Returns what is known after an epoch."""
    loss, accuracy, validation_loss, validation_accuracy = state.epoch_metrics(validation)
    if not np.isfinite(loss) or not np.isfinite(validation_loss):
        raise FloatingPointError(f"the loss of the supernet is {loss}: the search diverged; lower its learning rate")
    cells = state.cells()
    assert cells.reduce is not None
    return {
        "step": state.step,
        "loss": round(float(loss), 5),
        "accuracy": round(float(accuracy), 5),
        "validation_loss": round(float(validation_loss), 5),
        "validation_accuracy": round(float(validation_accuracy), 5),
        "normal_skips": _count_skips(cells.normal),
        "reduce_skips": _count_skips(cells.reduce),
        "eigenvalue": round(state.eigenvalue(validation), 6) if config.eigenvalue else None,
        "strengths": np.round(state.strengths(), 5).tolist(),
    }


def _count_skips(graph: CellGraph) -> int:
    return sum(edge.op == "skip_connect" for node in graph.nodes for edge in node.edges)
