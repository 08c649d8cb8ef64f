"""Being asked to stop: SIGTERM and SIGUSR1, as schedulers send them before they take a machine back, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

from toe_train.errors import Preempted
from toe_train.runs.processes import Processes

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
SAME_REQUEST_SECONDS = 3.0
SAME_KEY_SECONDS = 0.3  # in which a second Ctrl-C of a person is the first one's echo


def preempted(where: str) -> Preempted:
    """What all processes of a run raise when one was asked to stop: `where` says in what part of the run, and more."""
    error = Preempted(f"by a signal, {where}", then="{command} continues")
    error.shared = True
    return error


class StopRequest:
    """Remembers that a signal asked this process to stop; the training loop looks at it at its next poll.

    A second signal ends the process at once, without saving; within a few seconds of the first it is taken for the same
    request, since schedulers and launchers often send one to a group and again to each process. A second Ctrl-C in a
    process that no launcher started is a person's, and ends it however soon it comes. A thread reads the signals, so
    that this holds while the process waits in a collective operation for one that is gone.

    Attributes:
        signal: number of the signal, 0 for none.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._since = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals over for the block; in the main thread."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        heard = [number for number in SIGNALS if not (number == signal.SIGINT and _in_background())]
        former = {number: signal.signal(number, lambda number, frame: None) for number in heard}
        former_descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        thread = Thread(target=self._read, args=(reader,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(former_descriptor)
            for number, handler in former.items():
                signal.signal(number, handler)
            writer.send(b"\0")  # ends the thread, which closing does not while loader processes hold the socket too
            thread.join()
            writer.close()
            reader.close()

    def leave(self, processes: Processes, where: str) -> None:
        """Raises Preempted in all processes if one of them was asked to stop; they call it together."""
        if processes.max(self.signal):
            raise preempted(where)

    def _read(self, reader: socket.socket) -> None:
        while number := reader.recv(1)[0]:
            if number in SIGNALS:
                self._note(number)

    def _note(self, number: int) -> None:
        if not self.signal:
            self.signal, self._since = number, time.monotonic()
            if number == signal.SIGINT and os.environ.get("RANK", "0") == "0":
                note = "Ctrl-C: the run saves its place and ends; a second one ends it at once"
                print(f"\n{note}", file=sys.stderr, flush=True)
            return
        by_hand = number == self.signal == signal.SIGINT and "RANK" not in os.environ
        if time.monotonic() - self._since > (SAME_KEY_SECONDS if by_hand else SAME_REQUEST_SECONDS):
            os._exit(128 + number)


def _in_background() -> bool:
    """Whether a shell started this with `&`, so that Ctrl-C is meant for another command."""
    return signal.getsignal(signal.SIGINT) == signal.SIG_IGN
