import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import RandAugment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms
from torchvision.transforms.functional import InterpolationMode

from toe_train.data import eval_transform, seeded
from toe_train.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def part(transform, kind):
    return next((step for step in transform.transforms if isinstance(step, kind)), None)


def test_deits_recipe(deit_transform):
    # Values of DeiT (datasets.py, main.py) as timm 0.9.2, the paper's version, carried them out.
    built = deit_transform(224)
    kinds = [type(step).__name__.removeprefix("Maybe") for step in built.transforms]  # newer timm's MaybeToTensor
    assert kinds == [
        *("RandomResizedCropAndInterpolation", "RandomHorizontalFlip", "RandAugment"),
        *("ToTensor", "Normalize", "RandomErasing"),  # no ColorJitter: RandAugment is on
    ]
    crop = part(built, RandomResizedCropAndInterpolation)
    assert (crop.size, crop.scale, crop.ratio) == ((224, 224), (0.08, 1.0), (3 / 4, 4 / 3))
    assert crop.interpolation == InterpolationMode.BICUBIC
    assert part(built, transforms.RandomHorizontalFlip).p == 0.5
    erasing = part(built, RandomErasing)
    assert (erasing.probability, erasing.per_pixel, erasing.min_count, erasing.max_count) == (0.25, True, 1, 1)
    assert (erasing.min_area, erasing.max_area) == (0.02, 1 / 3)
    assert np.exp(erasing.log_aspect_ratio) == pytest.approx([0.3, 1 / 0.3])


def test_downsampling_by_lanczos_stands_between_rand_augment_and_normalising(deit_transform):
    """EfficientTrain++ (docs/fidelity.md)."""
    built = deit_transform(224, downsampled=96)
    kinds = [type(step).__name__.removeprefix("Maybe") for step in built.transforms]
    assert kinds[2:5] == ["RandAugment", "Resize", "ToTensor"]
    bare = {"hflip": 0.0, "rand_augment": None, "color_jitter": None, "erasing_prob": 0.0}
    built = deit_transform(224, downsampled=96, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), **bare)
    image = picture(300, 300)
    expected = image.resize((224, 224), Image.BICUBIC).resize((96, 96), Image.LANCZOS)
    pixels = built(image) * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    assert torch.equal((255 * pixels).round().byte(), transforms.functional.pil_to_tensor(expected))
    assert len(deit_transform(224, downsampled=224).transforms) == 6


def test_rand_augment_is_the_papers(deit_transform):
    augment = part(deit_transform(224), RandAugment)
    assert [op.name for op in augment.ops] == [
        *("AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd"),
        *("ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing"),
        *("ShearX", "ShearY", "TranslateXRel", "TranslateYRel"),
    ]
    assert augment.num_layers == 2
    assert augment.choice_weights is None
    for op in augment.ops:
        assert (op.prob, op.magnitude, op.magnitude_std, op.magnitude_max) == (0.5, 9, 0.5, None)  # clipped at 10
        assert op.kwargs == {"fillcolor": (124, 116, 104), "resample": Image.BICUBIC}


@pytest.mark.parametrize("text", ["rand-m{}-mstd0-inc1-p1", "rand-m{}-mstd0-inc0-p1", "rand-m{}-mstd0-inc1-mmax30-p1"])
def test_rand_augment_works_at_every_magnitude(deit_transform, text):
    image = picture(16, 16)
    for magnitude in range(31):
        for op in part(deit_transform(rand_augment=text.format(magnitude)), RandAugment).ops:
            for seed in range(2):  # some operations choose a sign
                with seeded(seed):
                    assert op(image).size == (16, 16), (op, magnitude)


def test_posterize_keeps_fewer_bits_down_to_black(deit_transform):
    # int(magnitude / 10 * 4) bits less than 4 (timm); 0 bits were a black image in the paper's Pillow.
    image = picture(64, 64)
    for magnitude, levels in [(0, 16), (3, 8), (5, 4), (9, 2), (10, 1)]:
        augment = part(deit_transform(rand_augment=f"rand-m{magnitude}-mstd0-inc1-p1"), RandAugment)
        (posterize,) = [op for op in augment.ops if op.name == "PosterizeIncreasing"]
        assert len(np.unique(np.asarray(posterize(image)))) == levels
    assert not np.asarray(posterize(image)).any()


def test_color_jitter_only_without_rand_augment(deit_transform):
    jitter = part(deit_transform(rand_augment=None), transforms.ColorJitter)
    assert jitter.brightness == jitter.contrast == jitter.saturation == pytest.approx((0.7, 1.3))
    assert jitter.hue is None
    assert part(deit_transform(rand_augment=None, color_jitter=0.0), transforms.ColorJitter) is None
    assert part(deit_transform(erasing_prob=0.0), RandomErasing) is None


def test_padded_crop_of_small_images(deit_transform):
    built = deit_transform(
        32,
        crop="padded",
        hflip=0.0,
        rand_augment=None,
        color_jitter=None,
        erasing_prob=0.0,
        mean=(0,) * 3,
        std=(1,) * 3,
    )
    image = picture(32, 32)
    padded = np.pad(np.asarray(image), ((4, 4), (4, 4), (0, 0)))
    windows = {padded[y : y + 32, x : x + 32].tobytes() for y in range(9) for x in range(9)}
    crops = set()
    for seed in range(40):
        with seeded(seed):
            pixels = (built(image) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy().tobytes()
        assert pixels in windows  # nothing was resized
        crops.add(pixels)
    assert len(crops) > 20
    assert part(built, transforms.RandomCrop).padding == 4
    assert built(picture(50, 64)).shape == (3, 32, 32)


@pytest.mark.parametrize("size", [(100, 60), (30, 200), (224, 224)])
def test_shapes(deit_transform, size):
    for image_size in (8, 32):
        built = deit_transform(image_size)(picture(*size))
        assert built.shape == (3, image_size, image_size)
        assert built.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rand_augment": "rand-m9-x3"}, ["'x3'", "rand-m9-mstd0.5-inc1"]),
        ({"rand_augment": "rand-m9.5"}, ["'m9.5'", "m<magnitude>"]),
        ({"rand_augment": "rand-mstd"}, ["'mstd'"]),
        ({"rand_augment": "rand-n0"}, ["'n0'"]),
        ({"rand_augment": "rand-p1.5"}, ["'p1.5'"]),
        ({"rand_augment": "rand-tfoo"}, ["'tfoo'"]),
        ({"rand_augment": "randm9"}, ["'randm9'"]),
        ({"rand_augment": ""}, ["''", "null for none"]),
        ({"rand_augment": "augmix-m5"}, ["'augmix'"]),
        ({"crop": "centre"}, ["crop 'centre'", "random_resized, padded"]),
        ({"interpolation": "cubic"}, ["interpolation 'cubic'", "bicubic"]),
        ({"erasing_mode": "noise"}, ["erasing mode 'noise'", "pixel"]),
    ],
)
def test_wrong_settings(deit_transform, changes, words):
    with pytest.raises(UserError) as fault:
        deit_transform(**changes)
    for word in words:
        assert word in str(fault.value)


@pytest.mark.parametrize(
    "text", ["rand", "rand-m9-n3-mstd0.5", "rand-m20-mmax30-p0.5-inc0", "rand-mstd101-t3a", "rand-tweights"]
)
def test_other_rand_augment_strings(deit_transform, text):
    assert deit_transform(rand_augment=text)(picture(40, 40)).shape == (3, 24, 24)


def test_evaluation_is_deits():
    built = eval_transform(image_size=224, crop_pct=0.875, interpolation="bicubic", mean=MEAN, std=STD)
    resize, crop = built.transforms[:2]
    assert (resize.size, resize.interpolation, tuple(crop.size)) == (256, InterpolationMode.BICUBIC, (224, 224))
    image = picture(300, 400)
    reference = transforms.Compose(
        [
            transforms.Resize(256, InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    torch.testing.assert_close(built(image), reference(image), rtol=0, atol=0)


def test_evaluation_leaves_small_images_alone():
    built = eval_transform(image_size=32, crop_pct=1.0, interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1))
    image = picture(32, 32)
    assert np.array_equal((built(image) * 255).round().permute(1, 2, 0).numpy(), np.asarray(image))


def test_wrong_evaluation_settings():
    with pytest.raises(UserError, match=r"crop_pct 87\.5 must be"):
        eval_transform(image_size=224, crop_pct=87.5, interpolation="bicubic", mean=MEAN, std=STD)
    with pytest.raises(UserError, match="interpolation 'random'"):
        eval_transform(image_size=224, crop_pct=0.875, interpolation="random", mean=MEAN, std=STD)
