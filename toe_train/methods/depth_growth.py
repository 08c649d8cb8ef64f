"""Depth growth: training begins with fewer blocks, and later epochs have more, which are copies of those at hand.

Two of the paper's rivals are this one method. NetworkExpansion puts copies of the averaged weights between the blocks
(its released code says how); StackBERT doubles the stack of raw blocks (Gong et al., ICML 2019). At a
growth the optimiser begins anew and the rate goes on; the averaged model begins anew from the grown one.

Rules and sources: docs/fidelity.md, "Depth growth".

A growth is a new segment of the run: `recipes.DepthGrowthConfig` says when, and `carry` makes the grown model's
checkpoint of the small one's. Evaluation and export are those of the plain model, of the full depth at the end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from toe_train.methods.method import Method
from toe_train.models import blocks_of, switch_off

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


def sources(depth: int, grown: int, how: str) -> list[tuple[int, bool]]:
    """Which block each one of a grown model is copied from, and whether from the averaged weights.

    Args:
        depth: blocks L at hand, numbered from 0.
        grown: blocks afterwards; L + n.
        how: "insert": the last n blocks are each followed by their own averaged one; "stack": the last n averaged ones
            follow at the end (both of NetworkExpansion); "double": the raw stack again and again (StackBERT).

    Raises:
        ValueError: that many blocks cannot be made of these.
    """
    added = grown - depth
    if how == "double":
        if added <= 0 or grown % depth:
            near = max(2, round(grown / depth)) * depth
            raise ValueError(f"{depth} blocks doubled are a multiple of them, and not {grown}; the nearest is {near}")
        return [(index % depth, False) for index in range(grown)]
    if how not in ("insert", "stack"):
        raise ValueError(f"how={how!r} must be insert, stack or double")
    if not 0 < added <= depth:
        near = min(max(grown, depth + 1), 2 * depth)
        raise ValueError(
            f"{depth} blocks grow to {depth + 1} ... {2 * depth} at once, not {grown}; the nearest is {near}"
        )
    if how == "stack":
        return [(index, False) for index in range(depth)] + [(index, True) for index in range(depth - added, depth)]
    pairs = [(index, averaged) for index in range(depth - added, depth) for averaged in (False, True)]
    return [(index, False) for index in range(depth - added)] + pairs


def grow(
    state: Mapping[str, Tensor], averaged: Mapping[str, Tensor] | None, depth: int, how: str = "insert"
) -> dict[str, Tensor]:
    """The state_dict of a deeper model.

    What lies outside `blocks` stays as it is, all of it raw: embedding, norms with their running statistics, heads.

    Args:
        state: of a plain ViT or LV-ViT whose blocks are `blocks.0.*` and so on.
        averaged: the averaged model's, which "insert" and "stack" copy; None to copy the raw weights there too.
        depth: blocks afterwards.
        how: see `sources`.

    Raises:
        ValueError: there are no blocks, or not so many can be made of them; the averaged model is another one.
    """
    parts: dict[int, list[str]] = {}
    for name in state:
        if found := _BLOCK.fullmatch(name):
            parts.setdefault(int(found[1]), []).append(found[2])
    if not parts:
        raise ValueError("the weights have no blocks.0, so they are no plain vision transformer's")
    grown = {name: value for name, value in state.items() if not _BLOCK.fullmatch(name)}
    for index, (source, is_averaged) in enumerate(sources(len(parts), depth, how)):
        taken = averaged if is_averaged and averaged is not None else state
        for part in parts[source]:
            name = f"blocks.{source}.{part}"
            if name not in taken or taken[name].shape != state[name].shape:
                raise ValueError(f"the averaged model is another one: it has no {name}, or of another shape")
            grown[f"blocks.{index}.{part}"] = taken[name].clone()
    return grown


def copies_of_the_first(depths: Sequence[int], how: str) -> set[int]:
    """Blocks of the last of `depths` that descend from block 0, itself among them.

    timm gives block 0 no stochastic depth, as its rate is 0, and the released NetworkExpansion writes rates into blocks
    without making one: these stay without.
    """
    off = {0}
    for depth, grown in pairwise(depths):
        off = {index for index, (source, _) in enumerate(sources(depth, grown, how)) if source in off}
    return off


class DepthGrowthMethod(Method):
    """Trains a model of growing depth; each depth is a segment of the run.

    Args:
        depths: blocks of each segment.
        how: see `sources`.
        source: "ema" copies averaged weights where `how` does, "raw" never.
        drop_path: "spread" gives every block its linear share of the rate; "released" leaves copies of block 0 without.

    Raises:
        ValueError: a depth does not grow from the one before.
    """

    def __init__(self, depths: Sequence[int], how: str, source: str, drop_path: str) -> None:
        for depth, grown in pairwise(depths):
            sources(depth, grown, how)  # legal
        self._depths, self._how, self._source, self._drop_path = list(depths), how, source, drop_path

    def prepare(self, model: nn.Module) -> None:
        """Changes the stochastic depth alone, where the released one is asked for."""
        blocks = blocks_of(model)
        if len(blocks) not in self._depths:
            raise ValueError(
                f"depths: {self._depths} do not hold the {len(blocks)} blocks of this {type(model).__name__}; end them "
                f"with {len(blocks)}, or set model.kwargs={{depth: {self._depths[-1]}}}"
            )
        if self._drop_path == "released":
            until = self._depths.index(len(blocks)) + 1
            for index in copies_of_the_first(self._depths[:until], self._how):
                switch_off(blocks[index])

    def carry(self, state: dict[str, Any], former: int, segment: int) -> dict[str, Any]:
        """The grown model, averages that begin from it, and no moments; the loss scale goes on."""
        if former != segment - 1:
            raise ValueError(
                f"the checkpoint has grown {former} times, and the run has {segment} times here, to "
                f"{self._depths[segment]} blocks: it grows one step at a time; leave method.depths and "
                "method.from_epochs as they were"
            )
        averaged = state["ema"] if self._source == "ema" else None
        grown = grow(state["model"], averaged, self._depths[segment], self._how)
        return {**state, "model": grown, "ema": grown, "optimizer": None}
