"""`toe-tools plan`: the stages of a run, before it is trained."""

from __future__ import annotations

import argparse

from toe_train.analysis.tables import plan_table
from toe_train.errors import UserError
from toe_train.recipes import load_config


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Prints them; returns the exit code."""
    if options.classes < 1:
        raise UserError(f"--classes {options.classes} must be at least 1")
    print(plan_table(load_config(options.config, options.overrides), options.classes))
    return 0
