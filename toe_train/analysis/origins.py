"""Where the rows of a report come from: data, machine, command, and what of a row's configuration differs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import yaml

from toe_train.analysis.comparison import baseline_of
from toe_train.analysis.runs import Row
from toe_train.recipes import essential, read_values


def how_made(row: Row, rows: Sequence[Row]) -> str:
    """A line of Markdown: its epochs, data and machine, how it differs from its baseline, and a command."""
    config, base = row.config, baseline_of(row, rows)
    data = config.data.kind if config.data.kind == "digits" else f"{config.data.kind} {PurePath(config.data.root).name}"
    on = f", on {' and '.join(sorted(row.devices))}"
    words = f"**{row.name}**: {config.epochs} epochs of {data}{on}."
    if base is not None:
        own, former = (read_values(one) for one in (config, base.config))
        changed = differing(former, own, essential(config.model_dump(mode="json", exclude_defaults=True)))
        words += f" Differs from {base.name} in {', '.join(f'`{line}`' for line in changed) or 'nothing'}."
    commands = [start["command"] for start in row.counted[0].starts if "command" in start]
    return words + (f" Made by `{commands[-1]}`" if commands else "")


def differing(base: dict[str, Any], own: dict[str, Any], chosen: dict[str, Any], prefix: str = "") -> list[str]:
    """`key=value` for each value of a dumped configuration that is another in `base`; seeds are left out.

    `chosen` is `own` without defaults: what is shown of a section that `base` has not.
    """
    found = []
    for key, value in own.items():
        former, shown = base.get(key), chosen.get(key, value)
        if isinstance(value, dict) and isinstance(former, dict) and key != "kwargs":
            found += differing(former, value, shown, f"{prefix}{key}.")
        elif value != former and (prefix or key != "seed"):
            found.append(f"{prefix}{key}={_typed(shown if isinstance(value, dict) else value)}")
    return found


def _typed(value: Any) -> str:
    """As one types it after KEY=."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).removesuffix("\n...\n").strip()
