"""Losses: they know what a model gives out in training, the loop does not."""

from __future__ import annotations

from collections.abc import Callable

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


class TokenLabelLoss(nn.Module):
    """Cross-entropy of the class token plus the mean one of the patch tokens (TokenLabeling tlt/loss/cross_entropy.py).

    Args:
        dense_weight: of the patch tokens' part.
        cls_weight: of the class token's part.
        counted: gives, after each forward pass, which patch tokens the dense part is over, (B, N) bool in the order of
            their outputs, or None for all. LV-ViT and the released ToE count all, dropped tokens too.
    """

    def __init__(
        self,
        dense_weight: float = 1.0,
        cls_weight: float = 1.0,
        counted: Callable[[], Tensor | None] = lambda: None,
    ) -> None:
        super().__init__()
        self.dense_weight = dense_weight
        self.cls_weight = cls_weight
        self.counted = counted
        self.cross_entropy = SoftTargetCrossEntropy()

    def forward(self, output: tuple[Tensor, Tensor, object], targets: tuple[Tensor, Tensor]) -> Tensor:
        """Loss, in float32.

        Args:
            output: logits of the class token (B, K) and of the patch tokens (B, N, K), and MixToken's box, not read.
            targets: distributions of the same shapes, the class token's mixed as the box says (`TokenMixing`).
        """
        (cls, patches, _), (cls_target, patch_target) = output, targets
        dense = -(patch_target * patches.float().log_softmax(dim=-1)).sum(dim=-1)  # (B, N)
        counted = self.counted()
        mean = dense.mean() if counted is None else (dense * counted).sum() / counted.sum().clamp(min=1)
        return self.cls_weight * self.cross_entropy(cls.float(), cls_target) + self.dense_weight * mean
