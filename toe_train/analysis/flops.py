"""FLOPs of a training stage, counted by torch's FlopCounterMode on a real forward pass.

Counted are matrix products and convolutions, attention's two products included; one multiply-add is two FLOPs in
torch's counter and one MAC here. Elementwise work, norms and softmax are not counted. The backward pass is taken as
twice the forward (paper, section 4.1), so ratios of forward passes are ratios of training steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from toe_train.recipes import RunConfig, Segment, plan_epochs, segments
from toe_train.training.build_model import BuiltModel, build_model


@dataclass(frozen=True)
class StageCost:
    """Cost of one image's forward pass in a stage.

    Attributes:
        stage: of Token Expansion, 0 for all tokens.
        tokens_kept: patch tokens from the attached block on.
        macs: of the network, attention included.
        expansion_macs: of ToE's own similarity and merge products, on top.
    """

    stage: int
    tokens_kept: int
    macs: int
    expansion_macs: int


def stage_cost(built: BuiltModel, image_size: int, stage: int) -> StageCost:
    """Counts one training-mode forward pass of one image at `stage`; the model's mode and stage are put back."""
    model, expansion = built.model, built.expansion
    image = torch.zeros(1, 3, image_size, image_size)
    was_training, former = model.training, expansion.stage if expansion else 0
    model.eval()
    if expansion is not None:
        expansion.train()
        expansion.stage = stage
    counter = FlopCounterMode(display=False)
    try:
        kept = expansion.num_kept(built.num_tokens) if expansion else built.num_tokens
        with torch.no_grad(), counter:
            model(image)
    finally:
        model.train(was_training)
        if expansion is not None:
            expansion.stage = former
    counts = counter.get_flop_counts()
    own = sum(counts.get(f"{type(model).__name__}.token_expansion", {}).values())
    return StageCost(stage, kept, (counter.get_total_flops() - own) // 2, own // 2)


def make_countable(model: nn.Module) -> None:
    """Prepares a model that is only counted, never trained.

    Attention becomes two plain products, as the counter does not know the fused kernels of every device, and no
    parameter asks for a gradient, which the counter's bookkeeping cannot take as an input without one.
    """
    model.requires_grad_(False)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", False)  # noqa: B010  (a plain flag, which a module's type does not know)


@dataclass(frozen=True)
class PlannedSegment:
    """A segment of the plan with its cost; `speedup` is that of the full-token step, both by FLOPs."""

    segment: Segment
    cost: StageCost
    speedup: float


@dataclass(frozen=True)
class PlannedRun:
    """The whole schedule with its costs; `speedup` is over the same number of full-token epochs."""

    segments: tuple[PlannedSegment, ...]
    full: StageCost
    speedup: float


def plan_costs(config: RunConfig, num_classes: int) -> PlannedRun:
    """The run's segments with exact FLOPs, and the speed-up that they predict."""
    built = build_model(config, num_classes)
    make_countable(built.model)
    full = stage_cost(built, config.model.image_size, 0)
    found = []
    for segment in segments(plan_epochs(config)):
        cost = stage_cost(built, config.model.image_size, segment.stage)
        found.append(PlannedSegment(segment, cost, full.macs / cost.macs))
    epochs = sum(planned.segment.epochs for planned in found)
    total = sum(planned.cost.macs * planned.segment.epochs for planned in found)
    return PlannedRun(tuple(found), full, full.macs * epochs / total)
