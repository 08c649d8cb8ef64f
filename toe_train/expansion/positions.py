"""What belongs to the grid of tokens beside the tokens themselves, gathered for the kept ones: pure functions.

A block may be given rotary positions and attention masks that have a row for every token, and a model may add positions
between its blocks. Where tokens are dropped, the rows of those that are left go on; a token that others were merged
into keeps its own position.

Shapes: B batch, P prefix tokens, N patch tokens, S suffix tokens, L = P+N+S, K kept tokens, M = P+K+S, H heads,
D width, d numbers of a rotary position.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from toe_train.expansion.selection import token_rows


def gather_positions(positions: Tensor, rows: Tensor) -> Tensor:
    """Rotary positions of the kept tokens, with an axis for the heads.

    Args:
        positions: rows in the last but one axis: (R, d) that all images and heads share (timm's sine and cosine side
            by side, transformers' each alone), (H, R, d) with frequencies of each head (timm's mixed), or
            (1 or B, H or 1, R, d).
        rows: (B, K) of R.

    Returns:
        (B, H or 1, K, d), which attention broadcasts.
    """
    if positions.ndim == 2:
        return positions[rows].unsqueeze(1)  # (B, 1, K, d)
    if positions.ndim == 3:
        return positions[:, rows].transpose(0, 1)  # (B, H, K, d)
    if positions.shape[0] == 1:
        return positions[0][:, rows].transpose(0, 1)  # (B, H, K, d)
    index = rows[:, None, :, None].expand(-1, positions.shape[1], -1, positions.shape[3])  # (B, H, K, d), a view
    return positions.gather(2, index)  # (B, H, K, d)


def gather_images_positions(positions: Tensor, rows: Tensor) -> Tensor:
    """As `gather_positions`, of positions (1 or B, R, d) without an axis for the heads.

    Returns:
        (B, K, d); other shapes as above.
    """
    if positions.ndim != 3:
        return gather_positions(positions, rows)
    index = rows.unsqueeze(2).expand(-1, -1, positions.shape[2])  # (B, K, d), a view
    return positions.expand(rows.shape[0], -1, -1).gather(1, index)  # (B, K, d)


def gather_mask(mask: Tensor, rows: Tensor) -> Tensor:
    """An attention mask or bias between the kept tokens.

    Args:
        mask: (L, L), or (1 or B, H or 1, L or 1, L), queries before keys.
        rows: (B, M) of L.

    Returns:
        (B, H or 1, M or 1, M).
    """
    mask = mask[(None,) * (4 - mask.ndim)].expand(rows.shape[0], -1, -1, -1)  # (B, H, L or 1, L)
    keys = rows[:, None, None, :].expand(-1, mask.shape[1], mask.shape[2], -1)  # (B, H, L or 1, M), a view
    among = mask.gather(3, keys)  # (B, H, L or 1, M)
    if mask.shape[2] == 1:
        return among
    queries = rows[:, None, :, None].expand(-1, mask.shape[1], -1, rows.shape[1])  # (B, H, M, M), a view
    return among.gather(2, queries)  # (B, H, M, M)


_Gather = Callable[[Tensor, Tensor], Tensor]
# Names of arguments that hold rotary positions (timm; transformers), positions that are added (YOLOS), and an attention
# mask or bias (timm; transformers).
ROTARY: dict[str, _Gather] = {"rope": gather_positions, "position_embeddings": gather_images_positions}
ADDED: dict[str, _Gather] = {"positions": gather_images_positions}
MASKS: dict[str, _Gather] = {"attn_mask": gather_mask, "attention_mask": gather_mask}


class KeptPositions:
    """Which tokens a forward pass keeps, and its blocks' arguments for them.

    What no gradient flows into is gathered once, however many blocks are given it. What learns (timm's mixed positions,
    others for each block) is gathered each time, so that recomputing a block does what its forward pass did.

    Args:
        kept: (B, K) positions 0..N-1.
        num_tokens: N.
        num_prefix_tokens: P.
        num_suffix_tokens: S.
        dtype: what the blocks compute in; rotary positions of more bits are kept in it.
    """

    def __init__(
        self, kept: Tensor, num_tokens: int, num_prefix_tokens: int, num_suffix_tokens: int, dtype: torch.dtype
    ) -> None:
        self._kept = kept  # (B, K)
        self._rows = token_rows(kept, num_tokens, num_prefix_tokens, num_suffix_tokens)  # (B, M)
        self._num_tokens = num_tokens
        self._num_all = num_prefix_tokens + num_tokens + num_suffix_tokens
        self._dtype = dtype
        self._gathered: list[tuple[Tensor, Tensor]] = []

    def of(self, name: str, value: Any) -> Any:
        """What a block is given in the place of an argument of a name, for the kept tokens.

        Raises:
            ValueError: the argument belongs to the full set of tokens, and how is not known.
        """
        if name in ROTARY and isinstance(value, (tuple, list)):
            return tuple(self.of(name, part) for part in value)
        if name in _BY_NAME and isinstance(value, Tensor):
            return self._once(name, value)
        if name == "is_causal" and value:
            raise ValueError("it is to attend in the order of the tokens, and the kept ones have none")
        for tensor in _tensors(value):
            if not {self._num_tokens, self._num_all}.isdisjoint(tensor.shape):
                raise ValueError(
                    f"`{name}` of shape {tuple(tensor.shape)} seems to have a row for each of the {self._num_tokens} "
                    f"patch tokens, and how it belongs to them is not known (it is for {', '.join(_BY_NAME)})"
                )
        return value

    def _once(self, name: str, value: Tensor) -> Tensor:
        for known, gathered in self._gathered:
            if known is value:
                return gathered
        gathered = _BY_NAME[name](self._narrow(name, value), self._rows_of(name, value))
        if not gathered.requires_grad:
            self._gathered.append((value, gathered))
        return gathered

    def _narrow(self, name: str, value: Tensor) -> Tensor:
        wider = value.is_floating_point() and value.dtype.itemsize > self._dtype.itemsize
        return value.to(self._dtype) if name in ROTARY and wider else value

    def _rows_of(self, name: str, value: Tensor) -> Tensor:
        """Which rows of it are left, (B, K) where it has them for patch tokens only, else (B, M)."""
        shape, patches, every = tuple(value.shape), self._num_tokens, self._num_all
        if name in MASKS:
            fits = len(shape) in (2, 4) and shape[-1] == every and shape[-2] in (1, every)
            expected = f"({every}, {every}) or (batch, heads, {every}, {every})"
        elif name in ADDED:
            fits = len(shape) == 3 and shape[1] == every
            expected = f"(batch, {every}, width)"
        else:
            fits = 2 <= len(shape) <= 4 and shape[-2] in (patches, every)
            expected = f"(..., {patches} or {every}, numbers of a position)"
        if not fits:
            raise ValueError(f"`{name}` of shape {shape} must be {expected} for the full set of tokens")
        return self._kept if name in ROTARY and shape[-2] == patches else self._rows


_BY_NAME = {**ROTARY, **ADDED, **MASKS}


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        return [tensor for part in value for tensor in _tensors(part)]
    return []
