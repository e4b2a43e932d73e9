"""A network while it learns: one traced step, the forward pass in it, scheduled drop path, several devices.

The forward pass has half the operations that Keras' own traces. Keras spells a BatchNormalization out as 36 TensorFlow
operations, four in five of a searched network's; here it is one kernel and its variables. Those are the model's, and
the values are Keras' up to rounding, but for the moving variance: it takes in the sample's variance, n / (n-1) of the
population's that Keras takes, as TF-slim and PyTorch do, with which the published networks were trained.
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
_DROP_PATH = "_drop_path"  # how the names of the layers end that `zoo.build` makes for it


def shorten_moving_averages(model: keras.Model) -> None:
    """Makes normalisation follow the statistics of a short training, which a published momentum would not."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = min(layer.momentum, _LARGEST_MOMENTUM)


class Learner:
    """The training step of a model with logits as outputs, [main] or [main, auxiliary], and the optimiser's variables.

    Args:
        model: what learns; its frozen layers stay as they are.
        settings: its optimizer, label smoothing and weight of the auxiliary loss are the step's.
        class_weights: of each class in the loss; None for 1.
        soft_labels: labels are shares (batch, classes) in the place of numbers (batch,).
        mirror: each of its devices takes a share of every batch; make the model and this in its scope.
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
                whole += self._settings.auxiliary_weight * self._loss(logits, labels, factor)
            whole = whole if self._scale is None else self._scale.grow(whole)
        gradients = [
            tf.zeros_like(weight) if gradient is None else gradient
            for gradient, weight in zip(tape.gradient(whole, self.weights), self.weights, strict=True)
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
        """Returns the mean over the batch, or this device's part of it: the sum times `factor`."""
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


def make_training_pass(model: keras.Model) -> Callable[[Any], Any]:
    """Returns what `model(images, training=True)` does, for a functional model; of another it is just that call.

    Call it where the training step is traced.
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


class ScheduledDropPath(keras.layers.Layer):
    """Sets whole examples to zero with the chance `rate` x progress, and scales the others by 1 / (1 - that chance).

    Scheduled drop path (Zoph et al., 2018). `zoo.build(..., drop_path_rate=r)` gives standard Dropout layers whose
    rates are those of the end of training (each family's code has already scaled them by depth where its paper does);
    `progress`, a variable that all of them share, grows from 0 to 1. Not registered for saving: it is part of no model
    that is kept.
    """

    def __init__(self, rate: float, progress: tf.Variable, name: str | None = None, dtype: Any = None):
        super().__init__(name=name, dtype=dtype)
        self.rate, self.progress = rate, progress
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Returns `inputs`, of any rank with the examples first, as they are outside of training."""
        if not training:
            return inputs
        keep = 1.0 - self.rate * self.progress
        shape = (tf.shape(inputs)[0], *(1 for _ in inputs.shape[1:]))
        drawn = keras.random.uniform(shape, dtype="float32", seed=self.seed_generator)
        # A chance of zero must drop nothing: drawn is below 1, and keep is then exactly 1.
        return inputs * tf.cast(drawn < keep, inputs.dtype) / tf.cast(keep, inputs.dtype)


class Scheduled(NamedTuple):
    """A twin for training and what scales its drop path."""

    model: keras.Model
    progress: tf.Variable


def schedule_drop_path(model: keras.Model, dtype: str | None = None) -> Scheduled:
    """Returns a twin of a flat functional model, with layers and weights of its own, and the progress, at 0.

    The twin's weights are the model's, in the same order: copy back by `model.set_weights(twin.get_weights())`. It is
    for training only: what is exported is a model built without drop path.

    Args:
        dtype: the policy of the twin's layers, such as mixed_bfloat16; None for the model's.
    """
    progress = tf.Variable(tf.zeros([]), trainable=False)

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, keras.layers.Dropout) and layer.name.endswith(_DROP_PATH):
            return ScheduledDropPath(layer.rate, progress, layer.name, dtype or layer.dtype_policy)
        other = {} if dtype is None or isinstance(layer, keras.layers.InputLayer) else {"dtype": dtype}
        return layer.__class__.from_config(layer.get_config() | other)

    twin: keras.Model = keras.models.clone_model(model, clone_function=clone)
    twin.set_weights(model.get_weights())
    return Scheduled(twin, progress)


def list_gpus() -> list[str]:
    """Returns the GPUs that this process may use, if there are several; none otherwise."""
    names = [device.name for device in tf.config.list_logical_devices("GPU")]
    return names if len(names) > 1 else []


@functools.cache
def _strategy(devices: tuple[str, ...]) -> tf.distribute.MirroredStrategy:
    """Returns the one strategy of these devices: a second one would number its sums as the first did, and mix them."""
    return tf.distribute.MirroredStrategy(list(devices))


class Mirror:
    """Copies of a network on `devices`, each of which takes a share of every batch, with equal weights after the step.

    That makes a long trial shorter; a search with more trials than devices is faster with one trial a device
    (docs/clusters.md). Batch normalization sees the share of its device, as is usual; what is kept are the first
    device's averages. Variables made in its `scope()` are on every device.
    """

    def __init__(self, devices: Sequence[str]):
        self._strategy = _strategy(tuple(devices))
        self.scope = self._strategy.scope

    def run_on_all(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function of a batch that runs `step` on every device with its share.

        `step` takes images, labels, the learning rate, and the factor that makes the sum of its losses its part of the
        batch's mean; it returns what is equal on all devices.
        """
        strategy, count = self._strategy, self._strategy.num_replicas_in_sync

        def together(images: Any, labels: Any, rate: Any, factors: Any) -> Any:
            results = strategy.run(step, args=(images, labels, rate, factors))
            return strategy.experimental_local_results(results)[0]

        traced = tf.function(together, autograph=False, reduce_retracing=True)

        def whole(images: tf.Tensor, labels: tf.Tensor, rate: tf.Tensor) -> Any:
            places = np.array_split(np.arange(len(images)), count)
            factor = 1 / len(images)
            if not len(places[-1]):  # fewer images than devices: an empty share has no statistics, so all take all
                places, factor = [np.arange(len(images))] * count, factor / count
            shares = [slice(place[0], place[-1] + 1) for place in places]
            images, labels = (
                strategy.experimental_distribute_values_from_function(
                    lambda context, part=part: part[shares[context.replica_id_in_sync_group]]
                )
                for part in (images, labels)
            )
            return traced(images, labels, rate, tf.constant(factor, tf.float32))

        return whole
