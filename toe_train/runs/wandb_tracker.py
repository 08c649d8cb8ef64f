"""Weights & Biases (the extra `wandb`).

Its own variables say where to: WANDB_MODE=offline writes files for `wandb sync`, WANDB_PROJECT and WANDB_ENTITY name
the place; WANDB_NAME, WANDB_RUN_ID, WANDB_DIR, WANDB_CONSOLE and WANDB_SILENT count where they are set.

A resumed run is opened by its id (`resume="allow"`). Lines are numbered (`step=`), and wandb leaves out a number that
its run has already: what is sent again after a process was killed before it wrote down what it had sent. Offline each
start has a folder of its own, and `wandb sync` puts those of one id together, in the order of their time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toe_train.errors import UserError
from toe_train.runs.curves import BY_STEP, Point
from toe_train.runs.tracker import PATIENCE_SECONDS, Service, Status

FLUSH_SECONDS = 1.0  # after which wandb writes to its file what it was given; 15 by default


class Wandb(Service):
    """A run of wandb.

    Args:
        title: of the run.
        folder: of wandb's files, unless WANDB_DIR names another.
        settings: of the run, by dotted name.
    """

    name = "wandb"
    settles = 5.0  # FLUSH_SECONDS, and for its own process

    def __init__(self, title: str, folder: Path, settings: Mapping[str, Any]) -> None:
        self._title, self._folder, self._settings = title, folder, settings
        self._run: Any = None

    def begin(self, run: str | None) -> str:
        import wandb  # an extra

        if self._run is not None:  # begun before a fault
            return str(self._run.id)
        own = {"console": ("WANDB_CONSOLE", "off"), "silent": ("WANDB_SILENT", True)}
        chosen = {key: value for key, (variable, value) in own.items() if variable not in os.environ}
        self._run = wandb.init(
            id=run,
            resume=None if run is None else "allow",
            name=None if "WANDB_NAME" in os.environ else self._title,
            dir=None if "WANDB_DIR" in os.environ else str(self._folder),
            config=dict(self._settings),
            allow_val_change=True,
            settings=wandb.Settings(
                finish_timeout=PATIENCE_SECONDS, x_transaction_log_flush_interval=FLUSH_SECONDS, **chosen
            ),
        )
        self._run.define_metric("epoch", hidden=True)
        self._run.define_metric("step", hidden=True)
        for group in ("accuracy", "loss", "speed", "system"):
            self._run.define_metric(f"{group}/*", step_metric="epoch")
        self._run.define_metric(f"{BY_STEP}/*", step_metric="step")
        files = Path(self._run.dir).parent
        self.where = f"offline: wandb sync {files}" if self._run.offline else str(self._run.url)
        return str(self._run.id)

    def send(self, points: Sequence[Point], first: int) -> None:
        for number, point in enumerate(points, first):
            self._run.log({**point.values, point.axis: point.at}, step=number, commit=True)

    def finish(self, status: Status) -> None:
        run, self._run = self._run, None
        if status == "preempted":
            run.mark_preempting()  # and with an exit code it counts as preempted
        run.finish(exit_code=0 if status == "finished" else 1)


def require_key() -> None:
    """Refuses where wandb would ask for a key.

    Raises:
        UserError: saying what to do.
    """
    import wandb  # an extra

    if wandb.setup().settings.mode in ("online", "shared") and not wandb.login(prompt=False):
        raise UserError(
            "log.trackers: wandb has no key for its server; run `wandb login`, set WANDB_API_KEY, or set "
            "WANDB_MODE=offline, which writes files for `wandb sync`"
        )
