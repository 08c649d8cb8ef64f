"""MLflow (the extra `mlflow`).

Its own variables say where to: MLFLOW_TRACKING_URI names a server, or a store on this machine that needs no network
(sqlite:///mlflow.db in the current folder is its default); MLFLOW_EXPERIMENT_NAME, MLFLOW_RUN_NAME and MLFLOW_RUN_ID
count where they are set.

MLflow overwrites nothing. A second value of a step is kept beside the first, so a run that goes on, or a request that
is repeated, asks first which steps are there. A parameter keeps the value that it had first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from toe_train.runs.curves import Point
from toe_train.runs.tracker import Service, Status

MOST_METRICS, MOST_PARAMS = 1000, 100  # of a request (mlflow/utils/validation.py)
ENDINGS = {"finished": "FINISHED", "failed": "FAILED", "preempted": "KILLED"}


class Mlflow(Service):
    """A run of MLflow.

    Args:
        title: of the run.
        settings: of the run, by dotted name.
    """

    name = "mlflow"

    def __init__(self, title: str, settings: Mapping[str, Any]) -> None:
        self._title, self._settings = title, settings
        self._run = ""
        self._goes_on = False
        self._there: dict[str, set[int]] = {}  # steps that the run has, by tag

    def begin(self, run: str | None) -> str:
        import mlflow  # an extra

        active = mlflow.active_run()  # of this thread: begun before a fault
        if active is None:
            title = None if run is not None or "MLFLOW_RUN_NAME" in os.environ else self._title
            active = mlflow.start_run(run_id=run, run_name=title)
        self._run, self._goes_on, self._there = active.info.run_id, run is not None, {}
        client = mlflow.MlflowClient()
        known = client.get_run(self._run).data.params
        new = [mlflow.entities.Param(key, str(value)) for key, value in self._settings.items() if key not in known]
        for begin in range(0, len(new), MOST_PARAMS):
            client.log_batch(self._run, params=new[begin : begin + MOST_PARAMS])
        self.where = f"in {mlflow.get_tracking_uri()}"
        return self._run

    def send(self, points: Sequence[Point], first: int) -> None:
        import mlflow

        now = int(1000 * time.time())
        client = mlflow.MlflowClient()
        new = [
            mlflow.entities.Metric(tag, value, now, point.at)
            for point in points
            for tag, value in point.values.items()
            if point.at not in self._steps(client, tag)
        ]
        for begin in range(0, len(new), MOST_METRICS):
            client.log_batch(self._run, metrics=new[begin : begin + MOST_METRICS])

    def finish(self, status: Status) -> None:
        import mlflow

        mlflow.end_run(ENDINGS[status])

    def _steps(self, client: Any, tag: str) -> set[int]:
        """Of a run that goes on, the steps that it has of a tag."""
        if tag not in self._there:
            history = client.get_metric_history(self._run, tag) if self._goes_on else []
            self._there[tag] = {metric.step for metric in history}
        return self._there[tag]
