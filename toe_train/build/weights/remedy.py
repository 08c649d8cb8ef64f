"""Which model weights would fit, as the values to give."""

from __future__ import annotations

import re
from typing import Any

import timm
from torch import Tensor

from toe_train.build.weights.positions import token_counts

SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large"}  # widths of the sizes of DeiT and ViT
WORDS = {"cls_token": "class", "dist_token": "distillation", "reg_token": "register"}


def tokens_in_words(tensors: dict[str, Tensor]) -> str:
    """The prefix tokens, such as "2 prefix tokens (1 class, 1 distillation)"."""
    counts = token_counts(tensors)
    total = sum(counts.values())
    named = ", ".join(f"{count} {WORDS[name]}" for name, count in counts.items())
    return f"{total or 'no'} prefix token{'s' * (total != 1)}" + (f" ({named})" if named else "")


def fitting_model(name: str, tensors: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    """What to give so that a model takes the weights: model.name or values of model.kwargs; empty where nothing shows.

    Args:
        name: of the model that does not take them.
        tensors: the weights.
        own: of that model.
    """
    theirs, ours = _shape(tensors), _shape(own)
    other = _name(name, theirs, ours)
    if "dist_token" in tensors and "dist_token" not in own and other == name:
        theirs.pop("class_token", None)
    parts = [f"model.name={other}"] if other != name else []
    named = {"embed_dim", "depth"} if _size_of(name) != _size_of(other) else set()
    for key, value in theirs.items():
        if ours.get(key) != value and key not in named:
            parts.append(f"model.kwargs.{key}={str(value).lower() if isinstance(value, bool) else value}")
    return " ".join(parts)


def _size_of(name: str) -> str | None:
    return next((size for size in SIZES.values() if f"_{size}_" in name), None)


def _name(name: str, theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """The name of the sibling that has the weights' width, and a distillation token where they have one."""
    size, wanted = _size_of(name), SIZES.get(theirs.get("embed_dim", 0))
    other = name
    if size and wanted and theirs.get("embed_dim") != ours.get("embed_dim"):
        other = other.replace(f"_{size}_", f"_{wanted}_")
    if theirs["distilled"] != ours["distilled"]:
        plain = other.replace("_distilled", "")
        other = re.sub(r"^(deit_[a-z]+)_", r"\1_distilled_", plain) if theirs["distilled"] else plain
    theirs.pop("distilled"), ours.pop("distilled")
    return other if timm.is_model(other) else name


def _shape(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What the names and shapes of tensors tell of a model, as arguments of timm's VisionTransformer."""
    found: dict[str, Any] = {"distilled": "dist_token" in tensors}
    blocks = {int(match[1]) for key in tensors if (match := re.match(r"blocks\.(\d+)\.", key))}
    if blocks:
        found["depth"] = max(blocks) + 1
        width = tensors.get("blocks.0.norm1.weight")
        if width is not None and width.ndim == 1:
            found["embed_dim"] = width.shape[0]
        if any(key.endswith("ls1.gamma") for key in tensors):
            found["init_values"] = 1e-5
    embedding = tensors.get("patch_embed.proj.weight")
    if embedding is not None and embedding.ndim == 4:
        found["patch_size"] = embedding.shape[-1]
    counts = token_counts(tensors)
    if "reg_token" in counts:
        found["reg_tokens"] = counts["reg_token"]
    if blocks:
        found["class_token"] = "cls_token" in counts
        found["global_pool"] = "avg" if "fc_norm.weight" in tensors or "cls_token" not in counts else "token"
    return found
