"""Folders of images: layouts, kinds of files, and what is wrong with them."""

import io
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.images import files as images
from recipes.images import folder as image_folder
from recipes.images import sources as data


def picture(number: int, height: int = 6, width: int = 8) -> Image.Image:
    """An RGB picture that no other number has."""
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8))


def save(path: Path, image: Image.Image, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def fill(folder: Path, counts: dict[str, int], first: int = 0) -> Path:
    """Writes `counts` PNGs into class folders, each another picture, numbered from `first`."""
    number = first
    for name, count in counts.items():
        for index in range(count):
            save(folder / name / f"{index}.png", picture(number))
            number += 1
    return folder


def numbers(part: image_folder.Part, among: int = 200) -> set[int]:
    """Which pictures a part holds."""
    known = {np.asarray(picture(number)).tobytes(): number for number in range(among)}
    return {known[image.tobytes()] for image in part.images}


def test_one_folder_a_class_is_cut_into_three_parts(tmp_path: Path):
    loaded = data.load(fill(tmp_path, {"tulip": 20, "rose": 40}), test_fraction=0.25, validation_fraction=0.2)
    assert loaded.class_names == ("rose", "tulip")
    assert loaded.input_shape == (6, 8, 3)
    assert [np.bincount(part.labels).tolist() for part in (loaded.train, loaded.validation, loaded.test)] == [
        [24, 12],
        [6, 3],
        [10, 5],
    ]
    assert numbers(loaded.train) | numbers(loaded.validation) | numbers(loaded.test) == set(range(60))
    assert loaded.train.images[0].tobytes() == np.asarray(picture(next(iter(numbers(loaded.train.first(1)))))).tobytes()


def test_the_test_images_stay_the_same_when_the_seed_changes_and_others_when_files_are_added(tmp_path: Path):
    fill(tmp_path, {"a": 20, "b": 20})
    one, other = data.load(tmp_path, seed=1), data.load(tmp_path, seed=2)
    assert numbers(one.test) == numbers(other.test)
    assert numbers(one.validation) != numbers(other.validation)
    save(tmp_path / "a" / "new.png", picture(100))
    assert len(numbers(data.load(tmp_path).test) & numbers(one.test)) >= 3  # of 4: the new one may take a place


def test_train_val_and_test_folders_are_taken_as_they_are(tmp_path: Path):
    fill(tmp_path / "train", {"a": 4, "b": 4})
    fill(tmp_path / "val", {"a": 2, "b": 1}, first=50)
    fill(tmp_path / "test", {"b": 3}, first=100)  # a class may be missing outside of training
    loaded = data.load(tmp_path)
    assert numbers(loaded.train) == set(range(8))
    assert numbers(loaded.validation) == {50, 51, 52}
    assert numbers(loaded.test) == {100, 101, 102}
    assert loaded.test.labels.tolist() == [1, 1, 1]


def test_a_single_held_out_folder_is_the_test_part_and_validation_comes_from_training(tmp_path: Path):
    fill(tmp_path / "train", {"a": 10, "b": 10})
    fill(tmp_path / "valid", {"a": 2, "b": 1}, first=50)
    loaded = data.load(tmp_path)
    assert numbers(loaded.test) == {50, 51, 52}
    assert (len(loaded.train), len(loaded.validation)) == (18, 2)


def test_deeper_folders_belong_to_their_class_and_other_files_are_passed_over(tmp_path: Path):
    fill(tmp_path, {"a/monday": 3, "a/tuesday": 3, "b": 6})
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    (tmp_path / ".cache").mkdir()
    assert data.load(tmp_path, validation_fraction=0, test_fraction=0).train.labels.tolist() == [0, 1] * 6


def test_unreadable_file_is_named_or_skipped_with_a_count(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    fill(tmp_path, {"a": 10, "b": 10})
    (tmp_path / "a" / "3.png").write_bytes(b"this is text")
    whole = (tmp_path / "b" / "5.png").read_bytes()
    (tmp_path / "b" / "5.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r'[ab].[35]\.png: .*; fix or remove it, or load with on_unreadable="skip"'):
        data.load(tmp_path)
    with caplog.at_level(logging.WARNING):
        loaded = data.load(tmp_path, on_unreadable="skip")
    assert {path.relative_to(tmp_path).as_posix() for path in loaded.skipped} == {"a/3.png", "b/5.png"}
    assert "18 images are used, 2 files are left out: 2 cannot be read, such as" in caplog.text
    assert len(loaded.train) + len(loaded.validation) + len(loaded.test) == 18
    assert numbers(loaded.train).isdisjoint({3, 15})


def test_a_large_folder_streams_the_same_images(tmp_path: Path):
    fill(tmp_path, {"a": 10, "b": 10})
    (tmp_path / "a" / "3.png").write_bytes(b"this is text")
    arrays = data.load(tmp_path, on_unreadable="skip")
    stream = data.load(tmp_path, on_unreadable="skip", memory_limit=0)
    assert stream.skipped == arrays.skipped
    for streamed, held in ((stream.train, arrays.train), (stream.test, arrays.test)):
        assert len(streamed) == len(held)
        np.testing.assert_array_equal(streamed.labels, held.labels)
        np.testing.assert_array_equal(streamed.head(5)[0], held.images[:5])
    with pytest.raises(ValueError, match=r"15 images stream from the disk .* use dataset\(\) or head\(\)"):
        _ = stream.train.images
    batches = stream.train.dataset(5, training=True, seed=1, epochs=2)
    epochs = [images.numpy() for images, _ in batches]
    np.testing.assert_array_equal(epochs, [images.numpy() for images, _ in batches])
    again = [images.numpy() for images, _ in stream.train.dataset(5, training=True, seed=1, epoch=1)]
    np.testing.assert_array_equal(np.concatenate(epochs[3:]), np.concatenate(again))
    assert not np.array_equal(epochs[0], epochs[3])


def test_images_of_different_sizes_need_a_size(tmp_path: Path):
    fill(tmp_path, {"a": 3, "b": 3})
    save(tmp_path / "b" / "large.png", picture(50, 9, 9))
    with pytest.raises(ValueError, match=r"pixels and the first image .*: give the size \(--image_size\) to resize"):
        data.load(tmp_path, test_fraction=0)
    assert data.load(tmp_path, size=5).input_shape == (5, 5, 3)


PAIR = {"a": 3, "b": 3}
TRAINING = {"train/a": 3, "train/b": 3}


@pytest.mark.parametrize(
    ("layout", "message"),  # of folders, how many pictures are in them; what is in a file; where a link leads
    [
        ({}, r"holds 0 class folders \[\]: expected at least two, one per class"),
        ({"a": 3}, r"holds 1 class folders \['a'\]"),
        ({"dataset/a": 3, "dataset/b": 3}, r"dataset holds folders, did you mean that one\?"),
        ({**PAIR, "c": 0}, r"c holds no images \(.*\): add some, or delete the folder"),
        ({**TRAINING, "test": 0}, "the test part of .* holds no images"),
        (
            {"train/cat": 3, "train/dog": 3, "test/cats": 3, "test/dog": 3},
            r"classes \['cats'\] of the test part are not in training's \['cat', 'dog'\]",
        ),
        ({**TRAINING, "extra": 1}, r"holds \['extra'\] beside its training folder"),
        ({**TRAINING, "val/a": 3, "val/b": 3, "validation/a": 3, "validation/b": 3}, r"two folders for one part"),
        ({**PAIR, "a/link.png": "../../secret.png"}, r"link\.png is a link, which can lead anywhere: put the images"),
        ({**PAIR, "c": "../elsewhere"}, r"c is a link"),
        ({**PAIR, "a/again": ".."}, r"again is a link"),
        ({**PAIR, "caf\udce9": 3}, r"the class folder b'caf\\xe9' is not in UTF-8, .*: rename the folder"),
        ({"a/1.jpg": b"", "b/1.jpg": b""}, "none of the 2 training images can be read"),
        (dict.fromkeys(map(str, range(100)), 1), r"no training image of \[('\d+',? ?){10}\] and \d+ more is left"),
        ({"a": 30, "b/0.png": b"not an image"}, r"no training image of \['b'\] is left; .*or add images"),
    ],
)
def test_folders_that_are_no_data_set_say_why(tmp_path: Path, layout, message: str):
    fill(tmp_path / "elsewhere", {"x": 3})
    save(tmp_path / "secret.png", picture(0))
    folder = tmp_path / "images"
    folder.mkdir()
    for name, what in layout.items():
        place = folder / name
        if isinstance(what, int):
            place.mkdir(parents=True)
            fill(folder, {name: what})
        elif isinstance(what, bytes):
            place.parent.mkdir()
            place.write_bytes(what)
        else:
            place.symlink_to(what)
    with pytest.raises(ValueError, match=message):
        data.load(folder, on_unreadable="skip")


def test_a_pipe_with_the_name_of_an_image_does_not_hang(tmp_path: Path):
    fill(tmp_path, {"a": 3, "b": 3})
    os.mkfifo(tmp_path / "a" / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.png: not a regular file"):
        data.load(tmp_path)


# How a single file becomes pixels.


def left_red_right_blue(width: int = 8, height: int = 4) -> Image.Image:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 255
    pixels[:, width // 2 :, 2] = 255
    return Image.fromarray(pixels)


def test_image_turned_by_its_exif_data_is_read_upright(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees clockwise to see it upright
    exif[0x010E] = "text"  # a description, which the file then says to be a floating-point number
    damaged = exif.tobytes().replace(b"\x01\x0e\x00\x02\x00\x00\x00\x05", b"\x01\x0e\x00\x0b\x00\x00\x00\x01")
    assert damaged != exif.tobytes()
    path = save(tmp_path / "a.png", left_red_right_blue(), exif=damaged)
    pixels = images.read_image(path, None, 3)
    assert pixels.shape == (8, 4, 3)
    assert pixels[0, 0].tolist() == [255, 0, 0]  # the left becomes the top
    assert pixels[7, 0].tolist() == [0, 0, 255]


def test_palette_grayscale_and_cmyk_images_become_rgb(tmp_path: Path):
    wanted = np.asarray(left_red_right_blue())
    palette = save(tmp_path / "palette.gif", left_red_right_blue().convert("P", palette=Image.Palette.ADAPTIVE))
    np.testing.assert_array_equal(images.read_image(palette, None, 3), wanted)
    cmyk = save(tmp_path / "cmyk.tif", left_red_right_blue().convert("CMYK"))
    np.testing.assert_array_equal(images.read_image(cmyk, None, 3), wanted)
    gray = save(tmp_path / "gray.png", Image.new("L", (3, 2), 77))
    assert images.read_image(gray, None, 3).tolist() == [[[77, 77, 77]] * 3] * 2
    assert images.read_image(gray, None, 1).shape == (2, 3, 1)


def test_rgb_becomes_gray_by_the_luma_of_its_colours(tmp_path: Path):
    path = save(tmp_path / "a.png", left_red_right_blue())
    assert np.unique(images.read_image(path, None, 1)).tolist() == [29, 76]  # 0.114 and 0.299 of 255


def test_transparent_pixels_become_white_whatever_colour_they_hide(tmp_path: Path):
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 0] = 200  # red everywhere
    pixels[0, :, 3] = [255, 0, 51]  # opaque, transparent, a fifth
    path = save(tmp_path / "a.png", Image.fromarray(pixels))
    assert images.read_image(path, None, 3)[0].tolist() == [[200, 0, 0], [255, 255, 255], [244, 204, 204]]


def test_sixteen_bits_are_scaled_and_not_cut(tmp_path: Path):
    path = save(tmp_path / "a.png", Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16)))
    assert images.read_image(path, None, 1).ravel().tolist() == [0, 1, 128, 255]


def test_size_cuts_the_longer_side_and_keeps_proportions(tmp_path: Path):
    stripes = np.zeros((4, 12, 3), np.uint8)
    stripes[:, 4:8] = 100  # only the middle third is not black
    path = save(tmp_path / "a.png", Image.fromarray(stripes))
    assert images.read_image(path, 2, 3).tolist() == [[[100] * 3] * 2] * 2
    assert images.read_image(path, (4, 12), 3).shape == (4, 12, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_a_file_cut_short_is_unreadable_in_every_format(tmp_path: Path, kind: str):
    stream = io.BytesIO()
    picture(0, 60, 60).save(stream, kind)
    path = tmp_path / "cut.img"
    path.write_bytes(stream.getvalue())
    assert images.read_image(path, 8, 3).shape == (8, 8, 3)
    path.write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])
    with pytest.raises(images.UnreadableImageError, match=r"cannot read the image .*cut\.img: "):
        images.read_image(path, 8, 3)


def test_files_that_are_no_images_are_named(tmp_path: Path):
    with pytest.raises(images.UnreadableImageError, match=r"gone\.png: No such file"):
        images.read_image(tmp_path / "gone.png", None, 3)
    (tmp_path / "text.png").write_text("%!PS-Adobe-3.0 EPSF-3.0")  # Pillow would start an interpreter for it
    with pytest.raises(images.UnreadableImageError, match=r"text\.png: not an image"):
        images.read_image(tmp_path / "text.png", None, 3)
    floats = save(tmp_path / "floats.tif", Image.fromarray(np.zeros((2, 2), np.float32)))
    with pytest.raises(images.UnreadableImageError, match="floating-point"):
        images.read_image(floats, None, 3)


@pytest.mark.parametrize(
    ("training", "held_out"),
    [
        ("training_set", "test_set"),
        ("Training Set", "Validation Set"),
        ("train_images", "test_images"),
        ("seg_train", "seg_test"),
        ("flowers-train", "flowers-val"),
        ("TrainData", "TestData"),
        ("train2017", "val2017"),
        ("trainset", "testset"),
        ("TRAIN", "HOLDOUT"),
        ("01_train", "02_eval"),
    ],
)
def test_parts_are_known_by_the_names_that_people_give_them(tmp_path: Path, training: str, held_out: str):
    fill(tmp_path / training, {"a": 4, "b": 4})
    fill(tmp_path / held_out, {"a": 2, "b": 1}, first=50)
    loaded = data.load(tmp_path)
    assert loaded.class_names == ("a", "b")
    assert numbers(loaded.test) == {50, 51, 52}
    assert not loaded.skipped


@pytest.mark.parametrize(
    "classes", [("car", "train"), ("steam_train", "bullet_train"), ("test_tube", "flask"), ("training", "match")]
)
def test_a_class_may_be_called_train(tmp_path: Path, classes: tuple[str, str]):
    assert data.load(fill(tmp_path, dict.fromkeys(classes, 10))).class_names == tuple(sorted(classes))


@pytest.mark.parametrize("folders", [("train", "test"), ("train", "test1"), ("Training Images", "val images")])
def test_parts_without_class_folders_are_asked_about(tmp_path: Path, folders: tuple[str, str]):
    fill(tmp_path, dict.fromkeys(folders, 5))
    with pytest.raises(ValueError, match=r"look like parts of a data set, but no class folders are in them"):
        data.load(tmp_path)


def test_parts_without_a_training_part_are_asked_about(tmp_path: Path):
    for part in ("validation_set", "test_set"):
        fill(tmp_path / part, {"a": 5, "b": 5})
    with pytest.raises(ValueError, match="none of them is for training"):
        data.load(tmp_path)


def test_every_file_is_used_or_left_out_with_its_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for number, suffix in enumerate((".jpg", ".JFIF", ".jpe", ".jif", ".pjpeg", "")):
        for name in "ab":
            for index in range(3):
                save(tmp_path / name / f"{index}{suffix}", picture(number * 10 + index), format="JPEG")
    save(tmp_path / "loose.png", picture(99))
    for place in (tmp_path / "readme.txt", tmp_path / "a" / ".DS_Store", tmp_path / "a" / "deeper" / "boxes.xml"):
        place.parent.mkdir(exist_ok=True)
        place.write_text("text")
    with caplog.at_level(logging.WARNING):
        loaded = data.load(tmp_path)
    assert len(loaded.train) + len(loaded.validation) + len(loaded.test) == 24
    reasons = {path.relative_to(tmp_path).as_posix(): reason for path, reason in loaded.skipped.items()}
    assert len(reasons) == 42 + 1 + 3 - 30 == 16
    assert reasons["loose.png"] == "in no class folder"
    assert reasons["a/.DS_Store"] == "hidden"
    assert reasons["b/1"] == "without a suffix that tells the kind of image"
    assert reasons["a/deeper/boxes.xml"] == "with a name that ends in .xml, no kind of image that is read"
    assert "24 images are used, 16 files are left out" in caplog.text


def test_a_loose_image_is_not_hidden_because_a_folder_above_the_set_is(tmp_path: Path):
    folder = fill(tmp_path / ".sets" / "pets", {"a": 10, "b": 10})
    save(folder / "loose.png", picture(99))
    assert data.load(folder).skipped == {folder / "loose.png": "in no class folder"}


def test_a_test_folder_without_classes_is_counted_and_the_test_part_comes_from_training(tmp_path: Path):
    fill(tmp_path / "train", {"a": 20, "b": 20})
    fill(tmp_path, {"test": 7}, first=60)
    loaded = data.load(tmp_path)
    assert len(loaded.test) == 4
    assert numbers(loaded.test) < set(range(40))
    assert set(loaded.skipped.values()) == {"of a part without class folders, and so without labels"}
    assert len(loaded.skipped) == 7


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_twelve_bits_in_files_of_sixteen_keep_their_levels_and_their_brightness(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
):
    values = np.linspace(0, 4095, 4096).astype(np.uint16).reshape(64, 64)
    for name, factor in (("bright", 1.0), ("dark", 0.25)):
        for index in range(10):
            save(tmp_path / name / f"{index}{suffix}", Image.fromarray((values * factor).astype(np.uint16)))
    with caplog.at_level(logging.WARNING):
        loaded = data.load(tmp_path, channels=1)
    labelled = zip(loaded.train.labels, loaded.train.images, strict=True)
    largest = {loaded.class_names[label]: image.max() for label, image in labelled}
    assert largest == {"bright": 255, "dark": 64}  # 1,023 of 4,095: a dark image is not made brighter
    assert "read as 12-bit ones; --pixel_bits=16 leaves them" in caplog.text
    assert data.load(tmp_path, channels=1, pixel_bits=16).train.images.max() == 16
    with pytest.raises(ValueError, match="more than 10 bits; give pixel_bits=16"):
        data.load(tmp_path, channels=1, pixel_bits=10)
