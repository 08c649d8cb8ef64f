"""Which models can drop tokens between their blocks: refused is where that would be wrong, with the reason.

What counts is what a model contains and how its blocks behave, not its name.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from torch import nn

from toe_train.expansion.layout import Layout, find_layout, named
from toe_train.expansion.positions import ROTARY
from toe_train.expansion.probe import probe

# Attributes by which a module attends within windows (Swin; Hiera; SAM, where it is a number of tokens).
_WINDOWS = ("shift_size", "use_mask_unit_attn", "window_size")
# Attributes by which a module holds biases between the places of a full grid.
_RELATIVE = (
    "rel_pos",
    "rel_pos_bias",
    "shared_rel_pos",
    "rel_pos_h",
    "relative_position_bias",
    "relative_position_bias_table",
)
# Attributes by which a model or a block turns tokens by positions that are not handed over as an argument.
_OWN_ROTARY = ("rope_global", "rope_window", "rotary_emb", "rotary_pos_emb")
# Attributes of models whose class token joins the patch tokens only after some blocks (CaiT, XCiT, ConViT).
_LATE_CLASS_TOKEN = ("blocks_token_only", "cls_attn_blocks", "local_up_to_layer")
# Attributes of models that lay the tokens after the blocks out as a grid (backbones, mergers of neighbouring tokens).
_GRID_OUTPUTS = ("out_indices", "return_layers", "aligner", "merger")
# Modules that work on a grid; behind the blocks they would be given one made of the kept tokens.
_GRID_MODULES = (
    nn.Conv1d,
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.Upsample,
    nn.Fold,
)
# Attributes by which a part of a model puts tokens back to their places (masked autoencoders).
_RESTORING = ("decoder_pos_embed",)
# Attributes by which a model has tokens behind the patches, or positions between its blocks, that are not known to it
# by `num_suffix_tokens` and `mid_additions` (transformers' YOLOS).
_BEHIND = ("detection_tokens", "mid_position_embeddings")
# Arguments of a forward pass that say which patches are padding: by masks that may be left out, or cannot be.
_MAYBE_PADDED = ("patch_valid",)
_ALWAYS_PADDED = ("pixel_attention_mask", "spatial_shapes", "pixel_position_ids", "image_grid_thw", "grid_thw")
_GATHERED = " or ".join(f"`{name}`" for name in ROTARY)
_PLAIN = "use a plain vision transformer (ViT, DeiT)"


def require_suitable(
    model: nn.Module, after_block: int, num_prefix_tokens: int, blocks: str | None = None, width: int | None = None
) -> Layout:
    """The model's layout, if tokens can be dropped in it; see `attach` for the arguments.

    Raises:
        ValueError: when tokens cannot be dropped there; the message names the reason.
    """
    _refuse_windows(model)
    layout = find_layout(model, blocks, width)
    depth = len(layout.blocks)
    if not 0 <= after_block < depth:
        raise ValueError(
            f"after_block={after_block} must be from 0 (after the embedding) to {depth - 1} (the last block) in "
            f"{named(model)}; the nearest is {min(max(after_block, 0), depth - 1)}"
        )
    others = layout.blocks[after_block:]
    _refuse_padding(layout.owners)
    _refuse_grid_models(model, layout.owners)
    _refuse_positions(layout.owners, others)
    _refuse_grid_outputs(model, layout)
    prefix = layout.num_prefix_tokens
    if prefix is not None and prefix != num_prefix_tokens:
        raise ValueError(
            f"{named(model)} has {prefix} prefix tokens, the expansion was made for {num_prefix_tokens}: "
            f"use TokenExpansion(..., num_prefix_tokens={prefix})"
        )
    for index, block in enumerate(others, start=after_block):
        probe(f"block {index} of {named(model)}", block, num_prefix_tokens, layout.width)
    return layout


def masks_padding(model: nn.Module) -> bool:
    """Whether the masks that a model gives its blocks say which patches are padding (timm's NaFlexVit)."""
    return not set(_MAYBE_PADDED).isdisjoint(inspect.signature(model.forward).parameters)


def _refuse_windows(model: nn.Module) -> None:
    for module in model.modules():
        for attribute in _WINDOWS:
            value = getattr(module, attribute, None)
            # BEiT's `window_size` is a pair, that of its whole grid.
            if value is None or isinstance(value, nn.Module) or (attribute == "window_size" and not _is_count(value)):
                continue
            raise ValueError(
                f"{named(model)} attends within windows (`{attribute}` of {named(module)}), which need every token of "
                f"their part of the image; {_PLAIN}"
            )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value > 0


def _refuse_padding(owners: Sequence[nn.Module]) -> None:
    for owner in owners:
        for name in _ALWAYS_PADDED:
            if name in inspect.signature(owner.forward).parameters:
                raise ValueError(
                    f"{named(owner)} takes images with unlike numbers of patches, padded to one length (`{name}`), for "
                    "which token expansion is not defined; use a model of images of one size (ViT, DeiT, SigLIP)"
                )


def _refuse_grid_models(model: nn.Module, owners: Sequence[nn.Module]) -> None:
    if any(getattr(getattr(owner, "patch_embed", None), "backbone", None) is not None for owner in owners):
        raise ValueError(
            f"{named(model)} is a hybrid: its tokens are cells of a convolutional backbone (patch_embed.backbone), for "
            "which token expansion is not defined; use a model with a patch embedding"
        )
    for owner in owners:
        for attribute in _LATE_CLASS_TOKEN:
            if hasattr(owner, attribute):
                raise ValueError(
                    f"{named(owner)} adds its class token after some of the blocks (it has `{attribute}`), so that "
                    f"prefix tokens cannot be told from patch tokens; {_PLAIN}"
                )
    for module in model.modules():
        for attribute in _BEHIND:
            if getattr(module, attribute, None) is not None:
                raise ValueError(
                    f"{named(model)} has detection tokens behind its patches or adds positions between its blocks "
                    f"(`{attribute}` of {named(module)}), outside of the blocks, where those of the kept tokens cannot "
                    "be given; use YOLOS of toe_train.models"
                )


def _refuse_positions(owners: Sequence[nn.Module], blocks: Sequence[nn.Module]) -> None:
    """Refuse positions that belong to a full grid and do not come as an argument that is gathered."""
    holders = [*owners, *owners[-1].children(), *(module for block in blocks for module in block.modules())]
    for holder in holders:
        for attribute in _RELATIVE:
            if getattr(holder, attribute, None) is not None:
                raise ValueError(
                    f"{named(owners[0])} has relative positions (`{attribute}` of {named(holder)}), a bias between the "
                    "places of a full grid of tokens; use a model with absolute or rotary positions (ViT, DeiT, DINOv3)"
                )
        for attribute in _OWN_ROTARY:
            if getattr(holder, attribute, None) is not None:
                raise ValueError(
                    f"{named(owners[0])} has rotary positions of its own (`{attribute}` of {named(holder)}), which "
                    f"belong to a full grid of tokens: gathered are those that blocks are given as {_GATHERED}; "
                    "use a model with absolute position embeddings (ViT, DeiT)"
                )
    given = all(not ROTARY.keys().isdisjoint(inspect.signature(block.forward).parameters) for block in blocks)
    for holder in holders:
        if getattr(holder, "rope", None) is not None and not (given and holder in owners):
            raise ValueError(
                f"{named(owners[0])} has rotary positions (`rope` of {named(holder)}) that its blocks are not given as "
                f"{_GATHERED}, so that they cannot be gathered; use a model with absolute position embeddings "
                "(ViT, DeiT)"
            )


def _refuse_grid_outputs(model: nn.Module, layout: Layout) -> None:
    """Refuse models that make a grid of the tokens after the blocks; the kept ones have none."""
    for owner in layout.owners:
        for attribute in _GRID_OUTPUTS:
            if getattr(owner, attribute, None) is not None:
                raise ValueError(
                    f"{named(owner)} lays the tokens after its blocks out as the image's grid (it has `{attribute}`), "
                    "and kept tokens have no grid; use the model that gives tokens or logits, not its backbone"
                )
    for module in model.modules():
        for attribute in _RESTORING:
            if getattr(module, attribute, None) is not None:
                raise ValueError(
                    f"{named(model)} puts its tokens back to their places in the grid (`{attribute}` of "
                    f"{named(module)}), where dropped ones would be missing; use a model with a head on tokens"
                )
    last = next(name for name, module in model.named_modules() if module is layout.blocks[-1])
    names = [name for name, _ in model.named_modules()]
    end = max(place for place, name in enumerate(names) if name == last or name.startswith(f"{last}."))
    for name in names[end + 1 :]:
        module = model.get_submodule(name)
        if isinstance(module, _GRID_MODULES):
            raise ValueError(
                f"{named(model)} has a {named(module)} behind its blocks (`{name}`), which needs the image's grid, and "
                "kept tokens have no grid; use a model with a head on tokens"
            )
