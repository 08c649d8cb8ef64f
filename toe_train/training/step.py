"""One optimiser step: micro-batches forward and backward, the guard, the optimiser, the averaged model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from toe_train.data import BatchLayout
from toe_train.methods.method import Method
from toe_train.runs.clock import EpochClock
from toe_train.runs.processes import Processes
from toe_train.tasks.task import Task
from toe_train.training.device_batches import Batch
from toe_train.training.draws import ForwardDraws
from toe_train.training.guard import StepGuard
from toe_train.training.optim import load_optimizer
from toe_train.training.resolution import fit_moments, fit_positions


@dataclass
class TrainStep:
    """The parts that take a step; nothing in it waits for the device but what the scaler needs."""

    processes: Processes
    model: nn.Module  # the plain model
    sides: tuple[int, int]  # height and width of what the model sees, or of what stands for it where that varies
    task: Task  # mixing of a batch, and loss
    method: Method  # how the step is made cheaper
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # scales in fp16, and in every precision leaves out a step that is not finite
    autocast: torch.autocast
    clip_grad: float | None
    ema: ModelEmaV3 | None
    layout: BatchLayout
    draws: ForwardDraws
    guard: StepGuard
    still: Sequence[nn.Module] = ()  # parts of the model that stay in eval mode
    steps_per_epoch: int | None = None  # where the averaged model's decay goes by the number of the step
    compile: Callable[[], str | None] | None = None  # compiles `trained`, or says why it cannot be; None: it is not to
    trained: nn.Module = field(init=False)  # the model as it is stepped: compiled, gradients averaged over processes

    def __post_init__(self) -> None:
        self.trained = self.model
        self.shapes: list[tuple[int, int]] = []  # height and width of the last step's micro-batches
        self._buffers = list(self.model.buffers())  # a batch norm's statistics; DeiT has none

    def tensors(self) -> dict[str, Tensor]:
        """The numbers in `state`, by name: weights, buffers, their averages, moments, the method's."""
        named = dict(self.model.state_dict())
        if self.ema is not None:
            named.update({f"ema.{name}": value for name, value in self.ema.module.state_dict().items()})
        for name, parameter in self.model.named_parameters():
            for moment, value in self.optimizer.state.get(parameter, {}).items():
                named[f"{moment} of {name}"] = value
        named.update({f"method.{name}": value for name, value in self.method.state().items() if torch.is_tensor(value)})
        return named

    def state(self) -> dict[str, Any]:
        """All that training goes on from, as a checkpoint holds it."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "method": self.method.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes up a checkpoint's state; the optimiser's options stay those of the configuration.

        Positions and their moments are brought to the model's number of patches. Without an `optimizer`, as a method
        may carry it over, its moments begin anew.
        """
        self.model.load_state_dict(fit_positions(state["model"], self.model))
        if self.ema is not None:
            self.ema.module.load_state_dict(fit_positions(state["ema"] or state["model"], self.model))
        if state["optimizer"] is not None:
            load_optimizer(self.optimizer, fit_moments(state["optimizer"], self.model, self.optimizer))
        else:
            self.optimizer.state.clear()  # which has stepped already where this is a roll-back
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.method.load_state(state.get("method", {}))

    def tokens(self, number: Callable[[tuple[int, int]], int], stage: int) -> list[tuple[int, int]]:
        """Patch tokens of an image, and those that a stage keeps of them, in each micro-batch of the last step.

        number: patch tokens of an image of some height and width.
        """
        counts = map(number, self.shapes)
        return [(count, self.method.tokens_kept(count, stage)) for count in counts]

    def _number(self, epoch: int, step: int) -> int | None:
        """The number of a step in the run, from 1, as timm counts updates; None where no decay depends on it."""
        return None if self.steps_per_epoch is None else epoch * self.steps_per_epoch + step + 1

    def train(self) -> None:
        """Puts the model into training mode, but for what stays as it is."""
        self.model.train()
        for part in self.still:
            part.eval()

    def join(self) -> None:
        """Lets the processes average their gradients from now on."""
        self.trained = self.processes.wrap(self.trained, self.sides)

    def __call__(self, batches: Iterator[Batch], clock: EpochClock, epoch: int, step: int) -> Tensor:
        """Takes step `step` of `epoch` with the next micro-batches; this process's losses and their terms.

        They are (accumulation, 1 + T), T being the number of the task's `loss_terms`.

        A step with a gradient that is not finite changes no weight and no buffer; the averaged model takes them up once
        more.
        """
        accumulation = self.layout.accumulation
        losses, self.shapes = [], []
        before = [buffer.clone() for buffer in self._buffers]
        for micro in range(accumulation):
            images, targets = next(batches)
            self.shapes.append((images.shape[-2], images.shape[-1]))
            images, targets = self.task.mix(images, targets, epoch, step, self.processes.rank, micro)
            self.draws.give(epoch, step, micro)
            with clock.compute(), self.processes.averaging(self.trained, skip=micro + 1 < accumulation):
                with self.autocast:
                    output = self.trained(images)
                loss = self.task.loss(output, targets)
                self.scaler.scale(loss / accumulation).backward()
                losses.append(torch.stack([loss.detach(), *self.task.terms()]))  # (1 + T,)
        with clock.compute():
            told = torch.stack(losses)  # (accumulation, 1 + T)
            self.scaler.unscale_(self.optimizer)
            norm, bad = self.guard.note(epoch, step, told[:, 0])
            for buffer, value in zip(self._buffers, before, strict=True):
                buffer.copy_(torch.where(bad, value, buffer))
            if self.clip_grad is not None:
                clip_grads_with_norm_(self.model.parameters(), self.clip_grad, norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.method.after_step(~bad)
            if self.ema is not None:
                self.ema.update(self.model, self._number(epoch, step))
            self.method.after_average(~bad)
            self.optimizer.zero_grad(set_to_none=True)
        return told
