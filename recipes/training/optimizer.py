"""How a network is trained: an optimiser's step, learning rate schedules, and `Settings` with all options.

    optimizer = Optimizer("sgd", momentum=0.9, nesterov=True, weight_decay=1e-4, clip=5.0)
    slots = optimizer.make_slots(weights)                 # save them with the weights
    optimizer.apply(weights, slots, gradients, rate)      # eagerly, in a tf.function, or in a graph of tf.compat.v1

Each update of a weight, or of one flat vector of weights, is one fused operation. SGD and RMSProp are the classical
ones of TensorFlow 1, which trained the published networks. They differ from Keras' namesakes: SGD's momentum does not
include the learning rate (as in PyTorch), and RMSProp adds epsilon under the root and starts its mean square at one.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import tensorflow as tf

from recipes.training import check_options

# kind -> the operation, and its names for the slots in the order of `make_slots`
_UPDATES = {
    "sgd": (tf.raw_ops.ResourceApplyMomentum, ("accum",)),
    "rmsprop": (tf.raw_ops.ResourceApplyRMSProp, ("mom", "ms")),
    "adam": (tf.raw_ops.ResourceApplyAdam, ("m", "v")),
}


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The step of an optimiser, and its options.

    Attributes:
        kind: "sgd", "rmsprop" or "adam".
        momentum: of SGD and RMSProp, and Adam's beta 1.
        nesterov: whether SGD uses Nesterov's momentum.
        mean_decay: of the mean square in RMSProp, and Adam's beta 2.
        epsilon: of RMSProp and Adam.
        weight_decay: the factor w of w/2 x |weights|^2 in the loss.
        decay_all: whether all weights decay (PyTorch's optimisers, ENAS); otherwise only kernels do, not biases and
            normalisation (TF-slim).
        decay_biases: whether biases decay besides kernels (MnasNet's TPU code).
        decay_in: "loss": the gradient includes the decay when it is clipped (papers that use TensorFlow); "gradient":
            the decay is added to the clipped gradient (papers that use PyTorch); "weights": rate x w x weight is
            subtracted from the weight itself (AdamW).
        clip: the largest global norm of the gradient; None for no clipping.
    """

    kind: Literal["sgd", "rmsprop", "adam"] = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    mean_decay: float = 0.9
    epsilon: float = 1e-3
    weight_decay: float = 0.0
    decay_all: bool = False
    decay_biases: bool = False
    decay_in: Literal["loss", "gradient", "weights"] = "loss"
    clip: float | None = None

    def __post_init__(self):
        check_options(self, "kind", f"one of {', '.join(_UPDATES)}", _UPDATES.__contains__)
        check_options(self, "decay_in", "loss, gradient or weights", ("loss", "gradient", "weights").__contains__)
        check_options(self, "momentum mean_decay", "a number from 0 to less than 1", lambda value: 0 <= value < 1)
        check_options(self, "epsilon clip", "a number above 0", lambda value: value > 0)
        check_options(self, "weight_decay", "a number of 0 or more", lambda value: value >= 0)
        if self.nesterov and self.kind != "sgd":
            raise ValueError(f"nesterov is set, and kind is {self.kind}; expected sgd: leave nesterov out")

    def make_slots(self, weights: Sequence[Any]) -> list[Any]:
        """Returns the optimiser's variables in a fixed order: momenta, mean squares, and Adam's step count."""
        slots = [tf.Variable(tf.zeros_like(weight), trainable=False) for weight in weights]
        if self.kind != "sgd":
            start = tf.ones_like if self.kind == "rmsprop" else tf.zeros_like
            slots += [tf.Variable(start(weight), trainable=False) for weight in weights]
        return [*slots, tf.Variable(tf.zeros([]), trainable=False)] if self.kind == "adam" else slots

    def apply(
        self,
        weights: Sequence[Any],
        slots: Sequence[Any],
        gradients: Sequence[Any],
        rate: Any,
        decayed: Sequence[Any] | None = None,
    ) -> list[Any]:
        """Updates weights and slots by one step; returns the operations, which a graph of tf.compat.v1 must run.

        Args:
            weights: tf.Variables.
            slots: what `make_slots` returned for these weights.
            gradients: one tensor or array per weight.
            rate: the learning rate, a number or a scalar tensor.
            decayed: for each weight, whether it decays, or a tensor of its shape with factors of the decay (for a flat
                vector: 0 where a bias is). If None, weights of rank 2 and higher decay, or all with `decay_all`.
        """
        if decayed is None:
            decayed = [self.decay_all or weight.shape.rank > 1 for weight in weights]
        factors = [self.weight_decay * each for each in decayed]

        def with_decay(tensors: Sequence[Any]) -> list[Any]:
            return [
                tensor if isinstance(factor, float) and not factor else tensor + factor * weight
                for tensor, weight, factor in zip(tensors, weights, factors, strict=True)
            ]

        gradients = self._clip(with_decay(gradients) if self.decay_in == "loss" else gradients)
        gradients = with_decay(gradients) if self.decay_in == "gradient" else gradients
        before: list[Any] = []
        if self.decay_in == "weights":
            before = [each.assign_sub(rate * (factor * each)) for each, factor in zip(weights, factors, strict=True)]
        options: dict[str, Any] = {"momentum": self.momentum}
        if self.kind == "sgd":
            options["use_nesterov"] = self.nesterov
        elif self.kind == "rmsprop":
            options |= {"rho": self.mean_decay, "epsilon": self.epsilon}
        else:
            counted = slots[-1].assign_add(1.0)
            with tf.control_dependencies([counted]):
                steps = slots[-1].read_value()
            options = {"beta1": self.momentum, "beta2": self.mean_decay, "epsilon": self.epsilon}
            options |= {"beta1_power": self.momentum**steps, "beta2_power": self.mean_decay**steps}
        apply, names = _UPDATES[self.kind]
        with tf.control_dependencies(before):
            return [
                apply(
                    var=weight.handle,
                    lr=rate,
                    grad=gradient,
                    **{name: slots[place + number * len(weights)].handle for number, name in enumerate(names)},
                    **options,
                )
                for place, (weight, gradient) in enumerate(zip(weights, gradients, strict=True))
            ]

    def _clip(self, gradients: Sequence[Any]) -> list[Any]:
        if self.clip is None:
            return list(gradients)
        norm = tf.sqrt(2 * tf.add_n([tf.nn.l2_loss(gradient) for gradient in gradients]))
        factor = self.clip / tf.maximum(norm, self.clip)
        return [gradient * factor for gradient in gradients]


def choose_optimizer(name: Literal["adamw"] | None, usual: Optimizer) -> Optimizer:
    """Returns the optimizer called `name`, with the clipping of `usual`; returns `usual` if the name is None.

    AdamW is that of Loshchilov and Hutter (2019) with PyTorch's betas and a decay of 0.05, usual for images, of kernels
    only.
    """
    if name is None:
        return usual
    return Optimizer("adam", mean_decay=0.999, epsilon=1e-8, weight_decay=0.05, decay_in="weights", clip=usual.clip)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate as a function of time, counted in epochs.

    Attributes:
        kind: "cosine": half a cosine wave from `rate` to `last`; "restarts": such half waves one after another, the
            first `period` epochs long and each `factor` times as long as the one before, with a constant rate within
            an epoch (SGDR, as in ENAS' code); "exponential": multiplied by `factor` every `period` epochs.
        rate: the highest rate.
        last: the lowest rate.
        warmup: epochs in which the rate grows linearly from 0; after them it is what it would be without warm-up. An
            exponential rate does not decay before they end (TPU code).
        period, factor: see `kind`.
        stairs: whether an exponential rate falls in steps, not smoothly.
    """

    kind: Literal["cosine", "restarts", "exponential"] = "cosine"
    rate: float = 0.05
    last: float = 0.0
    warmup: float = 0.0
    period: float = 10.0
    factor: float = 2.0
    stairs: bool = True

    def __post_init__(self):
        kinds = ("cosine", "restarts", "exponential")
        check_options(self, "kind", f"one of {', '.join(kinds)}", kinds.__contains__)
        check_options(self, "rate period factor", "a number above 0", lambda value: value > 0)
        check_options(self, "warmup last", "a number of 0 or more", lambda value: value >= 0)
        if self.last > self.rate or (self.kind == "restarts" and self.factor < 1):
            raise ValueError(
                f"rate is {self.rate}, last {self.last} and factor {self.factor}; expected last at most rate, and a "
                "factor of at least 1 for restarts"
            )

    def at_step(self, step: int, steps: int, epochs: int) -> float:
        """Returns the rate of step number `step`, from 0, in a training with `steps` steps per epoch.

        Warm-up counts each step as done, so that the first step does not have rate 0.
        """
        return self.at(step / steps, epochs, ahead=1 / steps)

    def at(self, time: float, epochs: float, ahead: float = 0.0) -> float:
        """Returns the rate after `time` of `epochs` epochs; warm-up is that at `time` + `ahead`."""
        if time >= self.warmup:
            return self._steady(time, epochs)
        steady = self.rate if self.kind == "exponential" else self._steady(time, epochs)
        return steady * min(1.0, (time + ahead) / self.warmup)

    def _steady(self, time: float, epochs: float) -> float:
        if self.kind == "exponential":
            power = time / self.period
            return max(self.last, self.rate * self.factor ** (math.floor(power) if self.stairs else power))
        share = time / epochs
        if self.kind == "restarts":
            start, period, time = 0.0, self.period, math.floor(time)
            while time >= start + period:
                start, period = start + period, period * self.factor
            share = (time - start) / period
        return self.last + 0.5 * (self.rate - self.last) * (1 + math.cos(math.pi * min(share, 1.0)))


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a network is trained.

    Attributes:
        epochs, batch_size: at least 1.
        schedule: of the learning rate.
        optimizer: with weight decay and clipping.
        label_smoothing: the share of the label's probability that is spread over all classes.
        auxiliary_weight: of the auxiliary classifier's loss.
        average: the decay of a moving average of the weights, which is evaluated and kept in place of the weights
            themselves; None for no average. After n steps the decay is at most (1 + n) / (10 + n), as in TensorFlow.
        drop_path_by: whether scheduled drop path grows at every step or every epoch.
    """

    epochs: int = 10
    batch_size: int = 64
    schedule: Schedule = Schedule()
    optimizer: Optimizer = Optimizer()
    label_smoothing: float = 0.0
    auxiliary_weight: float = 0.4
    average: float | None = None
    drop_path_by: Literal["step", "epoch"] = "step"

    def __post_init__(self):
        check_options(self, "epochs batch_size", "a whole number from 1", lambda value: value >= 1)
        check_options(self, "label_smoothing", "a share from 0 to less than 1", lambda value: 0 <= value < 1)
        check_options(self, "auxiliary_weight", "a number of 0 or more", lambda value: value >= 0)
        check_options(self, "average", "a number between 0 and 1, such as 0.9999, or none", lambda value: 0 < value < 1)
