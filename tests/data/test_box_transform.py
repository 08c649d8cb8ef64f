"""Boxes that move with their image, against the released code's figures and pixels."""

import random

import numpy as np
import pytest
import torch
from golden_figures import figures, near
from PIL import Image

from toe_train.data.augmentation.box_transform import (
    BoxAugmentation,
    BoxEvaluation,
    BoxTarget,
    Geometry,
    resized_size,
)

YOLOS_S = BoxAugmentation(0.5, tuple(range(480, 801, 16)), 1333, 0.5, (400, 500, 600), (384, 600), 16)


@pytest.fixture(scope="module")
def stored():
    return figures("yolos_geometry.npz")


@pytest.fixture
def target(stored):
    return BoxTarget(torch.arange(1, 7), stored["box_boxes"])


def test_sizes_as_released(stored):
    for width, height, short, longest, new_height, new_width in stored["sizes_w_h_short_max_newh_neww"].tolist():
        size = resized_size((width, height), short, None if longest < 0 else longest, 16)
        assert size == (new_width, new_height), (width, height, short, longest)


def test_a_sliver_of_an_image_keeps_a_patch():
    assert resized_size((2000, 2), 800, 1333, 16) == (992, 16)
    assert resized_size((2, 9000), 800, 1333, 16) == (16, 1328)  # less than half a pixel wide


def test_a_long_image_keeps_two_thirds_of_the_longest_side():
    """Which is what is counted on where patches may be too few."""
    for longest in (100, 333, 1333):
        sizes = [resized_size((width, 4), 480, longest, 16) for width in range(4, 20000, 7)]
        narrow = [size for size in sizes if min(size) == 16]
        assert min(map(max, narrow)) >= 2 * longest // 3 // 16 * 16


def test_flip_crop_and_resize_as_released(stored, target):
    width, height = stored["box_image_w_h"].tolist()
    assert torch.equal(target.mirrored(width).boxes, stored["box_hflip_boxes"])
    for number in range(3):
        cropped = target.cropped(*stored[f"box_crop{number}_top_left_h_w"].tolist())
        assert torch.equal(cropped.boxes, stored[f"box_crop{number}_boxes"])
        assert torch.equal(cropped.labels, stored[f"box_crop{number}_labels"])
    short, longest = stored["box_resize_size_max"].tolist()
    size = resized_size((width, height), short, longest, 16)
    assert size == tuple(stored["box_resize_h_w"].tolist()[::-1])
    scaled = target.scaled((width, height), size)
    near(scaled.boxes, stored["box_resize_boxes"], 1e-4)
    near(scaled.in_shares(size).boxes, stored["box_final_boxes"], 1e-7)


def test_what_reaches_beyond_the_image_is_cut_and_what_is_empty_left_out():
    spans = np.array([[-5, 10, 20, 10], [90, 10, 30, 10], [20, 20, 0, 5], [200, 3, 4, 4], [99, 1, 0.5, 2]])
    target = BoxTarget.of(np.array([1, 2, 3, 4, 5]), spans, (100, 50))
    assert target.labels.tolist() == [1, 2, 5]
    assert target.boxes.tolist() == [[0, 10, 15, 20], [90, 10, 100, 20], [99, 1, 99.5, 3]]


def picture(width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_the_pixels_are_pillows(target):
    image, size = picture(640, 480), (768, 576)
    pixels, moved = BoxEvaluation(576, 1333, 16)(image, target)
    expected = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    assert np.array_equal(pixels.images[0].numpy(), expected)
    near(moved.boxes, target.scaled((640, 480), size).in_shares(size).boxes, 0)


def test_a_part_is_cut_of_the_resized_image_and_the_boxes_follow(target):
    """What is inside of a box before, is inside of it after: here all of the image is one box."""
    whole = BoxTarget(torch.tensor([4]), torch.tensor([[0.0, 0.0, 640.0, 480.0]]))
    random.seed(0)
    torch.manual_seed(0)
    pixels, moved = YOLOS_S(picture(640, 480), whole, Geometry((320, 416), (400, (384, 390))))
    assert pixels.images.shape == (1, 416, 320, 3)
    near(moved.boxes, torch.tensor([[0.5, 0.5, 1.0, 1.0]]), 1e-6)


def test_the_law_of_the_sizes():
    random.seed(0)
    drawn = [YOLOS_S.draw([(640, 480)]) for _ in range(4000)]
    cut = [geometry for geometry in drawn if geometry.crop]
    assert 0.47 < len(cut) / len(drawn) < 0.53
    assert {first for first, _ in (geometry.crop for geometry in cut)} == {400, 500, 600}
    sides = [side for _, part in (geometry.crop for geometry in cut) for side in part]
    assert (min(sides), max(sides)) == (384, 600)
    for first, (width, height) in (geometry.crop for geometry in cut):
        most = resized_size((640, 480), first, None, 16)
        assert width <= min(600, most[0])
        assert height <= min(600, most[1])
    whole = {geometry.size for geometry in drawn if not geometry.crop}
    assert whole == {resized_size((640, 480), short, 1333, 16) for short in range(480, 801, 16)}
    assert all(side % 16 == 0 for geometry in drawn for side in geometry.size)


def test_an_image_smaller_than_a_part_gives_all_it_has():
    small = BoxAugmentation(0.0, (64,), 100, 1.0, (32,), (384, 600), 16)
    geometry = small.draw([(40, 30)])
    assert geometry.crop == (32, (32, 32))
    pixels, _ = small(picture(40, 30), BoxTarget(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)), geometry)
    assert pixels.images.shape == (1, 64, 64, 3)


def test_images_of_like_shape_share_their_size():
    random.seed(1)
    for _ in range(50):
        geometry = YOLOS_S.draw([(640, 427), (640, 426), (500, 333)])
        found = {
            YOLOS_S(picture(*size), BoxTarget(torch.zeros(0), torch.zeros(0, 4)), geometry)[0].images.shape
            for size in ((640, 427), (500, 333))
        }
        assert found == {(1, geometry.size[1], geometry.size[0], 3)}
