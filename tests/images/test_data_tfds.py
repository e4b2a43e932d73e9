"""TensorFlow Datasets by name: a set written to disk here, a mocked one, and what can be missing. Nothing downloads."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from recipes.images import augment, tfds_sets
from recipes.images import files as images
from recipes.images import sources as data


def blot(number: int) -> np.ndarray:
    """A 10 x 8 RGB image that no other number has."""
    return np.random.default_rng(number).integers(0, 256, (10, 8, 3), np.uint8)


class Blots(tfds.core.GeneratorBasedBuilder):
    """Forty training and ten test images of two classes; labels alternate."""

    VERSION = tfds.core.Version("1.0.0")
    SPLITS = {"train": range(40), "test": range(100, 110)}
    SHAPE = (10, 8, 3)

    def draw(self, number: int) -> np.ndarray:
        return blot(number)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "picture": tfds.features.Image(shape=self.SHAPE, encoding_format="png"),
                "kind": tfds.features.ClassLabel(names=["even", "odd"]),
            }
        )
        return self.dataset_info_from_configs(features=features, supervised_keys=("picture", "kind"))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(numbers) for split, numbers in self.SPLITS.items()}

    def _generate_examples(self, numbers):
        for number in numbers:
            yield number, {"picture": self.draw(number), "kind": number % 2}


class Steps(Blots):
    """Two images of two columns each, 40 and 200."""

    SPLITS = {"train": range(2)}
    SHAPE = (2, 2, 3)
    IMAGE = np.broadcast_to(np.array([40, 200], np.uint8)[:, None], SHAPE)

    def draw(self, number: int) -> np.ndarray:
        return self.IMAGE


class Words(tfds.core.GeneratorBasedBuilder):
    """No images."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({"text": tfds.features.Text()}))

    def _split_generators(self, dl_manager):
        raise NotImplementedError

    def _generate_examples(self):
        raise NotImplementedError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tfds")
    Blots(data_dir=folder).download_and_prepare()
    return folder


def numbers(pictures: np.ndarray) -> list[int]:
    known = {blot(number).tobytes(): number for number in range(110)}
    return [known[image.tobytes()] for image in pictures]


def test_a_prepared_set_comes_as_arrays_with_its_own_test_split(prepared: Path):
    loaded = data.load("tfds:blots", data_dir=prepared, validation_fraction=0.2)
    assert loaded.class_names == ("even", "odd")
    assert loaded.input_shape == (10, 8, 3)
    assert sorted(numbers(loaded.test.images)) == list(range(100, 110))
    assert sorted(numbers(loaded.train.images) + numbers(loaded.validation.images)) == list(range(40))
    assert np.bincount(loaded.validation.labels).tolist() == [4, 4]
    for part in (loaded.train, loaded.validation, loaded.test):
        assert [number % 2 for number in numbers(part.images)] == part.labels.tolist()


def test_a_large_set_streams_in_ranges_that_share_nothing(prepared: Path):
    streamed = data.load("tfds:blots", data_dir=prepared, validation_fraction=0.2, memory_limit=0)
    assert (len(streamed.train), len(streamed.validation), len(streamed.test)) == (32, 8, 10)
    seen = [numbers(part.head(100)[0]) for part in (streamed.train, streamed.validation, streamed.test)]
    assert sorted(sum(seen, start=[])) == [*range(40), *range(100, 110)]  # noqa: RUF017 (three lists)
    with pytest.raises(ValueError, match="stream from the disk"):
        _ = streamed.train.images
    with pytest.raises(ValueError, match="labels of a streamed set are not known"):
        _ = streamed.train.labels


def test_a_streamed_epoch_can_be_repeated_after_a_resume(prepared: Path):
    train = data.load("tfds:blots", data_dir=prepared, memory_limit=0).train
    arguments = {"training": True, "augment": augment.flip_horizontally, "seed": 4}
    straight = [batch.numpy() for batch, _ in train.dataset(9, epochs=2, **arguments)]
    resumed = [batch.numpy() for batch, _ in train.dataset(9, epoch=1, **arguments)]
    np.testing.assert_array_equal(np.concatenate(straight[4:]), np.concatenate(resumed))
    assert not np.array_equal(straight[0], straight[4])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_size_and_channels_are_converted_as_pillow_does(interpolation, prepared: Path):
    loaded = data.load("tfds:blots", data_dir=prepared, size=6, channels=1, validation_fraction=0)
    assert loaded.input_shape == (6, 6, 1)
    smooth = np.asarray(Image.fromarray(blot(0)).resize((60, 80), Image.Resampling.BICUBIC))
    ours = tfds_sets.fit(tf.constant(smooth), (20, 20, 3), interpolation).numpy().astype(int)
    pillows = images.fit(Image.fromarray(smooth), 20, interpolation).astype(int)
    assert np.abs(ours - pillows).max() <= 2


# Four columns of two, whose centres lie a quarter of a column beside theirs. Bilinear: 3/4 of the near one, and at the
# border all of it. Bicubic (Keys, a = -1/2): weights .8672 and .2266 over their sum; at the border .8672 and -.0703.
@pytest.mark.parametrize(
    ("interpolation", "columns"), [("bilinear", [40, 80, 160, 200]), ("bicubic", [26, 73, 167, 214])]
)
@pytest.mark.parametrize("memory_limit", [0, 2**30])
def test_every_source_resizes_by_the_interpolation_asked_for(interpolation, columns, memory_limit, tmp_path: Path):
    Steps(data_dir=tmp_path / "tfds").download_and_prepare()
    for number in range(2):
        (tmp_path / "folder" / f"class{number}").mkdir(parents=True)
        Image.fromarray(Steps.IMAGE).save(tmp_path / "folder" / f"class{number}" / "step.png")
    for source in ("tfds:steps", tmp_path / "folder"):
        loaded = data.load(
            source, size=4, data_dir=tmp_path / "tfds", validation_fraction=0, test_fraction=0,
            interpolation=interpolation, memory_limit=memory_limit,
        )  # fmt: skip
        np.testing.assert_array_equal(loaded.train.take(np.arange(1)).head(1)[0][0, :, :, 0], [columns] * 4)


def test_the_embedded_images_resize_by_the_interpolation_asked_for():
    first = Image.fromarray(data.read_mosaic("test")[0, :, :, 0])
    for interpolation in ("bilinear", "bicubic"):
        loaded = data.load(size=40, interpolation=interpolation)
        np.testing.assert_array_equal(loaded.test.images[0], images.fit(first, 40, interpolation))


def test_limit_of_a_stream_reads_only_so_many(prepared: Path):
    few = data.load("tfds:blots", data_dir=prepared, memory_limit=0, limit=3)
    assert [len(part) for part in (few.train, few.validation, few.test)] == [3, 3, 3]
    assert sum(len(labels) for _, labels in few.train.dataset(2)) == 3


def test_cifar10_by_name_with_mocked_data(tmp_path: Path):
    info = tmp_path / "cifar10" / tfds.builder_cls("cifar10").VERSION.__str__() / "dataset_info.json"
    info.parent.mkdir(parents=True)
    splits = ", ".join(
        f'{{"name": "{name}", "numBytes": "1", "shardLengths": ["{count}"], '
        '"filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}'
        for name, count in (("train", 50000), ("test", 10000))
    )
    info.write_text(
        f'{{"name": "cifar10", "version": "{info.parent.name}", "fileFormat": "tfrecord", "splits": [{splits}]}}'
    )
    (info.parent / "label.labels.txt").write_text(
        "airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n"
    )
    with warnings.catch_warnings(), tfds.testing.mock_data(num_examples=60, data_dir=str(tmp_path)):
        warnings.simplefilter("ignore")
        loaded = data.load("tfds:cifar10", limit=40, validation_fraction=0.5)
    assert loaded.classes == 10
    assert loaded.class_names[0] == "airplane"
    assert loaded.input_shape == (32, 32, 3)
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (30, 30, 40)


def test_a_set_that_is_not_there_says_how_to_get_it(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"'cifar10' is not in .*: load it with download=True or run `tfds build cifar10`"
    ):
        data.load("tfds:cifar10", data_dir=tmp_path)


def test_without_a_network_the_error_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(self) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tfds.core.GeneratorBasedBuilder, "download_and_prepare", fail)
    with pytest.raises(ValueError, match=r"cannot be downloaded: no route to host\. Without a network, copy .*cifar10"):
        data.load("tfds:cifar10", data_dir=tmp_path, download=True)


def test_unknown_names_suggest_near_ones(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no set 'cifar11'; did you mean .*cifar10"):
        data.load("tfds:cifar11", data_dir=tmp_path)


def test_a_set_without_images_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"'words' is not an image classification set: its examples hold \['text'\]"):
        data.load("tfds:words", data_dir=tmp_path)


def test_held_out_split_is_the_one_that_papers_report_on():
    class Info:
        def __init__(self, *names: str):
            self.splits = dict.fromkeys(names)

    class Builder:
        def __init__(self, name: str, *splits: str):
            self.name, self.info = name, Info(*splits)

    def chosen(*arguments: str) -> dict:
        return tfds_sets._find_splits(Builder(*arguments))

    assert chosen("x", "train", "validation", "test") == {"train": "train", "validation": "validation", "test": "test"}
    assert chosen("x", "train", "validation") == {"train": "train", "validation": None, "test": "validation"}
    assert chosen("x", "train") == {"train": "train", "validation": None, "test": None}
    assert chosen("imagenet2012", "train", "validation", "test")["test"] == "validation"
    with pytest.raises(ValueError, match=r"has the splits \['all'\]: expected one called 'train'"):
        chosen("x", "all")


def test_images_of_different_sizes_need_a_size():
    with pytest.raises(ValueError, match="the images of 'x' differ in size: give the size="):
        tfds_sets._choose_shape("x", (None, None, 3), None, None)
    assert tfds_sets._choose_shape("x", (None, None, 3), 64, 1) == (64, 64, 1)
    with pytest.raises(ValueError, match="have 4 channels"):
        tfds_sets._choose_shape("x", (8, 8, 4), None, None)
