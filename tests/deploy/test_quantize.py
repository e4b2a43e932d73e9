"""Quantization-aware training: what is rounded, what the file computes, and what comes back."""

import re

import keras
import numpy as np
import pytest

from zoo import graph
from zoo.deploy import int8_graph, measure, planner, quantize, tf_keras_twin, tflite

layers = keras.layers
CLASSES = 4
STEP = 1 / 256  # of an int8 softmax


def conv_bn(x, filters: int, name: str, kernel: int = 1, strides: int = 1):
    x = layers.Conv2D(filters, kernel, strides=strides, padding="same", use_bias=False, name=name)(x)
    return layers.BatchNormalization(name=f"{name}_bn")(x)


def squeeze_excite(x, name: str):
    gate = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_pool")(x)
    gate = layers.Conv2D(4, 1, activation="relu", name=f"{name}_reduce")(gate)
    gate = layers.Conv2D(x.shape[-1], 1, activation="sigmoid", name=f"{name}_expand")(gate)
    return layers.Multiply(name=f"{name}_scale")([x, gate])


def mobile_block(x, name: str):
    """An inverted residual with squeeze-excite and drop path."""
    y = layers.ReLU(6.0, name=f"{name}_expand_relu")(conv_bn(x, 16, f"{name}_expand"))
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"{name}_dw")(y)
    y = layers.ReLU(6.0, name=f"{name}_dw_relu")(layers.BatchNormalization(name=f"{name}_dw_bn")(y))
    y = conv_bn(squeeze_excite(y, f"{name}_se"), x.shape[-1], f"{name}_project")
    y = layers.Dropout(0.2, noise_shape=(None, 1, 1, 1), name=f"{name}_drop_path")(y)
    return layers.Add(name=f"{name}_add")([x, y])


def factorized_reduction(x, filters: int, name: str):
    x = layers.ReLU(name=f"{name}_relu")(x)
    shifted = layers.Cropping2D(((1, 0), (1, 0)), name=f"{name}_crop")(x)
    shifted = layers.ZeroPadding2D(((0, 1), (0, 1)), name=f"{name}_pad")(shifted)
    halves = [
        conv_bn(layers.AveragePooling2D(1, 2, name=f"{name}_every_second{half}")(path), filters // 2, f"{name}_{half}")
        for half, path in enumerate((x, shifted))
    ]
    return layers.Concatenate(name=name)(halves)


def concat_cell(x, name: str):
    """Two nodes, one read by the other, both in the output; a pool with BatchNormalization behind, as in DARTS."""
    pool = layers.MaxPooling2D(3, 1, padding="same", name=f"{name}_pool")(x)
    pool = layers.BatchNormalization(scale=False, center=False, name=f"{name}_pool_bn")(pool)
    first = layers.Add(name=f"{name}_node0")([x, pool])
    second = layers.Add(name=f"{name}_node1")([first, conv_bn(layers.ReLU()(first), x.shape[-1], f"{name}_conv")])
    return layers.Concatenate(name=name)([first, second])


def build() -> keras.Model:
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3), name="image")
    x = layers.Rescaling(0.5, offset=0.1, name="rescaling")(image)
    x = layers.ReLU(6.0, name="stem_relu")(conv_bn(x, 8, "stem", kernel=3, strides=2))
    x = mobile_block(x, "block")
    x = factorized_reduction(x, 8, "reduction")
    x = concat_cell(x, "cell")
    x = layers.SeparableConv2D(8, 3, padding="same", activation="relu", name="separable")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(CLASSES, activation="softmax", name="logits")(x), name="everything")


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    """256 images, each its class's picture under noise."""
    rng = np.random.default_rng(0)
    pictures = rng.normal(0, 0.5, (CLASSES, 16, 16, 3))
    labels = np.arange(256) % CLASSES
    return (pictures[labels] + rng.normal(0, 1, (256, 16, 16, 3))).astype(np.float32), labels


@pytest.fixture(scope="module")
def model(data) -> keras.Model:
    model = build()
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(*data, batch_size=64, epochs=6, verbose=0)
    for layer in model.layers:  # statistics of so short a training lag behind; these are the settled ones
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0
    model(data[0], training=True)
    return model


@pytest.fixture(scope="module")
def tuned(model, data):
    aware = quantize.prepare(model, data[0])
    losses = quantize.fine_tune(aware, *data, epochs=3, learning_rate=1e-3)
    return aware, losses, quantize.convert(aware)


def test_rewritten_model_computes_the_same_with_int8_steps_only(model, data):
    rewritten = int8_graph.rewrite(model)
    np.testing.assert_allclose(measure.predict(rewritten.model, data[0]), measure.predict(model, data[0]), atol=1e-5)
    kinds = {type(layer).__name__ for layer in rewritten.model.layers}
    assert not kinds & {"Rescaling", "SeparableConv2D"}
    assert rewritten.parts["separable"] == ("separable_dw", "separable")


def test_only_what_is_an_operators_output_in_the_file_gets_a_range(model):
    rounded = int8_graph.find_rounded_layers(int8_graph.rewrite(model).model)
    assert {"image_int8", "stem_relu", "block_se_scale", "block_project_bn", "cell_node0", "cell"} <= rounded
    assert not rounded & {
        "stem", "stem_bn",  # fused with the relu behind it
        "cell_pool",  # keeps the scale of its input
        "block_se_expand_activation",  # a sigmoid's scale is fixed at 1/256
        "reduction_0_bn", "cell_node1",  # the concatenation's scale holds for what only it reads
    }  # fmt: skip


def test_training_lowers_the_loss_and_the_file_computes_what_was_trained(tuned, data):
    aware, losses, file = tuned
    assert losses[-1] < losses[0]
    trained = aware.model.predict(data[0], verbose=0)
    difference = np.abs(measure.predict(file, data[0]) - trained)
    assert difference.mean() <= STEP
    assert difference.max() <= 16 * STEP


def test_int8_after_training_keeps_the_accuracy_of_the_float_model(tuned, model, data):
    assert measure.accuracy(model, *data) > 0.9
    assert measure.accuracy(tuned[2], *data) >= measure.accuracy(model, *data) - 0.02


def test_file_is_int8_throughout_with_a_scale_for_each_channel_of_each_kernel(tuned):
    tensors = measure.interpret(tuned[2], threads=1).get_tensor_details()
    assert {tensor["dtype"] for tensor in tensors} <= {np.int8, np.int32}
    scales = {tensor["name"]: len(tensor["quantization_parameters"]["scales"]) for tensor in tensors}
    assert sorted(set(scales.values())) == [0, 1, 3, 4, 8, 16]


def test_tflm_and_litert_agree(tuned, data):
    litert, tflm = (run(tuned[2], data[0][:4]) for run in (measure.predict, measure.predict_tflm))
    assert np.abs(litert - tflm).max() <= 6 * STEP  # one step of a logit is up to six of its probability


@pytest.mark.slow
def test_weights_of_four_bits_are_exported_as_they_were_trained(model, data):
    aware = quantize.prepare(model, data[0], "int4")
    quantize.fine_tune(aware, *data, epochs=1, learning_rate=1e-3)
    file = quantize.convert(aware)
    assert planner.find_scheme(file) == "int4"
    difference = np.abs(measure.predict(file, data[0]) - aware.model.predict(data[0], verbose=0))
    assert difference.mean() <= 1.5 * STEP
    assert difference.max() <= 16 * STEP


def test_before_training_the_file_is_as_good_as_post_training_quantization(model, data):
    aware = quantize.convert(quantize.prepare(model, data[0]))
    after = tflite.convert(model, quantize="int8", calibration=data[0])
    expected = measure.predict(model, data[0])
    errors = [np.abs(measure.predict(file, data[0]) - expected).mean() for file in (aware, after)]
    assert errors[0] <= 1.5 * errors[1]


def test_weights_come_back_into_a_model_of_the_same_layers(tuned, data):
    aware, _, file = tuned
    again = build()
    quantize.copy_back(aware, again)
    assert measure.accuracy(again, *data) >= measure.accuracy(file, *data) - 0.02


def test_weights_do_not_go_into_another_model(tuned):
    image = keras.Input((16, 16, 3))
    with pytest.raises(graph.GraphError, match=r"layer 'stem' has weights of .* 'other' has no such layer"):
        quantize.copy_back(tuned[0], keras.Model(image, layers.Conv2D(2, 1)(image), name="other"))


def test_batch_statistics_stay_what_they_were(tuned, model):
    before = model.get_layer("stem_bn").moving_mean.numpy()
    np.testing.assert_array_equal(tuned[0].variables["stem_bn"][2].numpy(), before)


def test_training_resumes_at_the_epoch_where_it_was_killed(data, tmp_path):
    image = keras.Input((16, 16, 3))
    small = keras.Model(image, layers.Dense(CLASSES)(layers.Flatten()(layers.MaxPooling2D(4)(image))))

    def train(on_epoch, state):
        aware = quantize.prepare(small, data[0])
        quantize.fine_tune(aware, *data, epochs=3, learning_rate=0.01, on_epoch=on_epoch, state=state)
        return measure.predict(quantize.convert(aware), data[0])

    def kill(epoch, logs):
        if epoch == 1:
            raise KeyboardInterrupt

    seen = []
    with pytest.raises(KeyboardInterrupt):
        train(kill, tmp_path)
    resumed = train(lambda epoch, logs: seen.append(epoch), tmp_path)
    assert seen[-1] == 2
    assert len(seen) < 3
    whole = train(None, None)
    assert np.abs(resumed - whole).mean() < 0.1 * np.abs(whole).mean()  # another order of the same images


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(3)}, "32 images and 3 labels"),
        ({"epochs": 0}, "epochs=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
    ],
)
def test_training_options_that_cannot_work_are_refused(tuned, data, change, message):
    options = {"images": data[0][:32], "labels": data[1][:32], **change}
    with pytest.raises(ValueError, match=message):
        quantize.fine_tune(tuned[0], **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: layers.ELU(name="odd")(x), "layer 'odd' (ELU) cannot be trained for int8. Use one of Add"),
        (lambda x: layers.Conv2D(2, 1, activation="elu", name="odd")(x), "layer 'odd' has the activation 'elu'"),
        (lambda x: layers.Rescaling(np.ones((4, 3)).tolist(), name="odd")(x), "layer 'odd' (Rescaling) scales a tenso"),
    ],
)
def test_layer_that_cannot_be_trained_for_int8_is_named(make, message):
    image = keras.Input((4, 4, 3))
    with pytest.raises(int8_graph.Int8Error, match=re.escape(message)):
        quantize.prepare(keras.Model(image, make(image)), np.zeros((1, 4, 4, 3)))


def heads(*outputs: tuple[str | None, int]) -> keras.Model:
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu")(image))
    heads = enumerate(outputs)
    return keras.Model(image, [layers.Dense(units, name, name=f"head{number}")(x) for number, (name, units) in heads])


CLASS = np.arange(32) % 3
YES = np.arange(32) % 2
TAGS = np.stack([YES, 1 - YES, YES], axis=1)
NUMBERS = np.linspace(-1, 1, 32)


@pytest.mark.parametrize(
    ("outputs", "labels", "options", "metrics"),
    [
        ([("sigmoid", 1)], YES, {}, ["accuracy", "loss"]),
        ([("sigmoid", 3)], TAGS, {}, ["accuracy", "loss"]),
        ([("softmax", 3)], np.eye(3)[CLASS], {}, ["accuracy", "loss"]),
        ([(None, 3)], CLASS, {}, ["accuracy", "loss"]),
        ([(None, 1)], NUMBERS, {}, ["error", "loss"]),
        ([("tanh", 1)], NUMBERS, {}, ["error", "loss"]),
        ([(None, 1)], YES, {"loss": "binary"}, ["accuracy", "loss"]),
        ([("softmax", 3), (None, 1)], {"head1": NUMBERS, "head0": CLASS}, {},
         ["head0_accuracy", "head0_loss", "head1_error", "head1_loss", "loss"]),
    ],
)  # fmt: skip
def test_loss_follows_from_the_head(data, outputs, labels, options, metrics):
    seen = []
    aware = quantize.prepare(heads(*outputs), data[0][:32])
    options = {**options, "on_epoch": lambda epoch, logs: seen.append((epoch, sorted(logs)))}
    losses = quantize.fine_tune(aware, data[0][:32], labels, epochs=2, learning_rate=0.01, **options)
    assert seen == [(0, metrics), (1, metrics)]
    assert losses[1] < losses[0]


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        ([(None, 1)], YES, "output 'head0' has no activation"),
        ([(None, 3)], np.eye(3)[CLASS], "output 'head0' has no activation"),
        ([("sigmoid", 3)], CLASS, "output 'head0' has the shape (3,) per image, and labels have () with loss 'binary'"),
        ([("softmax", 3)], CLASS + 1, "output 'head0' has 3 classes, and labels range from 1 to 3"),
        ([("sigmoid", 1)], CLASS, "labels of 'head0' range from 0.0 to 2.0"),
        ([("softmax", 3), ("sigmoid", 1)], CLASS, "the model has 2 outputs (head0, head1): give an array of labels"),
        ([("softmax", 3), ("sigmoid", 1)], {"head0": CLASS, "other": YES}, "labels are for head0, other"),
    ],
)
def test_labels_that_leave_the_loss_open_or_do_not_fit_are_refused(data, outputs, labels, message):
    aware = quantize.Aware(tf_keras_twin.to_tf_keras(heads(*outputs)), {}, {}, quantize.heads_of(heads(*outputs)))
    with pytest.raises(ValueError, match=re.escape(message)):
        quantize.fine_tune(aware, data[0][:32], labels)


def foreign_network() -> keras.Model:
    """A nested backbone written with operators, hard activations, a Normalization of its own and augmentation."""
    keras.utils.set_random_seed(0)
    inside = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="hard_silu", name="stem")(inside)
    gate = keras.ops.relu6(keras.ops.mean(x, axis=(1, 2), keepdims=True) + 3.0) / 6
    backbone = keras.Model(inside, x * gate + 1.0, name="backbone")
    normalization = layers.Normalization(name="normalization")
    normalization.adapt(np.random.default_rng(0).normal(100, 40, (16, 16, 16, 3)))
    image = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(backbone(normalization(layers.RandomFlip(name="flip")(image))))
    return keras.Model(image, layers.Dense(CLASSES, activation="hard_sigmoid", name="scores")(x))


def test_foreign_network_trains_for_int8_and_its_weights_come_back():
    images = np.random.default_rng(1).normal(100, 40, (32, 16, 16, 3)).astype(np.float32)
    model = foreign_network()
    expected = np.asarray(model(images))
    aware = quantize.prepare(model, images)
    file = quantize.convert(aware)
    np.testing.assert_allclose(measure.predict(file, images), expected, atol=0.04)
    quantize.fine_tune(aware, images, np.full((32, CLASSES), 0.5), epochs=2, learning_rate=0.01)
    quantize.copy_back(aware, model)
    trained = model.get_layer("backbone").get_layer("stem").kernel.numpy()
    np.testing.assert_array_equal(trained, aware.variables["stem"][0].numpy())
    assert np.abs(np.asarray(model(images)) - expected).max() > 1e-4


@pytest.mark.slow
def test_foreign_network_is_pruned_and_clustered_with_its_statistics():
    images = np.random.default_rng(1).normal(100, 40, (32, 16, 16, 3)).astype(np.float32)
    model, labels = foreign_network(), np.full((32, CLASSES), 0.5)
    pruned = quantize.prune(model, images, labels, sparsity=0.75, batch_size=8)
    assert np.mean(pruned.get_layer("stem").kernel.numpy() == 0) == pytest.approx(0.75, abs=0.02)
    clustered = quantize.cluster(model, images, labels, clusters=200, learning_rate=1e-9)
    np.testing.assert_allclose(clustered(images), model(images), atol=0.01)


@pytest.fixture(scope="module")
def small() -> keras.Model:
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    x = layers.ReLU()(conv_bn(image, 16, "conv", kernel=3))
    x = layers.DepthwiseConv2D(3, name="depthwise")(squeeze_excite(x, "gate"))
    return keras.Model(image, layers.Dense(4, activation="softmax", name="logits")(layers.Flatten()(x)))


SMALL_IMAGES = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype(np.float32)
SMALL_LABELS = np.arange(64) % 4


def test_pruned_kernels_have_the_share_of_zeros_and_compress_better(small):
    pruned = quantize.prune(small, SMALL_IMAGES, SMALL_LABELS, sparsity=0.75, batch_size=16)
    for name in ("conv", "gate_expand", "logits"):
        assert np.mean(pruned.get_layer(name).kernel.numpy() == 0) == pytest.approx(0.75, abs=0.02)
    sizes = [quantize.compressed_size(tflite.convert(one)) for one in (pruned, small)]
    assert sizes[0] < 0.6 * sizes[1]


def test_clustered_kernels_have_few_values_and_compress_better(small):
    clustered = quantize.cluster(small, SMALL_IMAGES, SMALL_LABELS, clusters=8, batch_size=16)
    assert len(np.unique(clustered.get_layer("conv").kernel.numpy())) <= 8
    sizes = [quantize.compressed_size(tflite.convert(one)) for one in (clustered, small)]
    assert sizes[0] < 0.6 * sizes[1]


@pytest.mark.parametrize(
    ("compress", "options", "message"),
    [
        (quantize.prune, {"sparsity": 1}, "sparsity=1"),
        (quantize.cluster, {"clusters": 1}, "clusters=1"),
        (quantize.prune, {"labels": SMALL_LABELS[:3]}, "64 images and 3 labels"),
        (quantize.cluster, {"epochs": 0}, "epochs=0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(small, compress, options, message):
    with pytest.raises(ValueError, match=message):
        compress(small, **{"images": SMALL_IMAGES, "labels": SMALL_LABELS, **options})
