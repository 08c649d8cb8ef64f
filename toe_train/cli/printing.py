"""What the commands print can be printed: a file's name may hold bytes that are no text."""

from __future__ import annotations

import codecs
import sys

from toe_train.data import escaped

HANDLER = "toe_train.escaped"


def print_any_name() -> None:
    """From now on stdout and stderr show what they cannot encode as escapes, a byte that is no text as \\xNN."""
    codecs.register_error(HANDLER, _escape)
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):  # not every stand-in for a console has it
            reconfigure(errors=HANDLER)


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return escaped(error.object[error.start : error.end]), error.end
