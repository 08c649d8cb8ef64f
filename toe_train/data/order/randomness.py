"""Every random choice is a function of a seed, a purpose and a place in the run.

Nothing here knows about processes, loader workers or gradient accumulation, so the same image at the same place of an
epoch gets the same crop on one GPU and on eight, and a run can be taken up at any step without replaying the rest.
"""

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def derive_seed(seed: int, purpose: str, *key: int) -> int:
    """Hash (seed, purpose, key) to a seed in 0 .. 2**63 - 1.

    `purpose` names the choice ("order", "sample", "mix"), so two uses of one place never share a stream; `key` is the
    place: epoch, global position, step. The result is the same on every machine and in every version of Python.
    """
    digest = hashlib.blake2b(purpose.encode() + b"\0", digest_size=8)
    for value in (seed, *key):
        digest.update(int(value).to_bytes(16, "little", signed=True))
    return int.from_bytes(digest.digest(), "little") >> 1


def generator(seed: int, purpose: str, *key: int) -> torch.Generator:
    """Return a CPU generator seeded with `derive_seed(seed, purpose, *key)`."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *key))


def reseed(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global CPU generators, from which timm's transforms and Mixup draw.

    The generators of other devices are neither read nor changed, which is why `torch.manual_seed` does not serve here.
    """
    random.seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
    torch.default_generator.manual_seed(seed)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """`reseed` for the block, then put the three generators back as they were."""
    with preserved():
        reseed(seed)
        yield


@contextlib.contextmanager
def preserved() -> Iterator[None]:
    """Put the three generators back as they were before the block."""
    before = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.default_generator.set_state(before[2])
