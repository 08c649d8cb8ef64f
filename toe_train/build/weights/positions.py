"""Positional embeddings of another number of patches, or beside other prefix tokens.

Shapes: P prefix tokens (class, distillation, registers), N patches, D width; an embedding is (1, N, D) or (1, P+N, D).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from toe_train.build.weights.asked import Asked

POSITIONS = "pos_embed"
TOKENS = ("cls_token", "dist_token", "reg_token")  # in the order in which timm's models put them before the patches


@dataclass(frozen=True)
class Layout:
    """What an embedding's rows belong to.

    Attributes:
        rows: first and last-but-one row of each prefix token that has rows.
        grid: rows and columns of patches.
    """

    rows: dict[str, tuple[int, int]]
    grid: tuple[int, int]

    @property
    def prefix(self) -> int:
        """Rows before the patches'."""
        return max((end for _, end in self.rows.values()), default=0)


def token_counts(tensors: dict[str, Tensor]) -> dict[str, int]:
    """How many prefix tokens of each kind there are."""
    return {name: tensors[name].shape[1] for name in TOKENS if name in tensors and tensors[name].ndim == 3}


def layout_of(tensors: dict[str, Tensor], grid: tuple[int, int] | None, model: Any, asked: Asked) -> Layout:
    """What the rows of a file's embedding belong to.

    The file tells no grid, so that the prefix tokens with rows of their own are those with which the rest is a grid:
    the file's own or the model's, else a square. All tokens have rows (timm's models), the class token alone (DINOv2
    with registers), or none (DeiT III).

    Args:
        tensors: of the file.
        grid: of the file's patches, where it is known.
        model: that they are for.
        asked: for messages.

    Raises:
        UserError: nothing of the kind fits.
    """
    length, counts = tensors[POSITIONS].shape[1], token_counts(tensors)
    choices = [counts, {name: count for name, count in counts.items() if name == "cls_token"}, {}]
    known = [grid] if grid is not None else [tuple(model.patch_embed.grid_size), None]
    for wanted in known:
        for choice in choices:
            patches = length - sum(choice.values())
            side = math.isqrt(max(patches, 0))
            if wanted is not None and patches == wanted[0] * wanted[1]:
                return Layout(_rows(choice), wanted)
            if wanted is None and patches > 0 and side * side == patches:
                return Layout(_rows(choice), (side, side))
    tokens = ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
    raise asked.fault(
        f"{POSITIONS} has {length} rows beside the prefix tokens {tokens}: its patches lie on no square grid, and the "
        "file does not tell which; give weights of square images, or of as many patches as the model has "
        f"({model.patch_embed.num_patches})"
    )


def _rows(counts: dict[str, int]) -> dict[str, tuple[int, int]]:
    rows, start = {}, 0
    for name, count in counts.items():
        rows[name] = (start, start + count)
        start += count
    return rows


def fit_prefix(
    tensors: dict[str, Tensor], own: dict[str, Tensor], model: Any, source: Layout, told: list[str]
) -> dict[str, Tensor]:
    """Tokens and embedding in the form of the model's.

    A token's row goes with the token. Where only one of the two has such rows the function stays the same: a row is
    added to its token, or is zero. The patches' part is resized bicubically (DeiT main.py).

    Args:
        tensors: of the file.
        own: of the model, which gives the rows of tokens that the file does not have.
        model: whose patches count.
        source: what the rows of the file's embedding belong to.
        told: gets what was done.
    """
    fitted, embedding = dict(tensors), tensors[POSITIONS]
    grid = tuple(model.patch_embed.grid_size)
    patches = embedding[:, source.prefix :]
    if source.grid != grid:
        patches = resample_abs_pos_embed(
            patches, list(grid), list(source.grid), num_prefix_tokens=0, interpolation="bicubic", antialias=False
        )
        told.append(f"resized: {POSITIONS} from {source.grid[0]}x{source.grid[1]} to {grid[0]}x{grid[1]} patches")
    counts = token_counts(own)
    has_rows = own[POSITIONS].shape[1] > grid[0] * grid[1]
    parts = []
    for name, (start, end) in _rows(counts).items():
        rows = source.rows.get(name)
        if has_rows and rows is not None:
            parts.append(embedding[:, rows[0] : rows[1]])
        elif has_rows and name in tensors:
            parts.append(torch.zeros_like(tensors[name]))
            told.append(f"set to zero: rows of {name} in {POSITIONS}, which has none for it (the same function)")
        elif has_rows:
            parts.append(own[POSITIONS][:, start:end].to(embedding.dtype))
        elif rows is not None:
            fitted[name] = tensors[name] + embedding[:, rows[0] : rows[1]]
            told.append(f"added to {name}: its rows of {POSITIONS}, of which the model has none (the same function)")
    fitted[POSITIONS] = torch.cat([*parts, patches], dim=1)
    return fitted
