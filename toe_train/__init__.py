"""Train vision transformers faster by Token Expansion (ToE, CVPR 2024, arXiv 2404.00672)."""

from toe_train._version import __version__
from toe_train.expansion import ExpansionSchedule, TokenExpansion, attach

__all__ = ["ExpansionSchedule", "TokenExpansion", "__version__", "attach"]
