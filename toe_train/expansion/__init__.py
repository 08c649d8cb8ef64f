"""Token Expansion itself: the schedule, the selection of tokens, the module, and attaching it to a model."""

from toe_train.expansion.attach import NAME, Attachment, attach
from toe_train.expansion.hooks import guard_maps
from toe_train.expansion.layout import Layout, find_layout
from toe_train.expansion.module import TokenExpansion
from toe_train.expansion.schedule import EXPANSIONS, INITIALIZATIONS, METRICS, RESTORES, ExpansionSchedule
from toe_train.expansion.selection import kept_mask, restore

__all__ = [
    "EXPANSIONS",
    "INITIALIZATIONS",
    "METRICS",
    "NAME",
    "RESTORES",
    "Attachment",
    "ExpansionSchedule",
    "Layout",
    "TokenExpansion",
    "attach",
    "find_layout",
    "guard_maps",
    "kept_mask",
    "restore",
]
