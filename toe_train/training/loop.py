"""The training loop: epochs of steps, evaluation, checkpoints, and going back where numbers are not finite."""

from __future__ import annotations

import gc
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from toe_train.data import BatchLayout
from toe_train.errors import RunFailed
from toe_train.methods.method import Method
from toe_train.recipes import EpochPlan, sides_of
from toe_train.runs.checkpoints import FORMAT
from toe_train.runs.clock import EpochClock
from toe_train.runs.log import RunLog
from toe_train.runs.memory import StepTooLarge, peak_memory, reset_peak_memory
from toe_train.runs.polling import Polling
from toe_train.runs.preemption import StopRequest, preempted
from toe_train.runs.processes import Processes
from toe_train.runs.progress import Progress
from toe_train.training.cadence import Cadence
from toe_train.training.evaluation import Evaluation
from toe_train.training.guard import NotFinite
from toe_train.training.inputs import Inputs
from toe_train.training.keeper import Keeper, require_same_everywhere
from toe_train.training.optim import set_lr
from toe_train.training.pictures import Pictures
from toe_train.training.records import epoch_record, step_record
from toe_train.training.recovery import Recovery
from toe_train.training.step import TrainStep
from toe_train.training.window import Window


@dataclass
class Trainer:
    """The parts of a run, made by `build.trainer`, and the loop over them."""

    step: TrainStep  # model, averaged model, optimiser, task and method
    inputs: Inputs  # batches
    cadence: Cadence  # what happens when
    progress: Progress  # where the run stands
    evaluation: Evaluation
    keeper: Keeper  # of checkpoints
    recovery: Recovery  # from numbers that are not finite
    pictures: Pictures  # of its images
    log: RunLog
    stop: StopRequest = field(default_factory=StopRequest)
    polling: Polling = field(init=False)  # while training
    evaluation_polling: Polling = field(init=False)

    def __post_init__(self) -> None:
        self.polling, self.evaluation_polling = Polling(self.processes), Polling(self.processes)

    @property
    def processes(self) -> Processes:
        """This process among its fellows."""
        return self.step.processes

    @property
    def layout(self) -> BatchLayout:
        """How the global batch is cut."""
        return self.step.layout

    @property
    def model(self) -> nn.Module:
        """The plain model: evaluated and saved."""
        return self.step.model

    @property
    def method(self) -> Method:
        """How training is made cheaper."""
        return self.step.method

    def fit(self) -> None:
        """Trains the epochs that are left, up to one that needs another trainer.

        Raises:
            RunFailed: numbers not finite again and again, or not the same in all processes; or what saving raises.
            Preempted: a signal asked a process to stop; the place is saved.
        """
        try:
            with self.inputs.watching():
                self._fit()
        finally:
            gc.unfreeze()
            self.inputs.close()
            self.log.close()

    def _fit(self) -> None:
        if self.processes.max(self.stop.signal):
            raise preempted("before its first step; nothing was to save")
        if self.processes.max(not self.keeper.saved):
            self.step.load_state(self.processes.from_main(self.step.state))  # of a new run, or an older checkpoint
            self._save_beginning()
        self._compile()
        require_same_everywhere(self.step.tensors(), self.processes)
        self.step.join()
        gc.collect()
        gc.freeze()  # what lives as long as the run is not looked through again and again
        while self.cadence.is_for(self.progress.epoch):
            try:
                self._run_epoch(self.cadence.plans[self.progress.epoch])
            except NotFinite as fault:
                self._roll_back(fault)

    def _save_beginning(self) -> None:
        """Writes a checkpoint to go back to, and learns at once that the disk takes it."""
        try:
            self._save()
        except NotFinite as fault:  # and there is nothing to go back to
            failure = RunFailed(f"{fault}, before the first step: the checkpoint that it continues from holds them")
            failure.shared = True
            raise failure from None

    def _compile(self) -> None:
        """Compiles the step, or says why not and leaves it."""
        if self.step.compile is None:
            return
        begin = time.monotonic()
        try:
            reason = self.step.compile()
        except torch.OutOfMemoryError as error:
            raise StepTooLarge(str(error)) from None
        done = f"compiled the step in {time.monotonic() - begin:.0f} s"
        failed = f"torch.compile does not work here ({reason}): the run goes on without it, slower"
        self.log.note(failed if reason else done)

    def _run_epoch(self, plan: EpochPlan) -> None:
        record = self.train_epoch(plan)
        self.recovery.require_finite(self.progress)  # before an evaluation of what would be thrown away
        record.update(self.validate(plan), skipped_images=self.inputs.num_skipped())
        row = self.step.guard.counts().running
        best = self.progress.best if row else self.evaluation.better(record, self.progress.best)
        is_best = best > self.progress.best
        self.log.epoch({**record, "is_best": is_best})
        self.progress = self.progress.after_epoch(best)
        self._end_epoch(plan, row, is_best)
        gc.collect()  # here rather than within a step of the next one

    def train_epoch(self, plan: EpochPlan) -> dict[str, Any]:
        """One epoch of steps; the part of its record that training knows."""
        here = self.progress
        self.method.begin_epoch(plan.epoch)
        self.pictures.begin(plan, self.log)
        self.inputs.sampler.set_epoch(plan.epoch, here.step, here.rollbacks)
        steps = here.step + len(self.inputs.sampler) // self.layout.accumulation
        kept = self._work(plan)
        self.log.epoch_begins(plan.epoch, plan.stage, f"{kept}/{self.inputs.num_tokens}", steps)
        reset_peak_memory(self.processes.device)
        self.step.train()
        self.step.guard.begin_epoch(here.skipped)
        self.polling.restart()
        clock = EpochClock(self.processes.device, here.clock)
        batches = clock.waiting(self.inputs.train)
        window = Window(here, self.processes, len(self.step.task.loss_terms))
        for step in range(here.step, steps):
            lr = self.cadence.schedule.lr(plan.epoch, step)
            set_lr(self.step.optimizer, lr)
            try:
                losses = self.step(batches, clock, plan.epoch, step)
            except torch.OutOfMemoryError as error:
                raise StepTooLarge(str(error)) from None
            window.add(losses, self.step.tokens(self.inputs.tokens_at, plan.stage), self.layout.micro_batch)
            here.step = step + 1
            self.log.advance()
            if self.cadence.logs(here.step, steps):
                self._log_step(plan, steps, lr, window, clock)
            self._save_within(plan, steps, window, clock)
        here.window, here.token_window = [], []
        here.skipped = self.step.guard.counts().total
        here.account(clock, self.processes)
        return self._epoch_record(plan, steps)

    def _save_within(self, plan: EpochPlan, steps: int, window: Window, clock: EpochClock) -> None:
        """After a step: saves where it is time, and stops where a process was asked to; not after the last one."""
        here = self.progress
        stop, save = self._look() if self.polling.due() else (0.0, 0.0)
        if here.step == steps or not (stop or save or self.cadence.saves_within(here.step)):
            return
        counts = self.step.guard.counts()
        if counts.running:  # finite as the weights are, they may be the cause, and are not to be gone back to
            self.polling.soon()
            return
        window.keep(here)
        here.skipped = counts.total
        here.account(clock, self.processes)
        self._save()
        if stop:
            raise preempted(f"after step {here.step} of epoch {plan.epoch + 1}")

    def _look(self) -> tuple[float, float]:
        """What the processes have to tell each other: whether to stop, and whether to save."""
        counts = self.step.guard.counts()
        late = self.cadence.is_late(self.keeper.saved_at)
        stop, save, longest = self.polling.largest(self.stop.signal, late, counts.longest)
        self.recovery.require_short_rows(longest)
        return stop, save

    def _leave_before_validation(self) -> None:
        """Stops with its evaluation to do, if asked to; after a bad step the next epoch's first good one is awaited."""
        if not self.evaluation_polling.due():
            return
        stop, row = self.evaluation_polling.largest(self.stop.signal, self.step.guard.counts().running)
        if stop and not row:
            self._save()
            raise preempted(f"in the evaluation of epoch {self.progress.epoch + 1}")

    def _save(self, is_best: bool = False) -> None:
        """Writes a checkpoint of what is finite."""
        self.recovery.require_finite(self.progress)
        self.log.saving()
        self.keeper.save(self.state(), is_best)
        self.log.saved()

    def _work(self, plan: EpochPlan) -> int:
        """Patch tokens that an epoch keeps of an image, whose size may be another stage's of the curriculum."""
        return self.method.tokens_kept(self.inputs.tokens_at(sides_of(plan.image_size)), plan.stage)

    def validate(self, plan: EpochPlan) -> dict[str, float | None]:
        """The scores of an epoch, see `Evaluation`; None each in one that skips it."""
        if not self.cadence.evaluates(plan.epoch):
            return self.evaluation.none()
        self.evaluation_polling.restart()
        averaged = self.step.ema.module if self.step.ema is not None else None
        scores = self.evaluation.scores(self.model, averaged, self._leave_before_validation)
        self.pictures.evaluated(plan, self.log)
        self.inputs.require_few_skipped(self.processes)
        return scores

    def _end_epoch(self, plan: EpochPlan, row: int, is_best: bool) -> None:
        """Writes a checkpoint where one is due, where a stage ends, or of the best; not after a `row` of bad steps."""
        if row and self.cadence.is_for(plan.epoch + 1):  # a stop waits for the first good step, another trainer not
            self.log.note(f"no checkpoint after epoch {plan.epoch + 1}: its last {row} steps are not finite")
            return
        stop = self.processes.max(self.stop.signal) and not self.cadence.is_last(plan.epoch)
        if stop or is_best or self.cadence.saves(plan.epoch):
            self._save(is_best)
        if stop:
            raise preempted(f"after epoch {plan.epoch + 1}")

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside what it belongs to; tensors and plain values only."""
        segment = self.cadence.curriculum.segment
        return {"format": FORMAT, "progress": asdict(self.progress), "segment": segment, **self.step.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes up a checkpoint; where its epoch needs another trainer, which will do so, its progress alone."""
        self.progress = Progress(**state["progress"])
        self.recovery.place = (self.progress.epoch, self.progress.step)
        if self.cadence.is_for(self.progress.epoch):
            segment = self.cadence.curriculum.segment
            if state.get("segment", 0) != segment:
                state = self.method.carry(state, state.get("segment", 0), segment)
            self.step.load_state(state)

    def _roll_back(self, fault: NotFinite) -> None:
        """Goes back to the last healthy checkpoint and on from it in another order, or gives up with a report."""
        done, scale = self.progress.rollbacks, self.step.scaler.get_scale()
        in_the_loss = self.recovery.report(fault, done, self.keeper.checkpoints.last)
        state = self.keeper.newest()
        self.load_state(state)
        if not in_the_loss:  # gradients beyond fp16, for which the scale had come down
            self.step.scaler.update(min(scale, self.step.scaler.get_scale()))
        self.progress.rollbacks = done + 1
        self.step.guard.forget()
        # So that a run that is killed again and again counts its roll-backs all the same, and another trainer this one.
        if self.cadence.is_for(self.progress.epoch):
            require_same_everywhere(self.step.tensors(), self.processes)
            self.recovery.require_finite(self.progress)
            self.keeper.save(self.state())  # of which the log, not yet rewound, learns nothing
        else:
            state["progress"]["rollbacks"] = done + 1
            self.keeper.save(state)
        self.log.rewind(self.progress.epoch, self.progress.step)
        limits = self.recovery.limits
        self.log.note(
            f"{fault}: back to after step {self.progress.step} of epoch {self.progress.epoch + 1}, and on in another "
            f"order (roll-back {done + 1} of {limits.max_rollbacks}); {limits.path} tells more"
        )

    def _log_step(self, plan: EpochPlan, steps: int, lr: float, window: Window, clock: EpochClock) -> None:
        here, losses = self.progress, window.take(self.progress)
        # In steps of this epoch's length, a step taken to last as long as it has tokens.
        later = sum(self._work(other) for other in self.cadence.plans[plan.epoch + 1 :]) / self._work(plan)
        left = steps - here.step + steps * later
        given = clock, self.layout.global_batch, left, self.step.task.loss_terms
        self.log.step(step_record(plan, here, lr, losses, *given))
        self.inputs.require_few_skipped(self.processes)

    def _epoch_record(self, plan: EpochPlan, steps: int) -> dict[str, Any]:
        lr, images = self.cadence.schedule.mean(plan.epoch), steps * self.layout.global_batch
        return {
            **epoch_record(plan, self.progress, lr, images, self.step.task.loss_terms),
            "save_seconds": self.keeper.take_seconds(),
            "peak_memory_bytes": int(self.processes.max(peak_memory(self.processes.device))),
        }
