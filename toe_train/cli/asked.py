"""Which trained model a command is about: it stands first, or behind `--checkpoint`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from toe_train.build.weights.trained import Trained, open_trained
from toe_train.errors import UserError


def open_asked(options: argparse.Namespace, tool: str) -> Trained:
    """The model that `RUN` or `--checkpoint` names, with the overrides of its configuration.

    Args:
        options: see `tool_options`.
        tool: name of the command, for messages.

    Raises:
        UserError: none or more than one is named; or see `open_trained`.
    """
    path, overrides = _asked(options.overrides, options.checkpoint, tool)
    option = "--checkpoint" if options.checkpoint else ""
    return open_trained(path, options.weights, options.config, overrides, option)


def _asked(given: Sequence[str], checkpoint: str | None, tool: str) -> tuple[str, list[str]]:
    """What is named, and the overrides."""
    named = [text for text in given if "=" not in text or os.path.exists(text)]
    overrides = [text for text in given if text not in named]
    if checkpoint:
        named.insert(0, checkpoint)
    if len(named) != 1:
        told = f"{' and '.join(named)} are given" if named else "none is given"
        raise UserError(f"{tool} takes one run folder, checkpoint or file of weights, and {told}: toe-tools {tool} RUN")
    return named[0], overrides
