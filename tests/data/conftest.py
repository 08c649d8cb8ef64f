"""A small image folder in ImageNet's layout, made afresh for each test that breaks something in it."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from toe_train.data import train_transform

CLASSES = ("bird", "cat", "dog")


@pytest.fixture
def image_root(tmp_path: Path) -> Path:
    """Three classes, four training and two validation images each, JPEG and PNG, of 40 x 30 random pixels."""
    root = tmp_path / "images"
    noise = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 256, (30, 40, 3), dtype=np.uint8)
                suffix = "png" if number == 1 else "JPEG"
                Image.fromarray(pixels).save(root / split / name / f"{name}_{number}.{suffix}")
    return root


@pytest.fixture(scope="session")
def deit_transform() -> Callable[..., Any]:
    """DeiT's training transform with some values replaced."""

    def build(image_size: int = 24, **changes: Any) -> Any:
        values: dict[str, Any] = {
            "crop": "random_resized",
            "crop_scale": (0.08, 1.0),
            "crop_ratio": (3 / 4, 4 / 3),
            "interpolation": "bicubic",
            "hflip": 0.5,
            "rand_augment": "rand-m9-mstd0.5-inc1",
            "color_jitter": 0.3,
            "erasing_prob": 0.25,
            "erasing_mode": "pixel",
            "erasing_count": 1,
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
        }
        return train_transform(image_size=image_size, **(values | changes))

    return build


@pytest.fixture
def global_states() -> Callable[[], tuple[Any, ...]]:
    """Return a function that reads the three global CPU generators, in a form that can be compared."""

    def read() -> tuple[Any, ...]:
        name, keys, *rest = np.random.get_state()
        return random.getstate(), name, keys.tolist(), rest, torch.get_rng_state().tolist()

    return read
