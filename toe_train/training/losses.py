"""Losses: they know what a model gives out in training, the loop does not."""

from __future__ import annotations

from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn


class ClassificationLoss(nn.Module):
    """Cross-entropy against soft targets (DeiT main.py with mixup: timm's `SoftTargetCrossEntropy`)."""

    def __init__(self) -> None:
        super().__init__()
        self.cross_entropy = SoftTargetCrossEntropy()

    def forward(self, output: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of logits (B, classes) against target distributions (B, classes), in float32."""
        return self.cross_entropy(output.float(), targets)
