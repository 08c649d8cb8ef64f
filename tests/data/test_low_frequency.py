"""EfficientTrain's low-frequency crop against its own code's results and what they mean."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from toe_train.data import low_frequency_crop


@pytest.fixture(scope="module")
def golden():
    root = Path(__file__).resolve().parents[2].parent
    file = Path(os.environ.get("TOE_GOLDEN", root / "shared" / "golden")) / "low_frequency_crop.npz"
    if not file.is_file():
        pytest.skip(f"no reference vectors at {file}: set TOE_GOLDEN to their folder")
    return {name: torch.from_numpy(values) for name, values in np.load(file).items()}


@pytest.mark.parametrize(("number", "size"), [(0, 24), (1, 40)])
def test_the_authors_results(golden, number, size):
    cropped = low_frequency_crop(golden[f"{number}_in"], size)
    torch.testing.assert_close(cropped, golden[f"{number}_out_{size}"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [160, 192])
def test_shifting_cropping_and_shifting_back_is_the_same(size):
    """The definition in the paper's words, at the sizes that it trains with."""
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    shifted = torch.fft.fftshift(torch.fft.fft2(images.double()), dim=(2, 3))
    start = 112 - size // 2
    centre = torch.fft.ifftshift(shifted[..., start : start + size, start : start + size], dim=(2, 3))
    expected = torch.fft.ifft2(centre).real * (size / 224) ** 2
    torch.testing.assert_close(low_frequency_crop(images, size), expected.float(), atol=1e-5, rtol=0)


def test_brightness_and_slow_waves_stay():
    x = torch.arange(32) / 32
    wave = torch.cos(2 * torch.pi * 3 * x).expand(1, 1, 32, 32) + 0.7
    expected = torch.cos(2 * torch.pi * 3 * torch.arange(16) / 16).expand(1, 1, 16, 16) + 0.7
    torch.testing.assert_close(low_frequency_crop(wave, 16), expected, atol=1e-5, rtol=0)


def test_full_size_is_left_as_it_is_and_autocast_out_of_it():
    images = torch.randn(1, 3, 16, 16)
    assert low_frequency_crop(images, 16) is images
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(low_frequency_crop(images, 8), low_frequency_crop(images.clone(), 8))
        assert low_frequency_crop(images.bfloat16(), 8).dtype == torch.float32
