"""Checkpoints of TensorFlow 1 under the names of TF-slim and tensorflow/tpu, in our networks."""

import dataclasses
import tarfile

import numpy as np
import pytest
import tensorflow as tf

import zoo
from tests import parity
from zoo.weights import WeightsError, from_tensorflow
from zoo.weights.tensor_files import read_tensors


def write_checkpoint(prefix, variables):
    """Writes tensors under any names, as TensorFlow 1 did."""
    names, tensors = list(variables), [tf.constant(value) for value in variables.values()]
    tf.raw_ops.SaveV2(prefix=str(prefix), tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors)
    return prefix


def trained(variables):
    """What a training leaves: raw values, moving averages of the trained ones, an optimiser's, a count of steps."""
    found = {"global_step": np.int64(312)}
    for name, value in variables.items():
        moves = name.endswith(("moving_mean", "moving_variance"))
        found[name] = value if moves else np.zeros_like(value)
        if not moves:
            found |= {
                f"{name}/ExponentialMovingAverage": value,
                f"{name}/RMSProp": value + 1,
                f"{name}/Momentum": value,
            }
    return found


@pytest.mark.parametrize(
    ("name", "model", "preset", "side", "auxiliary"),
    [
        ("tpu_mnasnet_b1_96", "mnasnet_b1", "imagenet_tpu", 96, False),
        pytest.param("slim_pnasnet_mobile_96", "pnasnet_5", "mobile", 96, True, marks=pytest.mark.slow),
        pytest.param("slim_nasnet_mobile_96", "nasnet_a", "mobile", 96, True, marks=pytest.mark.slow),
        pytest.param("slim_nasnet_cifar10_32", "nasnet_a", "cifar10", 32, True, marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_under_the_names_of_the_code_fills_the_network(
    reference, tmp_path, name, model, preset, side, auxiliary
):
    record = parity.load_tensorflow(reference, name)
    classes = dict(record["tensors"])[record["ours"]["predictions/bias"][0]][0]
    shape = {"classes": classes, "input_shape": (side, side, 3)}
    network = zoo.build(model, preset, auxiliary=auxiliary, **shape)
    parity.fill_as_tensorflow(network, record)
    variables = {tensor: parity.make_tensorflow_value(tensor, shape) for tensor, shape in record["tensors"]}
    if name.startswith("slim"):  # with the background class in front
        for tensor, value in variables.items():
            if "/FC/" in tensor:
                variables[tensor] = np.concatenate([value[..., :1] - 1, value], axis=-1)
    prefix = write_checkpoint(tmp_path / "model.ckpt-312", trained(variables))
    loaded = zoo.build(model, preset, auxiliary=auxiliary, weights=f"{prefix}.index", **shape)
    for wanted, found in zip(network.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(found, wanted, err_msg=wanted.path)


@pytest.mark.slow
def test_amoebanets_of_the_tpu_code_and_of_tensorflow_hub_are_read(reference):
    record = parity.load_tensorflow(reference, "tpu_amoeba_b_6_32_96")
    genotype = dataclasses.replace(zoo.load("amoebanet_b"), presets={"fixture": record["zoo"]["preset"]})
    network = zoo.build(genotype, input_shape=(96, 96, 3), auxiliary=True)
    parity.fill_as_tensorflow(network, record)
    wanted = network.get_weights()
    variables = {f"module/{name}": parity.make_tensorflow_value(name, shape) for name, shape in record["tensors"]}
    network.set_weights([np.zeros_like(value) for value in wanted])
    assert from_tensorflow(network, variables) == "TF-slim or tensorflow/tpu"
    for value, found in zip(wanted, network.get_weights(), strict=True):
        np.testing.assert_array_equal(found, value)


@pytest.fixture
def checkpoint(tmp_path):
    values = {"a/weights": np.arange(6, dtype=np.float32).reshape(2, 3), "global_step": np.int64(3)}
    return write_checkpoint(tmp_path / "model.ckpt", values)


@pytest.mark.parametrize("named", ["model.ckpt", "model.ckpt.index", "model.ckpt.data-00000-of-00001", ""])
def test_a_checkpoint_is_named_by_its_beginning_one_of_its_files_or_its_folder(checkpoint, named):
    np.testing.assert_array_equal(read_tensors(checkpoint.parent / named, "ckpt")["a/weights"], [[0, 1, 2], [3, 4, 5]])


def test_an_archive_is_read_whatever_its_members_are_called(checkpoint, tmp_path):
    outside = tmp_path.parent / "outside.index"
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as archive:
        for path in tmp_path.glob("model.ckpt.*"):
            archive.add(path, arcname=f"../../{path.name}")
        archive.add(tmp_path / "model.ckpt.index", arcname="notes.txt")
    assert "a/weights" in read_tensors(tmp_path / "model.tar.gz", "tar.gz")
    assert not outside.exists()
    (tmp_path / "cut.tar.gz").write_bytes((tmp_path / "model.tar.gz").read_bytes()[:100])
    with pytest.raises(WeightsError, match="is not an archive"):
        read_tensors(tmp_path / "cut.tar.gz", "tar.gz")


def test_names_of_other_code_are_an_error_that_shows_them(checkpoint):
    network = zoo.build("mcunet_vww0", classes=2)
    with pytest.raises(WeightsError, match=r"the names of these 1 tensors, such as \['a.weight'\], are not known"):
        from_tensorflow(network, read_tensors(checkpoint, "ckpt"))


def test_a_folder_with_two_checkpoints_is_asked_about(checkpoint):
    write_checkpoint(checkpoint.with_name("other.ckpt"), {"a/weights": np.zeros(1, np.float32)})
    with pytest.raises(WeightsError, match="holds 2 checkpoints; name the one to read"):
        read_tensors(checkpoint.parent, "ckpt")
