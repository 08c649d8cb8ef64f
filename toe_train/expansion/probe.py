"""Tries out whether a block takes any number of patch tokens and does not care about their order.

Rotary positions go with the tokens: a block that takes some must give the same, in another order, for tokens and
positions in another order of each image.

Shapes: B images of a probe, P prefix tokens, n patch tokens, D width.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from toe_train.expansion.positions import MASKS, ROTARY, KeptPositions


@torch.no_grad()
def probe(name: str, block: nn.Module, num_prefix: int, width: int) -> None:
    """Try one block.

    Args:
        name: of the block, for messages.
        block: is in eval mode meanwhile.
        num_prefix: P.
        width: D.

    Raises:
        ValueError: dropping tokens before the block would be wrong.
    """
    flags = [(module, module.training) for module in block.modules()]
    block.eval()
    try:
        for count in (5, 8):
            try:
                _check_equivariance(block, num_prefix, count, width)
            except Exception as error:
                raise ValueError(
                    f"{name} ({type(block).__name__}) cannot run on a subset of the tokens: {error}; dropping tokens "
                    "before it would be wrong; use a plain vision transformer (ViT, DeiT)"
                ) from error
    finally:
        for module, training in flags:
            module.training = training


def _check_equivariance(block: nn.Module, num_prefix: int, count: int, width: int) -> None:
    """Raise an error unless permuting patch tokens (B, P+n, D) permutes the block's output in the same way."""
    like = next(block.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)  # the global one stays as it is

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(like.device, like.dtype)

    x = random(2, num_prefix + count, width)  # (B, P+n, D)
    # The new orders separate all neighbours, for five tokens 1 4 2 0 3 and 2 0 3 1 4, and differ between the images,
    # so that one image whose tokens mix with another's is found too.
    order = torch.tensor(
        [[(3 * position + 1 + shift) % count for position in range(count)] for shift in (0, 1)], device=x.device
    )  # (B, n)
    prefix = torch.arange(num_prefix, device=x.device).expand(2, -1)  # (B, P)
    rows = torch.cat([prefix, order + num_prefix], dim=1).unsqueeze(2).expand_as(x)  # (B, P+n, D)
    kept = KeptPositions(order, count, num_prefix, 0, x.dtype)
    beside = _arguments(block, random, count)
    y = block(x, **beside)
    if not isinstance(y, Tensor) or y.shape != x.shape:
        shape = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"tokens of shape {tuple(x.shape)} became {shape}")
    other = block(x.gather(1, rows), **{name: kept.of(name, value) for name, value in beside.items()})
    if x.is_meta:  # no values to compare
        return
    # Measured against what the block adds, so that a small layer scale hides nothing, with room for rounding.
    error = (other - y.gather(1, rows)).abs().max()
    epsilon = torch.finfo(x.dtype).eps
    allowed = epsilon**0.5 * (y - x).abs().max() + 8 * epsilon * y.abs().max()
    if not error <= allowed:
        raise ValueError("its output depends on the order of the patch tokens")


def _arguments(block: nn.Module, random: Any, count: int) -> dict[str, Any]:
    """What a block is tried with beside its tokens: angles for each patch, equal in all numbers of a head."""
    angle = random(count, 1)  # (n, 1)
    sine, cosine = angle.sin(), angle.cos()
    made = {"rope": torch.cat([sine, cosine], dim=1), "position_embeddings": (cosine, sine)}  # (n, 2), twice (n, 1)
    assert set(made) == set(ROTARY)
    arguments = {}
    for name, parameter in [*inspect.signature(block.forward).parameters.items()][1:]:
        if name in made:
            arguments[name] = made[name]
        elif name in MASKS and parameter.default is parameter.empty:
            arguments[name] = None
    return arguments
