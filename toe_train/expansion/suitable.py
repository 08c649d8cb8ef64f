"""Which models can drop tokens between their blocks: refused is where that would be wrong, with the reason.

What counts is what a model contains and how its blocks behave, not its name.

Shapes: P prefix tokens, n patch tokens of a probe, D width.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

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
# The argument of a forward pass that says which patches of an image are padding.
_PADDING = "patch_valid"


def require_suitable(model: nn.Module, after_block: int, num_prefix_tokens: int) -> nn.Module:
    """The block before which tokens are dropped; see `attach`.

    Raises:
        ValueError: when tokens cannot be dropped there; the message names the reason.
    """
    blocks = _plain_blocks(model)
    if not 0 <= after_block < len(blocks):
        raise ValueError(
            f"after_block={after_block} must be from 0 (after the embedding) to {len(blocks) - 1} (the last block) in "
            f"{named(model)}; the nearest is {min(max(after_block, 0), len(blocks) - 1)}"
        )
    _refuse_padding(model)
    _refuse_grid_models(model, blocks[after_block:])
    prefix = getattr(model, "num_prefix_tokens", num_prefix_tokens)
    if prefix != num_prefix_tokens:
        raise ValueError(
            f"{named(model)} has {prefix} prefix tokens, the expansion was made for {num_prefix_tokens}: "
            f"use TokenExpansion(..., num_prefix_tokens={prefix})"
        )
    width = _width(model)
    for index, block in enumerate(blocks[after_block:], start=after_block):
        _probe(f"block {index} of {named(model)}", block, prefix, width)
    return blocks[after_block]


def named(model: nn.Module) -> str:
    """The name of its class, for messages."""
    return type(model).__name__


def _plain_blocks(model: nn.Module) -> list[nn.Module]:
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, (nn.ModuleList, nn.Sequential)) or len(blocks) == 0:
        wrapped = isinstance(getattr(model, "module", None), nn.Module)
        remedy = "attach to the model inside the wrapper" if wrapped else "use a plain vision transformer (ViT, DeiT)"
        raise ValueError(
            f"{named(model)} has no plain list `blocks` between which tokens could be dropped (windows, stages and "
            f"feature maps need every token); {remedy}"
        )
    return list(blocks)


def _refuse_padding(model: nn.Module) -> None:
    """Refuse models of batches with unlike numbers of patches (timm's NaFlexVit), by what their forward pass takes."""
    if _PADDING in inspect.signature(model.forward).parameters:
        raise ValueError(
            f"{named(model)} takes images with unlike numbers of patches (`{_PADDING}`) and masks the padding in each "
            "block, for which token expansion is not defined; use a model of images of one size (ViT, DeiT), in timm "
            "without use_naflex"
        )


def _refuse_grid_models(model: nn.Module, blocks: list[nn.Module]) -> None:
    if getattr(getattr(model, "patch_embed", None), "backbone", None) is not None:
        raise ValueError(
            f"{named(model)} is a hybrid: its tokens are cells of a convolutional backbone (patch_embed.backbone), for "
            "which token expansion is not defined; use a model with a patch embedding"
        )
    for attribute in _LATE_CLASS_TOKEN:
        if hasattr(model, attribute):
            raise ValueError(
                f"{named(model)} adds its class token after some of the blocks (it has `{attribute}`), so that prefix "
                "tokens cannot be told from patch tokens; use a plain vision transformer (ViT, DeiT)"
            )
    holders = [model, *(module for block in blocks for module in block.modules())]
    for holder in holders:
        for attribute in _GRID_POSITIONS:
            if getattr(holder, attribute, None) is not None:
                raise ValueError(
                    f"{named(model)} has rotary or relative positions (`{attribute}` of {named(holder)}), which belong "
                    "to a full grid of tokens; use a model with absolute position embeddings (ViT, DeiT)"
                )


def _width(model: nn.Module) -> int:
    for attribute in ("embed_dim", "num_features"):
        width = getattr(model, attribute, None)
        if isinstance(width, int):
            return width
    raise ValueError(
        f"{named(model)} does not say how wide its tokens are (no integer `embed_dim`): only a plain vision "
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
