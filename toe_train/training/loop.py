"""The training loop."""

from __future__ import annotations

import math
import resource
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from toe_train.data import BatchLayout, BatchMixing, SkippedImages, TrainBatchSampler
from toe_train.errors import Preempted, RunFailed, UserError
from toe_train.expansion import TokenExpansion
from toe_train.recipes import EpochPlan
from toe_train.training.checkpoint import FORMAT, Checkpoints
from toe_train.training.clock import EpochClock
from toe_train.training.distributed import Processes
from toe_train.training.draws import ForwardDraws
from toe_train.training.evaluate import Batches, evaluate
from toe_train.training.optim import EpochSchedule
from toe_train.training.preemption import StopRequest
from toe_train.training.runlog import RunLog

POLL_STEPS = 10  # optimiser steps between two looks at whether a process was asked to stop


@dataclass
class Progress:
    """What a checkpoint carries beside the tensors: where the run stands and what it took so far."""

    epoch: int = 0  # the epoch to train next, or to go on with
    step: int = 0  # its optimiser steps that are done
    logged: int = 0  # of these, the ones that a log line has told of
    epoch_loss: float = 0.0  # sum of the means of the logged steps
    window: list[float] = field(default_factory=list)  # by rank: sum of the losses since then
    clock: tuple[float, float, float] = (0.0, 0.0, 0.0)  # seconds of the epoch so far: all, waiting, computing
    best: float = -math.inf  # best value of the chosen metric
    compute_seconds: float = 0.0  # of all processes, by the paper's clock: without loading and mixing
    train_seconds: float = 0.0  # of all processes, by the wall, without evaluation


@dataclass
class Trainer:
    """The parts of a run, made by `build.build_trainer`, and the loop over them."""

    plans: tuple[EpochPlan, ...]
    processes: Processes
    model: nn.Module  # the plain model: evaluated and saved
    ema: ModelEmaV3 | None
    expansion: TokenExpansion | None
    num_tokens: int  # patch tokens N
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: EpochSchedule
    scaler: torch.amp.GradScaler
    autocast: torch.autocast
    clip_grad: float | None
    layout: BatchLayout
    sampler: TrainBatchSampler
    train_batches: Iterable[tuple[Tensor, Tensor]]
    val_batches: Batches
    skipped: SkippedImages | None  # None where an unreadable image ends the run
    mixing: BatchMixing
    draws: ForwardDraws
    pictures: Callable[[], Tensor] | None
    checkpoints: Checkpoints
    belongs_to: dict[str, Any]  # config, classes and versions, stored with every checkpoint
    log: RunLog
    log_every: int
    evaluate_every: int
    save_every: int  # epochs
    save_every_steps: int | None
    best_metric: str
    progress: Progress
    stop: StopRequest = field(default_factory=StopRequest)
    trained: nn.Module = field(init=False)  # the model as it is stepped: gradients averaged over the processes

    def fit(self) -> None:
        """Trains the epochs that are left."""
        places = self.processes.gather((self.progress.epoch, self.progress.step))
        if len(set(places)) > 1:
            raise UserError(
                f"the processes found different checkpoints (epoch and step by rank: {places}): the run folder must be "
                "the same one on all nodes; put --output on a shared file system"
            )
        if self.processes.max(self.stop.signal):
            raise self._preempted("before its first step; nothing was to save")
        self.trained = self.processes.wrap(self.model)
        for plan in self.plans[self.progress.epoch :]:
            record = self.train_epoch(plan)
            self._require_finite_weights(plan.epoch)
            record.update(self.validate(plan))
            self.log.epoch(record)
            self._end_epoch(plan, record)
        self.log.close()

    def train_epoch(self, plan: EpochPlan) -> dict[str, Any]:
        """One epoch of steps; the part of its record that training knows."""
        here = self.progress
        lr = self.schedule.apply(plan.epoch)
        kept = self._enter_stage(plan)
        self.sampler.set_epoch(plan.epoch, here.step)
        steps = here.step + len(self.sampler) // self.layout.accumulation
        self.log.epoch_begins(plan.epoch, plan.stage, f"{kept}/{self.num_tokens}", steps)
        if self.processes.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.model.train()

        clock = EpochClock(self.processes.device, here.clock)
        batches = clock.waiting(self.train_batches)
        window = torch.tensor(self._own_window(), device=self.processes.device)  # sum of the losses since the last line
        for step in range(here.step, steps):
            window += self._step(batches, clock, plan.epoch, step)
            here.step = step + 1
            self.log.advance()
            if here.step % self.log_every == 0 or here.step == steps:
                count = here.step - here.logged
                mean = self._mean_over_processes(window) / count
                self._require_finite(mean, plan.epoch, here.logged, step)
                here.epoch_loss, here.logged = here.epoch_loss + mean * count, here.step
                window.zero_()
                self.log.step(self._step_record(plan, step, steps, lr, mean, clock))
                if self.skipped is not None:
                    self.processes.main_only(self.skipped.require_within_limit)
            if self.save_every_steps and here.step % self.save_every_steps == 0 and here.step < steps:
                self._save_within_epoch(window, clock)
            if here.step % POLL_STEPS == 0 and here.step < steps and self.processes.max(self.stop.signal):
                self._save_within_epoch(window, clock)
                raise self._preempted(f"after step {here.step} of epoch {plan.epoch + 1}")
        here.window, here.clock = [], clock.read()
        return self._epoch_record(plan, kept, lr, here.epoch_loss / steps, steps)

    def _own_window(self) -> float:
        """This process's share of a window that a checkpoint cut; the mean where the processes are others now."""
        window = self.progress.window
        if len(window) == self.processes.world_size:
            return window[self.processes.rank]
        return sum(window) / len(window) if window else 0.0

    def _leave_before_validation(self) -> None:
        """Stops with the epoch's steps done and its evaluation to do, if any process was asked to stop."""
        if self.processes.max(self.stop.signal):
            self.processes.main_only(lambda: self.checkpoints.save(self.state(), is_best=False))
            raise self._preempted(f"in the evaluation of epoch {self.progress.epoch + 1}")

    def _preempted(self, where: str) -> Preempted:
        self.log.close()
        preempted = Preempted(f"by a signal, {where}; the same command continues")
        preempted.shared = True
        return preempted

    def _save_within_epoch(self, window: Tensor, clock: EpochClock) -> None:
        self._require_finite_weights(self.progress.epoch)
        self.progress.window = self.processes.gather(float(window))
        self.progress.clock = clock.read()
        self.processes.main_only(lambda: self.checkpoints.save(self.state(), is_best=False))

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

    def _step(self, batches: Any, clock: EpochClock, epoch: int, step: int) -> Tensor:
        """One optimiser step; this process's mean loss, on the device."""
        accumulation, device = self.layout.accumulation, self.processes.device
        total = torch.zeros((), device=device)
        for micro in range(accumulation):
            images, labels = next(batches)
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            images, targets = self.mixing(images, labels, epoch, step, self.processes.rank, micro)
            self.draws.give(epoch, step, micro)
            with clock.compute(), self.processes.no_sync(self.trained, skip=micro + 1 < accumulation):
                with self.autocast:
                    output = self.trained(images)
                loss = self.loss(output, targets) / accumulation
                self.scaler.scale(loss).backward()
                total += loss.detach()
        with clock.compute():
            if self.clip_grad is not None:
                self.scaler.unscale_(self.optimizer)
                clip_grad_norm_(self.model.parameters(), self.clip_grad)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
            if self.ema is not None:
                self.ema.update(self.model)
        return total

    def validate(self, plan: EpochPlan) -> dict[str, float | None]:
        """Top-1 and top-5 of the raw model and top-1 of the averaged one, in percent; None in epochs that skip it."""
        record: dict[str, float | None] = dict.fromkeys(("val_top1", "val_top5", "val_loss", "val_images", "ema_top1"))
        if not self._due(plan, self.evaluate_every):
            return record
        models = [self.model] if self.ema is None else [self.model, self.ema.module]
        raw, *averaged = evaluate(
            models, self.val_batches, self.processes, self.autocast, poll=self._leave_before_validation
        )
        if self.skipped is not None:
            self.processes.main_only(self.skipped.require_within_limit)
        record.update(val_top1=raw.top1, val_top5=raw.top5, val_loss=raw.loss, val_images=raw.images)
        if averaged:
            record["ema_top1"] = averaged[0].top1
        return record

    def _end_epoch(self, plan: EpochPlan, record: dict[str, Any]) -> None:
        """Writes a checkpoint where one is due, where ToE's stage changes, or where it is the best so far."""
        value, best = record[self.best_metric], self.progress.best
        is_best = value is not None and value > best
        self.progress = Progress(
            epoch=plan.epoch + 1,
            best=value if is_best else best,
            compute_seconds=self.progress.compute_seconds + record["compute_seconds"] * self.processes.world_size,
            train_seconds=self.progress.train_seconds + record["train_seconds"] * self.processes.world_size,
        )
        changes = any(other.stage != plan.stage for other in self.plans[plan.epoch + 1 : plan.epoch + 2])
        if is_best or changes or self._due(plan, self.save_every):
            self.processes.main_only(lambda: self.checkpoints.save(self.state(), is_best))

    def state(self) -> dict[str, Any]:
        """Everything that training goes on from; tensors and plain values only."""
        return {
            "format": FORMAT,
            "progress": asdict(self.progress),
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            **self.belongs_to,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes up a checkpoint's state; the optimiser's options stay those of the configuration."""
        self.progress = Progress(**state["progress"])
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"] or state["model"])
        options = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(self.optimizer.param_groups, options, strict=True):
            group.update(own)
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])

    def _due(self, plan: EpochPlan, every: int) -> bool:
        return (plan.epoch + 1) % every == 0 or plan.epoch + 1 == len(self.plans)

    def _mean_over_processes(self, value: Tensor) -> float:
        return float(self.processes.sum(value.clone())) / self.processes.world_size

    def _require_finite(self, mean: float, epoch: int, first_step: int, last_step: int) -> None:
        """The mean is over all processes, so all of them stop here together."""
        if not math.isfinite(mean):
            self._stop(f"the training loss is {mean} in epoch {epoch + 1}, steps {first_step} to {last_step}")

    def _require_finite_weights(self, epoch: int) -> None:
        """Before saving: a loss is measured before its step, so the last step shows in the weights only."""
        finite = torch.stack([parameter.isfinite().all() for parameter in self.model.parameters()])
        if not finite.all():
            self._stop(f"the weights are not finite after step {self.progress.step} of epoch {epoch + 1}")

    def _stop(self, reason: str) -> NoReturn:
        saved = self.checkpoints.last
        left = f"the last good checkpoint is {saved}" if saved.exists() else "no checkpoint was written yet"
        failure = RunFailed(
            f"{reason}; {left}. Continue with a lower optim.lr, train.precision=bf16 or fp32, or optim.clip_grad=1.0"
        )
        failure.shared = True
        raise failure

    def _step_record(
        self, plan: EpochPlan, step: int, steps: int, lr: float, loss: float, clock: EpochClock
    ) -> dict[str, Any]:
        rate = (step + 1) / clock.elapsed  # of the whole epoch, an earlier start's part of it included
        # In steps of this epoch's length, a step taken to last as long as it has tokens.
        later = sum(self._tokens(other.stage) for other in self.plans[plan.epoch + 1 :]) / self._tokens(plan.stage)
        left = steps - step - 1 + steps * later
        return {
            "epoch": plan.epoch,
            "step": step,
            "lr": lr,
            "train_loss": loss,
            "images_per_second": rate * self.layout.global_batch,
            "data_wait_share": clock.data_wait / clock.elapsed,
            "eta_seconds": left / rate,
        }

    def _epoch_record(self, plan: EpochPlan, kept: int, lr: float, loss: float, steps: int) -> dict[str, Any]:
        train_seconds, data_wait, compute = (self.processes.max(seconds) for seconds in self.progress.clock)
        count = self.processes.world_size
        return {
            "epoch": plan.epoch,
            "stage": plan.stage,
            "tokens_kept": kept,
            "lr": lr,
            "train_loss": loss,
            "images_per_second": steps * self.layout.global_batch / train_seconds,
            "train_seconds": train_seconds,
            "data_wait_seconds": data_wait,
            "compute_seconds": compute,
            "skipped_images": len(self.skipped.images()) if self.skipped is not None else 0,
            "peak_memory_bytes": int(self.processes.max(_peak_memory(self.processes.device))),
            "gpu_hours": (self.progress.compute_seconds + compute * count) / 3600,
            "gpu_hours_with_loading": (self.progress.train_seconds + train_seconds * count) / 3600,
        }


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the device since the epoch began, or of this process since it started on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
