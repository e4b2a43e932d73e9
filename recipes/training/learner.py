"""One traced training step of a network (`Learner`), with its forward pass, scheduled drop path and several devices.

The forward pass traces half as many operations as Keras' own. Keras writes a BatchNormalization as 36 TensorFlow
operations, four fifths of all operations of a searched network; here it is one fused kernel on the layer's own
variables. Values equal Keras' up to rounding, except for one: the moving variance averages the unbiased variance of
each batch, n / (n - 1) times the biased one that Keras averages. TF-slim and PyTorch, which trained the published
networks, do so too.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from recipes.training.optimizer import Settings
from zoo import graph

_LARGEST_MOMENTUM = 0.9  # of moving averages: 0.9997, as published, needs more steps than a short training has
_DROP_PATH = "_drop_path"  # suffix of the drop path layers that `zoo.build` makes


def shorten_moving_averages(model: keras.Model) -> None:
    """Limits the momentum of each BatchNormalization, so that its moving averages are right after a short training."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = min(layer.momentum, _LARGEST_MOMENTUM)


class Learner:
    """The training step of a model that returns logits, [main] or [main, auxiliary], with the optimiser's variables.

    Args:
        model: the network to train; its frozen layers do not change.
        settings: the step uses its optimizer, label smoothing and weight of the auxiliary loss.
        class_weights: of each class in the loss; None for 1.
        soft_labels: whether labels are probabilities (batch, classes) instead of class numbers (batch,).
        mirror: the devices that share every batch; create the model and the Learner in its scope.
    """

    def __init__(
        self,
        model: Any,
        settings: Settings,
        *,
        class_weights: Sequence[float] | None = None,
        soft_labels: bool = False,
        mirror: "Mirror | None" = None,
    ):
        self._settings, self._mirror = settings, mirror
        self._class_weights, self._soft = class_weights, soft_labels
        self._forward = make_training_pass(model)
        self.weights: list[Any] = [weight.value for weight in model.trainable_weights]
        optimizer = settings.optimizer
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
        on_one = tf.function(self._step, signature, autograph=False)
        self._traced = on_one if mirror is None else mirror.run_on_all(self._step)

    def step(self, images: Any, labels: Any, rate: float) -> tuple[Any, Any]:
        """Trains on a batch; returns its mean loss, without weight decay, and the number of correct predictions.

        Both are those of the weights before the step.
        """
        labels = tf.cast(labels, tf.float32 if self._soft else tf.int32)
        return self._traced(images, labels, tf.constant(rate, tf.float32))

    def _step(self, images: Any, labels: Any, rate: Any, factor: Any = None) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            outputs = self._forward(images)
            outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
            outputs = [tf.cast(logits, tf.float32) for logits in outputs]  # they may be of mixed precision
            loss = self._loss(outputs[0], labels, factor)
            total = loss
            for logits in outputs[1:]:
                total += self._settings.auxiliary_weight * self._loss(logits, labels, factor)
            total = total if self._scale is None else self._scale.scale_up(total)
        gradients = [
            tf.zeros_like(weight) if gradient is None else gradient
            for gradient, weight in zip(tape.gradient(total, self.weights), self.weights, strict=True)
        ]
        numbers = tf.argmax(labels, -1, tf.int32) if self._soft else labels
        right = tf.reduce_sum(tf.cast(tf.equal(tf.argmax(outputs[0], -1, tf.int32), numbers), tf.float32))
        if self._mirror is not None:
            context = tf.distribute.get_replica_context()
            *gradients, loss, right = context.all_reduce(tf.distribute.ReduceOp.SUM, [*gradients, loss, right])
        if self._scale is None:
            self._apply(rate, gradients)
        else:
            self._scale.apply(gradients, functools.partial(self._apply, rate))
        return loss, tf.cast(right, tf.int32)

    def _apply(self, rate: Any, gradients: Sequence[Any]) -> None:
        self._settings.optimizer.apply(self.weights, self._slots, gradients, rate, self._decayed)

    def _loss(self, logits: Any, labels: Any, factor: Any) -> Any:
        """Returns the mean loss of the batch; with `factor`, this device's part of that mean, `factor` x the sum."""
        smoothing, classes = self._settings.label_smoothing, logits.shape[-1]
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
    """Scales the loss up so that small gradients do not vanish in float16 (Micikevicius et al., 2018).

    A step whose gradients overflow changes no weight and halves the scale; 2,000 good steps in a row double it.
    """

    _FIRST, _STEPS = 2.0**15, 2000

    def __init__(self):
        self._scale = tf.Variable(tf.constant(self._FIRST), trainable=False)
        self._good = tf.Variable(tf.zeros([]), trainable=False)
        self.variables = [self._scale, self._good]

    def scale_up(self, loss: Any) -> Any:
        return loss * self._scale

    def apply(self, gradients: Sequence[Any], take_step: Callable[[list[Any]], None]) -> None:
        """Calls `take_step` with the gradients of the unscaled loss, unless they overflowed."""
        unscaled = [gradient / self._scale for gradient in gradients]
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in unscaled])

        def step() -> Any:
            take_step(unscaled)
            return self._good + 1

        def skip() -> Any:
            self._scale.assign(tf.maximum(self._scale / 2, 1.0))
            return tf.zeros([])

        good = tf.cond(finite, step, skip)
        self._scale.assign(tf.where(good >= self._STEPS, 2 * self._scale, self._scale))
        self._good.assign(tf.where(good >= self._STEPS, 0.0, good))


def make_training_pass(model: keras.Model) -> Callable[[Any], Any]:
    """Returns a function equal to `model(images, training=True)`, and faster to trace if the model is functional.

    Call the function while tracing the training step.
    """
    try:
        graph.calls(model)
    except graph.GraphError:
        return functools.partial(model, training=True)

    def run(images: Any) -> Any:
        outputs = graph.replay(model, [images], _in_training)
        return outputs[0] if len(outputs) == 1 else outputs

    return run


def _in_training(call: graph.Call, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    if _can_be_fused(call.layer, arguments[0]):
        return _normalise(call.layer, arguments[0])
    mode = {"training": True} if "training" in inspect.signature(call.layer.call).parameters else {}
    return call.layer(*arguments, **{**options, **mode})


def _can_be_fused(layer: Any, x: Any) -> bool:
    renormalized = getattr(layer, "renorm", False)  # an option that Keras 3.12 does not have
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


class ScheduledDropPath(keras.layers.Layer):
    """Scheduled drop path (Zoph et al., 2018).

    Zeroes whole examples with probability p = `rate` x `progress`, and scales the others by 1 / (1 - p). `rate` is the
    one at the end of training: that of a Dropout layer of `zoo.build(..., drop_path_rate=r)`, scaled by depth if the
    family's paper does so. `progress`, a variable that all layers share, grows from 0 to 1. The layer is not
    registered for saving, since no saved model contains it.
    """

    def __init__(self, rate: float, progress: tf.Variable, name: str | None = None, dtype: Any = None):
        super().__init__(name=name, dtype=dtype)
        self.rate, self.progress = rate, progress
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Drops examples, the first axis of `inputs`; outside of training returns `inputs` unchanged."""
        if not training:
            return inputs
        keep = 1.0 - self.rate * self.progress
        shape = (tf.shape(inputs)[0], *(1 for _ in inputs.shape[1:]))
        drawn = keras.random.uniform(shape, dtype="float32", seed=self.seed_generator)
        # With p = 0 nothing may be dropped: keep is then exactly 1, and drawn is below 1.
        return inputs * tf.cast(drawn < keep, inputs.dtype) / tf.cast(keep, inputs.dtype)


class Scheduled(NamedTuple):
    """A copy of a model for training, and the variable that scales its drop path."""

    model: keras.Model
    progress: tf.Variable


def schedule_drop_path(model: keras.Model, dtype: str | None = None) -> Scheduled:
    """Returns a copy of a flat functional model, with layers and weights of its own, and the progress, at 0.

    The copy has the model's weights in the same order: after training, copy them back with
    `model.set_weights(copy.get_weights())`. It is for training only; export a model built without drop path.

    Args:
        dtype: the policy of the copy's layers, such as mixed_bfloat16; None for the model's.
    """
    progress = tf.Variable(tf.zeros([]), trainable=False)

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, keras.layers.Dropout) and layer.name.endswith(_DROP_PATH):
            return ScheduledDropPath(layer.rate, progress, layer.name, dtype or layer.dtype_policy)
        other = {} if dtype is None or isinstance(layer, keras.layers.InputLayer) else {"dtype": dtype}
        return layer.__class__.from_config(layer.get_config() | other)

    copy: keras.Model = keras.models.clone_model(model, clone_function=clone)
    copy.set_weights(model.get_weights())
    return Scheduled(copy, progress)


def list_gpus() -> list[str]:
    """Returns the visible GPUs if there are several, otherwise none."""
    names = [device.name for device in tf.config.list_logical_devices("GPU")]
    return names if len(names) > 1 else []


@functools.cache
def _strategy(devices: tuple[str, ...]) -> tf.distribute.MirroredStrategy:
    """Returns the one strategy of these devices; a second one would reuse the first's collective keys and mix sums."""
    return tf.distribute.MirroredStrategy(list(devices))


class Mirror:
    """Data parallelism: each device has a copy of the network and takes a share of every batch.

    This shortens a long trial; a search with more trials than devices is faster with one trial per device
    (docs/clusters.md). As usual, batch normalization sees only its device's share; the first device's moving averages
    are kept. Variables made in `scope()` exist on every device.
    """

    def __init__(self, devices: Sequence[str]):
        self._strategy = _strategy(tuple(devices))
        self.scope = self._strategy.scope

    def run_on_all(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function of (images, labels, rate) that runs `step` on every device with its share of the batch.

        `step` takes images, labels, the learning rate and a factor: the factor times the sum of the device's losses is
        its part of the batch's mean. It returns values that are equal on all devices.
        """
        strategy, count = self._strategy, self._strategy.num_replicas_in_sync

        def together(images: Any, labels: Any, rate: Any, factors: Any) -> Any:
            results = strategy.run(step, args=(images, labels, rate, factors))
            return strategy.experimental_local_results(results)[0]

        traced = tf.function(together, autograph=False, reduce_retracing=True)

        def run(images: tf.Tensor, labels: tf.Tensor, rate: tf.Tensor) -> Any:
            places = np.array_split(np.arange(len(images)), count)
            factor = 1 / len(images)
            if not len(places[-1]):  # fewer images than devices: as an empty share has no statistics, all take all
                places, factor = [np.arange(len(images))] * count, factor / count
            shares = [slice(place[0], place[-1] + 1) for place in places]
            images, labels = (
                strategy.experimental_distribute_values_from_function(
                    lambda context, part=part: part[shares[context.replica_id_in_sync_group]]
                )
                for part in (images, labels)
            )
            return traced(images, labels, rate, tf.constant(factor, tf.float32))

        return run
