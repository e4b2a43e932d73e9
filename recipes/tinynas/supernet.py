"""The once-for-all network of TinyNAS: each sub-network uses a part of the weights of the largest one.

That part is the first blocks of a stage, the first channels, and the central window of each depthwise kernel. With
`kernel_transform=True`, each smaller window is multiplied by a learnt matrix as well.

A sub-network is encoded as a tensor (`TinySpace.encode`), so one trace serves all. Weights are sliced, not masked, and
absent blocks are not run, so a sub-network is as fast as the network that `zoo.build` makes of its genotype.

Source: Lin et al., arXiv:2007.10319, appendix D, and Cai et al., "Once-for-All", ICLR 2020, which has the matrices;
MCUNet does not mention them.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from recipes.tinynas.space import SupernetBlock, TinySpace
from recipes.training.supernet import EPSILON, Packing, Shape

MOMENTS = ("mean", "variance")


class Supernet:
    """The largest network of `space`, of which `logits`, `moments` and `infer` run any sub-network.

    Args:
        space: of all sub-networks.
        classes, channels: of the images.
        kernel_transform: whether matrices transform the smaller kernels.
    """

    def __init__(self, space: TinySpace, classes: int, channels: int, kernel_transform: bool = False):
        self.space, self.classes, self.channels = space, classes, channels
        self.kernels = sorted(space.kernels, reverse=True)  # sizes of depthwise kernels
        self.transform = kernel_transform and len(self.kernels) > 1
        self._norms: list[tuple[str, int]] = []
        stem, first = space.stem_filters, space.first_filters
        shapes = self._convolution("stem", (3, 3, channels, stem), 9 * channels, stem)
        shapes += self._convolution("first/depthwise", (3, 3, stem, 1), 9, stem)
        shapes += self._convolution("first/project", (1, 1, stem, first), stem, first)
        for number, block in enumerate(space.blocks):
            shapes += self._block(f"block{number}", block)
        last = space.blocks[-1].filters
        shapes += [Shape("classifier", (last, classes), last), Shape("classifier_bias", (classes,))]
        self.packing = Packing(shapes)  # of all weights in one flat vector
        # of the mean and variance of each normalisation in another one
        self.statistics = Packing([Shape(f"{name}/{what}", (size,)) for name, size in self._norms for what in MOMENTS])

    def _convolution(self, name: str, shape: tuple[int, ...], fan_in: int, filters: int) -> list[Shape]:
        self._norms.append((name, filters))
        scale, shift = Shape(f"{name}_scale", (filters,), constant=1.0), Shape(f"{name}_shift", (filters,))
        return [Shape(name, shape, fan_in), scale, shift]

    def _block(self, name: str, block: SupernetBlock) -> list[Shape]:
        size, middle = self.kernels[0], max(self.space.expansions) * block.inputs
        shapes = self._convolution(f"{name}/expand", (1, 1, block.inputs, middle), block.inputs, middle)
        shapes += self._convolution(f"{name}/depthwise", (size, size, middle, 1), size**2, middle)
        if self.transform:
            shapes += [Shape(f"{name}/to_{kernel}", (kernel**2, kernel**2)) for kernel in self.kernels[1:]]
        return shapes + self._convolution(f"{name}/project", (1, 1, middle, block.filters), middle, block.filters)

    def initial(self, seed: int) -> np.ndarray:
        """Returns initial values: He's for convolutions, as in zoo.build, and identities for kernel transforms."""
        rng, parts = np.random.default_rng(seed), []
        for shape in self.packing.shapes:
            if "/to_" in shape.name:
                parts.append(np.eye(shape.shape[0]).ravel())
            elif shape.fan_in is None:
                parts.append(np.full(shape.size, shape.constant))
            else:
                gain = 1 if shape.name == "classifier" else 2
                parts.append(rng.normal(0, np.sqrt(gain / shape.fan_in), shape.size))
        return np.concatenate(parts).astype(np.float32)

    def input_specs(self, image_shape: Sequence[int]) -> tuple[tf.TensorSpec, tf.TensorSpec, tf.TensorSpec]:
        """Returns the signature of a trace: weights, an encoded sub-network, and a batch of images."""
        encoded = tf.TensorSpec([len(self.space.blocks), 5], tf.int32)
        return tf.TensorSpec([self.packing.size]), encoded, tf.TensorSpec([None, *image_shape])

    def decayed(self) -> np.ndarray:
        """Returns 1 for weights that decay, kernels and the classifier, and 0 for others: float32 (packing.size,)."""
        return np.concatenate([np.full(s.size, s.fan_in is not None, np.float32) for s in self.packing.shapes])

    def logits(self, weights: Any, encoded: Any, images: Any) -> Any:
        """Returns logits (batch, classes) for training: normalisation uses the statistics of the batch."""
        return self._compute(_Pass(self.packing.unpack(weights)), encoded, images)

    def moments(self, weights: Any, encoded: Any, images: Any) -> Any:
        """Returns the batch's mean and variance at each normalisation, as a flat vector; zeros for absent channels."""
        collecting = _Pass(self.packing.unpack(weights), pad_moments_to=dict(self._norms))
        self._compute(collecting, encoded, images)
        return tf.concat(collecting.moments, 0)

    def infer(self, weights: Any, statistics: Any, encoded: Any, images: Any) -> Any:
        """Returns logits (batch, classes); normalisation uses the given statistics."""
        folded = _Pass(self.packing.unpack(weights), self.statistics.unpack(statistics))
        return self._compute(folded, encoded, images)

    def _compute(self, run: "_Pass", encoded: Any, images: Any) -> Any:
        stem = run.convolve("stem", pad_images(images, 1), run.weights["stem"], 2, relu=True)
        x = run.convolve_depthwise("first/depthwise", stem, run.weights["first/depthwise"], 1)
        x = run.convolve("first/project", x, run.weights["first/project"], 1, relu=False)
        x = x + stem if self.space.stem_filters == self.space.first_filters else x
        for number, block in enumerate(self.space.blocks):
            x = self._compute_if_present(run, f"block{number}", block, tf.unstack(encoded[number]), x)
        x = tf.reduce_mean(x, [1, 2])
        return tf.matmul(x, run.weights["classifier"][: tf.shape(x)[1]]) + run.weights["classifier_bias"]

    def _compute_if_present(self, run: "_Pass", name: str, block: SupernetBlock, row: list[Any], x: Any) -> Any:
        """Returns the block's output or, if the sub-network does not have the block, its input."""
        shape = x.shape
        if block.number < min(self.space.depths) or block.stage == self.space.stages - 1:
            return self._compute_block(run, name, block, row, x)
        before = list(run.moments)

        def skip() -> Any:
            zeros = [tf.zeros([size]) for n, size in self._norms if n.startswith(f"{name}/") for _ in MOMENTS]
            return (tf.identity(x), *(zeros if run.pad_moments_to else ()))

        def compute() -> Any:
            run.moments = []  # a branch's tensors can leave it only as outputs
            y = self._compute_block(run, name, block, row, x)
            return (y, *run.moments)

        y, *own = tf.cond(row[0] > 0, compute, skip)
        run.moments = before + own
        return tf.ensure_shape(y, shape)

    def _compute_block(self, run: "_Pass", name: str, block: SupernetBlock, row: list[Any], x: Any) -> Any:
        _, kernel, inputs, middle, filters = row
        expand = run.weights[f"{name}/expand"][:, :, :inputs, :middle]
        y = run.convolve(f"{name}/expand", x, expand, 1, relu=True)
        window = self.cut_window(run.weights, name, kernel, middle)
        y = run.convolve_depthwise(f"{name}/depthwise", y, window, block.strides)
        project = run.weights[f"{name}/project"][:, :, :middle, :filters]
        y = run.convolve(f"{name}/project", y, project, 1, relu=False)
        return self._add_shortcut(block, x, y, inputs, filters) if block.strides == 1 else y

    def _add_shortcut(self, block: SupernetBlock, x: Any, y: Any, inputs: Any, filters: Any) -> Any:
        """Adds the shortcut if the block keeps the number of channels, as zoo.mobile_blocks does."""
        widths = {self.space.filters(block.stage, share) for share in self.space.shares}
        before = {self.space.first_filters}
        if block.stage:
            before = {self.space.filters(block.stage - 1, share) for share in self.space.shares}
        if block.number or before == widths == {block.filters}:
            return y + x
        if not before & widths:
            return y
        return tf.cond(tf.equal(inputs, filters), lambda: y + x, lambda: y)

    def cut_window(self, weights: Mapping[str, Any], name: str, kernel: Any, middle: Any) -> Any:
        """Returns the depthwise kernel of a sub-network: (kernel, kernel, middle, 1)."""
        whole = weights[f"{name}/depthwise"][:, :, :middle]
        if len(self.kernels) == 1:
            return whole
        if self.transform:
            whole = self._transform(weights, name, whole, kernel)
        edge = (self.kernels[0] - kernel) // 2
        return whole[edge : edge + kernel, edge : edge + kernel]

    def _transform(self, weights: Mapping[str, Any], name: str, whole: Any, kernel: Any) -> Any:
        """Returns the window of size `kernel` with zeros around it; a matrix makes each from the next larger one."""
        largest, found = self.kernels[0], [whole]
        window = whole
        for before, size in zip(self.kernels, self.kernels[1:], strict=False):
            edge = (before - size) // 2
            rows = tf.reshape(window[edge : edge + size, edge : edge + size], [size * size, -1])
            window = tf.reshape(tf.matmul(weights[f"{name}/to_{size}"], rows), [size, size, tf.shape(whole)[2], 1])
            pad = (largest - size) // 2
            found.append(tf.pad(window, [[pad, pad], [pad, pad], [0, 0], [0, 0]]))
        return tf.stack(found)[tf.argmax(tf.equal(tf.constant(self.kernels), kernel))]


@dataclasses.dataclass
class _Pass:
    """A forward pass: convolutions, each with its normalisation by the batch's or by given statistics."""

    weights: Mapping[str, Any]  # name -> weight
    statistics: Mapping[str, Any] | None = None  # by name; None for those of the batch
    # normalisation -> channels in the largest network; if given, the batch's statistics are collected in `moments`
    pad_moments_to: Mapping[str, int] | None = None
    moments: list[Any] = dataclasses.field(default_factory=list)  # mean and variance of each normalisation in turn

    def convolve(self, name: str, x: Any, kernel: Any, strides: int, relu: bool) -> Any:
        """A convolution without padding; its kernel may be a slice."""
        return self._normalize(name, lambda k: tf.nn.conv2d(x, k, strides, "VALID"), kernel, tf.shape(kernel)[3], relu)

    def convolve_depthwise(self, name: str, x: Any, kernel: Any, strides: int) -> Any:
        """A depthwise convolution padded as PyTorch pads; its kernel size may be a tensor."""
        x = x if strides == 1 else pad_images(x, tf.shape(kernel)[0] // 2)
        options = {"strides": [1, strides, strides, 1], "padding": "SAME" if strides == 1 else "VALID"}

        def apply(kernel: Any) -> Any:
            return tf.raw_ops.DepthwiseConv2dNative(input=x, filter=kernel, **options)

        return self._normalize(name, apply, kernel, tf.shape(kernel)[2], relu=True)

    def _normalize(self, name: str, apply: Callable[[Any], Any], kernel: Any, filters: Any, relu: bool) -> Any:
        scale, shift = self.weights[f"{name}_scale"][:filters], self.weights[f"{name}_shift"][:filters]
        if self.statistics is not None:  # folded into the kernel, so that normalisation costs nothing
            mean, variance = (self.statistics[f"{name}/{moment}"][:filters] for moment in MOMENTS)
            scale = scale * tf.math.rsqrt(variance + EPSILON)
            folded = kernel * (scale[:, None] if "depthwise" in name else scale)
            y = tf.nn.bias_add(apply(folded), shift - mean * scale)
        else:
            y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
                x=apply(kernel), scale=scale, offset=shift, mean=[], variance=[], epsilon=EPSILON
            )
            if self.pad_moments_to is not None:
                missing = [[0, self.pad_moments_to[name] - filters]]
                self.moments += [tf.pad(mean, missing), tf.pad(variance, missing)]
        return tf.nn.relu6(y) if relu else y


def pad_images(x: Any, pad: Any) -> Any:
    """Pads images with `pad` rows and columns of zeros on each side."""
    return tf.pad(x, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
