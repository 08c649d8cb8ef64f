"""The console may go away while a command runs: `| head` ends, a terminal is closed. The command goes on without it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TextIO

from toe_train._version import __version__

INTERRUPTED = 130  # exit code, as of a shell


class LastingStream:
    """A text stream that takes every line; what its console cannot take any more is dropped, which is said once.

    Args:
        stream: that it passes everything on to; None where the process has none.
        name: of it, in words.
    """

    def __init__(self, stream: TextIO | None, name: str) -> None:
        self._stream = stream
        self._name = name

    def write(self, text: str) -> int:
        """Writes, or drops."""
        if self._stream is not None:
            try:
                return self._stream.write(text)
            except OSError as error:
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Sends what was written, or drops it."""
        if self._stream is not None:
            try:
                self._stream.flush()
            except OSError as error:
                self._lose(error)

    def isatty(self) -> bool:
        """Whether a person looks at it."""
        return self._stream is not None and self._stream.isatty()

    def _lose(self, error: OSError) -> None:
        """Sends all that comes to nowhere; what the stream still holds too, else it fails again when Python ends."""
        assert self._stream is not None
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        self._stream = None
        if self._name == "standard output":  # and where standard error is gone, nobody is there to be told
            note = f"note: {self._name} is gone ({error.strerror}); the command goes on without it"
            print(note, file=sys.stderr, flush=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def tell_begun(program: str, stream: TextIO, where_seen: bool = False) -> None:
    """Says, before libraries are imported, that a command has begun: their import takes seconds.

    Not under torchrun, which has imported them already and would say it in each process.

    Args:
        program: name of the command.
        stream: to write to.
        where_seen: only where that is a terminal.
    """
    if "torch" in sys.modules or "RANK" in os.environ or (where_seen and not stream.isatty()):
        return
    print(f"{program} {__version__}: loading PyTorch, which takes some seconds", file=stream, flush=True)


@contextmanager
def importing() -> Iterator[None]:
    """For the block, which imports libraries, Ctrl-C ends the process with one line.

    Not by KeyboardInterrupt, which a library's import may swallow or turn into a fault of its own. Where something else
    than Python's own handler is set, as in a background job that ignores it, that stays.
    """
    own = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not own or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    if os.environ.get("RANK", "0") == "0":
        os.write(2, b"interrupted: while the libraries were loaded; nothing was begun\n")
    os._exit(INTERRUPTED)


@contextmanager
def lasting_console() -> Iterator[None]:
    """For the block, a standard output or error that is gone ends nothing, and neither does a terminal's end.

    A closed terminal sends SIGHUP, which is not listened to, as under nohup.
    """
    former = sys.stdout, sys.stderr
    sys.stdout = LastingStream(sys.stdout, "standard output")
    sys.stderr = LastingStream(sys.stderr, "standard error")
    in_main_thread = threading.current_thread() is threading.main_thread()
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN) if in_main_thread else None
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = former
        if in_main_thread:
            signal.signal(signal.SIGHUP, hangup or signal.SIG_DFL)
