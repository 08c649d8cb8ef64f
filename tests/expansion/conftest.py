import importlib.util
import os
from pathlib import Path

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("expansion", deadline=None, derandomize=True, max_examples=40)


@pytest.fixture(scope="session")
def reference():
    """The slow reference implementation beside this file (tests are no package, so it is loaded by its path)."""
    spec = importlib.util.spec_from_file_location("toe_reference", Path(__file__).with_name("reference.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def golden():
    """The reference vectors of the released code."""
    import numpy

    folder = Path(os.environ.get("TOE_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
    file = folder / "token_expansion.npz"
    if not file.is_file():
        pytest.skip(f"no reference vectors at {file}: set TOE_GOLDEN to their folder")
    return numpy.load(file)


@pytest.fixture
def tokens():
    """Makes (B, P+N, D) normal tokens, the same for the same arguments."""

    def make(batch=2, num_tokens=16, width=8, prefix=1, seed=0, dtype=torch.float32):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, prefix + num_tokens, width, generator=generator, dtype=torch.float64).to(dtype)

    return make
