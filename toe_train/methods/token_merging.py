"""Token Merging (ToMe, arXiv 2210.09461), as the paper compares with it: r tokens fewer in every block, always.

Between attention and perceptron of a block, each token at an even place finds the most similar one at an odd place, and
the r most similar pairs become one token each, their mean by the number of patches that they stand for. Attention
counts a token as many times as it has patches. Nothing is learned, and evaluation merges as training does: a model
trained so is not the plain model, although its weights have the same names.

Rules: docs/fidelity.md, "Token Merging". Who is merged into whom: merge.py. The block that does it: merging_block.py.

Shapes: B images, T tokens, P prefix and N patch tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from toe_train.expansion import NAME as EXPANSION
from toe_train.expansion import guard_maps
from toe_train.methods.merge import counts, merge, take
from toe_train.methods.merging_block import Between, MergingBlock
from toe_train.methods.method import Method
from toe_train.models import blocks_of, why_not_plain

NAME = "token_merging"


class TokenMerging(nn.Module):
    """The merging of one model: no parameters, nothing in the state_dict.

    Attributes:
        on: whether the model merges now; without, it is the plain one.
    """

    def __init__(self, num_prefix_tokens: int) -> None:
        super().__init__()
        self.num_prefix_tokens = num_prefix_tokens
        self.on = True

    @property
    def why_no_maps(self) -> str | None:
        """Why feature maps cannot be made now, and what to do; None where they can."""
        return "merged tokens are in no grid: call remove() on the handle of the merging before it" if self.on else None

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
        return take(output, rows(self.between))  # (B, P+N, D)


def rows(between: Sequence[Between]) -> Tensor:
    """The row of the last block's output that holds each token of the first one's input, (B, P+N)."""
    found: Tensor | None = None
    for step in between:
        if step.row is None:
            raise ValueError("the model has not merged anything yet: call it with images first")
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
        self.merging = TokenMerging(int(getattr(model, "num_prefix_tokens", 1)))
        blocks: Any = model.blocks
        parts = zip(self._blocks, r, [Between(), *self._after], self._after, strict=False)
        for index, (block, count, before, after) in enumerate(parts):
            blocks[index] = MergingBlock(block, self.merging, count, before, after, proportional_attention)
        model.add_module(NAME, self.merging)
        self._guarded = guard_maps([model], self.merging)
        self._hooks = []
        if getattr(model, "dense_output", False):
            norm: Any = model.norm
            self._hooks.append(norm.register_forward_hook(_RestoreGrid(self._after)))

    @property
    def sizes(self) -> Tensor:
        """Of the last forward pass, (B, T) patches that each token of the output stands for."""
        size = self._after[-1].size
        if size is None:
            raise ValueError("the model has not merged anything yet: call it with images first")
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
            for owner, method in self._guarded:
                delattr(owner, method)  # the class's method comes to light again
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
    if getattr(model, EXPANSION, None) is not None:
        raise ValueError(
            f"{name} drops tokens by a token expansion: take one of the two, and call remove() on its handle"
        )
    blocks = blocks_of(model)
    if reason := why_not_plain(model):
        raise ValueError(f"{reason}; use timm's plain vision transformers (ViT, DeiT) or LV-ViT")
    if getattr(model, "global_pool", "token") != "token":
        raise ValueError(
            f"{name} averages its tokens (global_pool={getattr(model, 'global_pool', None)!r}), and merged ones stand "
            "for several patches each; build it with global_pool='token'"
        )
    return Attachment(model, counts(r, len(blocks), inflection), proportional_attention)


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
