"""`toe-train`: one run from one configuration."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from toe_train.cli.console import importing, lasting_console, tell_begun
from toe_train.cli.options import train_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, or one of `exits`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with lasting_console():
        options, unknown = train_parser().parse_known_intermixed_args(given)
        tell_begun("toe-train", sys.stdout)
        # Not at the top: what a run needs takes seconds to import, and --help needs none of it.
        with importing():
            from toe_train.cli.running import carry_out

        return carry_out(options, unknown, given)


if __name__ == "__main__":
    sys.exit(main())
