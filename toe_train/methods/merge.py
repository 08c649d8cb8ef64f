"""Token Merging's algorithm, as functions of tensors and integers; what it does in a model: token_merging.py.

Rules: docs/fidelity.md, "Token Merging".

Shapes: B images, T tokens, P prefix tokens, D width, d width of a head, A = ceil(T / 2) tokens at even places.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def merge(
    x: Tensor, metric: Tensor, size: Tensor | None, r: int, num_prefix_tokens: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Merges the r most similar pairs of tokens, all at once.

    Args:
        x: (B, T, D) tokens.
        metric: (B, T, d) by whose cosine tokens are similar; no gradient goes through it.
        size: (B, T, 1) patches that each token stands for; None for one each.
        r: tokens to lose, at most half of those that are no prefix tokens; more is taken as that.
        num_prefix_tokens: P; these are never merged.

    Returns:
        y (B, T-r, D): the prefix tokens, then those of even places that stay, then those of odd places. Those of even
            places are in their former order, or, as in the released code, by similarity where there is no prefix.
        size (B, T-r, 1): of them, float32.
        row (B, T): the row of y that holds each token.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    batch, tokens, _ = x.shape
    if metric.shape[:2] != x.shape[:2] or (size is not None and size.shape != (batch, tokens, 1)):
        given = [list(part.shape) for part in (x, metric, size) if part is not None]
        raise ValueError(
            f"x (B, T, D), metric (B, T, d) and size (B, T, 1) must be of the same tokens, and are {given}"
        )
    if size is None:
        size = x.new_ones(batch, tokens, 1, dtype=torch.float32)
    r = min(r, (tokens - num_prefix_tokens) // 2)
    if r <= 0:
        return x, size, torch.arange(tokens, device=x.device).expand(batch, -1)
    with torch.autocast(x.device.type, enabled=False):
        stay, leave, into = match(metric, r, num_prefix_tokens)  # (B, A-r), (B, r), (B, r)
        size = size.float()
        weighted = x.to(_at_least_single(x)) * size  # (B, T, D)
        joins = F.one_hot(into, tokens // 2).transpose(1, 2).to(weighted.dtype)  # (B, T-A, r)
        leaving = take(weighted[:, 0::2], leave)  # (B, r, D)
        sums = weighted[:, 1::2] + joins @ leaving  # (B, T-A, D), a product adds in the same order on every run
        sizes = size[:, 1::2] + joins.float() @ take(size[:, 0::2], leave)  # (B, T-A, 1)
        y = torch.cat([take(x[:, 0::2], stay), (sums / sizes).to(x.dtype)], dim=1)  # (B, T-r, D)
        size = torch.cat([take(size[:, 0::2], stay), sizes], dim=1)  # (B, T-r, 1)
    row = _rows(stay, leave, into, tokens)
    if num_prefix_tokens > 1:  # those of odd places too are where the next block and the head look for them
        order = _prefix_first(tokens - r, stay.shape[1], num_prefix_tokens, x.device)
        y, size, row = y[:, order], size[:, order], order.argsort()[row]
    return y, size, row


@torch.no_grad()
def match(metric: Tensor, r: int, num_prefix_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Who leaves, and into whom, by cosine similarity in float32, of float64 in float64.

    Args:
        metric: (B, T, d).
        r: tokens to lose.
        num_prefix_tokens: P.

    Returns:
        stay (B, A-r), leave (B, r): numbers of even places, 0 ... A-1; into (B, r): numbers of odd places.
    """
    metric = metric.to(_at_least_single(metric))
    metric = metric / metric.norm(dim=2, keepdim=True)
    scores = metric[:, 0::2] @ metric[:, 1::2].transpose(1, 2)  # (B, A, T-A)
    scores[:, : (num_prefix_tokens + 1) // 2] = -torch.inf
    scores[:, :, : num_prefix_tokens // 2] = -torch.inf
    nearness, nearest = scores.max(dim=2)  # (B, A)
    order = nearness.argsort(dim=1, descending=True, stable=True)  # (B, A)
    leave, stay = order[:, :r], order[:, r:]
    if num_prefix_tokens:
        stay = stay.sort(dim=1).values
    return stay, leave, nearest.gather(1, leave)


def take(x: Tensor, places: Tensor) -> Tensor:
    """Tokens (B, n, D) of `x` at `places` (B, n)."""
    return x.gather(1, places.unsqueeze(2).expand(-1, -1, x.shape[2]))


def _at_least_single(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _rows(stay: Tensor, leave: Tensor, into: Tensor, tokens: int) -> Tensor:
    """The row that holds each token, (B, T)."""
    batch, first = stay.shape  # rows of even places
    even = stay.new_empty(batch, first + leave.shape[1])  # (B, A)
    even = even.scatter(1, stay, torch.arange(first, device=stay.device).expand(batch, -1))
    even = even.scatter(1, leave, into + first)
    odd = torch.arange(first, first + tokens // 2, device=stay.device).expand(batch, -1)  # (B, T-A)
    if tokens % 2:
        odd = F.pad(odd, (0, 1))
    return torch.stack([even, odd], dim=2).flatten(1)[:, :tokens]


def _prefix_first(count: int, even: int, num_prefix_tokens: int, device: torch.device) -> Tensor:
    """The order of `count` rows, `even` of them of even places, in which prefix tokens come first, as they came."""
    rows = torch.arange(count, device=device)
    prefix = rows[:num_prefix_tokens]
    of_even, of_odd = (num_prefix_tokens + 1) // 2, num_prefix_tokens // 2
    return torch.cat([prefix // 2 + prefix % 2 * even, rows[of_even:even], rows[even + of_odd :]])  # (count,)


def counts(r: int | Sequence[int], depth: int, inflection: float = 0.0) -> list[int]:
    """How many tokens each block loses.

    Args:
        r: of each block, or on average; a list is by block, the blocks after its end lose none.
        depth: number of blocks.
        inflection: of a number r, how far it moves over the blocks, from r (1 - inflection) to r (1 + inflection) in
            equal steps, rounded down; 0 is the same everywhere, -1 from 2 r to 0.

    Raises:
        ValueError: no whole number, a negative one, a list of more blocks than there are, or with an inflection.
    """
    if isinstance(r, str) or not all(isinstance(count, int) for count in ([r] if not isinstance(r, Sequence) else r)):
        raise ValueError(f"r={r!r} must be a whole number, or a list of them by block")
    if isinstance(r, int):
        if not -1 <= inflection <= 1:
            raise ValueError(f"inflection={inflection} must be from -1 to 1, so that no block loses a negative number")
        first = int(r * (1 - inflection))
        step = (2 * r - 2 * first) / max(depth - 1, 1)
        found = [int(first + step * index) for index in range(depth)]
    else:
        if inflection:
            raise ValueError(f"inflection={inflection} is of a number r, and r={list(r)} is by block; leave it at 0")
        if len(r) > depth:
            raise ValueError(f"r={list(r)} is of {len(r)} blocks, and the model has {depth}; give at most {depth}")
        found = [*r, *[0] * (depth - len(r))]
    if min(found) < 0:
        raise ValueError(f"r={r} must not be negative; 0 merges nothing")
    return found
