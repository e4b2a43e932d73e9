"""One step of an optimiser, for a list of weights or one flat vector, wherever the gradients come from.

    optimizer = Optimizer("sgd", momentum=0.9, nesterov=True, weight_decay=1e-4, clip=5.0)
    slots = optimizer.make_slots(weights)                 # saved beside the weights
    optimizer.apply(weights, slots, gradients, rate)      # eagerly, in a tf.function, or in a graph of tf.compat.v1

Each update of a weight is one fused operation. SGD and RMSProp are TensorFlow's classical ones, which trained the
published networks and differ from Keras' namesakes: the momentum is kept without the learning rate (as PyTorch's), and
RMSProp adds epsilon under the root and starts its mean square at one.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import tensorflow as tf


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
        if self.kind not in ("sgd", "rmsprop", "adam"):
            raise ValueError(f"kind is {self.kind!r}; expected sgd, rmsprop or adam")
        if self.decay_in not in ("loss", "gradient", "weights"):
            raise ValueError(f"decay_in is {self.decay_in!r}; expected loss, gradient or weights")
        if self.nesterov and self.kind != "sgd":
            raise ValueError("nesterov goes with sgd alone; leave it out")
        for name in ("momentum", "mean_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number from 0 to less than 1")
        if self.epsilon <= 0 or self.weight_decay < 0:
            raise ValueError(
                f"epsilon is {self.epsilon} and weight_decay {self.weight_decay}; expected an epsilon above 0 and a "
                "decay of 0 or more"
            )
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"clip is {self.clip}; expected a norm above 0, or none")

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
        count = len(weights)
        if decayed is None:
            decayed = [self.decay_all or weight.shape.rank > 1 for weight in weights]
        if self.decay_in == "loss":
            gradients = self._clipped(self._with_decay(weights, gradients, decayed))
        else:
            gradients = self._clipped(gradients)
            if self.decay_in == "gradient":
                gradients = self._with_decay(weights, gradients, decayed)
        operations = []
        if self.decay_in == "weights" and self.weight_decay:
            decays = self._with_decay(weights, [tf.zeros_like(weight) for weight in weights], decayed)
            operations = [weight.assign_sub(rate * decay) for weight, decay in zip(weights, decays, strict=True)]
        with tf.control_dependencies(operations):
            if self.kind == "sgd":
                return self._apply_momentum(weights, slots, gradients, rate)
            if self.kind == "rmsprop":
                return self._apply_rmsprop(weights, slots[:count], slots[count:], gradients, rate)
            return self._apply_adam(weights, slots[:count], slots[count:-1], slots[-1], gradients, rate)

    def _with_decay(self, weights: Sequence[Any], gradients: Sequence[Any], decayed: Sequence[Any]) -> list[Any]:
        decay = self.weight_decay
        if not decay:
            return list(gradients)
        factors = [decay * float(each) if isinstance(each, bool) else decay * each for each in decayed]
        return [
            gradient if isinstance(factor, float) and not factor else gradient + factor * weight
            for gradient, weight, factor in zip(gradients, weights, factors, strict=True)
        ]

    def _clipped(self, gradients: Sequence[Any]) -> list[Any]:
        if self.clip is None:
            return list(gradients)
        norm = tf.sqrt(2 * tf.add_n([tf.nn.l2_loss(gradient) for gradient in gradients]))
        factor = self.clip / tf.maximum(norm, self.clip)
        return [gradient * factor for gradient in gradients]

    def _apply_momentum(
        self, weights: Sequence[Any], momenta: Sequence[Any], gradients: Sequence[Any], rate: Any
    ) -> list[Any]:
        return [
            tf.raw_ops.ResourceApplyMomentum(
                var=weight.handle, accum=momentum.handle, lr=rate, grad=gradient,
                momentum=self.momentum, use_nesterov=self.nesterov,
            )
            for weight, momentum, gradient in zip(weights, momenta, gradients, strict=True)
        ]  # fmt: skip

    def _apply_rmsprop(
        self,
        weights: Sequence[Any],
        momenta: Sequence[Any],
        squares: Sequence[Any],
        gradients: Sequence[Any],
        rate: Any,
    ) -> list[Any]:
        return [
            tf.raw_ops.ResourceApplyRMSProp(
                var=weight.handle, ms=square.handle, mom=momentum.handle, lr=rate, rho=self.mean_decay,
                momentum=self.momentum, epsilon=self.epsilon, grad=gradient,
            )
            for weight, momentum, square, gradient in zip(weights, momenta, squares, gradients, strict=True)
        ]  # fmt: skip

    def _apply_adam(
        self,
        weights: Sequence[Any],
        momenta: Sequence[Any],
        squares: Sequence[Any],
        count: Any,
        gradients: Sequence[Any],
        rate: Any,
    ) -> list[Any]:
        counted = count.assign_add(1.0)
        with tf.control_dependencies([counted]):
            steps = count.read_value()
        powers = {"beta1_power": self.momentum**steps, "beta2_power": self.mean_decay**steps}
        return [
            tf.raw_ops.ResourceApplyAdam(
                var=weight.handle, m=momentum.handle, v=square.handle, **powers, lr=rate, beta1=self.momentum,
                beta2=self.mean_decay, epsilon=self.epsilon, grad=gradient,
            )
            for weight, momentum, square, gradient in zip(weights, momenta, squares, gradients, strict=True)
        ]  # fmt: skip
