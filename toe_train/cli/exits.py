"""Exit codes of the commands, and the one place where an error becomes a message."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from toe_train.errors import RunFailed, UserError

USER_ERROR = 2
RUN_FAILED = 3
INTERRUPTED = 130


def guarded(command: Callable[[], int]) -> int:
    """Runs `command`; what the user caused ends as a message on stderr and an exit code, without a traceback."""
    try:
        return command()
    except UserError as error:
        return _report("error", error, USER_ERROR)
    except RunFailed as error:
        return _report("run failed", error, RUN_FAILED)
    except KeyboardInterrupt:
        return _report(
            "interrupted", "by the keyboard; the same command continues from the last checkpoint", INTERRUPTED
        )


def _report(what: str, message: object, code: int) -> int:
    if int(os.environ.get("RANK", 0)) == 0:  # every process meets the same fault; one says so
        print(f"{what}: {message}", file=sys.stderr)
    return code
