"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from toe_train.data import BatchLayout, CleanErrors, SkippedImages, TrainBatchSampler
from toe_train.errors import Preempted, RunFailed, UserError
from toe_train.expansion import TokenExpansion
from toe_train.recipes import EpochPlan
from toe_train.training.checkpoint import FORMAT, Checkpoints, read
from toe_train.training.clock import EpochClock
from toe_train.training.device_batches import DeviceBatches
from toe_train.training.distributed import Processes
from toe_train.training.evaluate import evaluate
from toe_train.training.health import Health
from toe_train.training.memory import StepTooLarge, peak_memory, reset_peak_memory
from toe_train.training.optim import Schedule, set_lr
from toe_train.training.polling import Polling
from toe_train.training.preemption import StopRequest
from toe_train.training.progress import Progress
from toe_train.training.records import counted, epoch_record, step_record
from toe_train.training.recovery import Recovery
from toe_train.training.resolution import BothSizes
from toe_train.training.runlog import RunLog
from toe_train.training.stability import NotFinite
from toe_train.training.step import TrainStep


@dataclass
class Trainer:
    """The parts of a run, made by `build.build_trainer`, and the loop over them."""

    plans: tuple[EpochPlan, ...]
    curriculum: tuple[Any, ...]  # of the epochs that this trainer is for, see `EpochPlan`; others need another
    both_sizes: BothSizes | None  # where the model is for smaller images than the run ends with
    expansion: TokenExpansion | None
    num_tokens: int  # patch tokens N
    step: TrainStep  # holds model, averaged model, optimiser and scaler
    compile: Callable[[], str | None] | None  # the step; None where it is not to be
    schedule: Schedule
    sampler: TrainBatchSampler
    train_batches: DeviceBatches
    val_batches: CleanErrors
    skipped: SkippedImages | None  # None where an unreadable image ends the run
    recovery: Recovery
    pictures: Callable[[], Tensor] | None
    checkpoints: Checkpoints
    belongs_to: dict[str, Any]  # config, classes, images, versions, jobs: stored with every checkpoint
    log: RunLog
    log_every: int
    evaluate_every: int
    save_every: int  # epochs
    save_every_steps: int | None
    save_every_seconds: float
    best_metric: str
    progress: Progress
    saved: bool  # whether `last.pt` holds just this state
    stop: StopRequest = field(default_factory=StopRequest)
    polling: Polling = field(init=False)  # while training
    evaluation_polling: Polling = field(init=False)
    health: Health = field(init=False)
    saved_at: float = field(default_factory=time.monotonic)
    save_seconds: float = 0.0  # of the saves since the last epoch line

    def __post_init__(self) -> None:
        self.polling, self.evaluation_polling = Polling(self.processes), Polling(self.processes)
        self.health = Health(self.step, self.recovery, (self.progress.epoch, self.progress.step))

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

    def fit(self) -> None:
        """Trains the epochs that are left, up to one that needs another trainer.

        Raises:
            UserError: the processes do not stand at the same place.
            RunFailed: numbers that are not finite, again and again; or what saving raises.
            Preempted: a signal asked a process to stop; the place is saved.
        """
        try:
            self._fit()
        finally:
            self.train_batches.close()
            self.val_batches.close()
            self.log.close()

    def _fit(self) -> None:
        places = self.processes.gather((self.progress.epoch, self.progress.step))
        if len(set(places)) > 1:
            raise UserError(
                f"the processes found different checkpoints (epoch and step by rank: {places}): the run folder must be "
                "the same one on all nodes; put --output on a shared file system"
            )
        if self.processes.max(self.stop.signal):
            raise self._preempted("before its first step; nothing was to save")
        if self.processes.max(not self.saved):
            self._save_beginning()
        self._compile()
        self.step.join()
        while self._is_for(self.progress.epoch):
            try:
                self._run_epoch(self.plans[self.progress.epoch])
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
        if self.compile is None:
            return
        begin = time.monotonic()
        try:
            reason = self.compile()
        except torch.OutOfMemoryError as error:
            raise StepTooLarge(str(error)) from None
        if reason is None:
            self.log.note(f"compiled the step in {time.monotonic() - begin:.0f} s")
        else:
            self.log.note(f"torch.compile does not work here ({reason}): the run goes on without it, slower")

    def _is_for(self, epoch: int) -> bool:
        """Whether there is such an epoch, and this trainer was built for it."""
        return epoch < len(self.plans) and self.plans[epoch].curriculum == self.curriculum

    def _run_epoch(self, plan: EpochPlan) -> None:
        record = self.train_epoch(plan)
        self.health.require_finite(self.progress)  # before an evaluation of what would be thrown away
        record.update(self.validate(plan))
        self.log.epoch(record)
        self._end_epoch(plan, record)

    def train_epoch(self, plan: EpochPlan) -> dict[str, Any]:
        """One epoch of steps; the part of its record that training knows."""
        here = self.progress
        kept = self._enter_stage(plan)
        self.sampler.set_epoch(plan.epoch, here.step, here.rollbacks)
        steps = here.step + len(self.sampler) // self.layout.accumulation
        self.log.epoch_begins(plan.epoch, plan.stage, f"{kept}/{self.num_tokens}", steps)
        reset_peak_memory(self.processes.device)
        self.model.train()
        self.step.guard.begin_epoch(here.skipped)
        self.polling.restart()

        clock = EpochClock(self.processes.device, here.clock)
        batches = clock.waiting(self.train_batches)
        # Sum and number of finite losses since the last log line, by images: a run may go on in other micro-batches.
        window = torch.tensor(here.own_window(self.processes), device=self.processes.device)
        for step in range(here.step, steps):
            lr = self.schedule.lr(plan.epoch, step)
            set_lr(self.step.optimizer, lr)
            try:
                losses = self.step(batches, clock, plan.epoch, step)
            except torch.OutOfMemoryError as error:
                raise StepTooLarge(str(error)) from None
            window += self.layout.micro_batch * counted(losses)
            here.step = step + 1
            self.log.advance()
            if here.step % self.log_every == 0 or here.step == steps:
                self._log_step(plan, steps, lr, window, clock)
                window.zero_()
            stop, save = self._look() if self.polling.due() else (0.0, 0.0)
            if self.save_every_steps and here.step % self.save_every_steps == 0:
                save = 1.0
            if here.step == steps or not (stop or save):
                continue
            counts = self.step.guard.counts()
            if counts.running:  # finite as the weights are, they may be the cause, and are not to be gone back to
                self.polling.soon()
                continue
            here.window = self.processes.gather(tuple(window.tolist()))
            here.skipped = counts.total
            here.account(clock, self.processes)
            self._save()
            if stop:
                raise self._preempted(f"after step {here.step} of epoch {plan.epoch + 1}")
        here.window = []
        here.skipped = self.step.guard.counts().total
        here.account(clock, self.processes)
        return self._epoch_record(plan, kept, steps)

    def _look(self) -> tuple[float, float]:
        """What the processes have to tell each other: whether to stop, and whether to save."""
        counts = self.step.guard.counts()
        late = time.monotonic() - self.saved_at > self.save_every_seconds
        stop, save, longest = self.polling.largest(self.stop.signal, late, counts.longest)
        self.health.require_short_rows(longest)
        return stop, save

    def _leave_before_validation(self) -> None:
        """Stops with the epoch's steps done and its evaluation to do, if any process was asked to stop.

        Not after a bad step, after which nothing is saved: then the next epoch's first good one is waited for.
        """
        if not self.evaluation_polling.due():
            return
        stop, row = self.evaluation_polling.largest(self.stop.signal, self.step.guard.counts().running)
        if stop and not row:
            self._save()
            raise self._preempted(f"in the evaluation of epoch {self.progress.epoch + 1}")

    def _preempted(self, where: str) -> Preempted:
        preempted = Preempted(f"by a signal, {where}; the same command continues")
        preempted.shared = True
        return preempted

    def _save(self, is_best: bool = False) -> None:
        """Writes a checkpoint of what is finite."""
        self.health.require_finite(self.progress)
        begin = time.monotonic()
        self.processes.main_only(lambda: self.checkpoints.save(self.state(), is_best))
        self.saved, self.saved_at = True, time.monotonic()
        self.save_seconds += self.saved_at - begin

    def _enter_stage(self, plan: EpochPlan) -> int:
        """Sets ToE to the epoch's stage and shows what it keeps where the stage is new; tokens kept."""
        if self.expansion is None:
            return self.num_tokens
        self.expansion.set_epoch(plan.epoch)
        former = self.plans[plan.epoch - 1].stage if plan.epoch else None
        if self.pictures is not None and plan.stage != former:
            self.log.pictures("kept_tokens", self.pictures(), plan.epoch)
        return self._tokens(plan.stage)

    def _tokens(self, stage: int) -> int:
        """Patch tokens that a stage keeps."""
        return self.num_tokens if self.expansion is None else self.expansion.num_kept(self.num_tokens, stage)

    def _work(self, plan: EpochPlan) -> int:
        """Patch tokens that an epoch keeps of an image, whose size may be another stage's of the curriculum."""
        tokens = self.num_tokens * plan.image_size**2 // self.step.image_size**2
        return tokens if self.expansion is None else self.expansion.num_kept(tokens, plan.stage)

    def validate(self, plan: EpochPlan) -> dict[str, float | None]:
        """Top-1 and top-5 of the raw model and top-1 of the averaged one, in percent; None in epochs that skip it."""
        keys = ("val_top1", "val_top5", "val_loss", "val_images", "val_top1_full", "ema_top1")
        record: dict[str, float | None] = dict.fromkeys(keys)
        if not self._due(plan, self.evaluate_every):
            return record
        models = [self.model] if self.step.ema is None else [self.model, self.step.ema.module]
        for model in models:
            self.processes.share_buffers(model)
        if self.both_sizes is not None:
            own = [self.both_sizes.at_own_size(model) for model in models]
            models = [*own, self.both_sizes.at_full_size(self.model)]
        self.evaluation_polling.restart()
        try:
            raw, *others = evaluate(
                models, self.val_batches, self.processes, self.step.autocast, poll=self._leave_before_validation
            )
        except torch.OutOfMemoryError as error:
            raise RunFailed(
                f"out of device memory in the evaluation ({str(error).split('. ')[0]}); start the same command again "
                "with half the evaluate.batch"
            ) from None
        if self.skipped is not None:
            self.processes.main_only(self.skipped.require_within_limit)
        record.update(val_top1=raw.top1, val_top5=raw.top5, val_loss=raw.loss, val_images=raw.images)
        record["val_top1_full"] = others[-1].top1 if self.both_sizes is not None else raw.top1
        if self.step.ema is not None:
            record["ema_top1"] = others[0].top1
        return record

    def _end_epoch(self, plan: EpochPlan, record: dict[str, Any]) -> None:
        """Writes a checkpoint where one is due, where ToE's stage changes, or where it is the best so far."""
        row, more = self.step.guard.counts().running, self._is_for(plan.epoch + 1)
        value, best = self._score(record), self.progress.best
        is_best = value is not None and value > best and not row
        self.progress = self.progress.after_epoch(best=value if value is not None and is_best else best)
        if row and more:  # as within an epoch; a stop waits for the first good step, another trainer does not
            self.log.note(f"no checkpoint after epoch {plan.epoch + 1}: its last {row} steps are not finite")
            return
        others = self.plans[plan.epoch + 1 : plan.epoch + 2]
        changes = any((other.stage, other.curriculum) != (plan.stage, plan.curriculum) for other in others)
        stop = self.processes.max(self.stop.signal) and plan.epoch + 1 < len(self.plans)
        if stop or is_best or changes or self._due(plan, self.save_every):
            self._save(is_best)
        if stop:
            raise self._preempted(f"after epoch {plan.epoch + 1}")

    def _score(self, record: dict[str, Any]) -> float | None:
        """What is compared for the best checkpoint: accuracy at full size; averaged weights are not evaluated there."""
        if self.both_sizes is None:
            return record[self.best_metric]
        return record["val_top1_full"] if self.best_metric == "val_top1" else None

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds; tensors and plain values only."""
        return {"format": FORMAT, "progress": asdict(self.progress), **self.step.state(), **self.belongs_to}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes up a checkpoint; where its epoch needs another trainer, which will do so, its progress alone."""
        self.progress = Progress(**state["progress"])
        self.health.place = (self.progress.epoch, self.progress.step)
        if self._is_for(self.progress.epoch):
            self.step.load_state(state)

    def _due(self, plan: EpochPlan, every: int) -> bool:
        return (plan.epoch + 1) % every == 0 or plan.epoch + 1 == len(self.plans)

    def _roll_back(self, fault: NotFinite) -> None:
        """Goes back to the last healthy checkpoint and on from it in another order, or gives up with a report."""
        done, scale = self.progress.rollbacks, self.step.scaler.get_scale()
        in_the_loss = self.health.report(fault, done, self.checkpoints.last)
        self.processes.main_only(self.checkpoints.heal)
        state = self.processes.together(lambda: read(self.checkpoints.last))
        self.load_state(state)
        if not in_the_loss:  # gradients beyond fp16, for which the scale had come down
            self.step.scaler.update(min(scale, self.step.scaler.get_scale()))
        self.progress.rollbacks = done + 1
        self.step.guard.forget()
        # So that a run that is killed again and again counts its roll-backs all the same, and another trainer this one.
        if self._is_for(self.progress.epoch):
            self._save()
        else:
            state["progress"]["rollbacks"] = done + 1
            self.processes.main_only(lambda: self.checkpoints.save(state, False))
        self.log.rewind(self.progress.epoch, self.progress.step)
        self.log.note(
            f"{fault}: back to after step {self.progress.step} of epoch {self.progress.epoch + 1}, and on in another "
            f"order (roll-back {done + 1} of {self.recovery.max_rollbacks}); {self.recovery.path} tells more"
        )

    def _log_step(self, plan: EpochPlan, steps: int, lr: float, window: Tensor, clock: EpochClock) -> None:
        here = self.progress
        total, count = self.processes.sum(window.clone()).tolist()
        here.losses, here.logged = (here.losses[0] + total, here.losses[1] + count), here.step
        # In steps of this epoch's length, a step taken to last as long as it has tokens.
        later = sum(self._work(other) for other in self.plans[plan.epoch + 1 :]) / self._work(plan)
        left = steps - here.step + steps * later
        self.log.step(step_record(plan, here, lr, (total, count), clock, self.layout.global_batch, left))
        if self.skipped is not None:
            self.processes.main_only(self.skipped.require_within_limit)

    def _epoch_record(self, plan: EpochPlan, kept: int, steps: int) -> dict[str, Any]:
        saving, self.save_seconds = self.save_seconds, 0.0
        lr, images = self.schedule.mean(plan.epoch), steps * self.layout.global_batch
        return {
            **epoch_record(plan, self.progress, lr, images, (self.num_tokens, kept)),
            "save_seconds": saving,
            "skipped_images": len(self.skipped.images()) if self.skipped is not None else 0,
            "peak_memory_bytes": int(self.processes.max(peak_memory(self.processes.device))),
        }
