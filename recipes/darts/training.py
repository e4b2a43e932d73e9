"""The bilevel search of DARTS: the weights learn on one half of the images and the alphas on the other, alternately.

Random numbers depend only on the seed and the step, so a search that was killed resumes at the saved step and ends with
the same result.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from recipes.darts.supernet import Supernet
from recipes.training import tensorflow_options
from recipes.training.optimizer import Optimizer, Schedule
from recipes.training.state import TrainingState
from zoo.genotype import Cells

SCHEDULE = Schedule("cosine", rate=0.025, last=0.001)  # for the weights
# PyTorch's optimisers (Liu et al. 2019, A.1.1), which add the decay after the gradient is clipped
_WEIGHTS = Optimizer("sgd", momentum=0.9, weight_decay=3e-4, decay_all=True, decay_in="gradient", clip=5.0)
_ALPHAS = Optimizer(
    "adam", momentum=0.5, mean_decay=0.999, epsilon=1e-8, weight_decay=1e-3, decay_all=True, decay_in="gradient"
)
_HESSIAN_STEP = 0.01  # divided by the norm of the gradient (Liu et al. 2019, footnote 2)
_EIGENVALUE_STEP = 0.01


class SupernetSession:
    """Runs a supernet, and its gradients if wanted.

    Uses a session of tf.compat.v1, since two tf.functions would be traced and optimized separately: 145 s instead of
    39 s until the end of the first step (8 cells of 8 filters, batch 16, 2 loaded cores).
    """

    def __init__(self, net: Supernet):
        self.net = net
        # shape of the images -> session, and the graph's tensors by name
        self._graphs: dict[tuple[int, ...], tuple[Any, dict[str, Any]]] = {}

    def __call__(
        self, wanted: Sequence[str], batch: tuple[Any, Any], weights: Any, alphas: Any = None, strengths: Any = None
    ) -> list[np.ndarray]:
        """Returns loss and accuracy, an array (2,), on a batch (images, labels), then the `wanted` gradients.

        `wanted` has "alphas", "weights" or both, in any order. `strengths` may be given instead of `alphas`, whose
        softmax they replace.
        """
        images, labels = (np.asarray(part) for part in batch)
        session, tensors = self._graphs.get(images.shape) or self._build_graph(images.shape)
        if wanted and "loss/weights" not in tensors:
            with session.graph.as_default():
                gradients = tf.compat.v1.gradients(tensors["loss"], [tensors["alphas"], tensors["weights"]])
            tensors |= {"loss/alphas": gradients[0], "loss/weights": gradients[1]}
        values = {"weights": weights, "alphas": alphas, "strengths": strengths, "images": images, "labels": labels}
        given = {tensors[name]: np.asarray(value) for name, value in values.items() if value is not None}
        return session.run([tensors["metrics"], *(tensors[f"loss/{name}"] for name in wanted)], given)

    def _build_graph(self, shape: tuple[int, ...]) -> tuple[Any, dict[str, Any]]:
        with tf.Graph().as_default() as graph:
            shapes = {"weights": (self.net.packing.size,), "alphas": self.net.space.shape, "images": shape}
            tensors = {name: tf.compat.v1.placeholder(tf.float32, each) for name, each in shapes.items()}
            labels = tf.compat.v1.placeholder(tf.int32, shape[:1])
            strengths = tf.nn.softmax(tensors["alphas"])
            logits = self.net.logits(tensors["weights"], strengths, tensors["images"])
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
            right = tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, -1, tf.int32), labels), tf.float32))
            tensors |= {"strengths": strengths, "labels": labels, "loss": loss, "metrics": tf.stack([loss, right])}
        self._graphs[shape] = tf.compat.v1.Session(graph=graph, config=tensorflow_options.only_fusions()), tensors
        return self._graphs[shape]


class BilevelSearch:
    """A supernet with its weights, its alphas, and their optimisers' states; `order` is of the alphas' gradient."""

    def __init__(self, net: Supernet, order: int, alpha_rate: float, seed: int):
        self.net, self.seed, self._order, self._alpha_rate = net, seed, order, alpha_rate
        rng = np.random.default_rng([seed, 1])
        self.weights: Any = tf.Variable(tf.constant(net.packing.initial(seed)))
        self.alphas: Any = tf.Variable(tf.constant(1e-3 * rng.standard_normal(net.space.shape), tf.float32))
        self.slots = _WEIGHTS.make_slots([self.weights])
        self.alpha_slots = _ALPHAS.make_slots([self.alphas])
        self.run: Callable[..., list[Any]] = SupernetSession(net)

    def learn(self, training: tuple[Any, Any], validation: tuple[Any, Any] | None, rate: float) -> list[float]:
        """Takes one step of the alphas, then one of the weights, on batches (images, labels).

        Returns training loss and accuracy, then those in validation. Without `validation` only the weights change, and
        the validation metrics are missing.
        """
        validation_metrics: Any = ()
        if validation is not None:
            validation_metrics, gradient = self.alpha_gradient(training, validation, rate)
            _ALPHAS.apply([self.alphas], self.alpha_slots, [gradient], self._alpha_rate)
        metrics = self.learn_weights(training, rate, alphas=self.alphas)
        return [float(value) for value in (*metrics, *validation_metrics)]

    def learn_weights(self, batch: tuple[Any, Any], rate: float, alphas: Any = None, strengths: Any = None) -> Any:
        """Takes one step of the weights, given alphas or strengths; returns loss and accuracy before the step."""
        metrics, gradient = self.run(["weights"], batch, self.weights, alphas=alphas, strengths=strengths)
        _WEIGHTS.apply([self.weights], self.slots, [gradient], rate)
        return metrics

    def alpha_gradient(
        self, training: tuple[Any, Any], validation: tuple[Any, Any], rate: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns validation loss and accuracy (2,), and the gradient of the validation loss in the alphas.

        In second order, the loss is that of the weights after one more training step at `rate`. Its gradient contains
        a product of a Hessian and a vector, which is approximated by the difference of two gradients (Liu et al. 2019,
        equations 7 and 8).
        """
        if self._order == 1:
            metrics, gradient = self.run(["alphas"], validation, self.weights, self.alphas)
            return metrics, gradient
        gradient = self.run(["weights"], training, self.weights, self.alphas)[1]
        unrolled, *slots = (tf.Variable(variable) for variable in (self.weights, *self.slots))
        dataclasses.replace(_WEIGHTS, clip=None).apply([unrolled], slots, [gradient], rate)
        metrics, gradient, direction = self.run(["alphas", "weights"], validation, unrolled, self.alphas)
        size = np.float32(_HESSIAN_STEP / max(float(np.linalg.norm(direction)), 1e-12))
        weights = self.weights.numpy()
        above = self.run(["alphas"], training, weights + size * direction, self.alphas)[1]
        below = self.run(["alphas"], training, weights - size * direction, self.alphas)[1]
        return metrics, gradient - np.float32(rate) * (above - below) / (2 * size)

    def strengths(self) -> np.ndarray:
        """Returns the softmax of the alphas, of the space's shape."""
        return tf.nn.softmax(self.alphas).numpy()

    def cells(self) -> Cells:
        """Returns the cells that the present alphas select."""
        return self.net.space.derive(self.strengths())

    def eigenvalue(self, validation: tuple[Any, Any], seed: int, iterations: int = 5) -> float:
        """Returns the dominant eigenvalue of the validation loss' Hessian in alpha; its growth predicts collapse."""

        def gradient(alphas: np.ndarray) -> np.ndarray:
            return self.run(["alphas"], validation, self.weights, alphas)[1]

        return largest_eigenvalue(gradient, self.alphas.numpy(), iterations, np.random.default_rng(seed))

    def file(self, path: Path) -> TrainingState:
        """Returns the file that a search with this seed resumes from."""
        return TrainingState(path, {"recipe": "darts", "seed": self.seed})

    @property
    def variables(self) -> dict[str, list[Any]]:
        """Everything that a step reads and changes, in the groups that are saved."""
        alphas = {"alphas": [self.alphas], "alpha_slots": self.alpha_slots}
        return {"weights": [self.weights], "slots": self.slots, **alphas}


def largest_eigenvalue(
    gradient: Callable[[np.ndarray], np.ndarray], at: np.ndarray, iterations: int, rng: np.random.Generator
) -> float:
    """Returns the Hessian's eigenvalue of largest magnitude, by power iteration on differences of gradients."""
    direction = rng.standard_normal(at.shape).astype(np.float32)
    value = 0.0
    for _ in range(iterations):
        direction /= max(float(np.linalg.norm(direction)), 1e-12)
        step = np.float32(_EIGENVALUE_STEP) * direction
        product = (gradient(at + step) - gradient(at - step)) / (2 * _EIGENVALUE_STEP)
        value = float((direction * product).sum())
        direction = product
    return value


def select_by_perturbation(
    search: BilevelSearch,
    batches: Sequence[tuple[Any, Any]],
    tune: Callable[[np.ndarray], None],
    rng: np.random.Generator,
) -> Cells:
    """Selects the cells of a trained supernet by the accuracy that it loses without an operation or an edge.

    Source: Wang et al., "Rethinking Architecture Selection in Differentiable NAS", ICLR 2021, algorithm 1. In random
    order, each edge gets the operation whose removal lowers the validation accuracy most; then each node, in random
    order, keeps the two edges whose removal lowers it most. After each choice the supernet is tuned. Departures: only
    the weights are tuned, for `tuning_steps` steps (5 epochs in the paper); ties in accuracy are broken by the loss.

    The accuracy is measured on `batches` of validation images; `tune` trains the weights with given strengths.
    """
    space, strengths = search.net.space, search.strengths()

    def score_without(*place: Any) -> tuple[float, float]:
        """Returns accuracy and -loss of the supernet without the part of the strengths at `place`."""
        perturbed = strengths.copy()
        perturbed[place] = 0
        found = [search.run([], batch, search.weights, strengths=perturbed)[0] for batch in batches]
        loss, accuracy = np.mean(found, axis=0)
        return float(accuracy), -float(loss)

    cells, edges, ops = space.shape
    for cell, edge in rng.permutation([(cell, edge) for cell in range(cells) for edge in range(edges)]):
        chosen = min(range(1, ops), key=lambda op, at=(cell, edge): score_without(*at, op))  # any but "none"
        strengths[cell, edge] = np.arange(ops) == chosen
        tune(strengths)
    nodes = space.split_edges(np.arange(edges))
    for cell, node in rng.permutation([(cell, node) for cell in range(cells) for node in range(space.nodes)]):
        ranked = sorted(nodes[node], key=lambda edge, cell=cell: score_without(cell, edge))
        if len(ranked) > 2:
            strengths[cell, ranked[2:]] = 0
            tune(strengths)
    return space.derive(strengths)
