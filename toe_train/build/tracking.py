"""The trackers of a run, over all its trainers: from the check that they are there to how the run ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from toe_train.errors import Preempted, UserError
from toe_train.recipes import RunConfig
from toe_train.runs.folder import RunFolder
from toe_train.runs.log import RunLog, Several
from toe_train.runs.mlflow_tracker import Mlflow
from toe_train.runs.processes import Processes
from toe_train.runs.tracker import Service, Status, Tracker, end_all
from toe_train.runs.wandb_tracker import Wandb, require_key


def require_trackers(config: RunConfig) -> None:
    """Refuses a tracker that this machine cannot tell anything.

    Raises:
        UserError: saying what to do.
    """
    for name in config.log.trackers:
        try:
            import_module(name)  # an extra
        except ImportError as error:
            raise UserError(
                f"log.trackers: {name} cannot be imported ({error}); pip install 'toe-train[{name}]', or leave it out"
            ) from None
    if "wandb" in config.log.trackers:
        require_key()


class Tracking:
    """The trackers of a run; none on any process but the main one."""

    def __init__(self, names: Sequence[str] = (), folder: RunFolder | None = None) -> None:
        self._names, self._folder = names, folder
        self._trackers: list[Tracker] = []

    def log(self, settings: Mapping[str, Any], groups: Mapping[str, str], steps: int) -> RunLog:
        """What tells them; the same for each trainer of the run.

        Args:
            settings: of the run, by dotted name.
            groups: see `curves.groups_of`.
            steps: of an epoch.
        """
        if not self._trackers and self._folder is not None:
            folder = self._folder
            services: dict[str, Callable[[], Service]] = {
                "wandb": lambda: Wandb(folder.root.name, folder.root, settings),
                "mlflow": lambda: Mlflow(folder.root.name, settings),
            }
            self._trackers = [
                Tracker(services[name](), folder.metrics, folder.trackers / f"{name}.json", groups, steps)
                for name in self._names
            ]
        return Several(self._trackers)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """For the block, which trains; tells the trackers in the end how that went."""
        status: Status = "failed"
        try:
            yield
            status = "finished"
        except Preempted:
            status = "preempted"
            raise
        finally:
            end_all(self._trackers, status)


def build_tracking(config: RunConfig, folder: RunFolder, here: Processes) -> Tracking:
    """The trackers that a run asks for; all processes call it together.

    Raises:
        UserError: see `require_trackers`.
    """
    here.main_only(lambda: require_trackers(config))
    return Tracking(config.log.trackers, folder) if here.is_main else Tracking()
