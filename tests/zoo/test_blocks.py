"""The layers under all cells, on images small enough for a pencil."""

import keras
import numpy as np
import pytest

from zoo import blocks, ops
from zoo.blocks import Style
from zoo.families import amoebanet, darts, enas

TORCH, SAME = Style(padding="torch", epsilon=1e-12), Style(epsilon=1e-12)


def counted(height: int, width: int | None = None) -> np.ndarray:
    """An image whose pixels are 0, 1, 2, .. along the rows."""
    width = width or height
    return np.arange(height * width, dtype=np.float32).reshape(1, height, width, 1)


def run(make, image: np.ndarray, value: float | None = None) -> np.ndarray:
    """Applies what `make` adds to a graph; all kernels are `value`."""
    tensor = keras.Input(image.shape[1:])
    model = keras.Model(tensor, make(tensor))
    for weight in model.weights:
        if value is not None and weight.name == "kernel":
            weight.assign(np.full(weight.shape, value))
    return keras.ops.convert_to_numpy(model(image, training=False))[0, ..., :]


def test_windows_of_strided_pools_lie_as_the_code_that_published_the_family_lays_them():
    def pooled(style, image):
        return run(lambda x: blocks.pool(x, "max", 3, 2, style, "pool"), image)[..., 0].tolist()

    assert pooled(SAME, counted(4)) == [[10, 11], [14, 15]]  # rows 0..2 and 2..3
    assert pooled(TORCH, counted(4)) == [[5, 7], [13, 15]]  # rows 0..1 and 1..3
    assert pooled(SAME, counted(3)) == pooled(TORCH, counted(3)) == [[4, 5], [7, 8]]


@pytest.mark.parametrize(
    ("side", "zeros"), [(4, [[9, 6], [6, 4]]), (5, [[4, 6, 4], [6, 9, 6], [4, 6, 4]])], ids=["even", "odd"]
)
def test_means_leave_the_border_out_or_count_it_as_zeros(side, zeros):
    def mean(border):
        style = Style(border_average=border)
        image = np.ones((1, side, side, 1), np.float32)
        return run(lambda x: blocks.pool(x, "avg", 3, 2, style, "pool"), image)[..., 0]

    np.testing.assert_allclose(mean("leave_out"), np.ones_like(zeros))
    np.testing.assert_allclose(mean("zeros"), np.array(zeros) / 9, rtol=1e-6)


@pytest.mark.parametrize("shape", [(4, 4), (5, 5), (4, 7)])
def test_means_on_pytorch_leave_the_border_out_too(shape, monkeypatch):
    image = np.random.default_rng(0).normal(size=(1, *shape, 1)).astype(np.float32)

    def mean():
        return run(lambda x: blocks.pool(x, "avg", 3, 2, SAME, "pool"), image)

    expected = mean()
    monkeypatch.setattr(keras.config, "backend", lambda: "torch")  # whose own means repeat the border
    np.testing.assert_allclose(mean(), expected, rtol=1e-5)
    with pytest.raises(
        ValueError, match=r"\(None, None\) .* on PyTorch, without its height and width; give both in input"
    ):
        blocks.pool(keras.Input((None, None, 1)), "avg", 3, 2, SAME, "pool")


def test_zeros_at_a_border_of_unknown_place_are_refused():
    with pytest.raises(ValueError, match=r"pool cannot pad .* \(None, 8\) .* give both in input_shape"):
        blocks.pool(keras.Input((None, 8, 1)), "avg", 3, 2, Style(border_average="zeros"), "pool")


@pytest.mark.parametrize("height", [4, 5])
def test_a_strided_dilated_convolution_reads_every_second_pixel_as_pytorch_does(height):
    image = counted(height, 6)
    got = run(lambda x: blocks.depthwise(x, 3, 2, TORCH, "dw", dilation=2), image, 1)[..., 0]
    padded = np.pad(image[0, ..., 0], 2)  # PyTorch's padding is 2
    expected = [[padded[y : y + 5 : 2, x : x + 5 : 2].sum() for x in range(0, 6, 2)] for y in range(0, height, 2)]
    assert got.tolist() == expected


def test_other_strides_than_the_dilation_are_refused():
    with pytest.raises(ValueError, match="dilation 3 with strides 2 is not supported; expected them to be equal"):
        blocks.depthwise(keras.Input((8, 8, 1)), 3, 2, TORCH, "dw", dilation=3)


@pytest.mark.parametrize(
    ("height", "first", "second"),
    [(4, [[0, 2], [8, 10]], [[5, 7], [13, 15]]), (3, [[0, 2], [8, 10]], [[5, 7], [0, 0]])],
    ids=["even", "odd"],
)
def test_a_factorized_reduction_takes_even_pixels_and_those_below_and_right_of_them(height, first, second):
    got = run(lambda x: blocks.factorized_reduce(x, 2, SAME, "reduce"), counted(height, 4), 1)
    assert got[..., 0].tolist() == first
    assert got[..., 1].tolist() == second  # beyond the last row there are zeros


def test_an_odd_number_of_filters_is_divided_without_rest():
    assert run(lambda x: blocks.factorized_reduce(x, 5, SAME, "reduce"), counted(4)).shape == (2, 2, 5)


def test_convolutions_without_filters_are_refused():
    with pytest.raises(
        ValueError, match=r"stem_conv would have 0 filters, .*; expected at least 1. Give the preset more"
    ):
        blocks.conv(keras.Input((8, 8, 1)), 0, 3, 1, SAME, "stem_conv")


def layers_of(
    op: str, style: Style, strides: int = 1, channels: int = 8, filters: int = 8
) -> dict[str, tuple[int, ...]]:
    """The kernels that an operation makes, by the names of their layers after the edge's."""
    image = keras.Input((8, 8, channels))
    output = ops.OPS[op](ops.State(image, "state"), filters, strides, style, "edge")
    model = keras.Model(image, keras.layers.Identity()(output))
    assert model.output_shape == (None, 8 // strides, 8 // strides, filters)
    return {layer.name.removeprefix("edge_"): tuple(layer.kernel.shape) for layer in model.layers if layer.weights
            and hasattr(layer, "kernel")}  # fmt: skip


@pytest.mark.parametrize(
    ("op", "style", "strides", "kernels"),
    [
        ("skip_connect", SAME, 2, {"conv": (1, 1, 8, 8)}),
        ("skip_connect", darts.STYLE, 2, {"path1_conv": (1, 1, 8, 4), "path2_conv": (1, 1, 8, 4)}),
        ("max_pool_5x5", SAME, 2, {}),
        ("sep_conv_5x5", SAME, 1, {"dw1": (5, 5, 8, 1), "pw1": (1, 1, 8, 8), "dw2": (5, 5, 8, 1), "pw2": (1, 1, 8, 8)}),
        ("dil_conv_3x3", darts.STYLE, 2, {"dw1": (3, 3, 8, 1), "pw1": (1, 1, 8, 8)}),
        ("conv_3x3", SAME, 2, {"conv": (3, 3, 8, 8)}),
        ("conv_3x3", amoebanet.STYLE, 2,
         {"narrow_conv": (1, 1, 8, 2), "conv": (3, 3, 2, 2), "widen_conv": (1, 1, 2, 8)}),
        ("conv_1x1", amoebanet.STYLE, 1, {"conv": (1, 1, 8, 8)}),
        ("conv_1x3_3x1", amoebanet.STYLE, 1,
         {"narrow_conv": (1, 1, 8, 3), "row_conv": (1, 3, 3, 3), "column_conv": (3, 1, 3, 3),
          "widen_conv": (1, 1, 3, 8)}),
        ("conv_1x7_7x1", SAME, 2, {"row_conv": (1, 7, 8, 8), "column_conv": (7, 1, 8, 8)}),
        ("conv_1x3_3x1", SAME, 1, {"row_conv": (1, 3, 8, 8), "column_conv": (3, 1, 8, 8)}),
        ("conv_7x1_1x7", darts.STYLE, 2, {"row_conv": (1, 7, 8, 8), "column_conv": (7, 1, 8, 8)}),
    ],
)  # fmt: skip
def test_operations_have_the_kernels_of_the_papers(op, style, strides, kernels):
    assert layers_of(op, style, strides) == kernels


@pytest.mark.parametrize(
    ("op", "filters", "kernels"),
    [
        ("conv_3x3", 3, {"conv": (3, 3, 3, 3)}),
        ("conv_3x3", 4, {"narrow_conv": (1, 1, 4, 1), "conv": (3, 3, 1, 1), "widen_conv": (1, 1, 1, 4)}),
        ("conv_1x7_7x1", 2, {"row_conv": (1, 7, 2, 2), "column_conv": (7, 1, 2, 2)}),
        ("conv_1x3_3x1", 2, {"row_conv": (1, 3, 2, 2), "column_conv": (3, 1, 2, 2)}),
    ],
)
def test_a_bottleneck_that_would_have_no_channel_is_left_out(op, filters, kernels):
    assert layers_of(op, amoebanet.STYLE, channels=filters, filters=filters) == kernels


def test_pools_and_identities_get_a_projection_only_where_the_width_differs():
    for op in ("avg_pool_3x3", "skip_connect"):
        assert layers_of(op, SAME) == {}
        assert layers_of(op, SAME, channels=6) == {"conv": (1, 1, 6, 8)}


def test_enas_reduces_an_identity_without_the_relu_that_darts_has():
    image = -np.ones((1, 2, 2, 1), np.float32)
    for style, expected in ((enas.STYLE, -1), (darts.STYLE, 0)):
        got = run(lambda x, style=style: ops.skip_connect(ops.State(x, "state"), 2, 2, style, "edge"), image, 1)
        np.testing.assert_allclose(got, expected, atol=1e-4)
