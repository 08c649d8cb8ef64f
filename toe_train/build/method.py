"""The method of a configuration."""

from __future__ import annotations

from toe_train.methods.method import Method
from toe_train.methods.token_expansion import TokenExpansionMethod
from toe_train.recipes import ExpansionConfig, MethodSection, RunConfig


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
    return Method()
