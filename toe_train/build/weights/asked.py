"""What a user asked for when naming weights, for reading it and for messages."""

from __future__ import annotations

from dataclasses import dataclass

from toe_train.errors import UserError

SHOWN = 5


@dataclass(frozen=True)
class Asked:
    """Weights as a user named them.

    Attributes:
        path: of a file or folder.
        option: that it was given to, with its value: "model.initial_weights = PATH".
        averaged: whether the averaged weights are wanted.
        how: what asks for the averaged ones: "model.initial_averaged=true".
        how_not: what asks for the raw ones.
    """

    path: str
    option: str
    averaged: bool = False
    how: str = "--weights ema"
    how_not: str = "--weights model"

    def fault(self, text: str) -> UserError:
        """The error that says `text` of them in one line."""
        return UserError(f"{self.option}: {' '.join(text.split())}")

    def has_none(self) -> UserError:
        """The error where there are no averaged weights."""
        return self.fault(f"holds no averaged weights, which {self.how} asks for; use {self.how_not}")


def listed(names: list[str]) -> str:
    """Names joined, only the first few of many."""
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown}, and {len(names) - SHOWN} more"
