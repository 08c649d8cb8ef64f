"""Sections of the methods that the paper compares with: `method: {kind: ..., ...}`. Token Expansion's is `expansion`.

Each is read by one file of `toe_train/methods/`. Values and their sources: docs/fidelity.md.
"""

from __future__ import annotations

import warnings
from bisect import bisect_right
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from toe_train.recipes.fields import Integer, Number, PositiveInteger, Probability
from toe_train.recipes.sections import MethodSection

Share = Annotated[Number, Field(gt=0, le=1)]


class AlwaysSection(MethodSection):
    """Base of methods that act in every epoch: their stage is 1 throughout, 0 being plain training."""

    def stage(self, epoch: int) -> int:
        """1."""
        return 1

    def is_dense(self, stage: int) -> bool:
        """In stage 0 alone, which no epoch has: what the others are measured against."""
        return stage == 0


def _counts(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """One rule of both forms, in place of a fault for each."""
    try:
        return handler(value)
    except ValidationError:
        raise ValueError("must be a whole number from 0 up, or a list of them, one for each block") from None


_Count = Annotated[Integer, Field(ge=0)]


class TokenMergingConfig(AlwaysSection):
    """ToMe: r tokens fewer in every block, in training and in evaluation."""

    kind: Literal["token_merging"]
    r: Annotated[_Count | tuple[_Count, ...], WrapValidator(_counts)] = 8  # a list is by block
    inflection: Annotated[Number, Field(ge=-1, le=1)] = (
        0.0  # of a number r: from r (1 - i) to r (1 + i) over the blocks
    )
    proportional_attention: bool = True  # a token counts as many times as it has patches


with warnings.catch_warnings():  # pydantic's own `copy`, which is deprecated, gives way to the key's name
    warnings.filterwarnings("ignore", message='Field name "copy"')

    class DepthGrowthConfig(MethodSection):
        """NetworkExpansion and StackBERT: fewer blocks at first, copies of them later."""

        kind: Literal["depth_growth"]
        depths: tuple[PositiveInteger, ...]  # blocks of each segment
        from_epochs: tuple[Annotated[Integer, Field(ge=0)], ...]  # first epoch of each, from 0
        copy: Literal["insert", "stack", "double"] = "insert"  # type: ignore[assignment]
        source: Literal["raw", "ema"] = "ema"  # what insert and stack copy: the weights, or their averages
        # spread: each block has its linear share of model.drop_path. released: as NetworkExpansion's code, in which
        # copies of the first block stay without.
        drop_path: Literal["spread", "released"] = "spread"

        def is_dense(self, stage: int) -> bool:
            """Whether the model has all its blocks: in its last segment, or where there is no stage."""
            return stage in (0, len(self.depths))

        @model_validator(mode="after")
        def _legal_growth(self) -> DepthGrowthConfig:
            if len(self.depths) < 2 or len(self.depths) != len(self.from_epochs):
                given = f"{len(self.depths)} of them and {len(self.from_epochs)} from_epochs"
                raise ValueError(f"depths: {given}; give the same number, at least 2")
            if any(later <= earlier for earlier, later in pairwise(self.depths)):
                raise ValueError(f"depths: {list(self.depths)} must rise: a run begins with the fewest blocks")
            if self.from_epochs[0] != 0 or any(later <= earlier for earlier, later in pairwise(self.from_epochs)):
                raise ValueError(f"from_epochs: {list(self.from_epochs)} must begin with 0 and rise")
            return self

        def stage(self, epoch: int) -> int:
            """1 for the first depth, 2 for the next."""
            return self.segment(epoch) + 1

        def segment(self, epoch: int) -> int:
            """The number of growths so far."""
            return bisect_right(self.from_epochs, epoch) - 1

        def model_kwargs(self, segment: int) -> dict[str, Any]:
            """Its depth."""
            return {"depth": self.depths[segment]}


class StructuredSparsityConfig(AlwaysSection):
    """S2ViTE: a part of the heads and hidden units is off, and which ones moves."""

    kind: Literal["structured_sparsity"]
    heads_kept: Share = 0.7  # of each block, rounded down
    units_kept: Share = 0.7
    update_every: PositiveInteger = 15_000  # steps
    update_until: Probability = 0.8  # share of the run's steps
    # Of an update at the beginning; 0.005 at the end, by a cosine.
    death_rate: Annotated[Number, Field(ge=0.005, le=1)] = 0.5
    # released: what is off is 0 throughout. small_weights: queries, keys and fc1 rest at small random weights, so that
    # what is off has gradients, which under released it has not.
    revive: Literal["released", "small_weights"] = "released"

    @model_validator(mode="after")
    def _something_is_off(self) -> StructuredSparsityConfig:
        if self.heads_kept == self.units_kept == 1:
            raise ValueError(
                "heads_kept and units_kept: nothing is off where both are 1; set one below 1, or method=null"
            )
        return self


KINDS: dict[str, type[MethodSection]] = {
    "token_merging": TokenMergingConfig,
    "depth_growth": DepthGrowthConfig,
    "structured_sparsity": StructuredSparsityConfig,
}
OtherMethod = Annotated[TokenMergingConfig | DepthGrowthConfig | StructuredSparsityConfig, Field(discriminator="kind")]
