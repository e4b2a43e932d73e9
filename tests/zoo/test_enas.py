"""ENAS' two kinds of networks, against a plain re-implementation that goes by the released code, and by hand."""

import dataclasses
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import zoo
from zoo import formats
from zoo.genotype import CellGraph, Cells, Chain, Edge, Genotype, GenotypeError, Layer, Node

# Covers what the published cells leave out: a strided skip of h[c-1], and inputs that no node reads.
NORMAL = [0, 4, 0, 3, 2, 1, 0, 2]  # h[c-1] is loose
REDUCE = [1, 4, 1, 0, 2, 2, 2, 4, 1, 3, 3, 4]  # h[c-2] is loose
SHIPPED = ("0 2 0 0 0 4 0 1 0 4 1 1 1 0 0 1 0 2 1 1", "1 0 1 0 0 3 0 2 1 1 3 1 1 0 0 4 0 3 1 1")
MACRO = [0, 1, 1, 2, 0, 1, 4, 1, 1, 0, 5, 0, 0, 1, 0, 3, 1, 0, 0, 1, 1]  # six layers, each operation once


def numbers(arc: Any) -> list[int]:
    return [int(word) for word in arc.split()] if isinstance(arc, str) else arc


def with_preset(genotype: Genotype, **preset: Any) -> Genotype:
    return dataclasses.replace(genotype, presets={"tiny": {"input_shape": (12, 12, 3), "classes": 5, **preset}})


def randomised(model: keras.Model) -> keras.Model:
    rng = np.random.default_rng(3)
    for weight in model.weights:
        low, high = (0.5, 1.5) if "gamma" in weight.path or "variance" in weight.path else (-0.5, 0.5)
        weight.assign(rng.uniform(low, high, weight.shape))
    return model


class Released:
    """The layers of the released code (micro_child.py, general_child.py), with the weights of a built network."""

    def __init__(self, model: keras.Model):
        self.model = model

    def kernel(self, name: str) -> Any:
        return self.model.get_layer(name).kernel

    def batch_norm(self, x: Any, *names: str) -> Any:
        """One normalisation of all channels, whose statistics stand in the layers `names`, one behind the other."""
        found = [self.model.get_layer(name) for name in names]
        gamma, beta, mean, variance = (
            np.concatenate([getattr(layer, part) for layer in found])
            for part in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta

    def conv_bn(self, x: Any, name: str) -> Any:
        return self.batch_norm(ops.conv(x, self.kernel(f"{name}_conv"), padding="same"), f"{name}_bn")

    def relu_conv_bn(self, x: Any, name: str) -> Any:
        return self.conv_bn(ops.relu(x), name)

    def factorized_reduction(self, x: Any, name: str) -> Any:
        first = ops.conv(x[:, ::2, ::2], self.kernel(f"{name}_path1_conv"))
        shifted = ops.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 1:, 1:][:, ::2, ::2]
        second = ops.conv(shifted, self.kernel(f"{name}_path2_conv"))
        return self.batch_norm(ops.concatenate([first, second], -1), f"{name}_path1_bn", f"{name}_path2_bn")

    def operation(self, x: Any, op: int, strides: int, name: str) -> Any:
        if op < 2:
            for number in (1, 2):
                kernel = self.kernel(f"{name}_dw{number}")
                x = ops.depthwise_conv(ops.relu(x), kernel, strides if number == 1 else 1, padding="same")
                x = self.batch_norm(ops.conv(x, self.kernel(f"{name}_pw{number}")), f"{name}_bn{number}")
            return x
        if op < 4:
            return (ops.average_pool if op == 2 else ops.max_pool)(x, 3, strides, padding="same")
        return self.factorized_reduction(x, name) if strides > 1 else x

    def cell(self, oldest: Any, newest: Any, arc: list[int], filters: int, strides: int, name: str) -> Any:
        if oldest.shape[1] != newest.shape[1]:
            oldest = self.factorized_reduction(ops.relu(oldest), f"{name}_input0")
        elif oldest.shape[-1] != filters:
            oldest = self.relu_conv_bn(oldest, f"{name}_input0")
        if newest.shape[-1] != filters:
            newest = self.relu_conv_bn(newest, f"{name}_calibrate")
        states = [oldest, self.relu_conv_bn(newest, f"{name}_input1")]
        for node in range(len(arc) // 4):
            edges = [(arc[4 * node + 2 * edge], arc[4 * node + 2 * edge + 1]) for edge in (0, 1)]
            parts = [
                self.operation(states[state], op, strides if state < 2 else 1, f"{name}_node{node + 2}_edge{edge}")
                for edge, (state, op) in enumerate(edges)
            ]
            states.append(parts[0] + parts[1])
        read = {arc[place] for place in range(0, len(arc), 2)}
        loose = [(number, state) for number, state in enumerate(states) if number not in read]
        side = min(state.shape[1] for _, state in loose)
        return ops.concatenate(
            [
                self.factorized_reduction(state, f"{name}_output{number}") if state.shape[1] > side else state
                for number, state in loose
            ],
            -1,
        )

    def micro(self, image: Any, normal: list[int], reduce: list[int], cells: int, filters: int) -> Any:
        x = self.conv_bn(image, "stem")
        oldest, newest = x, x
        for number in range(cells + 2):
            reducing = number in (cells // 3, 2 * (cells // 3) + 1)
            filters *= 2 if reducing else 1
            name = f"cell{number:02d}" + ("_reduce" if reducing else "")
            x = self.cell(oldest, newest, reduce if reducing else normal, filters, 2 if reducing else 1, name)
            oldest, newest = newest, x
        return ops.mean(ops.relu(newest), (1, 2)) @ self.kernel("predictions")

    def macro(self, image: Any, arc: list[int], separable: bool = False) -> Any:
        states, place, layers = [self.conv_bn(image, "stem")], 0, 6
        for number in range(layers):
            name, op, bits = f"layer{number + 1:02d}", arc[place], arc[place + 1 : place + 1 + number]
            place += 1 + number
            x = ops.relu(self.relu_conv_bn(states[-1], f"{name}_narrow"))
            if op >= 4:
                x = (ops.average_pool if op == 4 else ops.max_pool)(x, 3, 1, padding="same")
            elif separable and op in (1, 3):
                x = self.conv_bn(ops.depthwise_conv(x, self.kernel(f"{name}_dw"), padding="same"), name)
            else:
                x = self.conv_bn(x, name)
            if number > 0:
                x = ops.concatenate([*(state for state, bit in zip(states, bits, strict=False) if bit), x], -1)
                x = self.relu_conv_bn(x, f"{name}_join")
            states.append(x)
            if number in (layers // 3 - 1, 2 * (layers // 3) - 1):  # all of them there; here those that are read later
                states = [
                    self.factorized_reduction(state, f"{name}_halve{k:02d}") if self.halves(number + 1, k) else None
                    for k, state in enumerate(states)
                ]
        return ops.mean(states[-1], (1, 2)) @ self.kernel("predictions")

    def halves(self, layer: int, state: int) -> bool:
        return any(found.name == f"layer{layer:02d}_halve{state:02d}_path1_conv" for found in self.model.layers)


def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)


@pytest.mark.parametrize(("normal", "reduce"), [(NORMAL, REDUCE), SHIPPED], ids=["every case", "published"])
def test_micro_network_computes_what_the_released_code_does(normal, reduce):
    genotype = with_preset(formats.from_enas_micro(normal, reduce), cells=3, filters=4)
    model = randomised(zoo.build(genotype, classifier_activation=None))
    expected = Released(model).micro(images(), numbers(normal), numbers(reduce), cells=3, filters=4)
    np.testing.assert_allclose(model(images()), expected, rtol=1e-4, atol=1e-4 * float(np.std(expected)))


@pytest.mark.parametrize("separable", [False, True])
def test_macro_network_computes_what_the_released_code_does(separable):
    genotype = with_preset(formats.from_enas_macro(MACRO), filters=4, separable=separable)
    model = randomised(zoo.build(genotype, classifier_activation=None))
    expected = Released(model).macro(images(), MACRO, separable)
    np.testing.assert_allclose(model(images()), expected, rtol=1e-4, atol=1e-4 * float(np.std(expected)))


def test_the_family_is_represented_by_micro_with_reductions_at_5_and_11_of_17_cells():
    with keras.StatelessScope():
        model = zoo.build("enas", features_only=True)
    assert model.name == "enas_micro_cifar10"
    assert [feature.shape[1:] for feature in model.outputs] == [(32, 32, 180), (16, 16, 360), (8, 8, 720)]
    cells = sorted({layer.name.partition("_node")[0] for layer in model.layers if "_node" in layer.name})
    assert cells == [f"cell{k:02d}" + ("_reduce" if k in (5, 11) else "") for k in range(17)]


def test_macro_features_are_those_before_each_halving():
    with keras.StatelessScope():
        model = zoo.build("enas_macro", features_only=True)
    assert [feature.shape[1:] for feature in model.outputs] == [(32, 32, 96), (16, 16, 192), (8, 8, 384)]


def test_drop_path_grows_with_the_cell_and_spares_identities_and_the_auxiliary_head_is_on_cell_12():
    with keras.StatelessScope():
        model = zoo.build("enas_micro", drop_path_rate=0.34, auxiliary=True)
    rates = {layer.name: layer.rate for layer in model.layers if layer.name.endswith("_drop_path")}
    assert rates["cell00_node2_edge0_drop_path"] == pytest.approx(0.02)  # 0.34 x 1 / 17
    assert rates["cell16_node6_edge1_drop_path"] == pytest.approx(0.34)
    assert "cell00_node3_edge0_drop_path" not in rates  # skip_connect
    assert "cell05_reduce_node5_edge1_drop_path" not in rates  # skip_connect at stride 2
    assert len(rates) == 15 * 8 + 2 * 9  # of the ten edges of a cell two are identities, in a reduction one
    assert model.get_layer("aux_pool_relu").input is model.get_layer("cell12_concat").output
    assert model.get_layer("aux_pool").output.shape == (None, 2, 2, 720)
    assert model.get_layer("aux_map_conv").output.shape == (None, 2, 2, 768)  # padded, as released; then its mean
    assert [output.shape for output in model.outputs] == [(None, 10), (None, 10)]
    assert not model.get_layer("predictions").use_bias
    assert not model.get_layer("aux_predictions").use_bias


def test_one_macro_layer_by_hand():
    # F = 2, a grey image, two classes: stem 9 x 2 + 4; 1x1 2 x 2 + 4; 3x3 9 x 4 + 4; classifier 2 x 2
    genotype = Genotype("chain", "enas", Chain((Layer("conv_3x3"),)), presets={"tiny": {"filters": 2}})
    model = zoo.build(genotype, classes=2, input_shape=(8, 8, 1))
    assert zoo.cost.of(model).trainable_params == 22 + 8 + 40 + 4
    assert model.get_layer("predictions").output.shape == (None, 2)


def test_states_that_no_later_layer_reads_are_not_halved():
    chain = Chain((Layer("conv_3x3"), Layer("conv_3x3"), Layer("conv_3x3", (1,))))  # halved behind layers 1 and 2
    genotype = Genotype("chain", "enas", chain, presets={"tiny": {"filters": 2}})
    names = {layer.name for layer in zoo.build(genotype, classes=2, input_shape=(8, 8, 1)).layers}
    assert {name.removesuffix("_concat") for name in names if "halve" in name and name.endswith("_concat")} == {
        "layer01_halve01",
        "layer02_halve01",
        "layer02_halve02",
    }


def test_a_chain_of_ones_own_takes_the_presets_of_the_published_chain():
    with keras.StatelessScope():
        model = zoo.build(formats.from_enas_macro(MACRO), "cifar10_separable")
    assert model.get_layer("layer02_dw").kernel.shape == (3, 3, 96, 1)
    assert model.get_layer("layer06_narrow_conv").kernel.shape == (1, 1, 384, 384)


def test_what_a_chain_cannot_have_is_refused():
    chain = Genotype("chain", "enas", Chain((Layer("conv_3x3"), Layer("max_pool_5x5"))))
    with pytest.raises(ValueError, match="neither an auxiliary head nor drop path"):
        zoo.build("enas_macro", auxiliary=True)
    with pytest.raises(ValueError, match="neither an auxiliary head nor drop path"):
        zoo.build("enas_macro", drop_path_rate=0.1)
    with pytest.raises(GenotypeError, match="layer02 has the op 'max_pool_5x5'; a chain of ENAS has conv_3x3"):
        zoo.build(chain)
    with pytest.raises(GenotypeError, match="separable is 1; expected true or false"):
        zoo.build(with_preset(zoo.load("enas_macro"), filters=4, separable=1))
    with pytest.raises(GenotypeError, match="'cells' is not known"):
        zoo.build(with_preset(zoo.load("enas_macro"), filters=4, cells=3))


def test_a_reduction_cell_may_be_left_out():
    graph = CellGraph((Node((Edge("sep_conv_3x3", 0), Edge("max_pool_3x3", 1))),), (2,))
    genotype = with_preset(Genotype("one_cell", "enas", Cells(graph)), cells=1, filters=4)
    with keras.StatelessScope():
        assert [x.shape[1:] for x in zoo.build(genotype, features_only=True).outputs] == [
            (12, 12, 12),
            (6, 6, 8),
            (3, 3, 16),
        ]
