import os
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def larger_set():
    """larger_set(name): arrays of the reference vectors outside the project, as tensors by name."""
    folder = Path(os.environ.get("TOE_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))

    def arrays(name):
        if not (folder / name).exists():
            pytest.skip(f"no reference vectors at {folder / name}: set TOE_GOLDEN to their folder")
        with np.load(folder / name) as file:
            return {key: torch.from_numpy(np.asarray(file[key])) for key in file.files if file[key].dtype.kind != "U"}

    return arrays
