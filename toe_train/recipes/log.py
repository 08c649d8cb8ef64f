"""The section of who is told of a run, beside its folder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from toe_train.recipes.fields import INCIDENTAL, Section

TrackerName = Literal["wandb", "mlflow"]


class LogConfig(Section):
    """Who is told; `metrics.jsonl` and TensorBoard always are."""

    trackers: Annotated[tuple[TrackerName, ...], INCIDENTAL] = ()
    # A command for the shell when the run ends or fails; it is kept in config.yaml, so a secret has no place in it.
    on_end: Annotated[str | None, Field(min_length=1), INCIDENTAL] = None

    @field_validator("trackers")
    @classmethod
    def _each_once(cls, value: tuple[TrackerName, ...]) -> tuple[TrackerName, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"names one twice; use [{', '.join(dict.fromkeys(value))}]")
        return value
