import numpy as np
import pytest
import torch
from PIL import Image

from toe_train.data import Pixels, collate, ending_in_pixels, normalized, seeded

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(seed, size=(40, 30)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.mark.parametrize("order", ["deit", "lvvit"])
@pytest.mark.parametrize("mode", ["pixel", "rand", "const"])
@pytest.mark.parametrize(("prob", "count"), [(0.6, 1), (1.0, 3), (0.0, 1)])
def test_finished_on_the_device_they_are_what_timms_steps_give(deit_transform, order, mode, prob, count):
    settings = {"order": order, "erasing_mode": mode, "erasing_prob": prob, "erasing_count": count}
    whole, halved = deit_transform(24, **settings), ending_in_pixels(deit_transform(24, **settings))
    expected, samples = [], []
    for seed in range(12):
        with seeded(seed):
            expected.append(whole(picture(seed)))
        with seeded(seed):
            samples.append((halved(picture(seed)), seed))
    pixels, labels = collate(samples)
    assert pixels.images.dtype == torch.uint8
    assert (len(pixels.rectangles) > 0) == (prob > 0)
    assert torch.equal(normalized(pixels, MEAN, STD), torch.stack(expected))
    assert labels.tolist() == list(range(12))


def test_without_erasing(deit_transform):
    transform = ending_in_pixels(deit_transform(24, erasing_prob=0.0, rand_augment=None, color_jitter=None))
    pixels = transform(picture(0))
    assert [tuple(part.shape) for part in pixels] == [(1, 24, 24, 3), (0, 5), (0,)]


def test_to_a_device_leaves_the_rectangles():
    pixels = Pixels(torch.zeros(1, 2, 2, 3), torch.zeros(1, 5), torch.zeros(12)).to(torch.device("meta"))
    assert [part.device.type for part in pixels] == ["meta", "cpu", "meta"]
