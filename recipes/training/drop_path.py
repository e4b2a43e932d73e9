"""Scheduled drop path (Zoph et al., 2018): the chance to lose an edge grows while a network is trained.

`zoo.build(..., drop_path_rate=r)` gives standard Dropout layers whose rates are those of the end of training (each
family's code has already scaled them by depth where its paper does). `schedule_drop_path` makes a twin of such a model
for training, in which one variable, shared by all of these layers, scales the rates from 0 to 1: nothing is traced
again when it changes. The twin is for training only: what is exported is a model built without drop path.
"""

from typing import Any, NamedTuple

import keras
from keras import layers, ops

_SUFFIX = "_drop_path"


class Progress:
    """How far training is, 0 to 1; a plain object, so that no layer takes the variable for one of its weights."""

    def __init__(self, value: float = 0.0):
        self._variable = keras.Variable(value, trainable=False, dtype="float32", name="progress")

    @property
    def value(self) -> Any:
        """The current value, as a tensor; part of a traced function it is read anew in each call."""
        return self._variable.value

    def assign(self, value: float) -> None:
        """Sets it.

        Raises:
            ValueError: `value` is not from 0 to 1.
        """
        if not 0 <= value <= 1:
            raise ValueError(f"progress is {value}; expected a number from 0 to 1")
        self._variable.assign(value)


class ScheduledDropPath(layers.Layer):
    """Sets whole examples to zero with the chance `rate` x progress, and scales the others by 1 / (1 - that chance).

    Not registered for saving: it is part of no model that is kept.
    """

    def __init__(self, rate: float, progress: Progress, name: str | None = None, dtype: Any = None):
        super().__init__(name=name, dtype=dtype)
        self.rate = rate
        self.progress = progress
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Returns `inputs`, of any rank with the examples first, as they are outside of training."""
        if not training:
            return inputs
        keep = ops.cast(1.0 - self.rate * self.progress.value, "float32")
        shape = (ops.shape(inputs)[0], *(1 for _ in inputs.shape[1:]))
        drawn = keras.random.uniform(shape, dtype="float32", seed=self.seed_generator)
        # A chance of zero must drop nothing: drawn is below 1, and keep is then exactly 1.
        return inputs * ops.cast(drawn < keep, inputs.dtype) / ops.cast(keep, inputs.dtype)


class Scheduled(NamedTuple):
    """A twin for training and what scales its drop path."""

    model: keras.Model
    progress: Progress


def schedule_drop_path(model: keras.Model, dtype: str | None = None) -> Scheduled:
    """Returns a twin of a flat functional model, with layers and weights of its own, and the progress, at 0.

    The twin's weights are the model's, in the same order: copy back by `model.set_weights(twin.get_weights())`.

    Args:
        dtype: the policy of the twin's layers, such as mixed_bfloat16; None for the model's.
    """
    progress = Progress()

    def clone(layer: layers.Layer) -> layers.Layer:
        if is_drop_path(layer):
            return ScheduledDropPath(layer.rate, progress, layer.name, dtype or layer.dtype_policy)
        other = {} if dtype is None or isinstance(layer, layers.InputLayer) else {"dtype": dtype}
        return layer.__class__.from_config(layer.get_config() | other)

    twin: keras.Model = keras.models.clone_model(model, clone_function=clone)
    twin.set_weights(model.get_weights())
    return Scheduled(twin, progress)


def is_drop_path(layer: layers.Layer) -> bool:
    """Whether `zoo.build` made the layer for drop path."""
    return isinstance(layer, layers.Dropout) and layer.name.endswith(_SUFFIX)
