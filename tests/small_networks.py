"""One small network of every family and kind of stem, and what tests do with a network."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

import zoo
from zoo import graph
from zoo.genotype import Blocks, Chain, Genotype

CLASSES = 4
# name -> file, preset, what makes it small, height and width
KINDS: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "nasnet": ("nasnet_a", "cifar10", {"repeats": 1, "filters": 4, "stem_filters": 6}, 8),
    "nasnet_imagenet": ("nasnet_a", "mobile", {"repeats": 1, "filters": 8, "stem_filters": 6}, 32),
    "amoebanet": ("amoebanet_a", "cifar10_f32", {"repeats": 1, "filters": 8, "stem_filters": 6}, 8),
    "pnasnet": ("pnasnet_5", "cifar10", {"repeats": 1, "filters": 4, "stem_filters": 6}, 8),
    "darts": ("darts", "cifar10", {"cells": 3, "filters": 4}, 8),
    "darts_imagenet": ("darts", "imagenet", {"cells": 3, "filters": 4}, 32),
    "enas_micro": ("enas_micro", "cifar10", {"cells": 1, "filters": 4}, 8),
    "enas_macro": ("enas_macro", "cifar10", {"filters": 4}, 8),
    "mnasnet": ("mnasnet_a1", "imagenet_w035", {}, 32),
    "mcunet": ("mcunet_vww0", "vww", {}, 32),
}


def shrunk(name: str, preset: str | None = None, **changes: Any) -> Genotype:
    """The genotype of a file with one preset, `small`: a preset of its own with `changes`."""
    genotype = zoo.load(name)
    values = genotype.presets[preset or next(iter(genotype.presets))]
    return dataclasses.replace(genotype, presets={"small": {**values, **changes}})


@functools.cache
def small(kind: str) -> Genotype:
    """The small genotype of a kind, with fewer layers where its body can be cut."""
    name, preset, changes, side = KINDS[kind]
    genotype = shrunk(name, preset, **changes, input_shape=[side, side, 3], classes=CLASSES)
    body = genotype.body
    if isinstance(body, Chain):
        body = Chain(body.layers[:6])
    if isinstance(body, Blocks):
        body = dataclasses.replace(body, rows=[dataclasses.replace(row, repeats=1) for row in body.rows[:6]])
    return dataclasses.replace(genotype, body=body)


@functools.cache
def built(kind: str) -> keras.Model:
    """The small network of a kind, built once a process, as if trained; tests leave it as it is."""
    return randomised(zoo.build(small(kind)))


def randomised(model: keras.Model) -> keras.Model:
    """Gives the normalisations statistics, so that it shows where one is lost or taken for another."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in layer.weights])
    return model


def as_torch(model: keras.Model, modules: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The weights of a network in PyTorch's layout; `modules` has the names that its layers get."""
    ends = {"kernel": "weight", "gamma": "weight", "beta": "bias", "moving_mean": "running_mean",
            "moving_variance": "running_var", "bias": "bias"}  # fmt: skip
    found: dict[str, np.ndarray] = {}
    for layer in sorted((layer for layer in model.layers if layer.weights), key=lambda layer: layer.name):
        for weight in layer.weights:
            value = keras.ops.convert_to_numpy(weight)
            if value.ndim == 4:
                depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
                value = value.transpose((2, 3, 0, 1) if depthwise else (3, 2, 0, 1))
            name = f"{modules[layer.name]}.{ends[weight.name]}"  # path1 and path2 have one normalisation there
            found[name] = (
                np.concatenate([found[name], value]) if name in found else value.T if value.ndim == 2 else value
            )
    return found


def images_for(model: keras.Model, count: int = 2) -> np.ndarray:
    """Random images of the size that the model takes."""
    return np.random.default_rng(1).uniform(-1, 1, (count, *model.inputs[0].shape[1:])).astype(np.float32)


def outputs_of(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """The outputs in inference, as an array."""
    return keras.ops.convert_to_numpy(model(images, training=False))


def foreign_layers(model: keras.Model) -> list[str]:
    """The layers that are not Keras' own, models among them."""
    return [
        layer.name
        for layer in model.layers
        if isinstance(layer, keras.Model) or not type(layer).__module__.startswith("keras.src.layers.")
    ]


def misplaced_normalisations(model: keras.Model) -> list[str]:
    """The normalisations that no converter could fold into a linear convolution that nobody else reads."""
    linear = (keras.layers.Conv2D, keras.layers.Dense, keras.layers.DepthwiseConv2D)
    calls = graph.calls(model)
    producers = {id(tensor): call.layer for call in calls for tensor in call.outputs}
    readers = [id(tensor) for call in calls for tensor in call.inputs] + [id(tensor) for tensor in model.outputs]
    return [
        call.layer.name
        for call in calls
        if isinstance(call.layer, keras.layers.BatchNormalization)
        and not (
            isinstance(before := producers.get(id(call.inputs[0])), linear)
            and before.activation is keras.activations.linear
            and readers.count(id(call.inputs[0])) == 1
        )
    ]
