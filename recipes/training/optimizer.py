"""How a network is trained: the step of an optimiser, for weights or one flat vector, and rates over a training.

    optimizer = Optimizer("sgd", momentum=0.9, nesterov=True, weight_decay=1e-4, clip=5.0)
    slots = optimizer.make_slots(weights)                 # saved beside the weights
    optimizer.apply(weights, slots, gradients, rate)      # eagerly, in a tf.function, or in a graph of tf.compat.v1

Each update of a weight is one fused operation. SGD and RMSProp are TensorFlow's classical ones, which trained the
published networks and differ from Keras' namesakes: the momentum is kept without the learning rate (as PyTorch's), and
RMSProp adds epsilon under the root and starts its mean square at one.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import tensorflow as tf

from recipes.training import check_options

# kind -> the operation, and what it calls the slots in the order of `make_slots`
_UPDATES = {
    "sgd": (tf.raw_ops.ResourceApplyMomentum, ("accum",)),
    "rmsprop": (tf.raw_ops.ResourceApplyRMSProp, ("mom", "ms")),
    "adam": (tf.raw_ops.ResourceApplyAdam, ("m", "v")),
}


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The options of a step, and the step.

    Attributes:
        kind: "sgd", "rmsprop" or "adam".
        momentum: of SGD and RMSProp, and Adam's beta 1; with `nesterov`, SGD's looks ahead.
        mean_decay, epsilon: of RMSProp's and Adam's mean square.
        weight_decay: the factor w of w/2 x |weights|^2 in the loss.
        decay_all: whether that counts all weights (PyTorch's optimisers, ENAS); else kernels only, neither biases nor
            normalisation (TF-slim).
        decay_biases: whether it counts biases besides kernels (MnasNet's TPU code).
        decay_in: "loss": the decay is part of the gradient that is clipped (TensorFlow's papers); "gradient": it is
            added to the clipped gradient (PyTorch's); "weights": rate x w x weight is taken off the weight apart from
            the gradient (AdamW).
        clip: the largest global norm of the gradient; None does not clip.
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
            raise ValueError("nesterov goes with sgd alone; leave it out")

    def make_slots(self, weights: Sequence[Any]) -> list[Any]:
        """Returns the optimiser's variables in a fixed order: momenta, mean squares, Adam's count of steps."""
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
        """Changes weights and slots by one step; returns the operations, which a graph of tf.compat.v1 has to run.

        Args:
            weights: tf.Variables.
            slots: what `make_slots` returned for them.
            gradients: tensors or arrays, one a weight.
            rate: the learning rate, a number or a scalar tensor.
            decayed: for each weight whether it decays, or a tensor of its shape with factors of the decay (of a flat
                vector, 0 for biases); by their rank unless given.
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
    """Returns the optimizer of this name for a training that has `usual` otherwise; that one for None.

    AdamW as Loshchilov and Hutter (2019) with PyTorch's betas; decay of 0.05 as is usual for images, of kernels alone.
    """
    if name is None:
        return usual
    return Optimizer("adam", mean_decay=0.999, epsilon=1e-8, weight_decay=0.05, decay_in="weights", clip=usual.clip)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate at each moment, counted in epochs.

    Attributes:
        kind: "cosine": half a period from `rate` to `last`; "restarts": such periods one after the other, the first
            `period` epochs long, each `factor` times as long as the one before, the same rate through a whole epoch
            (SGDR, as in ENAS' code); "exponential": times `factor` every `period` epochs, smoothly or, with `stairs`,
            at once.
        rate: the highest.
        last: the lowest.
        warmup: epochs in which it grows linearly from 0; then it is what it would be without them. An exponential one
            does not fall before they end (TPU code).
        period, factor: see `kind`.
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
                f"rate is {self.rate}, last {self.last} and factor {self.factor}; expected a last rate that is not the "
                "highest, and a factor from 1 for restarts"
            )

    def at_step(self, step: int, steps: int, epochs: int) -> float:
        """Returns the rate of a step, from 0, of a training with `steps` steps an epoch.

        Warm-up starts with the first step's share of it, not with a step of rate 0.
        """
        return self.at(step / steps, epochs, ahead=1 / steps)

    def at(self, time: float, epochs: float, ahead: float = 0.0) -> float:
        """Returns the rate after `time` of `epochs` epochs; warm-up may be `ahead` of that."""
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
        label_smoothing: the share of the truth that is spread over all classes.
        auxiliary_weight: of the auxiliary classifier's loss.
        average: the factor of the weights' moving average, which then is what is judged and kept; None keeps the
            weights themselves. In the first n steps it is at most (1 + n) / (10 + n), as TensorFlow does.
        drop_path_by: how often the rate of scheduled drop path grows.
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
