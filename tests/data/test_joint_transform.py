"""An image and its label map stay together, whatever is done to them."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment
from torchvision import transforms

from toe_train.data import JointTransform, TokenMap, seeded
from toe_train.tasks.token_labelling import token_targets

SIZES = [(210, 210), (330, 210), (150, 270)]  # width, height
GEOMETRIES = ["full", "center_crop"]
FILL = (1, 2, 3)
GEOMETRIC = ["Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"]


def cells_of(rows=10, columns=6):
    """A map in which each cell is a class of its own, 1 ..., with a score of 20."""
    ids = torch.arange(1, rows * columns + 1, dtype=torch.int16).view(1, rows, columns)
    return TokenMap(torch.full((1, rows, columns), 20.0).half(), ids)


def colour(number):
    return np.stack([40 + number * 3 % 210, 40 + number * 7 % 211, 40 + number * 11 % 199], axis=-1).astype(np.uint8)


def place_of(size, geometry):
    """Top, left, height and width of the map in pixels."""
    width, height = size
    if geometry == "full":
        return 0, 0, height, width
    side = min(size)
    return (height - side) / 2, (width - side) / 2, side, side


def painted(size, geometry, cells):
    """A picture in which each cell of the map has its colour, and those at the edge reach outwards."""
    top, left, height, width = place_of(size, geometry)
    rows, columns = cells.ids.shape[1:]
    row = np.floor((np.arange(size[1]) + 0.5 - top) / height * rows).clip(0, rows - 1).astype(int)
    column = np.floor((np.arange(size[0]) + 0.5 - left) / width * columns).clip(0, columns - 1).astype(int)
    return Image.fromarray(colour(cells.ids[0].numpy().astype(int)[row[:, None], column]))


def one_operation(name, amount):
    """A RandAugment that always does the one thing, to the nearest pixel."""
    op = auto_augment.AugmentOp(name, prob=1.0, magnitude=amount, hparams={"img_mean": FILL})
    op.kwargs["resample"] = Image.NEAREST
    return auto_augment.RandAugment([op], num_layers=1)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", GEOMETRIC)
def test_each_operation_moves_the_map_as_it_moves_the_image(name, size, geometry):
    cells = cells_of()
    top, left, height, width = place_of(size, geometry)
    rows = np.floor(top + (np.arange(10) + 0.5) / 10 * height).astype(int)
    columns = np.floor(left + (np.arange(6) + 0.5) / 6 * width).astype(int)
    moved, emptied = 0, 0
    for seed, amount in enumerate([2, 5, 9, 9, 9, 9]):  # each draws a sign
        joint = JointTransform(transforms.Compose([one_operation(name, amount), transforms.ToTensor()]), geometry)
        with seeded(seed):
            shown, target = joint(painted(size, geometry, cells), cells, 0)
        pixels = (shown * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)
        at_centres = pixels[rows[:, None], columns]  # (10, 6, 3)
        known = (target.scores[0] == 20).numpy()
        expected = np.where(known[..., None], colour(target.ids[0].numpy().astype(int)), np.array(FILL, np.uint8))
        assert (at_centres == expected).all(-1).mean() > 0.96, (seed, amount)  # a centre may lie on an edge of a cell
        assert set(target.scores.unique().tolist()) <= {0.0, 20.0}
        moved += (target.ids != cells.ids).sum().item()
        emptied += (~known).sum()
    assert moved > 50
    assert emptied > 0 or geometry == "center_crop"


def test_colour_operations_leave_pixels_and_cells_in_place():
    halves = Image.fromarray(
        np.repeat(np.array([[60] * 32, [190] * 32], np.uint8).reshape(1, 64, 1), 64, 0).repeat(3, 2)
    )
    tables = [auto_augment._RAND_TRANSFORMS, auto_augment._RAND_INCREASING_TRANSFORMS, auto_augment._RAND_3A]
    tables += [list(auto_augment._RAND_WEIGHTED_3A), list(auto_augment._RAND_WEIGHTED_0)]
    names = sorted({name for table in tables for name in table})
    assert set(GEOMETRIC) < set(names)
    cells = cells_of()
    for name in set(names) - set(GEOMETRIC):
        joint = JointTransform(transforms.Compose([one_operation(name, 3), transforms.ToTensor()]))
        shown, target = joint(halves, cells, 0)
        inner = shown[:, 16:48]
        for half in (inner[:, :, 4:24], inner[:, :, 40:60]):
            assert (half == half[:, :1, :1]).all(), name
        assert torch.equal(target.ids, cells.ids), name
        assert torch.equal(target.scores, cells.scores), name


@pytest.mark.parametrize("order", ["lvvit", "deit"])
@pytest.mark.parametrize("crop", ["random_resized", "padded"])
@pytest.mark.parametrize("size", [(40, 30), (32, 32), (21, 90)])
def test_pixels_are_those_of_the_plain_transform(deit_transform, size, crop, order):
    settings = {"order": order, "crop": crop, "interpolation": "random"}
    plain, joint = deit_transform(24, **settings), JointTransform(deit_transform(24, **settings))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    for seed in range(40):
        with seeded(seed):
            expected = plain(image)
        with seeded(seed):
            shown, target = joint(image, cells_of(), 3)
        assert torch.equal(shown, expected)
        assert target.label == 3
        assert target.crop.dtype == torch.float32


def test_lvvits_order(deit_transform):
    for crop, count in (("random_resized", 1), ("padded", 2)):
        kinds = [
            type(step).__name__.removeprefix("Maybe")
            for step in deit_transform(24, order="lvvit", crop=crop, interpolation="random").transforms
        ]
        assert kinds[:2] == ["RandomHorizontalFlip", "RandAugment"]
        cropping = ["RandomResizedCropAndInterpolation"] if count == 1 else ["Resize", "RandomCrop"]
        assert kinds[2:] == [*cropping, "ToTensor", "Normalize", "RandomErasing"]


@pytest.mark.parametrize("crop", ["random_resized", "padded"])
@pytest.mark.parametrize("order", ["lvvit", "deit"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("size", SIZES)
def test_each_patchs_target_is_what_the_patch_shows(deit_transform, size, geometry, order, crop):
    """All steps together: the class that a patch token is to learn has the colour in the middle of the patch."""
    blocks, side, grid = cells_of(5, 4), 112, 14
    cells = TokenMap(*(plane.repeat_interleave(4, 1).repeat_interleave(5, 2) for plane in blocks))  # 20 x 20
    transform = deit_transform(
        side,
        order=order,
        crop=crop,
        interpolation="nearest",
        rand_augment="rand-m9-mstd0.5-inc1-n2-p1",
        erasing_prob=0.0,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )
    (augment,) = [step for step in transform.transforms if isinstance(step, auto_augment.RandAugment)]
    augment.ops = [op for op in augment.ops if op.name in GEOMETRIC]
    joint, picture = JointTransform(transform, geometry), painted(size, geometry, cells)
    palette = torch.from_numpy(colour(np.arange(1, 21))).float()
    right, wrong, seen = 0, 0, 0
    for seed in range(30):
        with seeded(seed):
            shown, target = joint(picture, cells, 0)
        batch = [field[None] for field in (target.scores, target.ids, target.crop)]
        learned = {
            alignment: token_targets(*batch, 21, (grid, grid), 0.0, alignment)[1].argmax(-1).flatten()
            for alignment in ("correct", "released")
        }
        middles = (shown * 255).round()[:, side // grid // 2 :: side // grid, side // grid // 2 :: side // grid]
        distance = torch.cdist(middles.flatten(1).T, palette)
        inside = distance.amin(1) == 0  # not the fill colour, and not padding
        number = distance.argmin(1) + 1
        right += (learned["correct"] == number)[inside].sum().item()
        wrong += (learned["released"] == number)[inside].sum().item()
        seen += inside.sum().item()
    # Coarse cells move to the nearest place, so patches at the cells' edges may differ.
    assert right / seen > 0.7, right / seen
    assert crop == "padded" or right > 1.5 * wrong  # a padded crop is nearly the same at the transposed place


def test_the_crop_of_a_map_over_the_central_square(deit_transform):
    """Worked by hand: of a 300 x 200 image the square is 50 .. 250; the whole image reaches a quarter beyond."""
    settings = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.5, 1.5), "hflip": 0.0, "rand_augment": None}
    image = Image.new("RGB", (300, 200))
    for geometry, expected in (("full", [0.0, 0.0, 1.0, 1.0]), ("center_crop", [0.0, -0.25, 1.0, 1.5])):
        joint = JointTransform(deit_transform(24, order="lvvit", **settings), geometry)
        assert joint(image, cells_of(), 0)[1].crop.tolist() == pytest.approx(expected)
    tall = JointTransform(deit_transform(24, **(settings | {"crop_ratio": (2 / 3, 2 / 3)})), "center_crop")
    assert tall(Image.new("RGB", (200, 300)), cells_of(), 0)[1].crop.tolist() == pytest.approx([-0.25, 0.0, 1.5, 1.0])


def test_a_flip_flips_the_map(deit_transform):
    settings = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.5, 1.5), "rand_augment": None, "order": "lvvit"}
    cells = cells_of()
    joint = JointTransform(deit_transform(24, hflip=1.0, **settings))
    target = joint(Image.new("RGB", (300, 200)), cells, 0)[1]
    assert torch.equal(target.ids, cells.ids.flip(-1))
    assert torch.equal(target.scores, cells.scores.flip(-1))


def test_workers_that_are_started_anew_get_a_working_copy(deit_transform):
    joint = JointTransform(deit_transform(24, order="lvvit"), "center_crop")
    copy, picture = pickle.loads(pickle.dumps(joint)), painted((60, 40), "full", cells_of())
    changed = 0
    for seed in range(10):
        results = []
        for transform in (joint, copy):
            with seeded(seed):
                shown, target = transform(picture, cells_of(), 0)
            results.append([shown, *target])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
        changed += not torch.equal(target.ids, cells_of().ids)
    assert changed
