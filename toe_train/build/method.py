"""The method of a configuration."""

from __future__ import annotations

from toe_train.data import derive_seed
from toe_train.methods.depth_growth import DepthGrowthMethod
from toe_train.methods.method import Method
from toe_train.methods.structured_sparsity import StructuredSparsityMethod
from toe_train.methods.token_expansion import TokenExpansionMethod
from toe_train.methods.token_merging import TokenMergingMethod
from toe_train.recipes import (
    DepthGrowthConfig,
    ExpansionConfig,
    MethodSection,
    RunConfig,
    StructuredSparsityConfig,
    TokenMergingConfig,
)


def build_method(config: RunConfig) -> Method:
    """How the run makes training cheaper, to be prepared with its model; `Method` itself is plain training."""
    section: MethodSection = config.cheaper
    if isinstance(section, ExpansionConfig):
        return TokenExpansionMethod(
            section.schedule(),
            metric=section.metric,
            initialization=section.initialization,
            expansion=section.expansion,
            merging=section.merging,
            after_block=section.after_block,
            restore=section.restore,
        )
    if isinstance(section, TokenMergingConfig):
        return TokenMergingMethod(section.r, section.inflection, section.proportional_attention)
    if isinstance(section, DepthGrowthConfig):
        return DepthGrowthMethod(section.depths, section.copy, section.source, section.drop_path)
    if isinstance(section, StructuredSparsityConfig):
        return StructuredSparsityMethod(
            heads_kept=section.heads_kept,
            units_kept=section.units_kept,
            update_every=section.update_every,
            update_until=section.update_until,
            death_rate=section.death_rate,
            revive=section.revive,
            seed=derive_seed(config.seed, "sparsity"),
        )
    return Method()
