"""What belongs to the grid of tokens beside the tokens themselves, gathered for the kept ones: pure functions.

A block may be given rotary positions and attention masks that have a row for every token. Where tokens are dropped, the
rows of the kept ones go on; a token that others were merged into keeps its own position.

Shapes: B batch, P prefix tokens, N patch tokens, L = P+N, K kept tokens, H heads, d numbers of a position.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def token_rows(kept: Tensor, num_prefix_tokens: int) -> Tensor:
    """Rows 0..L-1 of the prefix tokens and of the kept patch tokens: (B, P+K) from `kept` (B, K)."""
    prefix = torch.arange(num_prefix_tokens, device=kept.device).expand(kept.shape[0], -1)  # (B, P)
    return torch.cat([prefix, kept + num_prefix_tokens], dim=1)  # (B, P+K)


def gather_positions(positions: Tensor, rows: Tensor) -> Tensor:
    """Rotary positions of the kept tokens, with an axis for the heads.

    Args:
        positions: rows in the last but one axis: (R, d) that all images and heads share (timm's sine and cosine side by
            side, transformers' each alone), (H, R, d) with frequencies of each head (timm's mixed), (1 or B, H or 1, R, d).
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
    """As `gather_positions`, of positions (1 or B, R, d) to which a block itself adds the axis for the heads.

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
        rows: (B, P+K) of L.

    Returns:
        (B, H or 1, P+K or 1, P+K).
    """
    mask = mask[(None,) * (4 - mask.ndim)].expand(rows.shape[0], -1, -1, -1)  # (B, H, L or 1, L)
    keys = rows[:, None, None, :].expand(-1, mask.shape[1], mask.shape[2], -1)  # (B, H, L or 1, P+K), a view
    among = mask.gather(3, keys)  # (B, H, L or 1, P+K)
    if mask.shape[2] == 1:
        return among
    queries = rows[:, None, :, None].expand(-1, mask.shape[1], -1, rows.shape[1])  # (B, H, P+K, P+K), a view
    return among.gather(2, queries)  # (B, H, P+K, P+K)


_Gather = Callable[[Tensor, Tensor], Tensor]
# Names of arguments that hold rotary positions (timm; transformers), and those that hold an attention mask or bias.
ROTARY: dict[str, _Gather] = {"rope": gather_positions, "position_embeddings": gather_images_positions}
MASKS: dict[str, _Gather] = {"attn_mask": gather_mask, "attention_mask": gather_mask}


class KeptPositions:
    """Which tokens a forward pass keeps, and its blocks' arguments for them.

    What no gradient flows into is gathered once, however many blocks are given it. What learns (timm's mixed positions,
    others for each block) is gathered each time, so that recomputing a block does what its forward pass did.

    Args:
        kept: (B, K) positions 0..N-1.
        num_tokens: N.
        num_prefix_tokens: P.
        dtype: what the blocks compute in; positions of more bits are kept in it.
    """

    def __init__(self, kept: Tensor, num_tokens: int, num_prefix_tokens: int, dtype: torch.dtype) -> None:
        self._kept = kept
        self._num_tokens = num_tokens
        self._num_prefix_tokens = num_prefix_tokens
        self._dtype = dtype
        self._gathered: list[tuple[Tensor, Tensor]] = []

    def of(self, name: str, value: Any) -> Any:
        """What a block is given in the place of an argument of a name, for the kept tokens.

        Raises:
            ValueError: the argument belongs to the full set of tokens, and how is not known.
        """
        if name in ROTARY and isinstance(value, (tuple, list)):
            return tuple(self.of(name, part) for part in value)
        if name in ROTARY and isinstance(value, Tensor):
            return self._once(value, lambda: self._positions(name, value))
        if name in MASKS and isinstance(value, Tensor):
            return self._once(value, lambda: self._mask(name, value))
        if name == "is_causal" and value:
            raise ValueError("it is to attend in the order of the tokens, and the kept ones have none")
        for tensor in _tensors(value):
            if not {self._num_tokens, self._num_tokens + self._num_prefix_tokens}.isdisjoint(tensor.shape):
                known = ", ".join((*ROTARY, *MASKS))
                raise ValueError(
                    f"`{name}` of shape {tuple(tensor.shape)} seems to have a row for each of the {self._num_tokens} "
                    f"patch tokens, and how it belongs to them is not known (it is for {known})"
                )
        return value

    def _once(self, value: Tensor, gather: Callable[[], Tensor]) -> Tensor:
        for known, gathered in self._gathered:
            if known is value:
                return gathered
        gathered = gather()
        if not gathered.requires_grad:
            self._gathered.append((value, gathered))
        return gathered

    def _positions(self, name: str, value: Tensor) -> Tensor:
        rows = value.shape[-2] if 2 <= value.ndim <= 4 else 0
        if rows not in (self._num_tokens, self._num_tokens + self._num_prefix_tokens):
            raise ValueError(
                f"`{name}` of shape {tuple(value.shape)} must have {self._num_tokens} rows, one for each patch token, "
                f"or {self._num_prefix_tokens} more"
            )
        if value.is_floating_point() and value.dtype.itemsize > self._dtype.itemsize:
            value = value.to(self._dtype)
        kept = self._kept if rows == self._num_tokens else token_rows(self._kept, self._num_prefix_tokens)
        return ROTARY[name](value, kept)

    def _mask(self, name: str, value: Tensor) -> Tensor:
        count = self._num_tokens + self._num_prefix_tokens
        if value.ndim not in (2, 4) or value.shape[-1] != count or value.shape[-2] not in (1, count):
            raise ValueError(
                f"`{name}` of shape {tuple(value.shape)} must be ({count}, {count}) or (batch, heads, {count}, {count}) "
                "for all tokens"
            )
        return MASKS[name](value, token_rows(self._kept, self._num_prefix_tokens))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        return [tensor for part in value for tensor in _tensors(part)]
    return []
