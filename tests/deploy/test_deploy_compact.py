"""Rewrites that need less RAM and compute the same: turned networks, strips, order and place of the tensors."""

import re
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pytest

import zoo
from zoo import graph
from zoo.deploy import c_array, compact, measure, planner, tflite, tflite_file, turn
from zoo.deploy.compact import Region
from zoo.weights import tensor_files

layers = keras.layers
IMAGES = np.random.default_rng(0).uniform(-1, 1, (8, 32, 32, 3)).astype(np.float32)


def outputs(model: keras.Model, images: np.ndarray = IMAGES) -> np.ndarray:
    return model(images, training=False).numpy()


def torch_style() -> keras.Model:
    """Strides of 2 padded by hand as PyTorch pads them, a residual, squeeze-excite."""
    keras.utils.set_random_seed(0)
    image = keras.Input((32, 32, 3))
    x = layers.ZeroPadding2D(1, name="stem_pad")(image)
    x = layers.ReLU(6.0)(layers.Conv2D(8, 3, strides=2, use_bias=False, name="stem")(x))
    x = layers.ReLU(6.0)(layers.Conv2D(24, 1, name="expand")(x))
    x = layers.ZeroPadding2D(3, name="down_pad")(x)
    x = layers.BatchNormalization(name="down_bn")(layers.DepthwiseConv2D(7, strides=2, name="down")(x))
    x = layers.Conv2D(8, 1, name="project")(x)
    y = layers.ReLU(6.0)(layers.Conv2D(32, 1, name="wide")(x))
    y = layers.ReLU(6.0)(layers.DepthwiseConv2D(5, padding="same", name="spread")(y))
    y = layers.BatchNormalization(name="narrow_bn")(layers.Conv2D(8, 1, name="narrow")(y))
    x = layers.Add(name="add")([x, y])
    gate = layers.Conv2D(8, 1, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.GlobalAveragePooling2D()(layers.Multiply()([x, gate]))
    return keras.Model(image, layers.Dense(10, name="logits")(x), name="torch_style")


def paddings(model: keras.Model) -> list[str]:
    return [layer.name for layer in model.layers if isinstance(layer, (layers.ZeroPadding2D, layers.Cropping2D))]


def test_turned_network_computes_of_the_turned_image_what_the_network_does_of_the_image():
    model = torch_style()
    turned = turn.turn(model)
    np.testing.assert_allclose(outputs(turned, turn.images(IMAGES)), outputs(model), atol=1e-5)
    assert paddings(model) == ["stem_pad", "down_pad"]
    assert paddings(turned) == []


def assert_turns(model: keras.Model) -> None:
    """Feature maps of the turned network on the turned image, turned back, are those of the network."""
    images = np.random.default_rng(0).normal(size=(1, *model.input_shape[1:])).astype(np.float32)
    back = outputs(turn.turn(model), turn.images(images))[:, ::-1, ::-1]
    np.testing.assert_allclose(back, outputs(model, images), atol=1e-5)


@pytest.mark.parametrize("size", [15, 16, 17, 18])
@pytest.mark.parametrize("strides", [1, 2, 3])
@pytest.mark.parametrize("padding", ["same", "valid", ((1, 1), (1, 1)), ((0, 1), (2, 0)), ((2, 2), (3, 3))], ids=str)
def test_any_padding_size_and_stride_can_be_turned(size, strides, padding):
    image = x = keras.Input((size, size + 3, 2))
    if not isinstance(padding, str):
        x = layers.ZeroPadding2D(padding)(x)
    x = layers.Conv2D(3, 3, strides=strides, padding=padding if isinstance(padding, str) else "valid")(x)
    assert_turns(keras.Model(image, layers.Conv2D(3, (5, 1), padding="same", dilation_rate=1)(x)))


def test_separable_convolution_turns_as_its_two_parts_do():
    image = keras.Input((9, 10, 2))
    x = layers.SeparableConv2D(4, 3, strides=2, padding="valid", depth_multiplier=2)(layers.ZeroPadding2D(1)(image))
    assert_turns(keras.Model(image, layers.SeparableConv2D(3, (1, 3), padding="same", activation="relu")(x)))


def test_pools_turn_where_their_windows_do():
    image = keras.Input((9, 9, 2))
    model = keras.Model(image, layers.AveragePooling2D(3, 2, padding="same")(layers.MaxPooling2D(2, 1)(image)[:, ::-1]))
    with pytest.raises(turn.TurnError, match=r"\(keras\.ops\.GetItem\) has no turned form"):
        turn.turn(model)
    model = keras.Model(image, layers.AveragePooling2D(3, 2, padding="same")(layers.MaxPooling2D(2, 2)(image)))
    with pytest.raises(turn.TurnError, match="pools 4 x 4 with asymmetric padding"):
        turn.turn(model)
    assert_turns(keras.Model(image, layers.AveragePooling2D(3, 2, padding="same")(layers.MaxPooling2D(3, 1)(image))))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: layers.Dense(3, name="odd")(layers.Flatten(name="flat")(x)), "layer 'flat' (Flatten)"),
        (lambda x: layers.Permute((2, 1, 3), name="odd")(x), "layer 'odd' (Permute)"),
    ],
)
def test_layer_that_looks_at_places_is_named(make, message):
    image = keras.Input((8, 8, 3))
    with pytest.raises(turn.TurnError, match=re.escape(message)):
        turn.turn(keras.Model(image, make(image)))


def test_open_size_cannot_be_turned():
    image = keras.Input((None, None, 3))
    with pytest.raises(turn.TurnError, match=r"takes \(None, None, None, 3\); expected images"):
        turn.turn(keras.Model(image, layers.Conv2D(2, 3, name="conv")(image)))


def foreign(join) -> keras.Model:
    """Adapted statistics at the front, and two branches joined by operators."""
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3))
    normalization = layers.Normalization(name="normalization")
    normalization.adapt(IMAGES[:, :16, :16] * 50 + 100)
    first = layers.Conv2D(6, 3, strides=2, padding="same", name="first")(normalization(image))
    second = layers.Conv2D(6, 3, padding="same", activation="hard_silu", name="second")(first)
    return keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(join(first, second))))


JOINS = {
    "sum": lambda a, b: a + b / 2,
    "rest": lambda a, b: (1.0 - a) * b,
    "concatenation": lambda a, b: keras.ops.concatenate([a, keras.ops.maximum(b, 0.0)], axis=-1),
    "hard gate": lambda a, b: a * keras.ops.relu6(b + 3.0) / 6,
}


@pytest.mark.parametrize("name", JOINS)
def test_network_with_statistics_and_operators_is_turned_and_compact(name):
    model, images = foreign(JOINS[name]), IMAGES[:, :16, :16] * 50 + 100
    expected = outputs(model, images)
    np.testing.assert_allclose(outputs(turn.turn(model), turn.images(images)), expected, atol=1e-4)
    found = measure.predict(compact.convert(model, images, turned=True), turn.images(images))
    np.testing.assert_allclose(found, expected, atol=0.05 * (expected.max() - expected.min()))


def test_strips_take_operators_and_a_model_inside():
    inner = foreign(JOINS["sum"])
    model = keras.Sequential([keras.Input((16, 16, 3)), inner])
    joined = next(call.layer.name for call in graph.calls(graph.flatten(model)) if call.kind == "Add")
    split = compact.split(model, [Region("first", joined, 2)])
    assert any(call.kind == "Cropping2D" for call in graph.calls(split))
    np.testing.assert_allclose(outputs(split, IMAGES[:, :16, :16]), outputs(model, IMAGES[:, :16, :16]), atol=1e-4)


def test_smallest_file_of_features_in_a_row_and_of_an_open_size():
    row = keras.Input((20,))
    model = keras.Model(row, layers.Dense(3, activation="softmax")(layers.Dense(8, activation="relu")(row * 2.0)))
    assert not compact.is_turned(compact.convert_smallest(model, np.ones((4, 20))))
    image = keras.Input((None, None, 3))
    model = keras.Model(image, layers.GlobalAveragePooling2D()(layers.Conv2D(2, 3)(image)))
    assert planner.find_input_shape(compact.convert_smallest(model, np.ones((4, 9, 9, 3)))) == (1, 9, 9, 3)


class Own(keras.Model):
    def call(self, x):
        return x


@pytest.mark.parametrize(
    "make", [lambda: keras.Sequential([layers.Dense(3)], name="no_graph"), lambda: Own(name="no_graph")]
)
@pytest.mark.parametrize("start", [tflite.convert, lambda model: compact.convert_smallest(model, np.ones((4, 20)))])
def test_model_without_a_graph_is_refused_with_the_remedy(make, start):
    with pytest.raises(graph.GraphError, match=r"'no_graph' .* has no graph of layers\. Build it"):
        start(make())


def test_split_of_a_layer_that_mixes_rows_is_refused():
    image = keras.Input((8, 8, 3))
    x = layers.LayerNormalization(axis=(1, 2, 3), name="all")(layers.Conv2D(3, 3, padding="same", name="conv")(image))
    with pytest.raises(compact.StripsError, match="'all' \\(LayerNormalization\\) needs all rows at once"):
        compact.split(keras.Model(image, layers.Conv2D(3, 1, name="last")(x)), [Region("conv", "last", 2)])


REGIONS = [Region("stem", "project", 3), Region("wide", "narrow_bn", 4)]


def test_strips_compute_the_same_with_the_same_weights():
    turned = turn.turn(torch_style())
    split = compact.split(turned, REGIONS)
    np.testing.assert_allclose(outputs(split), outputs(turned), atol=1e-5)
    assert split.count_params() == turned.count_params()
    assert split.get_layer("wide") is turned.get_layer("wide")


def test_strip_takes_the_rows_around_that_it_needs_and_no_more():
    image = keras.Input((32, 8, 1))
    x = layers.Conv2D(1, 5, padding="same", name="first")(image)
    model = keras.Model(image, layers.Conv2D(1, 3, strides=2, padding="same", name="last")(x))
    split = compact.split(model, [Region("first", "last", 2)])
    # Row j of the last reads rows 2j to 2j + 2, each of which reads two more on either side: rows up to 18 for j = 7,
    # and from 14 for j = 8; cuts fall on even rows.
    cuts = {layer.name: layer.cropping for layer in split.layers if isinstance(layer, layers.Cropping2D)}
    assert cuts["last_strip0_cut"] == ((0, 32 - 20), (0, 0))
    assert cuts["last_strip1_cut"] == ((14, 0), (0, 0))
    assert cuts["last_strip0_trim"] == ((0, 2), (0, 0))
    assert cuts["last_strip1_trim"] == ((1, 0), (0, 0))
    images = np.random.default_rng(0).normal(size=(1, 32, 8, 1)).astype(np.float32)
    np.testing.assert_allclose(outputs(split, images), outputs(model, images), atol=1e-5)


def test_branches_inside_a_region_are_followed():
    image = keras.Input((16, 16, 4))
    x = layers.Conv2D(4, 1, name="before")(image)
    y = layers.Concatenate(name="both")([layers.Conv2D(4, 3, padding="same", name="left")(x), layers.ReLU()(x)])
    z = layers.Add(name="sum")([y, layers.Conv2D(8, 5, padding="same")(y)])
    model = keras.Model(image, layers.MaxPooling2D(2, 2, padding="same", name="pool")(z))
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 4)).astype(np.float32)
    split = compact.split(model, [Region("before", "pool", 4)])
    np.testing.assert_allclose(outputs(split, images), outputs(model, images), atol=1e-5)


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (Region("nowhere", "project", 2), "layer 'nowhere' is called 0 times in the model; expected once"),
        (Region("stem", "projects", 2), "layer 'projects' is called 0 times in the model (did you mean 'project'?)"),
        (Region("stem", "project", 9), "maps 32 rows to 8, to be cut into 9 strips"),
        (Region("stem", "project", 0), "to be cut into 0 strips"),
        (Region("stem", "narrow_bn", 2), "layer 'add' reads from inside region stem to narrow_bn"),
        (Region("spread", "add", 2), "region spread to add"),
        (Region("stem", "logits", 2), "region stem to logits"),
    ],
)
def test_region_that_cannot_be_cut_is_refused_with_the_reason(region, message):
    with pytest.raises(compact.StripsError, match=re.escape(message)):
        compact.split(turn.turn(torch_style()), [region])


def test_explicit_padding_in_a_region_and_regions_that_overlap_are_refused():
    with pytest.raises(compact.StripsError, match=r"layer 'down' reads 22 rows .* padding \"valid\"|'down_pad'"):
        compact.split(torch_style(), [Region("expand", "project", 2)])
    with pytest.raises(compact.StripsError, match="overlaps another"):
        compact.split(turn.turn(torch_style()), [Region("stem", "project", 2), Region("expand", "project", 2)])


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return torch_style()


@pytest.fixture(scope="module")
def compact_file(model) -> bytes:
    return compact.convert(model, IMAGES, regions=REGIONS)


def test_compact_file_needs_far_less_and_says_how_its_image_lies(model, compact_file):
    plain = planner.plan(tflite.convert(model, quantize="int8", calibration=IMAGES))
    plan = planner.plan(compact_file)
    assert plan.head <= 0.55 * plain.head
    assert plan.head == plan.bound == measure.arena(compact_file).head
    assert compact.is_turned(compact_file)
    assert not compact.is_turned(compact.convert(model, IMAGES, turned=False))


@pytest.mark.slow
def test_smallest_file_is_turned_where_that_rids_it_of_paddings_and_upright_where_it_brings_them(model):
    assert compact.is_turned(compact.convert_smallest(model, IMAGES))
    image = keras.Input((32, 32, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="half")(image)
    keras_style = keras.Model(image, layers.GlobalAveragePooling2D()(x))
    assert not compact.is_turned(compact.convert_smallest(keras_style, IMAGES))
    flat = keras.Model(image, layers.Dense(2)(layers.Flatten()(layers.Conv2D(1, 3, strides=4)(image))))
    assert not compact.is_turned(compact.convert_smallest(flat, IMAGES))  # cannot be turned


def test_smallest_file_says_why_its_regions_cannot_be_cut(model):
    with pytest.raises(compact.StripsError, match="'nowhere' is called 0 times"):
        compact.convert_smallest(model, IMAGES, regions=[Region("nowhere", "project", 2)])


def test_c_header_says_how_the_image_lies(compact_file, tmp_path):
    header, _ = c_array.write(compact_file, tmp_path, "turned")
    assert "turned by 180 degrees: the pixels from the last to the first" in header.read_text()


def test_compact_file_computes_what_the_model_computes_of_the_image_not_turned(model, compact_file):
    expected = outputs(model)
    spread = expected.max() - expected.min()
    np.testing.assert_allclose(measure.predict(compact_file, turn.images(IMAGES)), expected, atol=0.05 * spread)
    upright = compact.convert(model, IMAGES, turned=False)
    np.testing.assert_allclose(measure.predict(upright, IMAGES), expected, atol=0.05 * spread)


def test_plan_order_and_shared_constants_change_no_bit_under_either_runtime(model):
    split = compact.split(turn.turn(model), REGIONS)
    images = turn.images(IMAGES)
    before = tflite.convert(split, quantize="int8", calibration=images)
    parsed = tflite_file.parse(before)
    compact.order_depth_first(parsed)
    compact.share_constants(parsed)
    after = compact.with_best_plan(tflite_file.pack(parsed))
    np.testing.assert_array_equal(measure.predict(before, images), measure.predict(after, images))
    np.testing.assert_array_equal(measure.predict_tflm(before, images), measure.predict_tflm(after, images))
    assert planner.plan(after).head < planner.plan(before).head


def test_depth_first_order_finishes_a_strip_before_the_next_is_cut(compact_file):
    kinds = tflite_file.kinds_of(tflite_file.parse(compact_file))
    assert kinds[:2] == ["STRIDED_SLICE", "CONV_2D"]
    assert "STRIDED_SLICE" in kinds[2:]


class Published(NamedTuple):
    """MCUNet-in3 with its published weights, the goldfish, and images around it for calibration."""

    file: Path  # the int8 file that the authors published
    model: keras.Model
    goldfish: np.ndarray
    calibration: np.ndarray


@pytest.fixture(scope="module")
def published(reference) -> Published:
    from PIL import Image

    folder = reference / "mcunet"
    model = zoo.build("mcunet_in3")
    zoo.weights.from_torch(model, tensor_files.read_tensors(folder / "mcunet-320kb-1mb_imagenet.pth", "pth"))
    goldfish = Image.open(folder / "goldfish.ppm").resize((176, 176), Image.Resampling.BILINEAR)
    image = (np.asarray(goldfish, np.float32) / 127.5 - 1)[None]
    noise = np.random.default_rng(0).normal(0, 0.1, (4, *image.shape[1:]))
    calibration = np.concatenate([image, np.clip(image + noise, -1, 1), image[:, :, ::-1]]).astype(np.float32)
    return Published(folder / "mcunet-320kb-1mb_imagenet.tflite", model, image, calibration)


def top5(file: bytes | Path | keras.Model, image: np.ndarray) -> list[int]:
    return np.argsort(-measure.predict(file, image)[0])[:5].tolist()


@pytest.mark.slow
def test_int8_export_of_published_weights_agrees_with_the_published_file_on_the_goldfish(published):
    theirs = top5(published.file, published.goldfish)
    assert set(theirs) == {712, 720, 1, 925, 838}  # 1 is the goldfish
    assert top5(published.model, published.goldfish) == [712, 1, 720, 838, 925]
    file = tflite.convert(published.model, quantize="int8", calibration=published.calibration)
    assert len(set(theirs) & set(top5(file, published.goldfish))) >= 4


@pytest.mark.slow
def test_mcunet_in3_needs_half_the_arena_of_the_published_file(published):
    """Against the 416,832 bytes that TFLM needs for the activations of the file that the authors published."""
    _, model, image, calibration = published
    head_of_theirs = planner.plan(published.file).head
    assert head_of_theirs == 416_832
    expected, theirs = measure.predict(model, image), set(top5(published.file, image))
    blocks = [Region(f"block{number:02d}_0_expand_conv", f"block{number:02d}_0_project_bn", 2) for number in (2, 3, 4)]
    stages = [
        Region("stem_conv", "block01_0_project_bn", 8),
        *(block._replace(strips=4) for block in blocks),
        Region("block05_0_expand_conv", "block05_0_project_bn", 4),
    ]
    for regions, limit, recorded in ((blocks, 0.62, 247_808), (stages, 0.45, 173_888)):
        rewritten = compact.split(turn.turn(model), regions)
        np.testing.assert_allclose(measure.predict(rewritten, turn.images(image)), expected, atol=1e-4)
        file = compact.convert(model, calibration, regions=regions)
        head = measure.arena(file).head
        assert head == planner.plan(file).head == recorded
        assert head <= limit * head_of_theirs
        assert len(theirs & set(top5(file, turn.images(image)))) >= 4
