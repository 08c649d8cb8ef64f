"""Train vision transformers faster by Token Expansion (ToE, CVPR 2024, arXiv 2404.00672)."""

from typing import TYPE_CHECKING, Any

from toe_train._version import __version__

if TYPE_CHECKING:
    from toe_train.build.prediction import load
    from toe_train.expansion import ExpansionSchedule, TokenExpansion, attach

__all__ = ["ExpansionSchedule", "TokenExpansion", "__version__", "attach", "load"]


def __getattr__(name: str) -> Any:
    """The algorithm, and `load`, when they are first asked for.

    The commands choose how threads wait before torch is imported.
    """
    if name == "load":
        from toe_train.build import prediction

        return prediction.load
    if name in __all__:
        from toe_train import expansion

        return getattr(expansion, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
