"""`toe-tools models`: which models tokens can be dropped in."""

from __future__ import annotations

import argparse
from pathlib import Path

from toe_train.analysis.served import page
from toe_train.errors import UserError


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Tries them, and prints or writes the page; returns the exit code."""
    try:
        text = page()
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed, whose models are tried: pip install transformers") from None
    if options.output is None:
        print(text, end="")
    else:
        Path(options.output).write_text(text)
        print(f"{options.output}: written")
    return 0
