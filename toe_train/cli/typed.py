"""What a user typed that is no option and no KEY=VALUE, with what was probably meant."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Sequence
from itertools import pairwise

from toe_train.errors import UserError
from toe_train.recipes import dotted_key

OPTIONS = ("--config", "--resume", "--nproc", "--output")  # that take a value
FLAGS = ("--dry-run", "--version", "--help")


def require_understood(given: Sequence[str], unknown: Sequence[str], overrides: Sequence[str]) -> None:
    """Refuses options that there are not, and what follows the value of an option without being a KEY=VALUE.

    Args:
        given: all arguments, as they were typed.
        unknown: those that begin with a dash and are no option.
        overrides: those that are to be KEY=VALUE.

    Raises:
        UserError: naming the key of the configuration, the option, or the quotes that were probably meant.
    """
    for argument in unknown:
        raise UserError(f"{argument.partition('=')[0]} is no option{_meant(argument, _after(given, argument))}")
    for argument in overrides:
        at = list(given).index(argument)
        if "=" not in argument and at > 1 and given[at - 2] in OPTIONS and dotted_key(argument) is None:
            whole = f'{given[at - 2]} "{given[at - 1]} {argument}"'
            raise UserError(
                f"{argument!r} must have the form KEY=VALUE; if it is a part of the value before it, quote it: {whole}"
            )


def _after(given: Sequence[str], argument: str) -> str:
    return next((after for before, after in pairwise(given) if before == argument), "")


def _meant(argument: str, after: str) -> str:
    name = argument.partition("=")[0]
    if near := difflib.get_close_matches(name, (*OPTIONS, *FLAGS), n=1, cutoff=0.75):
        return f"; did you mean {near[0]}?"
    if meant := as_override(argument, after):
        return meant
    return f"; there are {', '.join((*OPTIONS, *FLAGS))}, and KEY=VALUE for what the YAML file holds"


def as_override(argument: str, after: str) -> str:
    """What to write in place of an option that is a key of the YAML file; empty where it is none.

    Args:
        argument: as it was typed: `--epochs=3`, or `--epochs`.
        after: what was typed behind it.
    """
    name, separator, value = argument.partition("=")
    if not argument.startswith("-") or (key := dotted_key(name.lstrip("-"))) is None:
        return ""
    if not separator:
        value = "VALUE" if not after or "=" in after or after.startswith("--") else after
    return f"; values of the YAML file are given as KEY=VALUE: write {shlex.quote(f'{key}={value}')}"
