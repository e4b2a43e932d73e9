"""Stems, stacks of cells and heads, with cells of one node: what is where, how wide, and what reads what."""

import dataclasses

import keras
import pytest

import zoo
from zoo.genotype import Block, Blocks, CellGraph, Cells, Genotype, GenotypeError, Node
from zoo.skeleton import CellStack, get_body, read_preset

NORMAL = CellGraph([Node([("conv_1x1", 0), ("max_pool_3x3", 1)])], [2])
REDUCE = CellGraph([Node([("conv_3x3", 0), ("avg_pool_3x3", 1)])], [2])
CIFAR = {"repeats": 2, "filters": 8, "stem": "cifar", "stem_filters": 6}
IMAGENET = {**CIFAR, "repeats": 1, "filters": 16, "stem": "imagenet"}


def network(family: str, preset: dict, reduce: CellGraph | None = REDUCE, side: int = 32, **options) -> keras.Model:
    """A network without values."""
    genotype = Genotype("tiny", family, Cells(NORMAL, reduce), presets={"small": preset})
    with keras.StatelessScope():
        return zoo.build(genotype, classes=3, input_shape=(side, side, 3), **options)


def sums(model: keras.Model) -> dict[str, tuple]:
    """The output of each cell: its node's sum; (height, channels)."""
    return {
        layer.name.removesuffix("_node2_add"): (layer.output.shape[1], layer.output.shape[-1])
        for layer in model.layers
        if layer.name.endswith("_node2_add")
    }


def reads(model: keras.Model, name: str) -> str:
    """The name of the layer whose output the layer `name` reads."""
    return model.get_layer(name).input._keras_history.operation.name


def test_a_stack_has_reductions_after_n_and_2n_normal_cells_and_doubles_its_width_there():
    assert sums(network("nasnet", CIFAR)) == {
        "cell00": (32, 8), "cell01": (32, 8), "cell02_reduce": (16, 16), "cell03": (16, 16), "cell04": (16, 16),
        "cell05_reduce": (8, 32), "cell06": (8, 32), "cell07": (8, 32),
    }  # fmt: skip


def test_without_a_reduction_cell_the_normal_one_runs_at_stride_2():
    assert sums(network("pnasnet", CIFAR, reduce=None)) == {
        "cell00": (32, 8), "cell01": (32, 8), "cell02_reduce": (16, 16), "cell03": (16, 16), "cell04_reduce": (8, 32),
        "cell05": (8, 32),
    }  # fmt: skip


@pytest.mark.parametrize("family", ["nasnet", "amoebanet", "pnasnet"])
def test_the_imagenet_stem_is_a_valid_convolution_and_two_narrow_reductions(family):
    model = network(family, IMAGENET, side=65)
    assert model.get_layer("stem_conv").output.shape == (None, 32, 32, 6)  # (65 - 3) // 2 + 1
    assert list(sums(model).items())[:3] == [("stem0", (16, 4)), ("stem1", (8, 8)), ("cell00", (8, 16))]
    assert reads(model, "stem0_input1_newest_relu") == "stem_bn"  # h[c-1]; there is no h[c-2] yet
    assert "stem0_input0_conv" not in [layer.name for layer in model.layers]
    assert reads(model, "stem1_input0_oldest_relu") == "stem_bn"


def test_the_first_cell_has_the_stem_for_both_inputs_in_darts_and_for_the_newer_in_nasnet():
    darts = network("darts", {"cells": 3, "filters": 8, "stem": "cifar"})
    assert reads(darts, "cell00_input0_oldest_relu") == reads(darts, "cell00_input1_newest_relu") == "stem_bn"
    nasnet = network("nasnet", CIFAR)
    assert reads(nasnet, "cell00_input1_newest_relu") == "stem_bn"
    assert "cell00_input0_oldest_relu" not in [layer.name for layer in nasnet.layers]


@pytest.mark.parametrize(("skip_reduction", "source"), [(False, "cell01_node2_add"), (True, "cell00_node2_add")])
def test_skip_reduction_lets_the_cell_behind_a_reduction_read_what_the_reduction_read(skip_reduction, source):
    model = network("nasnet", {**CIFAR, "skip_reduction": skip_reduction})
    assert reads(model, "cell02_reduce_input1_newest_relu") == "cell01_node2_add"
    assert reads(model, "cell03_input1_newest_relu") == "cell02_reduce_node2_add"
    assert reads(model, "cell03_input0_oldest_relu") == source


def test_darts_reduces_at_a_third_and_two_thirds_and_has_a_triple_stem():
    model = network("darts", {"cells": 6, "filters": 4, "stem": "cifar"})
    assert sums(model) == {
        "cell00": (32, 4), "cell01": (32, 4), "cell02_reduce": (16, 8), "cell03": (16, 8), "cell04_reduce": (8, 16),
        "cell05": (8, 16),
    }  # fmt: skip
    assert model.get_layer("stem_conv").kernel.shape == (3, 3, 3, 12)
    wide = network("darts", {"cells": 3, "filters": 4, "stem": "cifar", "stem_multiplier": 2})
    assert wide.get_layer("stem_conv").kernel.shape == (3, 3, 3, 8)


def test_the_imagenet_stem_of_darts_halves_three_times_before_the_first_cell():
    model = network("darts", {"cells": 3, "filters": 8, "stem": "imagenet"}, side=64)
    shapes = {
        name: model.get_layer(name).output.shape[1:] for name in ("stem0_first_bn", "stem0_second_bn", "stem1_bn")
    }
    assert shapes == {"stem0_first_bn": (32, 32, 4), "stem0_second_bn": (16, 16, 8), "stem1_bn": (8, 8, 8)}
    # the older input is twice as large
    assert reads(model, "cell00_input0_oldest_relu") == "stem0_second_bn"
    assert model.get_layer("cell00_input0_path1_conv").output.shape == (None, 8, 8, 4)


@pytest.mark.parametrize(
    ("family", "preset", "source", "widths", "kernel", "normalised"),
    [
        # 16 x 16 under the mean of 5 x 5 at stride 3: (16 - 5) // 3 + 1 = 4
        ("nasnet", CIFAR, "cell04_node2_add", (128, 768), 4, True),
        ("amoebanet", CIFAR, "cell04_node2_add", (51, 307), 4, True),
        ("darts", {"cells": 6, "filters": 4, "stem": "cifar"}, "cell04_reduce_node2_add", (128, 768), 2, True),
        ("darts", {"cells": 3, "filters": 4, "stem": "imagenet"}, "cell02_reduce_node2_add", (128, 768), 2, False),
    ],
)
def test_auxiliary_heads_hang_where_the_published_ones_do(family, preset, source, widths, kernel, normalised):
    side = 7 * 32 if preset["stem"] == "imagenet" else 32
    model = network(family, preset, auxiliary=True, side=side)
    assert reads(model, "aux_pool_relu") == source
    assert model.get_layer("aux_narrow_conv").kernel.shape[-1] == widths[0]
    assert model.get_layer("aux_map_conv").kernel.shape == (kernel, kernel, *widths)
    assert ("aux_map_bn" in [layer.name for layer in model.layers]) == normalised
    assert [output.shape for output in model.outputs] == [(None, 3), (None, 3)]


def test_drop_path_grows_with_depth_in_nasnet_and_is_constant_in_amoebanet():
    def rates(family):
        model = network(family, CIFAR, drop_path_rate=0.4)
        paths = [layer for layer in model.layers if layer.name.endswith("_edge1_drop_path")]
        return [layer.rate for layer in sorted(paths, key=lambda layer: layer.name)]

    assert rates("nasnet") == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4])
    assert rates("amoebanet") == [0.4] * 8


def test_the_stem_cells_count_in_the_depth_of_the_drop_path():
    model = network("nasnet", IMAGENET, side=64, drop_path_rate=0.7)  # two in the stem, three normal, two reductions
    assert model.get_layer("stem0_node2_edge1_drop_path").rate == pytest.approx(0.1)
    assert model.get_layer("cell04_node2_edge1_drop_path").rate == pytest.approx(0.7)


def test_normalisation_has_the_constants_of_the_released_code():
    def constants(family, preset, side=32):
        layer = network(family, preset, side=side).get_layer("cell00_input1_bn")
        return layer.momentum, layer.epsilon

    assert constants("nasnet", IMAGENET, 64) == constants("pnasnet", IMAGENET, 64) == (0.9997, 1e-3)
    assert constants("nasnet", CIFAR) == (0.9, 1e-5)
    assert constants("darts", {"cells": 3, "filters": 4, "stem": "cifar"}) == (0.9, 1e-5)


def test_nasnet_and_its_heirs_end_in_a_relu_and_darts_does_not():
    assert reads(network("nasnet", CIFAR), "avg_pool") == "top_relu"
    darts = network("darts", {"cells": 3, "filters": 4, "stem": "cifar"})
    assert reads(darts, "avg_pool") == "cell02_reduce_node2_add"


def test_dropout_stands_before_the_classifier():
    assert reads(network("nasnet", CIFAR, dropout_rate=0.5), "predictions") == "top_dropout"


def test_presets_are_checked_by_the_types_of_their_dataclass():
    values = {**CIFAR, "input_shape": [8, 8, 3], "classes": 3}
    assert read_preset(CellStack, values) == CellStack(2, 8, "cifar", 6)
    for change, message in [
        ({"filter": 3}, r"'filter' is not known \(did you mean 'filters'\?\); this family has repeats, filters, stem"),
        ({"repeats": 0}, "the preset's repeats is 0; expected a whole number from 1"),
        ({"repeats": True}, "the preset's repeats is True"),
        ({"filters": 8.0}, r"the preset's filters is 8\.0"),
        ({"skip_reduction": 1}, "the preset's skip_reduction is 1; expected true or false"),
        ({"stem": "mnist"}, "the preset's stem 'mnist' is not known; expected one of cifar, imagenet"),
    ]:
        with pytest.raises(GenotypeError, match=message):
            read_preset(CellStack, {**values, **change})
    with pytest.raises(GenotypeError, match="the preset has no stem, stem_filters; this family needs repeats, filters"):
        read_preset(CellStack, {"repeats": 1, "filters": 8})


def test_a_body_of_another_kind_is_told_with_the_kinds_that_fit():
    blocks = Genotype("mine", "darts", Blocks([Block("conv", 3, 8)], 8))
    with pytest.raises(GenotypeError, match="mine has Blocks, but its family 'darts' builds Cells; give the genotype"):
        get_body(blocks, Cells)
    with pytest.raises(GenotypeError, match="builds Cells or Blocks"):
        get_body(dataclasses.replace(blocks, body=zoo.load("enas_macro").body), Cells, Blocks)
