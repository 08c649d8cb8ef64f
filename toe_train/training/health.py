"""Whether the numbers of a run are finite, as all its processes agree on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toe_train.training.progress import Progress
from toe_train.training.recovery import Recovery
from toe_train.training.stability import NotFinite, not_finite
from toe_train.training.step import TrainStep


@dataclass
class Health:
    """Looks at the steps that were left out, and at what training goes on from."""

    step: TrainStep
    recovery: Recovery
    place: tuple[int, int]  # epoch and steps done when the state was last known to be finite

    def require_short_rows(self, longest: float) -> None:
        """Ends the training where `longest`, agreed on by all processes, is more bad steps in a row than are left out.

        Raises:
            NotFinite: it is; from which step on.
        """
        if longest <= self.recovery.max_skipped:
            return
        epoch, step = self.step.guard.first_of_longest()
        raise NotFinite(
            f"the gradients of more than {self.recovery.max_skipped} steps in a row are not finite, from step "
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
            lambda: self.recovery.report(fault, rollbacks, guard, self.step.layout, suspects, processes.is_main)
        )
        self.recovery.require_another_try(fault, rollbacks, report, last)
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
