"""Whether two configurations are of one experiment."""

from __future__ import annotations

import hashlib
import json
from typing import Any

# What may change from machine to machine without making it another one, by section.
INCIDENTAL = {
    "data": {"root", "workers", "download", "check_sample"},
    "token_labels": {"root"},
    "train": {"compile", "log_every"},
    "evaluate": {"batch"},
    "checkpoint": {"every_epochs", "every_steps", "every_minutes", "best_metric"},
}


def differences(saved: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """One line for each value that differs between two dumped configurations, the first that of a checkpoint."""
    lines = []
    for key in {**saved, **now}:
        before, after = saved.get(key), now.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before!r} in the checkpoint, {after!r} now")
    return lines


def essential(config: dict[str, Any]) -> dict[str, Any]:
    """A dumped configuration without what does not decide what is learned."""
    return {
        name: {key: value for key, value in section.items() if key not in INCIDENTAL.get(name, ())}
        if isinstance(section, dict)
        else section
        for name, section in config.items()
    }


def experiment(config: dict[str, Any]) -> str:
    """A short name of what a dumped configuration decides of what is learned: equal for equal `essential` values."""
    return hashlib.sha256(json.dumps(essential(config), sort_keys=True).encode()).hexdigest()[:12]
