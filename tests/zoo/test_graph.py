"""Graphs of Keras models: flattened, with layers in the place of operations, and copied with all that layers keep."""

import logging
import re

import keras
import numpy as np
import pytest

from zoo import cost, graph

layers, ops = keras.layers, keras.ops
SHAPE = (8, 8, 3)
IMAGES = np.random.default_rng(0).uniform(-3, 9, (4, *SHAPE)).astype(np.float32)


def network(step) -> keras.Model:
    image = keras.Input(SHAPE)
    return keras.Model(image, step(image))


def kinds(model: keras.Model) -> list[str]:
    return [call.kind for call in graph.calls(model)]


def outputs(model: keras.Model, images: np.ndarray = IMAGES) -> np.ndarray:
    return np.asarray(model(images, training=False))


OPERATORS = {
    "x + 3": (lambda x: x + 3.0, ["Rescaling"]),
    "1 - x": (lambda x: 1.0 - x, ["Rescaling"]),
    "x - 2": (lambda x: x - 2, ["Rescaling"]),
    "x / 255": (lambda x: x / 255, ["Rescaling"]),
    "-x": (lambda x: -x, ["Rescaling"]),
    "channels scaled": (lambda x: x * np.array([1.0, -2.0, 3.0], "float32"), ["Rescaling"]),
    "x + x": (lambda x: x + x, ["Add"]),
    "x ** 2": (lambda x: x**2, ["Multiply"]),
    "difference": (lambda x: layers.ReLU()(x) - x, ["ReLU", "Subtract"]),
    "gate": (lambda x: x * ops.mean(x, axis=(1, 2), keepdims=True), ["GlobalAveragePooling2D", "Multiply"]),
    "hard swish": (lambda x: x * ops.relu6(x + 3.0) / 6, ["Rescaling", "ReLU", "Multiply", "Rescaling"]),
    "hard_silu": (ops.hard_silu, ["Activation"]),
    "relu of a constant": (lambda x: ops.maximum(x, 0.0), ["ReLU"]),
    "clip": (lambda x: ops.clip(x, 0, 4), ["ReLU"]),
    "leaky": (lambda x: keras.activations.leaky_relu(x, 0.1), ["LeakyReLU"]),
    "softmax": (ops.softmax, ["Softmax"]),
    "join": (lambda x: ops.concatenate([x, x + 1.0], axis=-1), ["Rescaling", "Concatenate"]),
    "rows and columns": (lambda x: x[:, 1:7, ::2], ["Cropping2D", "MaxPooling2D"]),
    "last channels": (lambda x: x[..., 1:], ["Reshape", "Cropping2D", "Reshape"]),
    "one row": (lambda x: x[:, -1], ["Cropping2D", "Reshape"]),
    "split": (lambda x: ops.split(x, [4], axis=1)[1], ["Cropping2D"]),
    "largest": (lambda x: ops.max(x, axis=[-3, -2]), ["GlobalMaxPooling2D"]),
    "reshape": (lambda x: ops.reshape(x, (-1, 8, 24)), ["Reshape"]),
    "transpose": (lambda x: ops.transpose(x, (0, 2, 1, 3)), ["Permute"]),
    "pad": (lambda x: ops.pad(x, [[0, 0], [1, 2], [0, 1], [0, 0]]), ["ZeroPadding2D"]),
    "pool": (lambda x: ops.max_pool(x, 3, 2, padding="same"), ["MaxPooling2D"]),
    "resize": (lambda x: ops.image.resize(x, (16, 24)), ["UpSampling2D"]),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operation_becomes_layers_that_compute_the_same(name):
    step, expected = OPERATORS[name]
    model = network(step)
    flat = graph.flatten(model)
    found = kinds(flat)
    assert found == expected or (name == "split" and sorted(set(found)) == expected)
    np.testing.assert_allclose(outputs(flat), outputs(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "step", [abs, lambda x: x[:, ::-1], lambda x: ops.concatenate([x, x]), lambda x: x @ IMAGES[0, 0, :3]]
)
def test_operation_without_a_layer_stays_and_is_named_as_such(step):
    model = network(step)
    assert graph.flatten(model) is model
    assert kinds(model)[0].startswith("keras.ops.")


def backbone(name: str) -> keras.Model:
    image = keras.Input(SHAPE)
    return keras.Model(
        image, layers.BatchNormalization(name="bn")(layers.Conv2D(3, 1, name="conv")(image) + image), name=name
    )


def test_models_inside_are_inlined_twice_nested_and_with_equal_names():
    inner = keras.Sequential([keras.Input(SHAPE), backbone("left")])
    right = backbone("right")
    model = network(lambda x: layers.Add(name="sum")([inner(x), right(x), inner(x + 1.0)]))
    flat = graph.inline(model)
    assert sorted(kinds(flat.model)) == sorted(["Conv2D", "Add", "BatchNormalization"] * 3 + ["Rescaling", "Add"])
    np.testing.assert_allclose(outputs(flat.model), outputs(model), atol=1e-5)
    assert flat.origins["conv"] is inner.layers[0].get_layer("conv")
    assert flat.origins["conv_inner1"] is right.get_layer("conv")
    assert flat.model.get_layer("conv") is flat.origins["conv"]


def test_flat_model_is_the_model_itself_and_its_call_warns_of_nothing():
    inner = backbone("inner")
    flat = graph.flatten(network(lambda x: inner(x)))
    assert graph.flatten(flat) is flat
    outputs(flat)  # warnings are errors: Keras warns where the structure of inputs is another


def test_named_inputs_and_outputs_keep_their_structure():
    pair = {name: keras.Input((4,), name=name) for name in ("left", "right")}
    model = keras.Model(pair, {"sum": pair["left"] + pair["right"], "half": pair["left"] / 2})
    found = graph.flatten(model)({"left": np.ones((1, 4)), "right": np.ones((1, 4))})
    assert {name: float(value[0, 0]) for name, value in found.items()} == {"sum": 2.0, "half": 0.5}


def test_layers_that_only_augment_are_left_out_with_a_word(caplog):
    steps = [layers.RandomFlip(name="flip"), layers.GaussianNoise(0.1, name="noise"), layers.Conv2D(2, 3)]
    model = keras.Sequential([keras.Input(SHAPE), *steps])
    with caplog.at_level(logging.WARNING):
        flat = graph.flatten(model)
    assert kinds(flat) == ["Conv2D"]
    assert "left out layers that only augment in training: flip, noise" in caplog.text
    np.testing.assert_array_equal(outputs(flat), outputs(model))


def test_half_precision_is_rebuilt_in_float32_with_the_layers_within_layers():
    inner = layers.TimeDistributed(layers.Conv1D(4, 3), dtype="mixed_float16")
    normalization = layers.Normalization(dtype="mixed_float16")
    normalization.adapt(IMAGES)
    model = network(lambda x: inner(normalization(x)))
    flat = graph.inline(model)
    assert {layer.compute_dtype for layer in flat.model._flatten_layers()} == {"float32"}
    np.testing.assert_allclose(outputs(flat.model), outputs(model), atol=0.02)
    assert flat.origins[inner.name] is inner


def test_images_of_whole_numbers_come_as_float32():
    image = keras.Input(SHAPE, dtype="uint8")
    model = keras.Model(image, layers.Conv2D(2, 3)(layers.Rescaling(1 / 255)(ops.cast(image, "float32"))))
    flat = graph.flatten(model)
    assert (flat.inputs[0].dtype, kinds(flat)) == ("float32", ["Rescaling", "Conv2D"])
    pixels = np.arange(192, dtype="uint8").reshape(1, *SHAPE)
    np.testing.assert_allclose(outputs(flat, pixels.astype("float32")), outputs(model, pixels), atol=1e-6)


def test_open_size_is_fixed_by_the_shape_that_is_given():
    image = keras.Input((None, None, 3))
    model = keras.Model(image, layers.Conv2D(2, 3)(image))
    assert graph.flatten(model, (8, 9, 3)).output_shape == (None, 6, 7, 2)
    with pytest.raises(graph.GraphError, match=re.escape("takes [(None, None, None, 3)], not (8, 9, 1)")):
        graph.flatten(model, (8, 9, 1))


def test_cost_counts_the_models_inside():
    inner = backbone("inner")
    assert cost.of(network(lambda x: inner(x))).macs == cost.of(inner).macs == 8 * 8 * 3 * 3


def adapted(layer, data):
    layer.adapt(data)
    return layer


def test_copy_carries_statistics_vocabularies_and_boundaries():
    numbers, words = keras.Input((3,), name="numbers"), keras.Input((1,), dtype="string", name="words")
    data, texts = np.random.default_rng(0).normal(5, 3, (64, 3)), np.array([["red"], ["green"], ["blue"]])
    normalization = adapted(layers.Normalization(), data)(numbers)
    bins = adapted(layers.Discretization(num_bins=4), data)(numbers)
    codes = adapted(layers.StringLookup(), texts)(words)
    tokens = adapted(layers.TextVectorization(output_sequence_length=1), texts)(words)
    model = keras.Model([numbers, words], [normalization, bins, codes, tokens])
    copy = graph.copy_model(model)
    given = [data[:3].astype(np.float32), texts]
    for ours, theirs in zip(model(given), copy(given), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert copy.layers[-1].get_vocabulary() == ["", "[UNK]", "red", "green", "blue"]


def test_copy_of_a_stateful_network_has_its_state_and_comparing_moves_neither():
    sequence = keras.Input((4, 3), batch_size=2)
    both = layers.Bidirectional(layers.LSTM(2, return_sequences=True, stateful=True), name="both")
    memory = keras.Sequential([keras.Input((4, 4), batch_size=2), layers.GRU(2, stateful=True)], name="memory")
    model = keras.Model(sequence, memory(both(sequence)))
    model(np.ones((2, 4, 3)))

    def states(one):
        inner = one.get_layer("both").forward_layer, one.get_layer("memory").layers[0]
        return np.concatenate([np.asarray(layer.states[0]) for layer in inner])

    before = states(model)
    copy = graph.copy_model(model)
    np.testing.assert_array_equal(states(model), before)
    np.testing.assert_array_equal(states(copy), before)
    assert np.all(np.any(before != 0, axis=1))


def test_copy_draws_the_random_numbers_that_the_original_would_draw():
    model = network(layers.Dropout(0.5, seed=3))
    model(IMAGES, training=True)
    copy = graph.copy_model(model)
    np.testing.assert_array_equal(copy(IMAGES, training=True), model(IMAGES, training=True))


@keras.saving.register_keras_serializable("tests")
class Shifted(layers.Layer):
    """Keeps a number that neither its weights nor its config hold."""

    number = 0.0

    def call(self, x):
        return x + self.number


def test_copy_that_loses_something_is_refused_and_the_layer_named():
    model = network(lambda x: layers.ReLU()(Shifted(name="shift")(layers.Conv2D(2, 1, name="before")(x))))
    model.get_layer("shift").number = 0.5
    with pytest.raises(graph.GraphError, match=r"first at layer 'shift' \(.*Shifted\).*complete get_config"):
        graph.copy_model(model)


@pytest.mark.parametrize("changed", ["kernel", "moving_mean", "gamma"])
def test_small_differences_in_one_weight_are_seen_through_a_softmax(changed):
    model = network(
        lambda x: layers.Dense(5, activation="softmax")(
            layers.GlobalAveragePooling2D()(layers.BatchNormalization(name="bn")(layers.Conv2D(4, 3, name="conv")(x)))
        )
    )
    copy = graph.copy_model(model)
    graph.check_copy(model, copy)
    weight = getattr(copy.get_layer("conv" if changed == "kernel" else "bn"), changed)
    weight.assign(weight + 0.1)
    with pytest.raises(graph.GraphError, match=r"first at layer '(conv|bn)'"):
        graph.check_copy(model, copy)


def test_heads_are_known_by_the_last_activation():
    def heads(x):
        pooled = layers.GlobalAveragePooling2D()(x)
        logits = layers.Dense(2)(pooled)
        inner = keras.Sequential([keras.Input((3,)), layers.Dense(1, activation="sigmoid")])
        return [logits, layers.Softmax()(logits), inner(pooled), layers.Reshape((1, 2))(ops.tanh(logits)), pooled]

    model = graph.flatten(network(heads))
    assert graph.head_activations(model) == ["linear", "softmax", "sigmoid", "tanh", "linear"]
    assert graph.head_activations(network(heads))[:3] == ["linear", "softmax", "sigmoid"]
