"""One traced training step: loss, gradient, weight decay, clipping, and the papers' two optimisers as fused operations.

Both are TensorFlow's classical ones, which trained the published networks and differ from Keras' namesakes: the
momentum is kept without the learning rate (as PyTorch's), and RMSProp adds epsilon under the root and starts its
mean square at one.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from recipes.training.forward import TrainingPass
from recipes.training.mirrored import Mirror


@dataclasses.dataclass(frozen=True)
class Descent:
    """The options of a step.

    Attributes:
        optimizer: "sgd" or "rmsprop".
        momentum: of either; with `nesterov`, SGD's looks ahead.
        mean_decay, epsilon: of RMSProp.
        weight_decay: the factor w of w/2 x |weights|^2 in the loss.
        decay_all: whether that counts all weights (PyTorch's optimisers, ENAS); else kernels only, neither biases nor
            normalisation (TF-slim).
        decay_biases: whether it counts biases besides kernels (MnasNet's TPU code).
        clip: the largest global norm of the gradient, decay included; None does not clip.
        label_smoothing: the share of the truth that is spread over all classes.
        auxiliary_weight: of the auxiliary classifier's loss.
    """

    optimizer: Literal["sgd", "rmsprop"] = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    mean_decay: float = 0.9
    epsilon: float = 1e-3
    weight_decay: float = 0.0
    decay_all: bool = False
    decay_biases: bool = False
    clip: float | None = None
    label_smoothing: float = 0.0
    auxiliary_weight: float = 0.4

    def __post_init__(self):
        if self.optimizer not in ("sgd", "rmsprop"):
            raise ValueError(f"optimizer is {self.optimizer!r}; expected sgd or rmsprop")
        if self.nesterov and self.optimizer != "sgd":
            raise ValueError("nesterov goes with optimizer sgd; leave it out")
        for name in ("momentum", "mean_decay", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number from 0 to less than 1")
        if self.epsilon <= 0 or self.weight_decay < 0 or self.auxiliary_weight < 0:
            raise ValueError(
                f"epsilon is {self.epsilon}, weight_decay {self.weight_decay}, auxiliary_weight "
                f"{self.auxiliary_weight}; expected epsilon above 0, the others not below"
            )
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"clip is {self.clip}; expected a norm above 0, or none")


class Learner:
    """A model with logits as outputs, [main] or [main, auxiliary], and the optimiser's variables.

    With a `mirror`, each of its devices takes a share of every batch; make the model and this in its scope.
    """

    def __init__(self, model: keras.Model, options: Descent, mirror: Mirror | None = None):
        self.model, self.options, self._mirror = model, options, mirror
        self._forward = TrainingPass(model)
        self.weights: list[Any] = [weight.value for weight in model.trainable_weights]
        self._decayed = [
            options.decay_all or len(weight.shape) > 1 or (options.decay_biases and weight.name == "bias")
            for weight in model.trainable_weights
        ]
        self.momenta = [tf.Variable(tf.zeros_like(weight), trainable=False) for weight in self.weights]
        squares = self.weights if options.optimizer == "rmsprop" else []
        self.squares = [tf.Variable(tf.ones_like(weight), trainable=False) for weight in squares]
        signature = [
            tf.TensorSpec([None, *model.input_shape[1:]], tf.float32),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([], tf.float32),
        ]
        whole = tf.function(self._step, signature, autograph=False)
        self._traced = whole if mirror is None else mirror.over(self._step)

    @property
    def slots(self) -> list[Any]:
        """The optimiser's variables, in a fixed order."""
        return [*self.momenta, *self.squares]

    def step(self, images: Any, labels: Any, rate: float) -> tuple[Any, Any]:
        """Trains on a batch; returns its mean loss, decay left out, and how many of it were told right before."""
        return self._traced(images, tf.cast(labels, tf.int32), tf.constant(rate, tf.float32))

    def _step(self, images: Any, labels: Any, rate: Any, factor: Any = None) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            outputs = self._forward(images)
            outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
            loss = self._loss(outputs[0], labels, factor)
            whole = loss
            for logits in outputs[1:]:
                whole += self.options.auxiliary_weight * self._loss(logits, labels, factor)
        gradients = [
            tf.zeros_like(weight) if gradient is None else gradient
            for gradient, weight in zip(tape.gradient(whole, self.weights), self.weights, strict=True)
        ]
        right = tf.reduce_sum(tf.cast(tf.equal(tf.argmax(outputs[0], -1, tf.int32), labels), tf.float32))
        if self._mirror is not None:
            *gradients, loss, right = self._mirror.summed([*gradients, loss, right])
        self._apply(self._clipped(self._with_decay(gradients)), rate)
        return loss, tf.cast(right, tf.int32)

    def _loss(self, logits: Any, labels: Any, factor: Any) -> Any:
        """Returns the mean over the batch, or this device's part of it: the sum times `factor`."""
        smoothing = self.options.label_smoothing
        if smoothing:
            classes = logits.shape[-1]
            truth = tf.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
            losses = tf.nn.softmax_cross_entropy_with_logits(truth, logits)
        else:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return tf.reduce_mean(losses) if factor is None else factor * tf.reduce_sum(losses)

    def _with_decay(self, gradients: Sequence[Any]) -> list[Any]:
        decay = self.options.weight_decay
        return [
            gradient + decay * weight if decayed and decay else gradient
            for gradient, weight, decayed in zip(gradients, self.weights, self._decayed, strict=True)
        ]

    def _clipped(self, gradients: list[Any]) -> list[Any]:
        clip = self.options.clip
        if clip is None:
            return gradients
        norm = tf.sqrt(2 * tf.add_n([tf.nn.l2_loss(gradient) for gradient in gradients]))
        factor = clip / tf.maximum(norm, clip)
        return [gradient * factor for gradient in gradients]

    def _apply(self, gradients: Sequence[Any], rate: Any) -> None:
        options = self.options
        if options.optimizer == "sgd":
            for weight, momentum, gradient in zip(self.weights, self.momenta, gradients, strict=True):
                tf.raw_ops.ResourceApplyMomentum(
                    var=weight.handle, accum=momentum.handle, lr=rate, grad=gradient,
                    momentum=options.momentum, use_nesterov=options.nesterov,
                )  # fmt: skip
            return
        for weight, square, momentum, gradient in zip(self.weights, self.squares, self.momenta, gradients, strict=True):
            tf.raw_ops.ResourceApplyRMSProp(
                var=weight.handle, ms=square.handle, mom=momentum.handle, lr=rate, rho=options.mean_decay,
                momentum=options.momentum, epsilon=options.epsilon, grad=gradient,
            )  # fmt: skip
