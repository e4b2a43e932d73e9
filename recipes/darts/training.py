"""Bilevel search of DARTS: alphas learn on one half of the images, weights on the other, by turns.

The state is five arrays and a step number, so a killed search goes on at the step that was saved, on the same way.
"""

import dataclasses
import functools
import json
import math
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from recipes.darts.supernet import OPS, Supernet, derive
from recipes.training import tensorflow_options
from zoo import atomic

_ADAM_BETAS, _ADAM_EPSILON = (0.5, 0.999), 1e-8  # of the alphas (Liu et al. 2019, A.1.1)
_HESSIAN_STEP = 0.01  # over the norm of the gradient (Liu et al. 2019, footnote 2)
_EIGENVALUE_STEP = 0.01


@dataclasses.dataclass(frozen=True)
class Rates:
    """How both levels learn: SGD with momentum and one cosine period for the weights, Adam for the alphas."""

    order: int = 1  # 2 differentiates through one step of the weights
    learning_rate: float = 0.025
    least_rate: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 3e-4
    clip: float = 5.0  # largest norm of the weights' gradient
    alpha_rate: float = 3e-4
    alpha_decay: float = 1e-3

    def at(self, epoch: int, epochs: int) -> float:
        """Returns the weights' learning rate in this epoch."""
        return self.least_rate + 0.5 * (self.learning_rate - self.least_rate) * (1 + math.cos(math.pi * epoch / epochs))


class Gradients:
    """Loss, accuracy and gradients of a supernet; one graph serves all, and each call runs the part that it needs.

    Graphs of functions would be two, each traced and optimized for itself.
    """

    def __init__(self, net: Supernet):
        self._net = net
        self._made: dict[tuple[int, ...], tuple[Any, list[Any], dict[str, Any]]] = {}  # by the shape of the images

    def __call__(
        self, names: Sequence[str], weights: np.ndarray, alphas: np.ndarray, batch: tuple[Any, Any]
    ) -> list[np.ndarray]:
        """Returns loss and accuracy (2,) on a batch (images, labels), then the gradients in `names`."""
        images, labels = (np.asarray(part) for part in batch)
        if images.shape not in self._made:
            self._made[images.shape] = self._graph(images.shape, alphas.shape)
        session, places, found = self._made[images.shape]
        given = dict(zip(places, (weights, alphas, images, labels), strict=True))
        return session.run([found[name] for name in ("marks", *names)], given)

    def _graph(self, images_shape: tuple[int, ...], alphas_shape: tuple[int, ...]) -> tuple[Any, list[Any], Any]:
        with tf.Graph().as_default() as graph:
            shapes = [(self._net.packing.size,), alphas_shape, images_shape]
            weights, alphas, images = (tf.compat.v1.placeholder(tf.float32, shape) for shape in shapes)
            labels = tf.compat.v1.placeholder(tf.int32, images_shape[:1])
            logits = self._net.logits(weights, alphas, images)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
            right = tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, -1, tf.int32), labels), tf.float32))
            gradients = tf.compat.v1.gradients(loss, [alphas, weights])
            found = {"marks": tf.stack([loss, right]), "alphas": gradients[0], "weights": gradients[1]}
        session = tf.compat.v1.Session(graph=graph, config=tensorflow_options.only_fusions())
        return session, [weights, alphas, images, labels], found


class Bilevel:
    """A supernet with the state of its search.

    `step` counts the steps that are done, `alpha_step` those of the alphas; `history` holds one record an epoch.
    """

    def __init__(self, net: Supernet, rates: Rates, seed: int):
        self.net, self.rates = net, rates
        self.step = self.alpha_step = 0
        self.history: list[dict[str, Any]] = []
        self.marks: list[
            list[float]
        ] = []  # of this epoch's steps: loss, accuracy; validation loss and accuracy, if the alphas learn
        rng = np.random.default_rng([seed, 1])
        self.weights = net.packing.initial(seed)
        self.velocity = np.zeros_like(self.weights)
        self.alphas = 1e-3 * rng.standard_normal((2, net.edges, len(OPS))).astype(np.float32)
        self.alpha_mean, self.alpha_square = np.zeros_like(self.alphas), np.zeros_like(self.alphas)
        gradients = Gradients(net)
        wanted = {"weights": ["weights"], "alphas": ["alphas"], "both": ["alphas", "weights"]}
        self._gradient: dict[str, Callable[..., Sequence[Any]]] = {
            name: functools.partial(gradients, names) for name, names in wanted.items()
        }

    def learn(self, training: tuple[Any, Any], validation: tuple[Any, Any] | None, rate: float) -> None:
        """Takes one step of the alphas and one of the weights, on batches (images, labels); notes both marks.

        Without `validation` the alphas stay.
        """
        validation_marks: Any = ()
        if validation is not None:
            validation_marks, gradient = self.alpha_gradient(training, validation, rate)
            self._adam(gradient)
        marks, gradient = self._gradient["weights"](self.weights, self.alphas, training)
        norm = float(np.linalg.norm(gradient))
        gradient = gradient * min(1.0, self.rates.clip / (norm + 1e-6))
        self.velocity = self.rates.momentum * self.velocity + gradient + self.rates.weight_decay * self.weights
        self.weights = self.weights - np.float32(rate) * self.velocity
        self.step += 1
        self.marks.append([float(mark) for mark in (*marks, *validation_marks)])

    def epoch_marks(self, validation: tuple[Any, Any]) -> tuple[float, ...]:
        """Returns loss, accuracy, validation loss and accuracy of this epoch; if the alphas rest, the last of a batch.

        Args:
            validation: that batch.
        """
        marks = np.mean(self.marks, axis=0).tolist()
        if len(marks) == 2:
            marks += self._gradient["alphas"](self.weights, self.alphas, validation)[0].tolist()
        return tuple(marks)

    def alpha_gradient(
        self, training: tuple[Any, Any], validation: tuple[Any, Any], rate: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns validation loss and accuracy (2,), and the gradient of this loss in alpha.

        In second order the loss is that of the weights after one more step at `rate`; the product of Hessian and
        gradient that this takes is a difference of two gradients (Liu et al. 2019, equations 7 and 8).
        """
        if self.rates.order == 1:
            marks, gradient = self._gradient["alphas"](self.weights, self.alphas, validation)
            return marks, gradient
        _, _, inner = self._gradient["both"](self.weights, self.alphas, training)
        inner = self.rates.momentum * self.velocity + inner + self.rates.weight_decay * self.weights
        unrolled = self.weights - np.float32(rate) * inner
        marks, gradient, direction = self._gradient["both"](unrolled, self.alphas, validation)
        size = np.float32(_HESSIAN_STEP / max(float(np.linalg.norm(direction)), 1e-12))
        above = self._gradient["both"](self.weights + size * direction, self.alphas, training)[1]
        below = self._gradient["both"](self.weights - size * direction, self.alphas, training)[1]
        return marks, gradient - np.float32(rate) * (above - below) / (2 * size)

    def _adam(self, gradient: np.ndarray) -> None:
        self.alpha_step += 1
        gradient = gradient + self.rates.alpha_decay * self.alphas
        first, second = _ADAM_BETAS
        self.alpha_mean = first * self.alpha_mean + (1 - first) * gradient
        self.alpha_square = second * self.alpha_square + (1 - second) * gradient**2
        mean = self.alpha_mean / (1 - first**self.alpha_step)
        root = np.sqrt(self.alpha_square / (1 - second**self.alpha_step))
        self.alphas = (self.alphas - self.rates.alpha_rate * mean / (root + _ADAM_EPSILON)).astype(np.float32)

    def strengths(self) -> np.ndarray:
        """Returns the softmax of the alphas, (2, edges, ops)."""
        powers = np.exp(self.alphas - self.alphas.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)

    def cells(self) -> Any:
        """Returns the cells that the alphas stand for now."""
        return derive(self.strengths(), self.net.nodes)

    def eigenvalue(self, validation: tuple[Any, Any], iterations: int = 5) -> float:
        """Returns the dominant eigenvalue of the validation loss' Hessian in alpha; its growth announces collapse."""
        rng = np.random.default_rng(self.step)
        return largest_eigenvalue(
            lambda alphas: self._gradient["alphas"](self.weights, alphas, validation)[1], self.alphas, iterations, rng
        )

    def save(self, path: Path) -> None:
        """Writes the state, whole or not at all."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        with atomic.replacing(path) as stream:
            np.savez(
                stream, steps=[self.step, self.alpha_step], history=json.dumps([self.history, self.marks]), **arrays
            )

    def restore(self, path: Path) -> None:
        """Takes over the state of the file; does nothing where there is none that fits."""
        try:
            with path.open("rb") as stream, np.load(stream) as found:
                arrays = {name: found[name] for name in _ARRAYS}
                steps, (history, marks) = found["steps"].tolist(), json.loads(str(found["history"]))
        except (FileNotFoundError, KeyError, ValueError, zipfile.BadZipFile):
            return
        if any(array.shape != getattr(self, name).shape for name, array in arrays.items()):
            return
        for name, array in arrays.items():
            setattr(self, name, array)
        self.step, self.alpha_step = steps
        self.history, self.marks = history, marks


_ARRAYS = ("weights", "velocity", "alphas", "alpha_mean", "alpha_square")


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
