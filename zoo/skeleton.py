"""Everything around the cells: input, stems, the stack of NASNet and its successors, heads; and their `Options`.

The few differences between families are arguments here: nothing in this file knows a family.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

import keras
from keras import layers

from zoo import blocks
from zoo.blocks import Style, Tensor
from zoo.cell import expand
from zoo.genotype import CellGraph, Cells, Genotype, GenotypeError, check_choice, near


@dataclasses.dataclass(frozen=True)
class Options:
    """The checked arguments of `zoo.build`, as families get them.

    `input_shape` is (height, width, channels), with None for a height or width that may vary. `extra` holds arguments
    of single families, such as `width_multiplier`.
    """

    classes: int
    input_shape: tuple[int | None, int | None, int]
    include_top: bool = True
    pooling: Literal["avg", "max"] | None = None
    classifier_activation: str | None = "softmax"
    drop_path_rate: float = 0.0
    dropout_rate: float = 0.0
    auxiliary: bool = False
    features_only: bool = False
    name: str = "model"
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


PresetType = TypeVar("PresetType")


def read_preset(kind: type[PresetType], values: Mapping[str, Any]) -> PresetType:
    """Converts a genotype file's preset, without `input_shape` and `classes`, to the family's preset dataclass.

    Raises:
        GenotypeError: an unknown key, a missing one, or a value of another type.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    given = {name: value for name, value in values.items() if name not in ("input_shape", "classes")}
    for name, value in given.items():
        if name not in fields:
            raise GenotypeError(
                f"the preset's key {name!r} is not known{near(name, fields)}; this family has {', '.join(fields)}"
            )
        whole = fields[name].type is int
        if whole and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise GenotypeError(f"the preset's {name} is {value!r}; expected a whole number from 1")
        if get_origin(fields[name].type) is Literal:
            check_choice(f"the preset's {name}", value, get_args(fields[name].type))
        if fields[name].type is bool and not isinstance(value, bool):
            raise GenotypeError(f"the preset's {name} is {value!r}; expected true or false")
    missing = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in given]
    if missing:
        raise GenotypeError(f"the preset has no {', '.join(missing)}; this family needs {', '.join(fields)}")
    return kind(**given)


BodyType = TypeVar("BodyType")


def get_body(genotype: Genotype, *kinds: type[BodyType]) -> BodyType:
    """Returns the genotype's body.

    Raises:
        GenotypeError: the family builds other kinds of bodies.
    """
    if not isinstance(genotype.body, kinds):
        raise GenotypeError(
            f"{genotype.name} has {type(genotype.body).__name__}, but its family {genotype.family!r} builds "
            f"{' or '.join(kind.__name__ for kind in kinds)}; give the genotype the family that it was found in"
        )
    return genotype.body


class NetworkBuilder:
    """Builds a network: keeps its input and the last feature map of each stride, and adds its heads."""

    def __init__(self, options: Options, smallest: int, classifier_bias: bool = True):
        """Adds the input; raises ValueError if its height or width is less than `smallest`."""
        for side, what in zip(options.input_shape, ("height", "width"), strict=False):
            if side is not None and side < smallest:
                raise ValueError(
                    f"input_shape {options.input_shape} has a {what} of {side}, which halvings would reduce to "
                    f"nothing; expected at least {smallest}. Resize the images, or choose a preset for small ones"
                )
        self.options = options
        self.classifier_bias = classifier_bias
        self.image = keras.Input(options.input_shape, name="image")
        self.features: dict[int, Tensor] = {}
        self._auxiliary: Tensor | None = None

    def note(self, x: Tensor, stride: int) -> Tensor:
        """Records `x` as the feature map of this stride, in place of an earlier one, and returns it."""
        self.features[stride] = x
        return x

    def add_auxiliary(
        self,
        x: Tensor,
        style: Style,
        widths: tuple[int, int],
        strides: int,
        normalised: bool = True,
        averaged: bool = False,
    ) -> None:
        """Adds the auxiliary classifier on `x`, if the options ask for it.

        It consists of relu; 5x5 mean with `strides`; 1x1 convolution, bn, relu; convolution of the map's size, bn (only
        if `normalised`), relu; dense. If `averaged` (ENAS), the second convolution keeps the map's size, and the mean
        of its output is classified. `widths` are the filters of the two convolutions.

        Raises:
            ValueError: the feature map's size is not known, or less than 5 x 5.
        """
        if not (self.options.auxiliary and self.options.include_top):
            return
        if None in x.shape[1:3] or min(x.shape[1:3]) < 5:
            raise ValueError(
                f"auxiliary=True needs a feature map of at least 5 x 5 at the auxiliary head, and has {x.shape[1:3]}. "
                f"Give a larger input_shape than {self.options.input_shape}, of known height and width"
            )
        x = layers.AveragePooling2D(5, strides, name="aux_pool")(blocks.relu(x, "aux_pool"))
        x = blocks.relu(blocks.conv_bn(x, widths[0], 1, 1, style, "aux_narrow"), "aux_narrow")
        x = layers.Conv2D(
            widths[1], tuple(x.shape[1:3]), padding="same" if averaged else "valid", use_bias=False,
            kernel_initializer=blocks.KERNEL_INITIALIZER, name="aux_map_conv",
        )(x)  # fmt: skip
        if normalised:
            x = blocks.batch_norm(x, style, "aux_map_bn")
        x = blocks.relu(x, "aux_map")
        x = (layers.GlobalAveragePooling2D(name="aux_mean") if averaged else layers.Flatten(name="aux_flatten"))(x)
        self._auxiliary = self._classify(x, "aux_predictions")

    def finish(self, x: Tensor) -> keras.Model:
        """Adds the outputs that the options ask for, such as the classifier, to `x` and returns the model."""
        options = self.options
        if options.features_only:
            outputs = [self.features[stride] for stride in sorted(self.features)]
        elif options.include_top:
            x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
            if options.dropout_rate > 0:
                x = layers.Dropout(options.dropout_rate, name="top_dropout")(x)
            outputs = self._classify(x, "predictions")
            if self._auxiliary is not None:
                outputs = [outputs, self._auxiliary]
        elif options.pooling == "avg":
            outputs = layers.GlobalAveragePooling2D(name="avg_pool")(x)
        elif options.pooling == "max":
            outputs = layers.GlobalMaxPooling2D(name="max_pool")(x)
        else:
            outputs = x
        return keras.Model(self.image, outputs, name=options.name)

    def _classify(self, x: Tensor, name: str) -> Tensor:
        return layers.Dense(
            self.options.classes,
            activation=self.options.classifier_activation,
            use_bias=self.classifier_bias,
            name=name,
        )(x)


@dataclasses.dataclass(frozen=True)
class CellStack:
    """A preset of NASNet, AmoebaNet, PNASNet: 3 x `repeats` normal cells, with `filters` a node in the first third."""

    repeats: int
    filters: int
    stem: Literal["cifar", "imagenet"]
    stem_filters: int
    skip_reduction: bool = False  # the normal cell after a reduction cell reads the same h[c-2] as the reduction cell


def stack_cells(
    genotype: Genotype,
    preset: Mapping[str, Any],
    options: Options,
    imagenet_style: Style,
    cifar_style: Style,
    auxiliary_widths: tuple[int, int] = (128, 768),
) -> keras.Model:
    """Builds the network of NASNet, AmoebaNet and PNASNet (TF-slim's nasnet.py and pnasnet.py).

    `preset` is a `CellStack`. If the genotype has a reduction cell, one comes before the normal cells N and 2N
    (N = `repeats`); otherwise those two run at stride 2 themselves. The ImageNet stem is a strided convolution without
    padding or ReLU, then two reductions with a quarter and half of the filters. The auxiliary head reads the output of
    normal cell 2N-1.
    """
    cells, scale = get_body(genotype, Cells), read_preset(CellStack, preset)
    normal, reduce = cells.normal, cells.reduce
    style = imagenet_style if scale.stem == "imagenet" else cifar_style
    network = NetworkBuilder(options, smallest=32 if scale.stem == "imagenet" else 4)
    stem_cells = 2 if scale.stem == "imagenet" else 0
    count = 3 * scale.repeats + (2 if reduce else 0) + stem_cells
    # the output of each cell, oldest first, and how many times its height has been halved
    outputs: list[tuple[Tensor, int]] = [(None, 0), (_add_stem(network, scale, style), 1 if stem_cells else 0)]
    made = 0

    def add(graph: CellGraph, filters: int, strides: int, name: str, oldest: tuple[Tensor, int]) -> None:
        nonlocal made
        newest, level = outputs[-1]
        depth = (made + 1) / count if style.drop_path_by_depth else 1.0
        x = expand(
            graph,
            (oldest[0], newest),
            filters,
            style=style,
            name=name,
            strides=strides,
            oldest_strides=2 if oldest[0] is not None and oldest[1] < level else 1,
            drop_path_rate=options.drop_path_rate * depth,
        )
        made += 1
        level += strides - 1
        outputs.append((network.note(x, 2**level), level))

    reduction = reduce or normal
    for number in range(stem_cells):
        add(reduction, scale.filters // (4 if number == 0 else 2), 2, f"stem{number}", outputs[-2])
    filters = scale.filters
    for number in range(3 * scale.repeats):
        oldest, reducing = outputs[-2], number in (scale.repeats, 2 * scale.repeats)
        if reducing:
            filters *= 2
        if reducing and reduce:
            add(reduce, filters, 2, f"cell{made - stem_cells:02d}_reduce", outputs[-2])
            if not scale.skip_reduction:
                oldest = outputs[-2]
        strides = 2 if reducing and not reduce else 1
        name = f"cell{made - stem_cells:02d}" + ("_reduce" if strides > 1 else "")
        add(normal, filters, strides, name, oldest)
        if number == 2 * scale.repeats - 1:
            network.add_auxiliary(outputs[-1][0], style, auxiliary_widths, strides=3)
    return network.finish(blocks.relu(outputs[-1][0], "top"))


def _add_stem(network: NetworkBuilder, scale: CellStack, style: Style) -> Tensor:
    if scale.stem == "cifar":
        return network.note(blocks.conv_bn(network.image, scale.stem_filters, 3, 1, style, "stem"), 1)
    x = layers.Conv2D(
        scale.stem_filters, 3, 2, use_bias=False, kernel_initializer=blocks.KERNEL_INITIALIZER, name="stem_conv"
    )(network.image)  # fmt: skip
    return network.note(blocks.batch_norm(x, style, "stem_bn"), 2)
