"""Token Merging (ToMe, arXiv 2210.09461), as the paper compares with it: r tokens fewer in every block, always.

Between attention and perceptron of a block, each token at an even place finds the most similar one at an odd place, and
the r most similar pairs become one token each, their mean by the number of patches that they stand for. Attention
counts a token as many times as it has patches. Nothing is learned, and evaluation merges as training does: a model
trained so is not the plain model, although its weights have the same names.

Rules: docs/fidelity.md, "Token Merging".

Shapes: B images, T tokens, P prefix tokens, D width, d width of a head, H heads, A = ceil(T / 2) tokens at even places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import vision_transformer
from torch import Tensor, nn
from torch.nn import functional as F

from toe_train.methods.method import Method
from toe_train.models import blocks_of, lvvit

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


class Between:
    """What one block hands to the next beside the tokens, in the model's last forward pass.

    A place of its own for each pair of blocks, so that a block whose activations are computed anew (gradient
    checkpointing) finds what it found before.

    Attributes:
        size: (B, T, 1), None before the first block.
        row: (B, T of the block before) the rows of its tokens.
    """

    def __init__(self) -> None:
        self.size: Tensor | None = None
        self.row: Tensor | None = None


class MergingBlock(nn.Module):
    """A block of timm's ViT or of LV-ViT that merges tokens between attention and perceptron.

    It has the block's own modules under their names, so that the model's state_dict stays what it was.

    Args:
        block: whose place it takes.
        merging: of the model.
        r: tokens to lose.
        before: what the block before hands over.
        after: what this one hands over.
        proportional: whether attention counts a token as many times as it has patches.
    """

    def __init__(
        self, block: nn.Module, merging: TokenMerging, r: int, before: Between, after: Between, proportional: bool
    ) -> None:
        super().__init__()
        for name, child in block.named_children():
            self.add_module(name, child)
        self.r, self.proportional = r, proportional
        self.before, self.after = before, after
        self._merging = (merging,)  # in a tuple, as it is a module of the model and not of each block
        self.branch_scale = 1 / getattr(block, "skip_lam", 1.0)
        self.train(block.training)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, T, D) -> (B, T-r, D)."""
        if attn_mask is not None or is_causal:
            raise ValueError("merged tokens have no mask: call the model without attn_mask, or detach the merging")
        size = self.before.size
        attended, metric = self._attend(self._through(x, "norm1"), size if self.proportional else None)
        x = torch.add(x, self._through(attended, "ls1", "drop_path1"), alpha=self.branch_scale)
        if self._merging[0].on:
            x, self.after.size, self.after.row = self._merging[0](x, metric, size, self.r)
        else:
            self.after.size = self.after.row = None
        return torch.add(x, self._through(x, "norm2", "mlp", "ls2", "drop_path2"), alpha=self.branch_scale)

    def _through(self, x: Tensor, *names: str) -> Tensor:
        """Through those of the block's modules that it has: LV-ViT's has no ls1 and ls2."""
        for name in names:
            if (module := self._modules.get(name)) is not None:
                x = module(x)
        return x

    def _attend(self, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
        """The attention of timm with a size for each key; its output (B, T, D) and the mean of the keys (B, T, d)."""
        attn: Any = self.attn
        batch, tokens, _ = x.shape
        heads = attn.qkv(x).view(batch, tokens, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)  # (3, B, H, T, d)
        q, k, v = heads.unbind(0)
        q, k = attn.q_norm(q), attn.k_norm(k)
        bias = None if size is None else size.log().to(q.dtype).view(batch, 1, 1, tokens)
        if attn.fused_attn:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            weights = (q * attn.scale) @ k.transpose(2, 3)  # (B, H, T, T)
            x = (weights if bias is None else weights + bias).softmax(dim=3) @ v
        x = x.transpose(1, 2).flatten(2)  # (B, T, D)
        return attn.proj_drop(attn.proj(x)), k.detach().mean(dim=1)


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
    remedy = "use timm's plain vision transformers (ViT, DeiT) or LV-ViT"
    if not blocks:
        raise ValueError(f"{name} has no plain list `blocks`; {remedy}")
    for index, block in enumerate(blocks):
        attention = getattr(block, "attn", None)
        if type(block) not in (vision_transformer.Block, lvvit.Block):
            raise ValueError(f"block {index} of {name} is a {type(block).__name__}, which cannot merge; {remedy}")
        if type(attention) is not vision_transformer.Attention or getattr(attention, "gate", None) is not None:
            raise ValueError(f"the attention of block {index} of {name} is no plain one; {remedy}")
        if not isinstance(getattr(attention, "norm", nn.Identity()), nn.Identity) or attention.attn_drop.p:
            raise ValueError(f"the attention of block {index} of {name} normalises or drops its result; {remedy}")
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

    def tokens_kept(self, num_tokens: int, stage: int) -> int:
        """Patch tokens that the last block's perceptron sees."""
        for count in self._counts if stage else ():
            num_tokens -= min(count, num_tokens // 2)
        return num_tokens
