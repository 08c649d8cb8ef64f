"""Token Merging (ToMe, arXiv 2210.09461), as the paper compares with it: r tokens fewer in every block, always.

Between attention and perceptron of a block, each token at an even place finds the most similar one at an odd place, and
the r most similar pairs become one token each, their mean by the number of patches that they stand for. Attention
counts a token as many times as it has patches. Nothing is learned, and evaluation merges as training does: a model
trained so is not the plain model, although its weights have the same names.

Rules: docs/fidelity.md, "Token Merging". The block that does it in a model: merging_block.py.

Shapes: B images, T tokens, P prefix tokens, D width, d width of a head, H heads, A = ceil(T / 2) tokens at even places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toe_train.methods.merging_block import Between, MergingBlock
from toe_train.methods.method import Method
from toe_train.models import blocks_of, why_not_plain

NAME = "token_merging"


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
        y (B, T-r, D): the tokens of even places that stay, then those of odd places. The first are in their former
            order, or, as in the released code, by similarity where there are no prefix tokens.
        size (B, T-r, 1): of them, float32.
        row (B, T): the row of y that holds each token.
    """
    batch, tokens, _ = x.shape
    if size is None:
        size = x.new_ones(batch, tokens, 1, dtype=torch.float32)
    r = min(r, (tokens - num_prefix_tokens) // 2)
    if r <= 0:
        return x, size, torch.arange(tokens, device=x.device).expand(batch, -1)
    with torch.autocast(x.device.type, enabled=False):
        stay, leave, into = match(metric, r, num_prefix_tokens)  # (B, A-r), (B, r), (B, r)
        weighted = x.float() * size  # (B, T, D)
        joins = F.one_hot(into, tokens // 2).transpose(1, 2).to(weighted.dtype)  # (B, T-A, r)
        leaving = _take(weighted[:, 0::2], leave)  # (B, r, D)
        sums = weighted[:, 1::2] + joins @ leaving  # (B, T-A, D), a product adds in the same order on every run
        sizes = size[:, 1::2] + joins @ _take(size[:, 0::2], leave)  # (B, T-A, 1)
        y = torch.cat([_take(x[:, 0::2], stay), (sums / sizes).to(x.dtype)], dim=1)  # (B, T-r, D)
        size = torch.cat([_take(size[:, 0::2], stay), sizes], dim=1)  # (B, T-r, 1)
    return y, size, _rows(stay, leave, into, tokens)


@torch.no_grad()
def match(metric: Tensor, r: int, num_prefix_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Who leaves, and into whom, by cosine similarity in float32.

    Args:
        metric: (B, T, d).
        r: tokens to lose.
        num_prefix_tokens: P.

    Returns:
        stay (B, A-r), leave (B, r): numbers of even places, 0 ... A-1; into (B, r): numbers of odd places.
    """
    metric = metric.float()
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


def _take(x: Tensor, places: Tensor) -> Tensor:
    """Tokens (B, n, D) of `x` at `places` (B, n)."""
    return x.gather(1, places.unsqueeze(2).expand(-1, -1, x.shape[2]))


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


def counts(r: int | Sequence[int], depth: int, inflection: float = 0.0) -> list[int]:
    """How many tokens each block loses.

    Args:
        r: of each block, or on average; a list is by block, the blocks after its end lose none.
        depth: number of blocks.
        inflection: of a number r, how far it moves over the blocks, from r (1 - inflection) to r (1 + inflection) in
            equal steps, rounded down; 0 is the same everywhere, -1 from 2 r to 0.

    Raises:
        ValueError: a negative number, a list of more blocks than there are, or with an inflection.
    """
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


class TokenMerging(nn.Module):
    """The merging of one model: no parameters, nothing in the state_dict.

    Attributes:
        on: whether the model merges now; without, it is the plain one.
    """

    def __init__(self, num_prefix_tokens: int) -> None:
        super().__init__()
        self.num_prefix_tokens = num_prefix_tokens
        self.on = True

    def forward(self, x: Tensor, metric: Tensor, size: Tensor | None, r: int) -> tuple[Tensor, Tensor, Tensor]:
        """See `merge`."""
        return merge(x, metric, size, r, self.num_prefix_tokens)


class _RestoreGrid:
    """Forward hook of the last norm of a model with an output for each patch: each stands where its patch was."""

    def __init__(self, between: Sequence[Between]) -> None:
        self.between = between

    def __call__(self, norm: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self.between[0].row is None:  # nothing is merged now
            return output
        return _take(output, rows(self.between))  # (B, P+N, D)


def rows(between: Sequence[Between]) -> Tensor:
    """The row of the last block's output that holds each token of the first one's input, (B, P+N)."""
    found: Tensor | None = None
    for step in between:
        assert step.row is not None, "the model has not run"
        found = step.row if found is None else step.row.gather(1, found)
    assert found is not None
    return found


class Attachment:
    """What `attach` returns.

    Attributes:
        merging: the module.
    """

    def __init__(self, model: nn.Module, r: list[int], proportional_attention: bool) -> None:
        self._model: nn.Module | None = model
        self._blocks = blocks_of(model)
        self._after = [Between() for _ in r]
        self.merging = TokenMerging(_prefix(model))
        blocks: Any = model.blocks
        parts = zip(self._blocks, r, [Between(), *self._after], self._after, strict=False)
        for index, (block, count, before, after) in enumerate(parts):
            blocks[index] = MergingBlock(block, self.merging, count, before, after, proportional_attention)
        model.add_module(NAME, self.merging)
        self._hooks = []
        if getattr(model, "dense_output", False):
            norm: Any = model.norm
            self._hooks.append(norm.register_forward_hook(_RestoreGrid(self._after)))

    @property
    def sizes(self) -> Tensor:
        """Of the last forward pass, (B, T) patches that each token of the output stands for."""
        size = self._after[-1].size
        assert size is not None, "the model has not run"
        return size.squeeze(2)

    @property
    def rows(self) -> Tensor:
        """Of the last forward pass, (B, P+N) the row of the last block's output that holds each token."""
        return rows(self._after)

    def remove(self) -> None:
        """Makes the model the plain one again. Does nothing when called twice."""
        if self._model is not None:
            blocks: Any = self._model.blocks
            for index, block in enumerate(self._blocks):
                blocks[index] = block.train(blocks[index].training)
            for hook in self._hooks:
                hook.remove()
            delattr(self._model, NAME)
            self._model = None


def attach(
    model: nn.Module, r: int | Sequence[int] = 8, proportional_attention: bool = True, inflection: float = 0.0
) -> Attachment:
    """Lets a model merge tokens, in training and in evaluation.

    Attach before wrapping the model in DDP or compiling it. Works through gradient checkpointing (with one forward pass
    to a backward pass), torch.compile, DDP and copy.deepcopy, whose copy merges as well.

    Args:
        model: timm's VisionTransformer (ViT, DeiT, distilled or with registers) or LV-ViT.
        r: tokens to lose in each block, see `counts`.
        proportional_attention: whether attention counts a token as many times as it has patches.
        inflection: see `counts`.

    Raises:
        ValueError: the model is none of these, or `r` does not fit it.
    """
    name = type(model).__name__
    if getattr(model, NAME, None) is not None:
        raise ValueError(f"{name} merges tokens already: call remove() on its handle first")
    blocks = blocks_of(model)
    if reason := why_not_plain(model):
        raise ValueError(f"{reason}; use timm's plain vision transformers (ViT, DeiT) or LV-ViT")
    if getattr(model, "global_pool", "token") != "token":
        raise ValueError(
            f"{name} averages its tokens (global_pool={getattr(model, 'global_pool', None)!r}), and merged ones stand "
            "for several patches each; build it with global_pool='token'"
        )
    return Attachment(model, counts(r, len(blocks), inflection), proportional_attention)


def _prefix(model: nn.Module) -> int:
    return int(getattr(model, "num_prefix_tokens", 1))


class TokenMergingMethod(Method):
    """ToMe as a trained baseline: merges in training, in evaluation and in the averaged model.

    Args:
        r: see `counts`.
        inflection: see `counts`.
        proportional_attention: see `attach`.
    """

    own_module = NAME
    note = "evaluation merges tokens as training does: accuracies are the merging model's, not the plain one's"

    def __init__(
        self, r: int | Sequence[int] = 8, inflection: float = 0.0, proportional_attention: bool = True
    ) -> None:
        self._r, self._inflection, self._proportional = r, inflection, proportional_attention

    @property
    def stage(self) -> int:
        """1 where it merges, 0 where the model is the plain one."""
        return int(self._merging.on)

    @stage.setter
    def stage(self, stage: int) -> None:
        self._merging.on = stage > 0

    def prepare(self, model: nn.Module) -> None:
        """Attaches the merging."""
        self._merging = attach(model, self._r, self._proportional, self._inflection).merging
        self._counts = counts(self._r, len(blocks_of(model)), self._inflection)
        embedding: Any = model.patch_embed
        left, cut = embedding.num_patches, 0
        for count in self._counts:
            cut += count > left // 2
            left -= min(count, left // 2)
        if cut:
            self.note = f"{self.note}; {cut} of {len(self._counts)} blocks lose half of their tokens, less than r"

    def tokens_kept(self, num_tokens: int, stage: int) -> int:
        """Patch tokens that the last block's perceptron sees."""
        for count in self._counts if stage else ():
            num_tokens -= min(count, num_tokens // 2)
        return num_tokens
