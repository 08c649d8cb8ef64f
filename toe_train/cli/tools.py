"""`toe-tools`: what surrounds a run; one subcommand each."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from toe_train.cli.console import importing, lasting_console, tell_begun
from toe_train.cli.options import tools_parser
from toe_train.cli.threads import take_threads


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (0 done, 2 the user's error)."""
    with lasting_console():
        return _main(list(sys.argv[1:] if arguments is None else arguments))


def _main(given: list[str]) -> int:
    parser = tools_parser()
    options, rest = parser.parse_known_args(given)  # overrides may stand after an option, which subparsers do not know
    takes_overrides = hasattr(options, "overrides")
    takes_folder = hasattr(options, "takes_folder")
    if unknown := [
        text for text in rest if not takes_overrides or text.startswith("-") or ("=" not in text and not takes_folder)
    ]:
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}{_meant(unknown) if takes_overrides else ''}")
    if takes_overrides:
        options.overrides += rest
    tell_begun("toe-tools", sys.stderr, where_seen=True)  # whose output may be read by a program
    # Not at the top: what a tool needs takes seconds to import, and --help needs none of it.
    with importing():
        from toe_train.cli.exits import guarded
        from toe_train.cli.printing import print_any_name

        tool = import_module(f"toe_train.cli.{options.tool}")
    print_any_name()
    take_threads()
    return guarded(lambda: tool.run(options, given))


def _meant(unknown: Sequence[str]) -> str:
    from toe_train.cli.typed import as_override

    return as_override(unknown[0], unknown[1] if len(unknown) > 1 else "")


if __name__ == "__main__":
    os._exit(main())  # as toe_train/__main__.py does, and why
