"""Attach a `TokenExpansion` to a vision transformer from outside, by a hook on one of its blocks.

A model that gives an output for every patch position (`dense_output`, as LV-ViT) gets a second hook, on its last norm,
which puts the kept tokens back into the full grid.

The model's code and its state_dict stay those of the plain model. Models in which dropping tokens between blocks would
be wrong are refused, by what they contain and by how their blocks behave.

Shapes: B batch, P prefix tokens, N patch tokens, K kept tokens, n patch tokens of a probe, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toe_train.expansion.module import TokenExpansion
from toe_train.expansion.schedule import RESTORES, check_option
from toe_train.expansion.selection import gather
from toe_train.expansion.selection import restore as restore_grid

NAME = "token_expansion"

# Attributes by which a model or a block holds position information that belongs to a full grid of tokens.
_GRID_POSITIONS = (
    "rope",
    "rope_global",
    "rope_window",
    "rotary_emb",
    "rel_pos",
    "rel_pos_bias",
    "shared_rel_pos",
    "rel_pos_h",
    "relative_position_bias_table",
)
# Attributes of models whose class token joins the patch tokens only after some blocks (CaiT, XCiT, ConViT).
_LATE_CLASS_TOKEN = ("blocks_token_only", "cls_attn_blocks", "local_up_to_layer")


class Attachment:
    """What `attach` returns: the expansion in use, and the way to take it off again."""

    def __init__(
        self, model: nn.Module, expansion: TokenExpansion, block: nn.Module, norm: nn.Module | None, copy: bool
    ) -> None:
        self.expansion = expansion
        self._model: nn.Module | None = model
        self._hooks = [block.register_forward_pre_hook(_ExpandInput(expansion))]
        if norm is not None:
            self._hooks.append(norm.register_forward_hook(_RestoreGrid(expansion, copy)))
        expansion.remember_owner = copy
        model.add_module(NAME, expansion)

    def remove(self) -> None:
        """Make the model the plain one again. Does nothing when called twice."""
        if self._model is not None:
            for hook in self._hooks:
                hook.remove()
            self.expansion.remember_owner = False
            delattr(self._model, NAME)
            self._model = None


class _ExpandInput:
    """Forward pre-hook of a block. An object, so that copy.deepcopy(model) binds the copy's hook to its own module."""

    def __init__(self, expansion: TokenExpansion) -> None:
        self.expansion = expansion

    def __call__(self, block: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tokens, _ = self.expansion(args[0])
        return (tokens, *args[1:])


class _RestoreGrid:
    """Forward hook of the last norm: (B, P+K, D) -> (B, P+N, D) where tokens were dropped. An object as above."""

    def __init__(self, expansion: TokenExpansion, copy: bool) -> None:
        self.expansion = expansion
        self.copy = copy

    def __call__(self, norm: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        kept = self.expansion.kept
        if kept is None:
            return output
        prefix = output[:, : self.expansion.num_prefix_tokens]  # (B, P, D)
        patches = output[:, self.expansion.num_prefix_tokens :]  # (B, K, D)
        if self.copy:
            assert self.expansion.owner is not None
            grid = gather(patches, self.expansion.owner)  # (B, N, D)
        else:
            grid = restore_grid(patches, kept, self.expansion.num_tokens)  # (B, N, D)
        return torch.cat([prefix, grid], dim=1)  # (B, P+N, D)


def attach(model: nn.Module, expansion: TokenExpansion, after_block: int = 1, restore: str = "zero") -> Attachment:
    """Let a model drop tokens while it trains.

    Attach before wrapping the model in DDP or compiling it. Works through gradient checkpointing, torch.compile, DDP
    and copy.deepcopy (an averaged copy expands by its own module, and not at all in eval mode).

    Args:
        model: a vision transformer with a plain list `blocks` of modules (B, P+N, D) -> (B, P+N, D), such as timm's
            VisionTransformer, DeiT, DeiT-III. `model.token_expansion` becomes `expansion`.
        expansion: the module that drops the tokens.
        after_block: number of blocks that still see every token: 1 is the paper's choice, 0 expands right after the
            embedding; at most one less than the depth (paper, Table 8).
        restore: what stands at the dropped positions after the last norm, in a model whose `dense_output` is True.
            "zero" has parity with the paper (A.1) and the released code: zeros, so that a head answers there with its
            bias and the dense loss, a mean over all positions, teaches it nothing else. "copy" puts the token there
            that the dropped one was merged into. "ignore" puts zeros too and says that the loss leaves these positions
            out, which is up to the loss: `kept_mask(expansion.kept, N)` names the positions that count.

    Returns:
        A handle with `.expansion` and `.remove()`.

    Raises:
        ValueError: when tokens cannot be dropped there; the message names the reason.
    """
    if getattr(model, NAME, None) is not None:
        raise ValueError(f"{_name(model)} has a token expansion already: call remove() on its handle first")
    blocks = _plain_blocks(model)
    if not 0 <= after_block < len(blocks):
        raise ValueError(
            f"after_block={after_block} must be from 0 (after the embedding) to {len(blocks) - 1} (the last block) in "
            f"{_name(model)}; the nearest is {min(max(after_block, 0), len(blocks) - 1)}"
        )
    _refuse_grid_models(model, blocks[after_block:])
    prefix = getattr(model, "num_prefix_tokens", expansion.num_prefix_tokens)
    if prefix != expansion.num_prefix_tokens:
        raise ValueError(
            f"{_name(model)} has {prefix} prefix tokens, the expansion was made for {expansion.num_prefix_tokens}: "
            f"use TokenExpansion(..., num_prefix_tokens={prefix})"
        )
    width = _width(model)
    for index, block in enumerate(blocks[after_block:], start=after_block):
        _probe(f"block {index} of {_name(model)}", block, prefix, width)
    norm = _dense_norm(model, expansion, restore)
    return Attachment(model, expansion, blocks[after_block], norm, copy=restore == "copy")


def _name(model: nn.Module) -> str:
    return type(model).__name__


def _plain_blocks(model: nn.Module) -> list[nn.Module]:
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, (nn.ModuleList, nn.Sequential)) or len(blocks) == 0:
        wrapped = isinstance(getattr(model, "module", None), nn.Module)
        remedy = "attach to the model inside the wrapper" if wrapped else "use a plain vision transformer (ViT, DeiT)"
        raise ValueError(
            f"{_name(model)} has no plain list `blocks` between which tokens could be dropped (windows, stages and "
            f"feature maps need every token); {remedy}"
        )
    return list(blocks)


def _dense_norm(model: nn.Module, expansion: TokenExpansion, restore: str) -> nn.Module | None:
    """The norm after which the grid is restored; None for a model without dense outputs."""
    check_option("restore", restore, RESTORES)
    if not getattr(model, "dense_output", False):
        if restore != "zero":
            raise ValueError(
                f"restore={restore!r} is for models with an output for every patch (LV-ViT), and {_name(model)} has "
                "none: its dropped tokens need no place; leave restore at 'zero'"
            )
        return None
    if restore == "copy" and not expansion.merging:
        raise ValueError(
            "restore='copy' gives a dropped position the token that it was merged into, and this expansion has "
            "merging=False; use restore='zero' or 'ignore', or merging=True"
        )
    norm = getattr(model, "norm", None)
    if not isinstance(norm, nn.Module):
        raise ValueError(
            f"{_name(model)} has dense outputs and no module `norm` after its blocks, where the grid is put together "
            "again; name its last norm so"
        )
    return norm


def _refuse_grid_models(model: nn.Module, blocks: list[nn.Module]) -> None:
    if getattr(getattr(model, "patch_embed", None), "backbone", None) is not None:
        raise ValueError(
            f"{_name(model)} is a hybrid: its tokens are cells of a convolutional backbone (patch_embed.backbone), for "
            "which token expansion is not defined; use a model with a patch embedding"
        )
    for attribute in _LATE_CLASS_TOKEN:
        if hasattr(model, attribute):
            raise ValueError(
                f"{_name(model)} adds its class token after some of the blocks (it has `{attribute}`), so that prefix "
                "tokens cannot be told from patch tokens; use a plain vision transformer (ViT, DeiT)"
            )
    holders = [model, *(module for block in blocks for module in block.modules())]
    for holder in holders:
        for attribute in _GRID_POSITIONS:
            if getattr(holder, attribute, None) is not None:
                raise ValueError(
                    f"{_name(model)} has rotary or relative positions (`{attribute}` of {_name(holder)}), which belong "
                    "to a full grid of tokens; use a model with absolute position embeddings (ViT, DeiT)"
                )


def _width(model: nn.Module) -> int:
    for attribute in ("embed_dim", "num_features"):
        width = getattr(model, attribute, None)
        if isinstance(width, int):
            return width
    raise ValueError(
        f"{_name(model)} does not say how wide its tokens are (no integer `embed_dim`): only a plain vision "
        "transformer with one width can drop tokens; set the attribute if yours is one"
    )


@torch.no_grad()
def _probe(name: str, block: nn.Module, num_prefix: int, width: int) -> None:
    """Raise ValueError unless a block takes any number of patch tokens and does not care about their order."""
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
    """Raise an error unless permuting patch tokens (1, P+n, D) permutes the block's output in the same way."""
    like = next(block.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)  # the global one stays as it is
    x = torch.randn(1, num_prefix + count, width, generator=generator).to(like.device, like.dtype)  # (1, P+n, D)
    # The new order separates all neighbours: 1 4 2 0 3 for five tokens, 1 4 7 2 5 0 3 6 for eight.
    shuffled = [num_prefix + (3 * position + 1) % count for position in range(count)]
    order = torch.tensor([*range(num_prefix), *shuffled], device=x.device)  # (P+n,)
    y = block(x)
    if not isinstance(y, Tensor) or y.shape != x.shape:
        shape = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"tokens of shape {tuple(x.shape)} became {shape}")
    if x.is_meta:  # no values to compare
        return
    # Measured against what the block adds, so that a small layer scale hides nothing, with room for rounding.
    error = (block(x[:, order]) - y[:, order]).abs().max()
    epsilon = torch.finfo(x.dtype).eps
    allowed = epsilon**0.5 * (y - x).abs().max() + 8 * epsilon * y.abs().max()
    if not error <= allowed:
        raise ValueError("its output depends on the order of the patch tokens")
