"""One traced training step of a Keras model: forward pass, loss, gradients, and the optimiser's update.

The forward pass has half the operations that Keras' own traces. Keras spells a BatchNormalization out as 36 TensorFlow
operations, four in five of a searched network's; here it is one kernel and its variables. Those are the model's, and
the values are Keras' up to rounding, but for the moving variance: it takes in the sample's variance, n / (n-1) of the
population's that Keras takes, as TF-slim and PyTorch do, with which the published networks were trained.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from recipes.training.mirrored import Mirror
from recipes.training.optimizer import Optimizer
from zoo import graph

_LARGEST_MOMENTUM = 0.9  # of moving averages: 0.9997, as published, needs more steps than a short training has


def shorten_moving_averages(model: keras.Model) -> None:
    """Makes normalisation follow the statistics of a short training, which a published momentum would not."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = min(layer.momentum, _LARGEST_MOMENTUM)


class Learner:
    """The training step of a model with logits as outputs, [main] or [main, auxiliary], and the optimiser's variables.

    `recipes.training.loop.Settings.make_learner` makes it.

    Args:
        model: what learns; its frozen layers stay as they are.
        optimizer: how a step changes the weights.
        label_smoothing: the share of the truth that is spread over all classes.
        auxiliary_weight: of the auxiliary classifier's loss.
        class_weights: of each class in the loss; None for 1.
        soft_labels: labels are shares (batch, classes) in the place of numbers (batch,).
        mirror: each of its devices takes a share of every batch; make the model and this in its scope.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Optimizer,
        *,
        label_smoothing: float,
        auxiliary_weight: float,
        class_weights: Sequence[float] | None = None,
        soft_labels: bool = False,
        mirror: Mirror | None = None,
    ):
        self.model, self._optimizer, self._mirror = model, optimizer, mirror
        self._class_weights, self._soft = class_weights, soft_labels
        self._label_smoothing, self._auxiliary_weight = label_smoothing, auxiliary_weight
        self._forward = TrainingPass(model)
        self.weights: list[Any] = [weight.value for weight in model.trainable_weights]
        self._decayed = [
            optimizer.decay_all or len(weight.shape) > 1 or (optimizer.decay_biases and weight.name == "bias")
            for weight in model.trainable_weights
        ]
        self._slots = optimizer.make_slots(self.weights)
        self._scale = _LossScale() if any(layer.compute_dtype == "float16" for layer in model.layers) else None
        self.slots = [*self._slots, *(self._scale.variables if self._scale else ())]
        signature = [
            tf.TensorSpec([None, *model.input_shape[1:]], tf.float32),
            tf.TensorSpec([None, None], tf.float32) if soft_labels else tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([], tf.float32),
        ]
        whole = tf.function(self._step, signature, autograph=False)
        self._traced = whole if mirror is None else mirror.run_on_all(self._step)

    def step(self, images: Any, labels: Any, rate: float) -> tuple[Any, Any]:
        """Trains on a batch; returns its mean loss without decay, and how many of it were classified right before."""
        labels = tf.cast(labels, tf.float32 if self._soft else tf.int32)
        return self._traced(images, labels, tf.constant(rate, tf.float32))

    def _step(self, images: Any, labels: Any, rate: Any, factor: Any = None) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            outputs = self._forward(images)
            outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
            outputs = [tf.cast(logits, tf.float32) for logits in outputs]  # of mixed precision
            loss = self._loss(outputs[0], labels, factor)
            whole = loss
            for logits in outputs[1:]:
                whole += self._auxiliary_weight * self._loss(logits, labels, factor)
            whole = whole if self._scale is None else self._scale.grow(whole)
        gradients = [
            tf.zeros_like(weight) if gradient is None else gradient
            for gradient, weight in zip(tape.gradient(whole, self.weights), self.weights, strict=True)
        ]
        numbers = tf.argmax(labels, -1, tf.int32) if self._soft else labels
        right = tf.reduce_sum(tf.cast(tf.equal(tf.argmax(outputs[0], -1, tf.int32), numbers), tf.float32))
        if self._mirror is not None:
            *gradients, loss, right = self._mirror.add_up([*gradients, loss, right])
        if self._scale is None:
            self._apply(gradients, rate)
        else:
            self._scale.apply(gradients, lambda shrunk: self._apply(shrunk, rate))
        return loss, tf.cast(right, tf.int32)

    def _apply(self, gradients: Sequence[Any], rate: Any) -> None:
        self._optimizer.apply(self.weights, self._slots, gradients, rate, self._decayed)

    def _loss(self, logits: Any, labels: Any, factor: Any) -> Any:
        """Returns the mean over the batch, or this device's part of it: the sum times `factor`."""
        smoothing, classes = self._label_smoothing, logits.shape[-1]
        if smoothing or self._soft:
            truth = labels if self._soft else tf.one_hot(labels, classes)
            losses = tf.nn.softmax_cross_entropy_with_logits(truth * (1 - smoothing) + smoothing / classes, logits)
        else:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        if self._class_weights is not None:
            weights = tf.constant(self._class_weights, tf.float32)
            losses *= tf.linalg.matvec(labels, weights) if self._soft else tf.gather(weights, labels)
        return tf.reduce_mean(losses) if factor is None else factor * tf.reduce_sum(losses)


class _LossScale:
    """Multiplies a loss so that small gradients are numbers in float16, too (Micikevicius et al., 2018).

    A step whose gradients overflow changes no weight and halves the scale; after 2,000 others in a row it doubles.
    """

    _FIRST, _STEPS = 2.0**15, 2000

    def __init__(self):
        self._scale = tf.Variable(tf.constant(self._FIRST), trainable=False)
        self._good = tf.Variable(tf.zeros([]), trainable=False)
        self.variables = [self._scale, self._good]

    def grow(self, loss: Any) -> Any:
        return loss * self._scale

    def apply(self, gradients: Sequence[Any], take_step: Callable[[list[Any]], None]) -> None:
        """Takes the step with the gradients of the loss itself, unless they overflowed."""
        shrunk = [gradient / self._scale for gradient in gradients]
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in shrunk])

        def step() -> Any:
            take_step(shrunk)
            return self._good + 1

        def leave_out() -> Any:
            self._scale.assign(tf.maximum(self._scale / 2, 1.0))
            return tf.zeros([])

        good = tf.cond(finite, step, leave_out)
        self._scale.assign(tf.where(good >= self._STEPS, 2 * self._scale, self._scale))
        self._good.assign(tf.where(good >= self._STEPS, 0.0, good))


class TrainingPass:
    """What `model(images, training=True)` does, for a functional model; of another it is just that call."""

    def __init__(self, model: keras.Model):
        self._model = model
        try:
            graph.calls(model)
            self._is_walked = len(model.inputs) == 1
        except graph.GraphError:
            self._is_walked = False

    def __call__(self, images: Any) -> Any:
        """Returns the model's outputs, as the model would; call it where the training step is traced."""
        if not self._is_walked:
            return self._model(images, training=True)
        outputs = graph.replay(self._model, [images], _in_training)
        return outputs[0] if len(outputs) == 1 else outputs


def _in_training(call: graph.Call, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    if _can_be_fused(call.layer, arguments[0]):
        return _normalise(call.layer, arguments[0])
    mode = {"training": True} if "training" in inspect.signature(call.layer.call).parameters else {}
    return call.layer(*arguments, **{**options, **mode})


def _can_be_fused(layer: Any, x: Any) -> bool:
    renormalized = getattr(layer, "renorm", False)  # Keras 3.12 cannot do it yet
    if type(layer) is not keras.layers.BatchNormalization or not layer.trainable or renormalized:
        return False
    plain = layer.center and layer.scale and layer.axis in (-1, 3) and not layer.synchronized
    return plain and layer.compute_dtype == "float32" and len(x.shape) == 4


def _normalise(layer: Any, x: Any) -> Any:
    mean, variance = layer.moving_mean.value, layer.moving_variance.value
    y, new_mean, new_variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=layer.gamma.value, offset=layer.beta.value, mean=mean, variance=variance, epsilon=layer.epsilon,
        exponential_avg_factor=1 - layer.momentum, is_training=True,
    )  # fmt: skip
    mean.assign(new_mean)
    variance.assign(new_variance)
    return y
