"""The embedded images, the cuts between the parts, and the batches that training sees."""

import hashlib
import shutil

import keras
import numpy as np
import pytest

from recipes.images import augment
from recipes.images import sources as data
from recipes.images.parts import Arrays


@pytest.fixture(scope="module")
def embedded() -> data.Data:
    return data.load()


def hashes(images: np.ndarray) -> list[bytes]:
    return [hashlib.sha256(image.tobytes()).digest() for image in images]


def small_part(count: int = 10) -> Arrays:
    """Images of which each is filled with its own number; two classes."""
    numbers = np.arange(count, dtype=np.uint8)
    return Arrays(np.broadcast_to(numbers[:, None, None, None], (count, 4, 4, 1)).copy(), numbers % 2)


def numbers_in(batches) -> list[list[int]]:
    """The images of each batch of a small_part, by their numbers."""
    return [np.round(images.numpy()[:, 0, 0, 0] * 255).astype(int).tolist() for images, _ in batches]


def test_embedded_images_come_in_three_balanced_parts(embedded: data.Data):
    assert str(embedded) == (
        "fashion_mnist_small: 9,000 training, 1,000 validation and 2,000 test images of 28 x 28 x 1, 10 classes"
    )
    for part, a_class in ((embedded.train, 900), (embedded.validation, 100), (embedded.test, 200)):
        assert np.bincount(part.labels).tolist() == [a_class] * 10
        assert part.images.dtype == np.uint8
        assert part.labels.dtype == np.int32


def test_no_image_is_in_two_parts_or_twice_in_one(embedded: data.Data):
    found = [digest for part in (embedded.train, embedded.validation, embedded.test) for digest in hashes(part.images)]
    assert len(set(found)) == len(found) == 12_000


def test_the_first_images_are_what_the_authors_show_first():
    first = data.read_mosaic("train")[9000, :, :, 0]  # the first "Ankle boot", which opens the authors' file
    assert first.shape == (28, 28)
    assert first[:3].max() == 0
    assert first.sum() == 76_247
    assert data.EMBEDDED_CLASSES[9] == "Ankle boot"


def test_embedded_files_with_their_licence_take_less_than_five_megabytes():
    files = list(data.EMBEDDED_FOLDER.iterdir())
    assert {path.name for path in files} == {"LICENSE", "train.png", "test.png"}
    assert sum(path.stat().st_size for path in files) < 5_000_000
    assert "Copyright (c) 2017 Zalando SE" in (data.EMBEDDED_FOLDER / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.parametrize("damage", ["cut short", "another picture", "gone"])
def test_damaged_embedded_file_is_named_with_the_remedy(tmp_path, monkeypatch, damage: str):
    for part in ("train", "test"):
        shutil.copy(data.EMBEDDED_FOLDER / f"{part}.png", tmp_path)
    broken = tmp_path / "test.png"
    if damage == "cut short":
        broken.write_bytes(broken.read_bytes()[:-100_000])
    elif damage == "another picture":
        shutil.copy(tmp_path / "train.png", broken)
    else:
        broken.unlink()
    monkeypatch.setattr(data, "EMBEDDED_FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"test\.png.*reinstall the package"):
        data.load()


def test_validation_is_drawn_by_the_seed_and_the_test_part_is_not():
    one, again, other = data.load(seed=1), data.load(seed=1), data.load(seed=2)
    np.testing.assert_array_equal(one.validation.images, again.validation.images)
    assert hashes(one.validation.images) != hashes(other.validation.images)
    np.testing.assert_array_equal(one.test.images, other.test.images)
    both = set(hashes(one.train.images)) | set(hashes(one.validation.images))
    assert both == set(hashes(other.train.images)) | set(hashes(other.validation.images))


def test_limit_keeps_the_classes_in_proportion(embedded: data.Data):
    few = data.load(limit=50)
    for part in (few.train, few.validation, few.test):
        assert np.bincount(part.labels).tolist() == [5] * 10
    assert few.test.labels[:10].tolist() == list(range(10))
    np.testing.assert_array_equal(few.test.images, embedded.test.images[:50])


def test_embedded_images_are_resized_and_repeated_over_channels():
    large = data.load(size=(32, 40), channels=3, limit=20)
    assert large.input_shape == large.train.images.shape[1:] == (32, 40, 3)
    assert (large.train.images == large.train.images[..., :1]).all()


def test_without_validation_fraction_the_validation_part_is_empty_and_says_so():
    whole = data.load(validation_fraction=0)
    assert (len(whole.train), len(whole.validation)) == (10_000, 0)
    assert whole.validation.head(3)[0].shape == (0, 28, 28, 1)
    with pytest.raises(ValueError, match="this part holds no images: load the data with a validation_fraction"):
        whole.validation.dataset(8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "no/such/folder"}, "'no/such/folder' is not there: expected a folder of images"),
        ({"source": __file__}, "is a file: expected a folder of images"),
        ({"size": 0}, "size=0: expected a number of pixels of at least 1"),
        ({"size": (3, 4, 5)}, r"size=\(3, 4, 5\)"),
        ({"channels": 2}, "channels=2: expected 1"),
        ({"validation_fraction": 1.0}, "validation_fraction=1.0: expected at least 0 and less than 1"),
        ({"test_fraction": -0.1}, "test_fraction=-0.1"),
        ({"limit": 0}, "limit=0: expected at least 1"),
        ({"limit": 5}, r"no training image of \['Sandal', .*'Ankle boot'\] is left; raise limit="),
        ({"on_unreadable": "ignore"}, "on_unreadable='ignore': expected"),
    ],
)
def test_bad_arguments_say_what_was_expected(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        data.load(**arguments)


def test_a_split_takes_the_same_share_of_every_class():
    labels = np.array([0] * 20 + [1] * 10 + [2] * 70)
    part = Arrays(np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1), labels)
    rest, cut = part.split(0.2, seed=5)
    assert np.bincount(cut.labels).tolist() == [4, 2, 14]
    assert sorted([*rest.images.ravel(), *cut.images.ravel()]) == list(range(100))
    assert np.bincount(part.first(10).labels).tolist() == [2, 1, 7]


def test_training_batches_are_shuffled_anew_in_each_epoch_and_leave_out_the_incomplete_one():
    part = small_part()
    batches = numbers_in(part.dataset(4, training=True, seed=1, epochs=3))
    assert [len(batch) for batch in batches] == [4] * 6
    epochs = [(*batches[first], *batches[first + 1]) for first in (0, 2, 4)]
    assert len(set(epochs)) == 3
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert part.steps(4, training=True) == 2


def test_a_part_smaller_than_the_batch_still_trains():
    part = small_part(3)
    assert [sorted(batch) for batch in numbers_in(part.dataset(4, training=True))] == [[0, 1, 2]]
    assert part.steps(4, training=True) == 1


def test_evaluation_batches_hold_every_image_once_in_order():
    part = small_part()
    batches = part.dataset(4)
    assert numbers_in(batches) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert int(batches.cardinality()) == part.steps(4) == 3
    labels = [label for _, labels in batches for label in labels.numpy().tolist()]
    assert labels == [0, 1] * 5


def test_a_run_resumed_at_an_epoch_sees_the_same_batches(embedded: data.Data):
    part = embedded.train.first(200)
    arguments = {"training": True, "augment": augment.cifar(2, 8), "seed": 3}
    straight = [images.numpy() for images, _ in part.dataset(64, epochs=3, **arguments)]
    resumed = [images.numpy() for images, _ in part.dataset(64, epoch=2, epochs=None, **arguments).take(3)]
    np.testing.assert_array_equal(np.concatenate(straight[6:]), np.concatenate(resumed))
    assert not np.array_equal(straight[0], straight[3])  # another order and other crops


def test_fit_resumes_at_an_epoch_with_the_weights_it_would_have_had(embedded: data.Data):
    part = embedded.train.first(200)

    def weights_after(*stretches: tuple[int, int]) -> np.ndarray:
        model = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10, "softmax")])
        model.layers[-1].kernel.assign(keras.ops.zeros((784, 10)))
        model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
        for first, last in stretches:
            model.fit(
                part.dataset(64, training=True, augment=augment.cifar(2, 8), seed=1, epoch=first, epochs=None),
                steps_per_epoch=part.steps(64, training=True),
                initial_epoch=first,
                epochs=last,
                shuffle=False,
                verbose=0,
            )
        return model.layers[-1].kernel.numpy()

    np.testing.assert_array_equal(weights_after((0, 3)), weights_after((0, 1), (1, 3)))


def test_batches_go_through_the_given_preprocessing():
    part = small_part()
    normalization = augment.Normalization.of(part.images)
    batch, _ = next(iter(part.dataset(10, preprocess=normalization)))
    np.testing.assert_allclose(batch, normalization(part.images), atol=1e-6)
    unit, _ = next(iter(part.dataset(10)))
    assert float(unit.numpy().max()) == pytest.approx(9 / 255)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: expected at least 1"),
        ({"batch_size": 2, "augment": augment.flip_horizontally}, "augment without training=True"),
        ({"batch_size": 2, "epoch": -1}, "epoch=-1, epochs=1: epochs count from 0"),
        ({"batch_size": 2, "epochs": 0}, "at least one is needed"),
    ],
)
def test_batches_that_make_no_sense_are_refused(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        small_part().dataset(**arguments)


def test_arrays_of_another_type_are_refused():
    with pytest.raises(ValueError, match=r"images float32 \(2, 3, 3, 1\), labels \(2,\): expected uint8"):
        Arrays(np.zeros((2, 3, 3, 1), np.float32), np.zeros(2))
