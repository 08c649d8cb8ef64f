"""FLOPs of a training stage, counted by torch's FlopCounterMode on a real forward pass.

Counted are matrix products and convolutions, attention's two products included; one multiply-add is two FLOPs in
torch's counter and one MAC here. Elementwise work, norms and softmax are not counted. The backward pass is taken as
twice the forward (paper, section 4.1), so ratios of forward passes are ratios of training steps.

Beside it stands what thop counts, from which the paper's ratios come: linear layers, convolutions, and 4 for each
number that a norm takes, without attention's products (docs/fidelity.md, "FLOPs").
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from toe_train.build.model import BuiltModel, build_model
from toe_train.models import TransformersClassifier
from toe_train.recipes import EpochPlan, RunConfig, Size, Stretch, config_at, plan_epochs, sides_of, stretches


@dataclass(frozen=True)
class StageCost:
    """Cost of one image's forward pass in a stage.

    Attributes:
        stage: of the method, 0 for plain training.
        tokens_kept: patch tokens, see `Method.tokens_kept`.
        macs: of the network, attention included.
        expansion_macs: of the method's own products, on top. ToE's are similarities of N tokens to the K kept ones,
            N x K x D by cosine; merging only adds on a CPU, where this is counted, and is as large a product again on
            a GPU. ToMe's are the similarities of each block, and the sums of what merges.
        thop_macs: as the paper counts.
    """

    stage: int
    tokens_kept: int
    macs: int
    expansion_macs: int
    thop_macs: int


def stage_cost(built: BuiltModel, image_size: Size, stage: int) -> StageCost:
    """Counts one training-mode forward pass of one image at `stage`; the model's mode and stage are put back."""
    model, method = built.model, built.method
    image = torch.zeros(1, 3, *sides_of(image_size))
    was_training, former = model.training, method.stage
    counter = FlopCounterMode(display=False)
    thop: list[int] = []
    hooks = [module.register_forward_hook(partial(_note_thop, thop)) for module in model.modules()]
    try:
        model.eval()
        method.measured(True)
        method.stage = stage
        kept = method.tokens_kept(built.num_tokens, stage)
        with torch.no_grad(), counter:
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
        method.measured(False)
        method.stage = former
        model.train(was_training)
    counts = counter.get_flop_counts()
    prefix = int(getattr(model, "num_prefix_tokens", 1))
    linear, attention = method.idle(built.num_tokens + prefix, stage)
    own = sum(counts.get(f"{type(model).__name__}.{method.own_module}", {}).values())
    macs = (counter.get_total_flops() - own) // 2 - linear - attention
    return StageCost(stage, kept, macs, own // 2, sum(thop) - linear)


def _note_thop(counts: list[int], module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
    """Adds what thop counts for a module's call."""
    if isinstance(module, nn.Linear):
        counts.append(output.numel() * module.in_features)
    elif isinstance(module, nn.Conv2d):
        counts.append(output.numel() * module.weight[0].numel())
    elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
        counts.append(4 * given[0].numel())


def make_countable(model: nn.Module) -> None:
    """Prepares a model that is only counted, never trained.

    Attention becomes two plain products, as the counter does not know the fused kernels of every device, and no
    parameter asks for a gradient, which the counter's bookkeeping cannot take as an input without one.
    """
    model.requires_grad_(False)
    if isinstance(model, TransformersClassifier):
        model.attend_plainly()
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", False)  # noqa: B010  (a plain flag, which a module's type does not know)


@dataclass(frozen=True)
class PlannedStretch:
    """A segment of the plan with its cost; `speedup` is over a step with all tokens of full-size images, by FLOPs."""

    stretch: Stretch
    cost: StageCost
    speedup: float


@dataclass(frozen=True)
class PlannedRun:
    """The whole schedule with its costs; the speed-ups are over plain epochs, with all tokens of full-size images.

    Attributes:
        stretches: in order.
        full: a step of those epochs.
        baseline_epochs: their number.
        note: what the method says of itself with the run's own model, see `Method.note`.
    """

    stretches: tuple[PlannedStretch, ...]
    full: StageCost
    baseline_epochs: int
    note: str | None = None

    @property
    def macs(self) -> int:
        """Forward MACs of the network that each training image takes in all epochs together, attention counted."""
        return sum(planned.cost.macs * planned.stretch.epochs for planned in self.stretches)

    @property
    def whole_macs(self) -> int:
        """The same with the method's own work, see `StageCost.expansion_macs`: what compute is equal to."""
        return self.macs + sum(planned.cost.expansion_macs * planned.stretch.epochs for planned in self.stretches)

    @property
    def thop_macs(self) -> int:
        """Those of the network, as the paper counts."""
        return sum(planned.cost.thop_macs * planned.stretch.epochs for planned in self.stretches)

    @property
    def speedup(self) -> float:
        """Attention counted."""
        return self.full.macs * self.baseline_epochs / self.macs

    @property
    def thop_speedup(self) -> float:
        """As the paper counts."""
        return self.full.thop_macs * self.baseline_epochs / self.thop_macs


def plan_costs(config: RunConfig, num_classes: int) -> PlannedRun:
    """The run's stretches with exact FLOPs, and the speed-up that they predict."""
    plans = plan_epochs(config)
    last = plans[-1]  # with which the model is the run's own
    models: dict[tuple[Size, int], BuiltModel] = {}

    def cost_of(plan: EpochPlan, size: Size, stage: int) -> StageCost:
        if (size, plan.segment) not in models:
            models[size, plan.segment] = build_model(config_at(config, plan), num_classes, size)
            make_countable(models[size, plan.segment].model)
        return stage_cost(models[size, plan.segment], size, stage)

    full = cost_of(last, config.model.image_size, 0)
    found = []
    for stretch in stretches(plans):
        cost = cost_of(stretch.plan, stretch.plan.image_size, stretch.stage)
        found.append(PlannedStretch(stretch, cost, full.macs / cost.macs))
    epochs = (config.curriculum and config.curriculum.baseline_epochs) or config.epochs
    return PlannedRun(tuple(found), full, epochs, models[config.model.image_size, last.segment].method.note)
