"""Once-for-all network of TinyNAS: each sub-network computes with a part of the weights of the largest one.

A sub-network is a tensor (see `TinySpace.choice`), so one trace serves all. Weights are sliced, not masked, and blocks
that are not there are not run: a sub-network takes the time of the network that `zoo.build` makes of its genotype.

Source: Lin et al., arXiv:2007.10319, appendix D, and Cai et al., "Once-for-All", ICLR 2020: the central window of the
largest kernel, the first channels, the first blocks. Once-for-all itself multiplies each smaller window by a learnt
matrix, which MCUNet does not mention: `kernel_transform=True`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from recipes.tinynas.space import Place, TinySpace
from recipes.training.supernet import EPSILON, Packing, Shape

Named = Mapping[str, Any]
MOMENTS = ("mean", "variance")
Results = list[tuple[Any, Any]]  # mean and variance of each normalisation that was passed


class Supernet:
    """The largest network of `space`; `logits` runs any sub-network of it.

    Attributes:
        packing: where each weight lies in the flat vector.
        statistics: where mean and variance of each normalisation lie in another.
        kernels: sizes of depthwise kernels, largest first.
    """

    def __init__(self, space: TinySpace, classes: int, channels: int, kernel_transform: bool = False):
        self.space, self.classes, self.channels = space, classes, channels
        self.kernels = sorted(space.kernels, reverse=True)
        self.transform = kernel_transform and len(self.kernels) > 1
        self._norms: list[tuple[str, int]] = []
        shapes = self._convolution("stem", (3, 3, channels, space.stem), 9 * channels, space.stem)
        shapes += self._convolution("first/depthwise", (3, 3, space.stem, 1), 9, space.stem)
        shapes += self._convolution("first/project", (1, 1, space.stem, space.first), space.stem, space.first)
        for number, place in enumerate(space.places):
            shapes += self._block(f"block{number}", place)
        last = space.places[-1].filters
        shapes += [Shape("classifier", (last, classes), last), Shape("classifier_bias", (classes,))]
        self.packing = Packing(shapes)
        self.statistics = Packing([Shape(f"{name}/{what}", (size,)) for name, size in self._norms for what in MOMENTS])

    def _convolution(self, name: str, shape: tuple[int, ...], fan_in: int, filters: int) -> list[Shape]:
        self._norms.append((name, filters))
        scale, shift = Shape(f"{name}_scale", (filters,), constant=1.0), Shape(f"{name}_shift", (filters,))
        return [Shape(name, shape, fan_in), scale, shift]

    def _block(self, name: str, place: Place) -> list[Shape]:
        size, middle = self.kernels[0], max(self.space.expansions) * place.inputs
        shapes = self._convolution(f"{name}/expand", (1, 1, place.inputs, middle), place.inputs, middle)
        shapes += self._convolution(f"{name}/depthwise", (size, size, middle, 1), size**2, middle)
        if self.transform:
            shapes += [Shape(f"{name}/to_{kernel}", (kernel**2, kernel**2)) for kernel in self.kernels[1:]]
        return shapes + self._convolution(f"{name}/project", (1, 1, middle, place.filters), middle, place.filters)

    def initial(self, seed: int) -> np.ndarray:
        """Returns first values: He's for convolutions as zoo.build has them, identities for kernel transforms."""
        rng, parts = np.random.default_rng(seed), []
        for shape in self.packing.shapes:
            if "/to_" in shape.name:
                parts.append(np.eye(shape.shape[0]).ravel())
            elif shape.fan_in is None:
                parts.append(np.full(shape.size, shape.constant))
            else:
                parts.append(
                    rng.normal(0, np.sqrt((1 if shape.name == "classifier" else 2) / shape.fan_in), shape.size)
                )
        return np.concatenate(parts).astype(np.float32)

    def input_specs(self, image_shape: Sequence[int]) -> tuple[tf.TensorSpec, tf.TensorSpec, tf.TensorSpec]:
        """Returns what a trace takes: weights, the choice of a sub-network, and a batch of images."""
        choice = tf.TensorSpec([len(self.space.places), 5], tf.int32)
        return tf.TensorSpec([self.packing.size]), choice, tf.TensorSpec([None, *image_shape])

    def decayed(self) -> np.ndarray:
        """Returns 1 where weight decay acts, on kernels and the classifier, and 0 elsewhere: float32 (size,)."""
        return np.concatenate([np.full(s.size, s.fan_in is not None, np.float32) for s in self.packing.shapes])

    def logits(self, weights: Any, choice: Any, images: Any) -> Any:
        """Returns (batch, classes), normalised by the statistics of the batch: for training."""
        return self._run(weights, choice, images, None, collects=False)[0]

    def moments(self, weights: Any, choice: Any, images: Any) -> Any:
        """Returns the statistics of this batch in every normalisation, flat; zero for channels that are not there."""
        found = self._run(weights, choice, images, None, collects=True)[1]
        return tf.concat([value for pair in found for value in pair], 0)

    def infer(self, weights: Any, statistics: Any, choice: Any, images: Any) -> Any:
        """Returns (batch, classes), normalised by these statistics."""
        return self._run(weights, choice, images, self.statistics.unpack(statistics), collects=False)[0]

    def _run(
        self, weights: Any, choice: Any, images: Any, given: Named | None, *, collects: bool
    ) -> tuple[Any, Results]:
        named = self.packing.unpack(weights)
        run = _Run(named, given, collects, dict(self._norms))
        stem, found = run.convolution("stem", padded(images, 1), named["stem"], 2, True)
        x, more = run.depthwise("first/depthwise", stem, named["first/depthwise"], 1)
        found += more
        x, more = run.convolution("first/project", x, named["first/project"], 1, False)
        found += more
        x = x + stem if self.space.stem == self.space.first else x
        for number, place in enumerate(self.space.places):
            row = tf.unstack(choice[number])
            x, more = self._maybe(run, f"block{number}", place, row, x)
            found += more
        x = tf.reduce_mean(x, [1, 2])
        inputs = tf.shape(x)[1]
        return tf.matmul(x, named["classifier"][:inputs]) + named["classifier_bias"], found

    def _maybe(self, run: "_Run", name: str, place: Place, row: list[Any], x: Any) -> tuple[Any, Results]:
        """A block, or its input where the sub-network has none there."""
        shape = x.shape
        if place.block < min(self.space.depths) or place.stage == len(self.space.strides) - 1:
            return self._one(run, name, place, row, x)

        def absent() -> Any:
            zeros = [tf.zeros([size]) for n, size in self._norms if n.startswith(f"{name}/") for _ in MOMENTS]
            return (tf.identity(x), *(zeros if run.collects else ()))

        def present() -> Any:
            y, found = self._one(run, name, place, row, x)
            return (y, *(value for pair in found for value in pair))

        y, *flat = tf.cond(row[0] > 0, present, absent)
        return tf.ensure_shape(y, shape), list(zip(flat[::2], flat[1::2], strict=True))

    def _one(self, run: "_Run", name: str, place: Place, row: list[Any], x: Any) -> tuple[Any, Results]:
        _, kernel, inputs, middle, filters = row
        expand = run.named[f"{name}/expand"][:, :, :inputs, :middle]
        y, found = run.convolution(f"{name}/expand", x, expand, 1, True)
        window = self.window(run.named, name, kernel, middle)
        y, more = run.depthwise(f"{name}/depthwise", y, window, place.strides)
        found += more
        project = run.named[f"{name}/project"][:, :, :middle, :filters]
        y, more = run.convolution(f"{name}/project", y, project, 1, False)
        found += more
        if place.strides == 1:
            y = self._joined(place, x, y, inputs, filters)
        return y, found

    def _joined(self, place: Place, x: Any, y: Any, inputs: Any, filters: Any) -> Any:
        """Adds the shortcut where the block keeps the number of channels, as zoo.mobile_blocks does."""
        widths = {self.space.filters(place.stage, share) for share in self.space.shares}
        before = {self.space.first} if place.stage == 0 else set()
        before |= {self.space.filters(place.stage - 1, share) for share in self.space.shares} if place.stage else set()
        if place.block or before == widths == {place.filters}:
            return y + x
        if not before & widths:
            return y
        return tf.cond(tf.equal(inputs, filters), lambda: y + x, lambda: y)

    def window(self, named: Named, name: str, kernel: Any, middle: Any) -> Any:
        """Returns the depthwise kernel of a sub-network: (kernel, kernel, middle, 1)."""
        whole = named[f"{name}/depthwise"][:, :, :middle]
        largest = self.kernels[0]
        if len(self.kernels) == 1:
            return whole
        if self.transform:
            whole = self._transformed(named, name, whole, kernel)
        edge = (largest - kernel) // 2
        return whole[edge : edge + kernel, edge : edge + kernel]

    def _transformed(self, named: Named, name: str, whole: Any, kernel: Any) -> Any:
        """Puts in the centre of `whole` what the chain of matrices makes of it, from each size to the next."""
        largest, found = self.kernels[0], [whole]
        window = whole
        for before, size in zip(self.kernels, self.kernels[1:], strict=False):
            edge = (before - size) // 2
            rows = tf.reshape(window[edge : edge + size, edge : edge + size], [size * size, -1])
            window = tf.reshape(tf.matmul(named[f"{name}/to_{size}"], rows), [size, size, tf.shape(whole)[2], 1])
            pad = (largest - size) // 2
            found.append(tf.pad(window, [[pad, pad], [pad, pad], [0, 0], [0, 0]]))
        return tf.stack(found)[tf.argmax(tf.equal(tf.constant(self.kernels), kernel))]


class _Run:
    """One pass: convolutions, each with its normalisation by the batch, or by the statistics `given`.

    Attributes:
        named: all weights.
        given: the statistics, or None for those of the batch.
        collects: whether the batch's statistics are results.
        norms: name of each normalisation -> channels of the largest network.
    """

    def __init__(self, named: Named, given: Named | None, collects: bool, norms: Mapping[str, int]):
        self.named, self.given, self.collects, self.norms = named, given, collects, norms

    def convolution(self, name: str, x: Any, kernel: Any, strides: int, relu: bool) -> tuple[Any, Results]:
        """A convolution without padding; its kernel may be a slice."""

        def apply(kernel: Any) -> Any:
            return tf.nn.conv2d(x, kernel, strides, "VALID")

        return self._normalized(name, apply, kernel, tf.shape(kernel)[3], relu)

    def depthwise(self, name: str, x: Any, kernel: Any, strides: int) -> tuple[Any, Results]:
        """A depthwise convolution padded as PyTorch pads; the size of its kernel may be a tensor."""
        padding = "SAME" if strides == 1 else "VALID"
        x = x if strides == 1 else padded(x, tf.shape(kernel)[0] // 2)

        def apply(kernel: Any) -> Any:
            return tf.raw_ops.DepthwiseConv2dNative(
                input=x, filter=kernel, strides=[1, strides, strides, 1], padding=padding
            )

        return self._normalized(name, apply, kernel, tf.shape(kernel)[2], True)

    def _normalized(self, name: str, apply: Callable[[Any], Any], kernel: Any, filters: Any, relu: bool) -> Any:
        scale, shift = self.named[f"{name}_scale"][:filters], self.named[f"{name}_shift"][:filters]
        found: Results = []
        if self.given is not None:  # folded: the normalisation costs nothing
            mean, variance = (self.given[f"{name}/{what}"][:filters] for what in MOMENTS)
            scale = scale * tf.math.rsqrt(variance + EPSILON)
            folded = kernel * (scale[:, None] if "depthwise" in name else scale)
            y = tf.nn.bias_add(apply(folded), shift - mean * scale)
        else:
            y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
                x=apply(kernel), scale=scale, offset=shift, mean=[], variance=[], epsilon=EPSILON
            )
            if self.collects:
                room = [[0, self.norms[name] - filters]]
                found = [(tf.pad(mean, room), tf.pad(variance, room))]
        return tf.nn.relu6(y) if relu else y, found


def padded(x: Any, pad: Any) -> Any:
    """Puts `pad` rows and columns of zeros around images."""
    return tf.pad(x, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
