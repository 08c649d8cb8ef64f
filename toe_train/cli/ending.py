"""The end of a run, told to the command that `log.on_end` names."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping

from toe_train.cli.console import INTERRUPTED
from toe_train.cli.exits import PREEMPTED, RUN_FAILED, USER_ERROR
from toe_train.recipes import RunConfig
from toe_train.runs.folder import RunFolder
from toe_train.runs.log import read_metrics
from toe_train.runs.preemption import SIGNALS

SECONDS = 60  # that the command may take
LAUNCHED = "TOE_LAUNCHED"  # set for processes whose end is told by the `toe-train` that started them
RESTARTS_LEFT = "TOE_RESTARTS_LEFT"  # set by scripts/slurm.sh: how often it will start the processes again
# What says which process of a run this is: the command is none.
OF_PROCESSES = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", LAUNCHED, RESTARTS_LEFT),
    *("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS"),
)


class Ending:
    """Runs the command once, in the main process, when the run is over for good.

    Args:
        folder: of the run.
        saved: whether a checkpoint has been written since the command began.
    """

    def __init__(self, folder: RunFolder, saved: Callable[[], bool]) -> None:
        self._folder, self._saved = folder, saved
        self._config: RunConfig | None = None

    def of(self, config: RunConfig) -> None:
        """From now on the end counts: there is a run, and its configuration is read."""
        self._config = config

    def after(self, run: Callable[[], int]) -> int:
        """The exit code of `run`, which is told; a fault of our own too, which goes on."""
        code = 1
        try:
            code = run()
        finally:
            command = self._config.log.on_end if self._config is not None else None
            is_new = code != 0 or self._saved()  # else all was done before, and its end was told when it came
            if self._config is not None and command is not None and is_new and _is_last(code):
                self._tell(self._config, command, code)
        return code

    def _tell(self, config: RunConfig, command: str, code: int) -> None:
        fault = _carried_out(command, {**_plain_environment(), **self._facts(config, code)})
        if fault:
            print(f"note: log.on_end: {fault}: {command}", file=sys.stderr, flush=True)

    def _facts(self, config: RunConfig, code: int) -> dict[str, str]:
        try:
            epochs = read_metrics(self._folder.metrics, "epoch")
        except OSError:  # perhaps the very disk that ended the run
            epochs = []
        name = config.checkpoint.best_metric
        # The last of those that were the best until then; or of all, where an older version marked none.
        marked = [record for record in epochs if record.get("is_best")][-1:]
        best = marked or [record for record in epochs if "is_best" not in record]
        found = [record.get(f"{name}_full", record.get(name)) for record in best]
        scores = [score for score in found if score is not None]
        return {
            "TOE_RUN": str(self._folder.root),
            "TOE_STATUS": {0: "finished", PREEMPTED: "preempted", INTERRUPTED: "preempted"}.get(code, "failed"),
            "TOE_EXIT_CODE": str(code),
            "TOE_BEST": f"{name}={max(scores):g}" if scores else "",
            "TOE_EPOCHS": f"{epochs[-1]['epoch'] + 1 if epochs else 0}/{config.epochs}",
        }


def _is_last(code: int) -> bool:
    """Whether this process tells the end, and is not started again, as far as what started it lets know."""
    if os.environ.get("RANK", "0") != "0" or LAUNCHED in os.environ:
        return False
    if code in (0, PREEMPTED, INTERRUPTED):
        return True
    if most := os.environ.get("TORCHELASTIC_MAX_RESTARTS"):  # torchrun starts again whatever failed
        return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) >= int(most)
    return code in (USER_ERROR, RUN_FAILED) or os.environ.get(RESTARTS_LEFT, "0") == "0"


def _plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in OF_PROCESSES}


def _carried_out(command: str, environment: Mapping[str, str]) -> str:
    """Runs a command in a session of its own, which a launcher that ends this process does not reach; its fault."""
    former = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: None)
    if former[signal.SIGINT] != signal.SIG_IGN:  # a launcher's own handler would end this process instead
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with subprocess.Popen(
            command, shell=True, env=dict(environment), stdin=subprocess.DEVNULL, start_new_session=True
        ) as process:
            try:
                code = process.wait(SECONDS)
            except (subprocess.TimeoutExpired, KeyboardInterrupt) as fault:
                os.killpg(process.pid, signal.SIGKILL)
                return "interrupted" if isinstance(fault, KeyboardInterrupt) else f"not done after {SECONDS} s, ended"
    except OSError as error:
        return f"it cannot be started ({error})"
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    return f"it ended with code {code}" if code else ""
