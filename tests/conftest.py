"""What several test folders share: the shipped configurations and a run of seconds."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]

# Two blocks of width 32 on the digits with 16 tokens: an epoch of 5 steps in well under a second.
TINY = {
    "extends": str(REPOSITORY / "configs" / "quickstart.yaml"),
    "epochs": 3,
    "model": {"drop_path": 0.2, "kwargs": {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}},
    "expansion": {"stage_epochs": [0, 1, 2]},
    "augment": {"mix_group": 128, "cutmix": 1.0, "mixup": 0.8, "erasing_prob": 0.25},
    "schedule": {"warmup_epochs": 0},
    "train": {"global_batch": 256, "max_micro_batch": 256, "log_every": 1},
}


@pytest.fixture(scope="session")
def configs() -> Path:
    """Folder of the shipped configurations."""
    return REPOSITORY / "configs"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """File of a run that takes seconds and has all three stages."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture(scope="session")
def golden_labels() -> dict[str, torch.Tensor]:
    """Token labels, targets and losses of the released code (shared/golden/README.md)."""
    file = Path(os.environ.get("TOE_GOLDEN", REPOSITORY.parent / "shared" / "golden")) / "token_labels.npz"
    if not file.is_file():
        pytest.skip(f"no reference vectors at {file}: set TOE_GOLDEN to their folder")
    return {name: torch.from_numpy(np.asarray(values)) for name, values in np.load(file).items()}
