"""The points that the records of a run are of curves: in groups, over epochs or steps that count from 1.

TensorBoard and the trackers show the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from toe_train.runs.log import Record

# Of each number of an epoch but the scores and the losses, the group in which it stands.
GROUPS = {
    "lr": "loss",
    **dict.fromkeys(("images_per_second", "train_seconds", "data_wait_seconds", "compute_seconds"), "speed"),
    **dict.fromkeys(("save_seconds", "gpu_hours", "gpu_hours_with_loading"), "speed"),
    **dict.fromkeys(("tokens", "tokens_kept", "stage", "image_size"), "speed"),
}
OTHERS = "system"
BY_STEP = "steps"  # where the curves over steps stand, whose names are those of some over epochs


@dataclass(frozen=True)
class Point:
    """Numbers of one place of a run.

    Attributes:
        axis: what is counted.
        at: number of the epoch, or of the step in the whole run, from 1.
        values: by `group/name`.
    """

    axis: Literal["epoch", "step"]
    at: int
    values: dict[str, float]


def groups_of(scores: Iterable[str], losses: Iterable[str]) -> dict[str, str]:
    """The group of each name in an epoch's record: accuracy, loss, speed; what is not named is of the system.

    Args:
        scores: that say how good a model is; names in the record.
        losses: that training and evaluation tell; names in the record.
    """
    return {**GROUPS, **dict.fromkeys(scores, "accuracy"), **dict.fromkeys(losses, "loss")}


def tag_of(name: str, groups: Mapping[str, str]) -> str:
    """`group/name` of a number in an epoch's record; groups: see `groups_of`."""
    return f"{groups.get(name, OTHERS)}/{name}"


def of_epoch(record: Record, groups: Mapping[str, str]) -> Point:
    """Every number of an epoch's record, a truth value being none; groups: see `groups_of`."""
    numbers = {
        name: value
        for name, value in record.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and name != "epoch"
    }
    return Point("epoch", record["epoch"] + 1, {tag_of(name, groups): value for name, value in numbers.items()})


def of_step(record: Record, steps: int) -> Point:
    """Loss and learning rate of a step's record, in an epoch of so many steps."""
    values = {f"loss/{name}": record[name] for name in ("train_loss", "lr") if record[name] is not None}
    return Point("step", record["epoch"] * steps + record["step"] + 1, values)
