"""A path of an ENAS supernet as zoo.build makes it, with the shared weights: what the supernet is checked by."""

from typing import Any

import keras
import numpy as np

import zoo
from recipes.enas.macro import CONVOLUTIONS, MacroSupernet
from recipes.enas.micro import REPEATS, SEPARABLE, MicroSupernet, find_stacks, share_rows
from recipes.enas.supernet import PathSupernet
from zoo.formats.enas import MACRO_OPS, MICRO_OPS
from zoo.genotype import INPUT_STATES, Genotype


def export(net: PathSupernet, vector: np.ndarray, path: np.ndarray, input_shape: tuple[int, int, int]) -> keras.Model:
    """Returns the network, with logits, that zoo.build makes of a path, with the shared weights in it.

    In training, normalised by the batch, it gives what `net.logits(vector, path, images)` gives.
    """
    if isinstance(net, MicroSupernet):
        preset: dict[str, Any] = {"cells": net.cells, "filters": net.filters}
    else:
        assert isinstance(net, MacroSupernet)
        preset = {"filters": net.widths[0], "separable": True}
    genotype = Genotype("path", "enas", net.space.decode(path), {}, {"search": preset})
    model = zoo.build(genotype, classes=net.classes, input_shape=input_shape, classifier_activation=None)
    if isinstance(net, MicroSupernet):
        layers = _micro_layers(net, vector, path)
    else:
        layers = _macro_layers(net, vector, path)
    for layer in model.layers:
        if layer.weights:
            moments = layer.get_weights()[2:]  # of a normalisation, which training does not read
            layer.set_weights(layers[layer.name] + moments)
    return model


def _micro_layers(net: MicroSupernet, vector: np.ndarray, path: np.ndarray) -> dict[str, list]:
    """Returns the weights under a path as the layers of zoo/families/enas.py have them: name of a layer -> arrays."""
    weights = net.packing.unpack(vector)

    def join(kernel: np.ndarray) -> np.ndarray:
        return np.asarray(share_rows(kernel)) if net.shared_joins else kernel

    layers: dict[str, list] = {"stem_conv": [weights["stem"]]}
    layers["stem_bn"] = [weights["stem/scale"], weights["stem/shift"]]
    cells = net.space.decode(path)
    loose = [graph.concat for graph in (cells.normal, cells.reduce) if graph is not None]
    before: list[Any] = [None, None]  # the states that h[c-2] and h[c-1] are joined of
    for number, place in enumerate(net.places):
        name, cell = f"cell{number}", f"cell{number:02d}" + ("_reduce" if place.reducing else "")
        for part, chosen in zip(("input0", "calibrate"), before, strict=True):
            kernel = weights[f"{name}/{part}"]
            kernel = kernel if chosen is None else join(kernel).take(chosen, axis=-3)
            kernel = kernel.reshape(*kernel.shape[:-3], -1, kernel.shape[-1])
            affine = weights[f"{name}/{part}/scale"], weights[f"{name}/{part}/shift"]
            layers |= _convolution(f"{cell}_{part}", kernel, *affine)
        affine = weights[f"{name}/input1/scale"], weights[f"{name}/input1/shift"]
        layers |= _convolution(f"{cell}_input1", weights[f"{name}/input1"], *affine)
        for part in (f"output{state}" for state in range(INPUT_STATES) if place.reducing):
            affine = weights[f"{name}/{part}/scale"], weights[f"{name}/{part}/shift"]
            layers |= _convolution(f"{cell}_{part}", weights[f"{name}/{part}"], *affine)
        part = path[int(place.reducing)]
        rows = net.first_rows + part[..., 0]
        stacks = find_stacks(name, weights)
        for (node, side), row in np.ndenumerate(rows):
            edge = f"{cell}_node{INPUT_STATES + node}_edge{side}"
            kernels = {key: stack[row] for key, stack in stacks.items()}
            layers |= _edge_layers(edge, MICRO_OPS[part[node, side, 1]], kernels)
        before = [before[1], loose[int(place.reducing)]]
    kernel = join(weights["classifier"]).take(before[1], axis=0)
    return layers | {"predictions": [kernel.reshape(-1, kernel.shape[-1])]}


def _edge_layers(edge: str, op: str, kernels: Any) -> dict[str, list]:
    if op == "skip_connect" and "skip_connect" in kernels:
        affine = kernels["skip_connect/scale"], kernels["skip_connect/shift"]
        return _convolution(edge, kernels["skip_connect"], *affine)
    layers: dict[str, list] = {}
    for repeat in range(REPEATS if op in SEPARABLE else 0):
        layers[f"{edge}_dw{repeat + 1}"] = [kernels[f"{op}/depthwise"][repeat]]
        layers[f"{edge}_pw{repeat + 1}"] = [kernels[f"{op}/pointwise"][repeat][None, None]]
        affine = kernels[f"{op}/scale"][repeat], kernels[f"{op}/shift"][repeat]
        layers[f"{edge}_bn{repeat + 1}"] = [*affine]
    return layers


def _macro_layers(net: MacroSupernet, vector: np.ndarray, path: np.ndarray) -> dict[str, list]:
    """Returns the weights under a path as the layers of zoo/families/enas.py have them: name of a layer -> arrays."""
    weights = net.packing.unpack(vector)
    layers: dict[str, list] = {"stem_conv": [weights["stem"]], "predictions": [weights["classifier"]]}
    layers["stem_bn"] = [weights["stem/scale"], weights["stem/shift"]]
    for number, row in enumerate(path, start=1):
        name, op = f"layer{number:02d}", MACRO_OPS[row[0]]
        kernel, scale, shift = (weights[f"{name}/narrow{part}"][row[0]] for part in ("", "/scale", "/shift"))
        layers |= _convolution(f"{name}_narrow", kernel, scale, shift)
        if op in CONVOLUTIONS:
            kernel = weights[f"{name}/{op}"]
            layers[f"{name}_conv"] = [kernel if kernel.ndim == 4 else kernel[None, None]]
            layers[f"{name}_bn"] = [weights[f"{name}/{op}/{part}"] for part in ("scale", "shift")]
            if op.startswith("sep"):
                layers[f"{name}_dw"] = [weights[f"{name}/{op}/depthwise"]]
        if number > 1:
            chosen = [*np.flatnonzero(row[1:number]), number - 1]
            kernel = weights[f"{name}/join"][chosen].reshape(-1, net.widths[number - 1])
            affine = weights[f"{name}/join/scale"], weights[f"{name}/join/shift"]
            layers |= _convolution(f"{name}_join", kernel, *affine)
        if number in net.thirds:
            for state in range(number + 1):
                kernel, scale, shift = (weights[f"{name}/halve{part}"][state] for part in ("", "/scale", "/shift"))
                halve = f"{name}_halve{state:02d}"
                layers |= _convolution(halve, kernel, scale, shift)
    return layers


def _convolution(name: str, kernel: np.ndarray, scale: Any, shift: Any) -> dict[str, list]:
    """Returns a 1x1 convolution (inputs, outputs) with its normalisation as layers of zoo.blocks have them.

    A kernel (2, inputs, half) is that of a factorized reduction.
    """
    if kernel.ndim == 2:
        return {f"{name}_conv": [kernel[None, None]], f"{name}_bn": [scale, shift]}
    halves = [np.split(array, 2, axis=-1) for array in (scale, shift)]
    layers: dict[str, list] = {f"{name}_path{half + 1}_conv": [kernel[half][None, None]] for half in (0, 1)}
    return layers | {f"{name}_path{half + 1}_bn": [array[half] for array in halves] for half in (0, 1)}
