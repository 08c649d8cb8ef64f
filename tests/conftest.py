"""What several test folders share: the shipped configurations and a run of seconds."""

from pathlib import Path

import pytest
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
