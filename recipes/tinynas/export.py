"""A sub-network of the once-for-all network as a network of its own, with the weights that it inherits."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import zoo
from recipes.tinynas.supernet import MOMENTS, Supernet
from zoo.genotype import Genotype


def arrays(
    net: Supernet, weights: np.ndarray, statistics: np.ndarray, values: Mapping[str, Any]
) -> dict[str, list[np.ndarray]]:
    """Returns name of a layer -> its weights, for the network that zoo.build makes of the sub-network's genotype.

    Args:
        net: the once-for-all network.
        weights: its flat vector.
        statistics: of this sub-network's normalisations, flat as `Supernet.moments` gives them.
        values: the sub-network, decision -> choice.
    """
    named, moments = net.packing.unpack(weights), net.statistics.unpack(statistics)
    found = {}

    def put(prefix: str, name: str, kernel: np.ndarray) -> None:
        depthwise = name.endswith("depthwise")
        filters = kernel.shape[2 if depthwise else 3]
        found[prefix if depthwise else f"{prefix}_conv"] = [kernel]
        vectors = (named[f"{name}_scale"], named[f"{name}_shift"], *(moments[f"{name}/{what}"] for what in MOMENTS))
        found[f"{prefix}_bn"] = [vector[:filters] for vector in vectors]

    put("stem", "stem", named["stem"])
    for name in ("depthwise", "project"):
        put(f"block00_0_{name}", f"first/{name}", named[f"first/{name}"])
    row, last = 1, net.space.first
    for number, (there, kernel, inputs, middle, filters) in enumerate(net.space.choice(values).tolist()):
        if not there:
            continue
        at, name = f"block{row:02d}_0", f"block{number}"
        own = {key: tf.constant(value) for key, value in named.items() if key.startswith(f"{name}/")}
        put(f"{at}_expand", f"{name}/expand", named[f"{name}/expand"][:, :, :inputs, :middle])
        put(f"{at}_depthwise", f"{name}/depthwise", net.window(own, name, kernel, middle).numpy())
        put(f"{at}_project", f"{name}/project", named[f"{name}/project"][:, :, :middle, :filters])
        row, last = row + 1, filters
    found["predictions"] = [named["classifier"][:last], named["classifier_bias"]]
    return found


def standalone(
    net: Supernet,
    weights: np.ndarray,
    statistics: np.ndarray,
    values: Mapping[str, Any],
    genotype: Genotype,
    *,
    activation: str | None = None,
) -> keras.Model:
    """Returns the network of `genotype`, which `values` stand for, with the weights that it inherits.

    Args:
        net, weights, statistics, values: see `arrays`.
        genotype: with a preset of the images' shape.
        activation: of the classifier; logits unless given.
    """
    model = zoo.build(genotype, classes=net.classes, classifier_activation=activation)
    for layer, inherited in arrays(net, weights, statistics, values).items():
        model.get_layer(layer).set_weights(inherited)
    return model
