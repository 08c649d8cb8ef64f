import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import AugmentOp

from toe_train.data import DrawView, Pixels, collate, made, normalized, seeded
from toe_train.data.augmentation.device_augment import _OPERATIONS, NAMES, NOTHING, Drawing, View, Views
from toe_train.errors import UserError

NO_ERASING = {"erasing_prob": 0.0}
FILL = (124, 116, 104)
TURNED = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")


def photograph(seed, size=(90, 70)):
    """Smooth patches and some noise, as photographs have them, in colour."""
    drawn = np.random.default_rng(seed)
    coarse = Image.fromarray(drawn.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noisy = np.asarray(coarse).astype(int) + drawn.integers(-12, 13, (size[1], size[0], 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def as_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


@pytest.mark.parametrize("name", NAMES)
def test_each_operation_does_to_a_batch_what_pillow_does_to_each_image(name):
    interpolation = Image.Resampling.BILINEAR if name in TURNED else None
    op = AugmentOp(name, prob=1.0, magnitude=9, hparams={"img_mean": FILL, "interpolation": interpolation})
    images, arguments, expected = [], [], []
    for seed in range(12):
        image = photograph(seed, (64, 64))
        with seeded(seed):
            level = np.random.uniform(2.6, 9.9)
            given = op.level_fn(level, op.hparams) if op.level_fn else ()
            expected.append(as_tensor(op.aug_fn(image, *given, **op.kwargs)))
        images.append(as_tensor(image))
        arguments.append(float(given[0]) if given else 0.0)
    drawing = Drawing(64, "bilinear", FILL)
    found = _OPERATIONS[name](torch.cat(images), torch.tensor(arguments, dtype=torch.float64), drawing)
    assert found.dtype == torch.uint8
    off = (found.int() - torch.cat(expected).int()).abs().float()
    assert off.amax() <= (1 if name in {*TURNED, "AutoContrast"} else 0)
    assert off.mean() < 0.001


def test_bits_that_are_not_kept_leave_black():
    image = as_tensor(photograph(0))
    (black,) = _OPERATIONS["PosterizeIncreasing"](image, torch.zeros(1), Drawing(64, "bicubic", FILL))
    assert not black.any()


@pytest.mark.parametrize("settings", [{}, {"rand_augment": None, "color_jitter": 0.0}, {"hflip": 0.0}])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_same_draws_give_nearly_the_same_pixels(deit_transform, settings, interpolation):
    settings = {"interpolation": interpolation, **settings}
    plain, drawn = deit_transform(48, **settings), DrawView(deit_transform(48, **settings))
    expected, samples = [], []
    for seed in range(60):
        image = photograph(seed % 7)
        with seeded(seed):
            expected.append(plain(image))
        with seeded(seed):
            samples.append((drawn(image), 0))
    found = normalized(made(collate(samples)[0]), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    off = (found - torch.stack(expected)).abs().mean(dim=(1, 2, 3)) * 0.226 * 255  # grey levels
    assert off.median() < 0.3
    assert off.mean() < 0.5
    assert found.mean().item() == pytest.approx(torch.stack(expected).mean().item(), abs=0.01)
    assert found.std().item() == pytest.approx(torch.stack(expected).std().item(), rel=0.01)


def test_an_image_travels_once_for_all_its_views(deit_transform):
    draw, images = DrawView(deit_transform(24)), [photograph(0, (50, 40)), photograph(1, (30, 60))]
    with seeded(3):
        views, labels = collate([(draw(images[index]), index) for index in (0, 1, 0, 0, 1)])
    assert isinstance(views, Views)
    assert views.sources.numel() == 3 * (50 * 40 + 30 * 60)
    assert views.places[:, 0].tolist() == labels.tolist() == [0, 1, 0, 0, 1]
    assert made(views).images.shape == (5, 24, 24, 3)


def test_a_whole_image_as_it_is():
    image = photograph(0, (24, 24))
    drawing = Drawing(24, "bicubic", FILL)
    for flipped in (0, 1):
        view = View(drawing, image, (0, 0, 24, 24, flipped), ((NOTHING, 0.0),), Pixels.erased(None, 24, 24))
        (found,) = made(View.joined([view])).images
        expected = np.asarray(image)[:, ::-1] if flipped else np.asarray(image)
        assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"crop": "padded"}, "on_device knows crop=random_resized"),
        ({"interpolation": "random"}, "not this crop or interpolation"),
        ({"rand_augment": None}, "not ColorJitter"),
        ({"order": "lvvit"}, "not order=lvvit"),
        ({"order": "lvvit", "rand_augment": None, "color_jitter": 0.0}, "not order=lvvit"),
        ({"downsampled": 16}, "not Resize"),
        ({"rand_augment": "rand-m9-t3a", "color_jitter": 0.0}, "on_device does not know rand_augment's"),
    ],
)
def test_what_only_the_host_can_do_is_refused(deit_transform, settings, words):
    with pytest.raises(UserError, match=words):
        DrawView(deit_transform(24, **settings))
