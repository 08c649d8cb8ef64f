"""Train vision transformers faster by Token Expansion (ToE, CVPR 2024, arXiv 2404.00672)."""

from typing import TYPE_CHECKING, Any

from toe_train._version import __version__

if TYPE_CHECKING:
    from toe_train.expansion import ExpansionSchedule, TokenExpansion, attach

__all__ = ["ExpansionSchedule", "TokenExpansion", "__version__", "attach"]


def __getattr__(name: str) -> Any:
    """The algorithm, when it is first asked for: the commands choose how threads wait before torch is imported."""
    if name in __all__:
        from toe_train import expansion

        return getattr(expansion, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
