"""Images that are far longer than wide: the same pixels, without the millions of rows that are cut away."""

import resource

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from toe_train.data import EvalSet, SampleKey, SkippedImages, TrainSet, eval_transform
from toe_train.data.augmentation.thin import ORDINARY, Resize
from toe_train.data.sets import NOT_COUNTED
from toe_train.errors import NoMemory, UserError

NORMAL = {"mean": (0.0,) * 3, "std": (1.0,) * 3}


def picture(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def waves(width, height):
    """A picture in which a pixel differs from its neighbour by a tenth at most, and away from 0 and 255."""
    x, y = np.arange(width), np.arange(height)[:, None]
    grey = 128 + 100 * np.sin(x / 3) * np.cos(y / 3)
    return Image.fromarray(np.stack([grey, 255 - grey, grey], axis=2).round().astype(np.uint8))


def as_before(size, side, mode):
    return transforms.Compose([transforms.Resize(side, mode), transforms.CenterCrop(size), transforms.ToTensor()])


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos", "nearest"])
@pytest.mark.parametrize("shape", [(3, 49), (49, 3), (7, 901), (901, 8), (40, 2000), (40, 641), (1, 400)])
def test_the_middle_is_what_resizing_the_whole_and_cutting_gives(shape, interpolation):
    ours = eval_transform(image_size=28, crop_pct=0.875, interpolation=interpolation, **NORMAL)
    expected = as_before(28, 32, InterpolationMode(interpolation))
    smooth = waves(*shape)
    assert (ours(smooth) - expected(smooth)).abs().max() <= 2.01 / 255
    assert (
        ours(picture(*shape)) - expected(picture(*shape))
    ).abs().mean() < 1 / 255  # noise, which a shift would change


@pytest.mark.parametrize("shape", [(32, 32), (28, 64), (300, 200), (20, 20 * ORDINARY), (20 * ORDINARY, 20), (5, 5)])
def test_ordinary_images_keep_every_bit(shape):
    image = picture(*shape)
    ours = eval_transform(image_size=28, crop_pct=0.875, interpolation="bicubic", **NORMAL)(image)
    assert torch.equal(ours, as_before(28, 32, InterpolationMode.BICUBIC)(image))


@pytest.mark.parametrize("shape", [(1, 65_000), (65_000, 1)])
def test_no_gigabytes(shape, monkeypatch):
    made = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda image, size, *more: made.append(size) or resize(image, size, *more)
    )
    transform = eval_transform(image_size=224, crop_pct=0.875, interpolation="bicubic", **NORMAL)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert transform(Image.new("RGB", shape)).shape == (3, 224, 224)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
    assert max(max(size) for size in made) <= 256


def test_a_padded_crop_takes_the_middle(deit_transform):
    image = picture(2, 30_000)
    built = deit_transform(32, crop="padded")
    step = built.transforms[0]
    assert isinstance(step, Resize)
    shown, part = step.resized(image)
    assert shown.size == (32, 32 * ORDINARY)
    top, left, height, width = part
    assert (left, width) == (0, 1)
    assert height == pytest.approx(32 / 30_000, rel=1e-3)
    assert top + height / 2 == pytest.approx(0.5)
    assert built(image).shape == (3, 32, 32)


class OneImage:
    classes = ("a",)

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return picture(6, 4), 0

    def describe(self, index):
        return "odd.png"


FAULTS = [
    (MemoryError(), NoMemory),
    (ValueError("no"), UserError),
    (ZeroDivisionError(), UserError),
    (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), NoMemory),
]


@pytest.mark.parametrize(("fault", "kind"), FAULTS)
def test_what_the_transform_cannot_take_is_named_or_passed_over(tmp_path, fault, kind):
    def failing(image):
        if image.size == (6, 4):
            raise fault
        return torch.zeros(3, 8, 8)

    with pytest.raises(kind, match=r"odd\.png \(6 x 4\)"):
        EvalSet(OneImage(), failing)[0]
    with pytest.raises(kind, match=r"odd\.png \(6 x 4\)"):
        TrainSet(OneImage(), failing, seed=0)[SampleKey(0, 0, 0)]
    skipped = SkippedImages(tmp_path / "skipped.jsonl", 1)
    assert EvalSet(OneImage(), failing, skipped)[0][1] == NOT_COUNTED
    assert skipped.images() == {"odd.png"}


class ThreeImages(OneImage):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return picture(6, 4 + index), index

    def describe(self, index):
        return f"{index}.png"


@pytest.mark.parametrize(("fault", "kind"), FAULTS)
def test_training_puts_another_in_the_place_of_what_its_transform_cannot_take(tmp_path, fault, kind):
    def failing(image):
        if image.size == (6, 4):
            raise fault
        return image.size

    keys = [SampleKey(0, 0, 7), SampleKey(1, 0, 8), SampleKey(0, 0, 9)]
    skipped = SkippedImages(tmp_path / "skipped.jsonl", 1)
    shown = TrainSet(ThreeImages(), failing, 0, skipped).__getitems__(keys)
    assert all(size == (6, 4 + label) and label > 0 for size, label in shown)
    assert shown[1][1] == 1
    assert [shown[place] for place in (0, 1, 2)] == [
        TrainSet(ThreeImages(), failing, 0, skipped)[key] for key in keys
    ]  # whatever else is in the batch
    assert skipped.images() == {"0.png"}
    with pytest.raises(kind, match=r"0\.png \(6 x 4\)"):
        TrainSet(ThreeImages(), failing, 0).__getitems__(keys)


def test_a_fault_of_our_own_is_none_of_an_image(tmp_path):
    def failing(image):
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")

    for kind in (TrainSet, EvalSet):
        dataset = kind(OneImage(), failing, **({"seed": 0} if kind is TrainSet else {}))
        with pytest.raises(RuntimeError, match="size of tensor"):
            dataset[SampleKey(0, 0, 0) if kind is TrainSet else 0]
