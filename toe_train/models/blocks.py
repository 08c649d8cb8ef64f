"""The blocks of a vision transformer, and whether they are the plain ones."""

from __future__ import annotations

from timm.layers import Mlp
from timm.models import vision_transformer
from torch import nn

from toe_train.models import lvvit
from toe_train.models.huggingface import TransformersClassifier

PlainAttention = vision_transformer.Attention
PlainPerceptron = Mlp


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The model's transformer blocks, in order; empty where it has no plain list of them."""
    if isinstance(model, TransformersClassifier):
        return model.transformer_blocks
    blocks = getattr(model, "blocks", None)
    return list(blocks) if isinstance(blocks, (nn.ModuleList, nn.Sequential)) else []


def why_not_plain(model: nn.Module) -> str | None:
    """Why the model's blocks are not those of timm's ViT or of LV-ViT, with their plain attention; None where they are.

    What takes a block's place goes by this: it computes with the block's parts as these two do.
    """
    name, blocks = type(model).__name__, blocks_of(model)
    if getattr(model, "num_suffix_tokens", 0):
        return f"{name} has tokens behind its patches, which are no patches"
    if not blocks:
        return f"{name} has no plain list `blocks`"
    for index, block in enumerate(blocks):
        attention = getattr(block, "attn", None)
        if type(block) not in (vision_transformer.Block, lvvit.Block):
            kind = f"{type(block).__module__.rpartition('.')[2]}.{type(block).__name__}"
            return f"block {index} of {name} is a {kind}"
        if type(attention) is not PlainAttention or getattr(attention, "gate", None) is not None:
            return f"the attention of block {index} of {name} is no plain one"
        if not isinstance(getattr(attention, "norm", nn.Identity()), nn.Identity) or attention.attn_drop.p:
            return f"the attention of block {index} of {name} normalises or drops its result"
    return None
