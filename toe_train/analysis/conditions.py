"""Whether times compare: what a run was timed under, and whether that changed on the way."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import quantiles

from toe_train.runs.log import Record

UNSTEADY = 1.25  # upper over lower quartile of the epochs of a stage; an idle machine stays under 1.1
CONDITIONS = {
    "device": "device",
    "world_size": "number of processes",
    "threads": "number of threads",  # of each process; older runs do not tell
    "versions": "set of versions",
}

Conditions = tuple[str, ...]  # their values


def conditions_of(start: Record) -> Conditions:
    """What a start of a run says that it ran under."""
    return tuple(str(start.get(name, "?")) for name in CONDITIONS)


def change(starts: Sequence[Record], stages: Sequence[Sequence[Record]]) -> str:
    """What changed within a run so that its speeds do not compare, with others' or with each other; empty for nothing.

    Epochs of one stage do the same work, so their quartiles lie close together on a machine that does nothing else.

    Args:
        starts: lines of the run's starts.
        stages: lines of its epochs, those of each stage together.
    """
    for name, what in CONDITIONS.items():
        if len(different := {start[name] for start in starts if name in start}) > 1:
            return f"the run changed its {what} on the way ({', '.join(map(str, sorted(map(str, different))))})"
    for records in stages:
        rates = [record["images_per_second"] for record in records if "images_per_second" in record]
        steady = rates[1:]  # the first compiles and warms up
        low, _, high = quantiles(steady, n=4, method="inclusive") if len(steady) > 1 else (1, 1, 1)
        if high > UNSTEADY * low:
            return (
                f"the epochs of stage {records[0]['stage']} differ in speed (quartiles {low:.0f} .. {high:.0f} "
                "images/s), as where other programs share the machine"
            )
    return ""
