"""`toe-tools plan`: the stages of a run, before it is trained."""

from __future__ import annotations

import argparse

from toe_train.analysis.tables import plan_table
from toe_train.build.preflight import build_parts
from toe_train.errors import UserError
from toe_train.recipes import load_config


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Prints them; returns the exit code."""
    if options.classes < 1:
        raise UserError(f"--classes {options.classes} must be at least 1")
    config = load_config(options.config, options.overrides)
    build_parts(config, world_size=1, num_classes=options.classes)  # refuses what a run would be refused for
    print(plan_table(config, options.classes))
    if config.train.global_batch != config.global_batch:  # auto
        print(f"note: the batch, and the learning rate by it, follow the number of images; here {config.global_batch}")
    return 0
