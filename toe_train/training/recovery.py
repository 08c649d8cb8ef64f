"""Numbers that are not finite: noticed by all processes together, gone back from so often, reported in full."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from toe_train.data import BatchLayout, GlobalOrder
from toe_train.errors import RunFailed
from toe_train.runs.progress import Progress
from toe_train.training.guard import NotFinite, StepGuard, not_finite
from toe_train.training.step import TrainStep

SAMPLES_SHOWN = 3


@dataclass(frozen=True)
class Limits:
    """How much a run bears, and its file of reports.

    Attributes:
        max_skipped: steps in a row that may be left out because their gradients are not finite.
        max_rollbacks: times that the run may go back to its last checkpoint because of more.
        path: file in the run folder, a JSON object a line for each time.
        order: of the images, to name them.
        describe: names an image by its index.
    """

    max_skipped: int
    max_rollbacks: int
    path: Path
    order: GlobalOrder
    describe: Callable[[int], str]

    def report(
        self,
        fault: NotFinite,
        rollbacks: int,
        guard: StepGuard,
        layout: BatchLayout,
        micro_batches: Sequence[Sequence[int]],
        write: bool,
    ) -> dict[str, Any]:
        """What is known of the first step that went wrong.

        Args:
            fault: what went wrong.
            rollbacks: how often the run went back before.
            guard: remembers the steps.
            layout: of the global batch.
            micro_batches: by rank, the micro-batches of the step whose loss is not finite.
            write: whether to append it to the file.
        """
        suspects = [layout.rows(rank, micro) for rank, micros in enumerate(micro_batches) for micro in micros]
        rows = torch.cat(suspects) if suspects else torch.arange(layout.global_batch)
        positions = rows[:0] if fault.step is None else fault.step * layout.global_batch + rows
        which = "those whose loss is not finite, by micro-batch" if suspects else "all of the step"
        before = guard.before(fault.epoch, fault.step)
        record = {
            "reason": str(fault),
            "epoch": fault.epoch,
            "step": fault.step,
            "rollbacks_before": rollbacks,
            "largest_gradients": _norms(guard, fault.epoch, fault.step),
            "largest_gradients_of_last_finite_step": _norms(guard, *before) if before else {},
            "samples_are": "not known, nor is the step" if fault.step is None else which,
            "samples": [self.describe(int(index)) for index in self.order.epoch(fault.epoch, rollbacks)[positions]],
        }
        if write:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        return record

    def require_another_try(self, fault: NotFinite, rollbacks: int, record: dict[str, Any], last: Path) -> None:
        """Ends the run where it went back often enough.

        Raises:
            RunFailed: naming the step, its largest gradients and samples; the same in all processes.
        """
        if rollbacks < self.max_rollbacks:
            return
        gradients = ", ".join(f"{name} {norm}" for name, norm in record["largest_gradients"].items()) or "none"
        samples = ", ".join(record["samples"][:SAMPLES_SHOWN])
        known = (
            f"largest gradients of that step: {gradients}\n"
            f"its images ({len(record['samples'])}, {record['samples_are']}): {samples}, ...\n"
        )
        failure = RunFailed(
            f"{fault}, after {rollbacks} roll-backs (train.max_rollbacks) to another order of the images.\n"
            f"{'' if fault.step is None else known}"
            f"{self.path} holds all that is known; the last healthy checkpoint is {last}. Continue with a lower "
            "optim.lr, train.precision=bf16 or fp32, or optim.clip_grad=1.0"
        )
        failure.shared = True
        raise failure


@dataclass
class Recovery:
    """Looks at the steps that were left out, and at what training goes on from, as all processes agree on it."""

    step: TrainStep
    limits: Limits
    place: tuple[int, int]  # epoch and steps done when the state was last known to be finite

    def require_short_rows(self, longest: float) -> None:
        """Ends the training where `longest`, agreed on by all processes, is more bad steps in a row than are left out.

        Raises:
            NotFinite: it is; from which step on.
        """
        if longest <= self.limits.max_skipped:
            return
        epoch, step = self.step.guard.first_of_longest()
        raise NotFinite(
            f"the gradients of more than {self.limits.max_skipped} steps in a row are not finite, from step "
            f"{step + 1} of epoch {epoch + 1} on",
            epoch,
            step,
        )

    def require_finite(self, here: Progress) -> None:
        """All processes leave for the last checkpoint together, if the state or too many steps are not finite.

        Raises:
            NotFinite: in all of them.
        """
        broken = not_finite(self.step.tensors())
        longest, count = self.step.processes.largest([self.step.guard.counts().longest, len(broken)])
        self.require_short_rows(longest)
        if count:
            raise self._weights_not_finite(here, int(count), broken[0] if broken else "in another process")
        self.place = (here.epoch, here.step)

    def report(self, fault: NotFinite, rollbacks: int, last: Path) -> bool:
        """Writes what is known of the fault after so many roll-backs; whether a loss was not finite in any process.

        All processes call it together.

        Raises:
            RunFailed: the run may not go back once more to `last`, its last healthy checkpoint.
        """
        processes, guard = self.step.processes, self.step.guard
        suspects = processes.gather(guard.micro_batches_not_finite(fault.epoch, fault.step))
        report = processes.together(
            lambda: self.limits.report(fault, rollbacks, guard, self.step.layout, suspects, processes.is_main)
        )
        self.limits.require_another_try(fault, rollbacks, report, last)
        return any(suspects)

    def _weights_not_finite(self, here: Progress, count: int, example: str) -> NotFinite:
        """Names the first bad step since they were finite, or says that none is known."""
        epoch, step = self.place
        what = (
            f"{count} tensors of the weights and moments are not finite after step {here.step} of epoch "
            f"{here.epoch + 1}, {example} for one"
        )
        bad = self.step.guard.first_bad(self.place)
        if bad is not None:
            return NotFinite(f"{what} (step {bad[1] + 1} of epoch {bad[0] + 1} was left out before)", *bad)
        if self.place != (here.epoch, here.step):
            what += f" (from which step on is not known; they were finite after step {step} of epoch {epoch + 1})"
        return NotFinite(what, here.epoch, None)


def _norms(guard: StepGuard, epoch: int, step: int | None) -> dict[str, float | str]:
    """The largest gradients by name; what JSON has no number for as a word."""
    found = guard.largest_gradients(epoch, step)
    return {name: norm if math.isfinite(norm) else str(norm) for name, norm in found}
