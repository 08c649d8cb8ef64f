"""Which tokens are kept, and what becomes of the others: pure functions of tensors.

Shapes: B batch, N patch tokens, S seeds, n tokens added in one round, K kept tokens, D width. Positions of tokens are
(B, K) int64 in 0..N-1; a slot is a kept token's place 0..K-1 in the order of selection.

Source: the paper's section 3.3, Eq 2 to 7. Unlike the released code, which normalises, scores and splits the tokens
anew in every round, this normalises once, and compares the tokens with each kept one once: a token remembers how near
its nearest kept token is and which one that is, and a round compares with the tokens that were just picked. The result
is the same. Nothing here waits for the device: no value of a tensor is read back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from toe_train.expansion.schedule import INITIALIZATIONS, METRICS, check_option


@torch.no_grad()
def normalise(patches: Tensor) -> Tensor:
    """Tokens of length 1: (B, N, D) from `patches` (B, N, D), in float32 at least, also under autocast.

    Every metric compares such tokens, as in the released code. A zero token stays zero instead of turning into NaN.
    """
    with _without_autocast(patches):
        return F.normalize(patches if patches.dtype == torch.float64 else patches.float(), dim=-1)


@torch.no_grad()
def similarity(tokens: Tensor, others: Tensor, metric: str = "cosine") -> Tensor:
    """Nearness of every token to every other one; higher means nearer.

    Computed in the tokens' own precision, also under autocast: half precision ties the many tokens whose cosine lies
    just below 1, and the kept set would then depend on the device. (TF32, where it is switched on for the whole
    process, applies here too.)

    Args:
        tokens: (B, N, D) from `normalise`.
        others: (B, n, D), some of them or all.
        metric: "cosine"; "euclidean" or "manhattan", minus the distance (the paper's meaning); or
            "euclidean_released", "manhattan_released", plus the distance: the released code scores distances with the
            logic meant for similarities, so that the farthest token counts as the nearest.

    Returns:
        (B, N, n).
    """
    check_option("metric", metric, METRICS)
    with _without_autocast(tokens):
        if metric == "cosine":
            return tokens @ others.transpose(1, 2)  # (B, N, n)
        order = 1.0 if metric.startswith("manhattan") else 2.0
        distance = torch.cdist(tokens, others, p=order, compute_mode="donot_use_mm_for_euclid_dist")  # (B, N, n)
        return distance if metric.endswith("_released") else -distance


@torch.no_grad()
def initialise(
    kind: str, batch: int, num_tokens: int, count: int, stride: int, device: torch.device, noise: Tensor | None = None
) -> Tensor:
    """Positions that are kept before any scoring, in raster order.

    Args:
        kind: "spatial", the released code's 0, stride, 2 * stride, ... (with rates such as 0.2 or 0.3 the tail of the
            image gets none); "even", spread over the whole image; "random", different for every image.
        batch: number of images.
        num_tokens: patch tokens N of an image.
        count: positions to choose.
        stride: distance between two positions, for "spatial" only.
        device: where the positions are made.
        noise: (B, N) numbers whose `count` smallest are chosen, for "random" only.

    Returns:
        (B, count) int64, ascending; a view of one row where all images share it.
    """
    check_option("initialization", kind, INITIALIZATIONS)
    if kind == "random":
        assert noise is not None
        chosen = noise.sort(dim=1, stable=True).indices[:, :count]  # (B, count)
        return chosen.sort(dim=1).values
    slots = torch.arange(count, device=device)  # (count,)
    positions = slots * stride if kind == "spatial" else slots * num_tokens // count
    return positions.expand(batch, count)  # (B, count)


@torch.no_grad()
def expand(patches: Tensor, seeds: Tensor, rounds: Sequence[int], metric: str = "cosine") -> tuple[Tensor, Tensor]:
    """Grow the kept set from the seeds: each round adds the tokens farthest from everything kept so far.

    Equal tokens are taken by lowest position, and a token that is equally near to two kept ones belongs to the one kept
    first. That is up to rounding: tokens that are equally far but for the last bits may change places in `kept` from
    one device to another, and between eager and compiled code, which sums squares in another order (on a CPU, of 196
    tokens: 1 to 40 places of 10,000, and the same set).

    Args:
        patches: (B, N, D) patch tokens, of any length.
        seeds: (B, S) positions to start from.
        rounds: tokens to add in each round; none at all assigns the tokens to the seeds.
        metric: of `similarity`.

    Returns:
        kept (B, K): the seeds, then each round's tokens, most distant first.
        owner (B, N): slot of the kept token nearest to each token; a kept token's own slot for itself.
    """
    tokens = normalise(patches)  # (B, N, D)
    kept = seeds
    nearest, owner = _nearest(tokens, seeds, metric)  # (B, N), (B, N)
    for count in rounds:
        if count == 0:
            continue
        added = nearest.sort(dim=1, stable=True).indices[:, :count]  # (B, n); kept tokens are +inf, so never among them
        nearer, slot = _nearest(tokens, added, metric)  # (B, N), (B, N)
        owner = torch.where(nearer > nearest, slot + kept.shape[1], owner)
        nearest = torch.maximum(nearest, nearer)
        kept = torch.cat([kept, added], dim=1)  # (B, K so far)
    return kept, owner


def merge(x: Tensor, kept: Tensor, owner: Tensor, num_prefix_tokens: int = 0) -> Tensor:
    """Replace each kept token by the mean of itself and of every token that belongs to it (Eq 7).

    One batched product with a 0/1 matrix, in the dtype of `x`: sums in the same order on every run, which a GPU's
    scattered adds are not. On a CPU adding each token where it belongs is as exact, and less work. Gradients reach
    every token.

    Args:
        x: (B, P+N, D) prefix tokens, which stay as they are, and patch tokens.
        kept: (B, K) positions; only their number matters here, `owner` says the rest.
        owner: (B, N) slots 0..K-1 from `expand`.
        num_prefix_tokens: P.

    Returns:
        (B, P+K, D), patch tokens in the order of `kept`.
    """
    if x.device.type == "cpu" and x.dtype.itemsize >= 4 and not torch.compiler.is_compiling():
        return _added_up(x, kept.shape[1], owner, num_prefix_tokens)
    # Not two slices: the backward of a split is one pass, that of a slice fills a whole gradient of its own.
    prefix, patches = x.split_with_sizes([num_prefix_tokens, owner.shape[1]], dim=1)  # (B, P, D), (B, N, D)
    slots = torch.arange(kept.shape[1], device=owner.device)
    belongs = owner.unsqueeze(1) == slots.unsqueeze(1)  # (B, K, N)
    sizes = belongs.sum(dim=2, keepdim=True)  # (B, K, 1), 1 or more
    with _without_autocast(patches):
        merged = (belongs.to(patches.dtype) @ patches) * sizes.to(patches.dtype).reciprocal()  # (B, K, D)
    return torch.cat([prefix, merged], dim=1)  # (B, P+K, D)


def gather(x: Tensor, kept: Tensor, num_prefix_tokens: int = 0, num_suffix_tokens: int = 0) -> Tensor:
    """The prefix tokens, the kept patch tokens and the suffix tokens, without merging; the others take no part.

    Of tokens, or of anything else with a row for each token, as positional embeddings have.

    Args:
        x: (B, P+N+S, D), or (1, P+N+S, D) for the same rows in every image.
        kept: (B, K) positions 0..N-1 of patch tokens.
        num_prefix_tokens: P.
        num_suffix_tokens: S.

    Returns:
        (B, P+K+S, D), patch tokens in the order of `kept`.
    """
    num_tokens = x.shape[1] - num_prefix_tokens - num_suffix_tokens
    rows = token_rows(kept, num_tokens, num_prefix_tokens, num_suffix_tokens)  # (B, P+K+S)
    return x.expand(kept.shape[0], -1, -1).gather(1, rows.unsqueeze(2).expand(-1, -1, x.shape[2]))  # (B, P+K+S, D)


def token_rows(kept: Tensor, num_tokens: int, num_prefix_tokens: int = 0, num_suffix_tokens: int = 0) -> Tensor:
    """Where the tokens that are left stood among all: (B, P+K+S) in 0..P+N+S-1.

    Args:
        kept: (B, K) positions 0..N-1 of patch tokens.
        num_tokens: N.
        num_prefix_tokens: P, all left.
        num_suffix_tokens: S, all left.
    """
    batch, device = kept.shape[0], kept.device
    behind = num_prefix_tokens + num_tokens
    first = torch.arange(num_prefix_tokens, device=device).expand(batch, -1)  # (B, P)
    last = torch.arange(behind, behind + num_suffix_tokens, device=device).expand(batch, -1)  # (B, S)
    return torch.cat([first, kept + num_prefix_tokens, last], dim=1)  # (B, P+K+S)


def restore(tokens: Tensor, kept: Tensor, num_tokens: int) -> Tensor:
    """Put kept tokens back at their positions in a grid of zeros, for losses on every position.

    Args:
        tokens: (B, K, D) patch tokens (no prefix tokens), in the order of `kept`.
        kept: (B, K) positions.
        num_tokens: patch tokens N of the full grid.

    Returns:
        (B, N, D) in raster order, exactly 0 where a token was dropped.
    """
    grid = tokens.new_zeros(tokens.shape[0], num_tokens, tokens.shape[2])  # (B, N, D)
    index = kept.unsqueeze(2).expand(-1, -1, tokens.shape[2])  # (B, K, D), a view
    return grid.scatter(1, index, tokens)  # (B, N, D)


def kept_mask(kept: Tensor, num_tokens: int) -> Tensor:
    """True where a token was kept: (B, num_tokens) bool from the positions `kept` (B, K), for losses on those only."""
    mask = torch.zeros(kept.shape[0], num_tokens, dtype=torch.bool, device=kept.device)  # (B, N)
    return mask.scatter(1, kept, True)  # (B, N)


def _nearest(tokens: Tensor, positions: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """How near the nearest of `positions` (B, n) is to each token (B, N), and which of them it is, the first of equals.

    Whatever the metric, a token at one of the positions is nearest to itself, by +inf.
    """
    others = tokens.flatten(0, 1).index_select(0, _rows(positions, tokens.shape[1]))  # (B*n, D), faster than `gather`
    nearness = similarity(tokens, others.view(*positions.shape, tokens.shape[2]), metric)  # (B, N, n)
    nearness.scatter_(1, positions.unsqueeze(1), float("inf"))
    return nearness.max(dim=2)


def _added_up(x: Tensor, num_kept: int, owner: Tensor, num_prefix_tokens: int) -> Tensor:
    """What `merge` gives, (B, P+K, D), by adding every token of `x` (B, P+N, D) to its owner, a prefix token to itself.

    Prefix and patches are never taken apart, since on a CPU each copy of them takes longer than the sums.
    """
    batch, _, width = x.shape
    slots = num_prefix_tokens + num_kept
    itself = torch.arange(num_prefix_tokens, device=x.device).expand(batch, -1)  # (B, P)
    rows = _rows(torch.cat([itself, owner + num_prefix_tokens], dim=1), slots)  # (B*(P+N),)
    sizes = torch.bincount(rows, minlength=batch * slots)  # (B*(P+K),), 1 or more
    sums = x.new_zeros(batch * slots, width).index_add_(0, rows, x.flatten(0, 1))
    return sums.mul_(sizes.to(x.dtype).reciprocal().unsqueeze(1)).view(batch, slots, width)


def _rows(positions: Tensor, count: int) -> Tensor:
    """Where the positions (B, n) of tokens lie when the `count` tokens of each image follow one another: (B*n,)."""
    images = torch.arange(positions.shape[0], device=positions.device)
    return (positions + count * images.unsqueeze(1)).flatten()


def _without_autocast(tokens: Tensor) -> contextlib.AbstractContextManager[object]:
    device = tokens.device.type
    return contextlib.nullcontext() if device == "meta" else torch.autocast(device, enabled=False)
