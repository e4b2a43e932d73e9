"""Augmentation: truths that can be counted by hand, and the same seed the same batch."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from recipes.images import augment


def key(*numbers: int) -> tf.Tensor:
    return tf.constant(numbers, tf.int64)


def numbered(count: int, height: int, width: int) -> np.ndarray:
    """Images in which pixel (row, column) is 1 + row * width + column: what is found tells where it comes from."""
    one = np.arange(1, height * width + 1, dtype=np.uint8).reshape(1, height, width, 1)
    return np.repeat(one, count, axis=0)


def test_pad_and_crop_gives_a_window_of_the_padded_image_and_every_offset_occurs():
    images = numbered(500, 8, 6)
    padded = np.pad(images[0, :, :, 0], 2)
    windows = {padded[top : top + 8, left : left + 6].tobytes() for top in range(5) for left in range(5)}
    cropped = augment.pad_and_crop(tf.constant(images), key(1, 2), padding=2).numpy()
    assert cropped.shape == images.shape
    assert cropped.dtype == np.uint8
    assert {image.tobytes() for image in cropped} == windows


def test_flip_mirrors_about_half_of_the_images_and_leaves_the_others():
    images = numbered(1000, 4, 5)
    flipped = augment.flip_horizontally(tf.constant(images), key(1, 2)).numpy()
    mirrored = (flipped == images[:, :, ::-1]).all(axis=(1, 2, 3))
    same = (flipped == images).all(axis=(1, 2, 3))
    assert (mirrored ^ same).all()
    assert 430 < mirrored.sum() < 570  # 500 expected, standard deviation 16


def test_cutout_covers_a_full_square_inside_and_a_quarter_of_it_in_a_corner():
    images = np.full((4000, 12, 10, 1), 9, np.uint8)
    areas = (augment.cutout(tf.constant(images), key(1, 2), length=4).numpy() == 0).sum(axis=(1, 2, 3))
    # A centre at row r covers rows r-2..r+1: 2 at row 0, 3 at row 1, 4 at rows 2..10, 3 at row 11.
    rows = np.array([2, 3] + [4] * 9 + [3])
    columns = np.array([2, 3] + [4] * 7 + [3])
    assert set(areas.tolist()) == set(np.outer(rows, columns).ravel().tolist())
    assert areas.mean() == pytest.approx(rows.mean() * columns.mean(), rel=0.02)


def test_cutout_of_odd_length_starts_half_of_it_rounded_down_before_the_pixel():
    images = np.full((500, 9, 9, 1), 9, np.uint8)
    holes = augment.cutout(tf.constant(images), key(3, 4), length=3).numpy() == 0
    assert set(holes.sum(axis=(1, 2, 3)).tolist()) == {4, 6, 9}  # a corner, an edge, inside


def test_cutout_fills_with_a_value_for_each_channel():
    images = np.zeros((3, 8, 8, 3), np.float32)
    filled = augment.cutout(tf.constant(images), key(0, 0), length=4, fill=(1.5, 2.5, 3.5)).numpy()
    assert filled.max(axis=(0, 1, 2)).tolist() == [1.5, 2.5, 3.5]


def test_random_resized_crop_of_the_whole_square_changes_nothing():
    images = np.random.default_rng(0).integers(0, 256, (5, 9, 9, 3), np.uint8)
    whole = augment.random_resized_crop(tf.constant(images), key(1, 2), 9, area=(1, 1), ratio=(1, 1)).numpy()
    np.testing.assert_allclose(whole, images, atol=1e-3)


def test_random_resized_crop_of_a_quarter_of_the_area_is_a_window_of_half_the_side():
    images = numbered(300, 8, 8)
    windows = {images[0, top : top + 4, left : left + 4].tobytes() for top in range(5) for left in range(5)}
    cut = augment.random_resized_crop(tf.constant(images), key(1, 2), 4, area=(0.25, 0.25), ratio=(1, 1)).numpy()
    assert {image.tobytes() for image in np.round(cut).astype(np.uint8)} == windows


def test_random_resized_crop_stays_inside_and_clips_a_window_that_never_fits():
    images = tf.constant(numbered(50, 4, 12))
    cut = augment.random_resized_crop(images, key(1, 2), 6, area=(1, 1), ratio=(1, 1)).numpy()
    assert cut.min() >= 1  # crop_and_resize puts 0 where a box leaves the image
    assert cut.shape == (50, 6, 6, 1)


def test_colour_jitter_by_nothing_changes_nothing_and_by_something_stays_in_range():
    images = tf.constant(np.random.default_rng(0).integers(0, 256, (20, 6, 6, 3), np.uint8))
    same = augment.jitter_colors(images, key(1, 2), 0, 0, 0, 0)
    np.testing.assert_array_equal(same, tf.cast(images, tf.float32))
    changed = augment.jitter_colors(images, key(1, 2), 0.9, 0.9, 0.9, 0.5).numpy()
    assert changed.min() >= 0
    assert changed.max() <= 255
    assert np.abs(changed - same).mean() > 10


def test_brightness_scales_all_pixels_of_an_image_by_one_factor():
    images = np.full((200, 2, 2, 3), 100, np.uint8)
    factors = augment.jitter_colors(tf.constant(images), key(1, 2), 0.4, 0, 0).numpy() / 100
    assert (factors == factors[:, :1, :1, :1]).all()
    assert 0.6 <= factors.min() < 0.65
    assert 1.35 < factors.max() <= 1.4


def test_a_gray_image_keeps_its_gray_when_saturation_and_hue_change():
    images = np.repeat(np.arange(0, 250, 10, dtype=np.uint8).reshape(1, 5, 5, 1), 3, axis=-1)
    changed = augment.jitter_colors(tf.constant(images), key(1, 2), 0, 0, 0.5, 0.5)
    np.testing.assert_allclose(changed, images, atol=1e-3)


def test_colours_of_a_grayscale_image_are_refused():
    with pytest.raises(ValueError, match="1 channels: colours need RGB, load the data with channels=3"):
        augment.jitter_colors(tf.zeros([1, 4, 4, 1]), key(0, 0))
    crop_and_flip = augment.imagenet(3, jitter=0.0, hue=0.0)  # as papers' settings have it: no colours, no refusal
    assert crop_and_flip(tf.zeros([1, 4, 4, 1]), key(0, 0)).shape == (1, 3, 3, 1)


def test_the_same_seed_gives_the_same_batch_and_another_seed_another():
    images = tf.constant(np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8))
    for policy in (augment.cifar(), augment.imagenet(24)):
        first, again, other = policy(images, key(1, 2)), policy(images, key(1, 2)), policy(images, key(1, 3))
        np.testing.assert_array_equal(first, again)
        assert np.any(first != other)


def test_steps_of_a_chain_draw_different_numbers():
    def draw(values: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return tf.concat([values, tf.random.stateless_uniform([1], seed)], 0)

    numbers = augment.chain(draw, draw, draw)(tf.zeros([0]), key(1, 2)).numpy()
    assert len(set(numbers.tolist())) == 3


def test_cifar_policy_without_cutout_keeps_a_white_image_white_but_for_the_padding():
    white = tf.fill([64, 16, 16, 1], tf.constant(255, tf.uint8))
    covered = (augment.cifar(padding=1, cutout_length=0)(white, key(1, 2)).numpy() == 0).sum(axis=(1, 2, 3))
    assert set(covered.tolist()) == {0, 16, 31}  # no shift, along one axis, along both


def test_central_crop_takes_the_middle():
    images = numbered(1, 6, 8)
    np.testing.assert_array_equal(augment.central_crop(images, 4), images[:, 1:5, 2:6])
    with pytest.raises(ValueError, match="cannot crop 7 x 7 out of 6 x 8: load the data with a larger size="):
        augment.central_crop(images, 7)


def test_normalization_of_the_images_gives_them_mean_0_and_standard_deviation_1():
    images = np.random.default_rng(0).integers(0, 256, (10, 7, 7, 3), np.uint8)
    normalization = augment.Normalization.of(images)
    np.testing.assert_allclose(normalization.mean, images.mean(axis=(0, 1, 2)) / 255, rtol=1e-12)
    normal = normalization(images)
    assert normal.dtype == np.float32
    np.testing.assert_allclose(normal.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(normal.std(axis=(0, 1, 2)), 1, atol=1e-5)
    np.testing.assert_allclose(normalization(tf.constant(images)), normal, atol=1e-6)


def test_normalization_of_black_images_divides_by_no_zero():
    black = np.zeros((2, 3, 3, 1), np.uint8)
    assert augment.Normalization.of(black) == augment.Normalization((0.0,), (1 / 255,))


def test_normalization_survives_being_stored_as_plain_numbers():
    stored = dataclasses.asdict(augment.IMAGENET)
    assert augment.Normalization(**stored) == augment.IMAGENET


def test_named_normalizations_have_the_ranges_they_promise():
    ends = np.array([0, 255], np.uint8).reshape(1, 1, 2, 1)
    assert augment.UNIT(ends).ravel().tolist() == pytest.approx([0, 1])
    assert augment.CENTERED(ends).ravel().tolist() == pytest.approx([-1, 1])


def test_normalization_for_other_channels_is_refused():
    with pytest.raises(ValueError, match="images have 1 channels and the normalization 3"):
        augment.CIFAR10(np.zeros((1, 2, 2, 1), np.uint8))
    with pytest.raises(ValueError, match="std above zero"):
        augment.Normalization((0.0,), (0.0,))
    with pytest.raises(ValueError, match="expected uint8"):
        augment.Normalization.of(np.zeros((1, 2, 2, 1), np.float32))
