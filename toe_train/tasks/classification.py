"""Classification: Mixup and CutMix that do not depend on how a global batch is split, cross-entropy, accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

import torch
from timm.data.mixup import Mixup, mixup_target
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

from toe_train.data import BatchLayout, derive_seed, seeded
from toe_train.runs.processes import Processes
from toe_train.tasks.scoring import evaluate
from toe_train.tasks.task import Task


class BatchMixing:
    """timm's Mixup in batch mode (one ratio, one box), applied to each mixing group of the global batch.

    DeiT mixes what one process holds; here the group takes that part (see `BatchLayout`), so pairs, ratios and boxes
    are the same for any number of processes and accumulation steps. DeiT's values (DeiT main.py): mixup 0.8,
    cutmix 1.0, prob 1.0, switch_prob 0.5, smoothing 0.1.

    Args:
        num_classes: width of the targets.
        mixup: alpha of the Beta distribution; 0 switches it off, and with both 0 only the labels are smoothed.
        cutmix: the same for CutMix.
        prob: probability that a group is mixed at all.
        switch_prob: that it is CutMix when both are on.
        smoothing: of the labels.
        seed: of the run.
        layout: of the global batch.
    """

    def __init__(
        self,
        num_classes: int,
        mixup: float,
        cutmix: float,
        prob: float,
        switch_prob: float,
        smoothing: float,
        seed: int,
        layout: BatchLayout,
    ) -> None:
        self._num_classes = num_classes
        self._smoothing = smoothing
        self._seed = seed
        self._layout = layout
        self._mixup: Mixup | None = None
        if mixup > 0 or cutmix > 0:
            self._mixup = Mixup(
                mixup_alpha=mixup,
                cutmix_alpha=cutmix,
                prob=prob,
                switch_prob=switch_prob,
                mode="batch",
                label_smoothing=smoothing,
                num_classes=num_classes,
            )

    def __call__(
        self, images: Tensor, labels: Tensor, epoch: int, step: int, rank: int, micro: int
    ) -> tuple[Tensor, Tensor]:
        """Mix one micro-batch: images (b, C, H, W) in place, labels (b,) -> soft targets (b, num_classes) float32.

        b is `layout.micro_batch`, its rows in the order of `layout.rows(rank, micro)`. Nothing is read back from the
        device: ratio and box are drawn on the CPU.
        """
        assert len(images) == len(labels) == self._layout.micro_batch, (len(images), self._layout.micro_batch)
        if self._mixup is None:
            plain = mixup_target(labels, self._num_classes, smoothing=self._smoothing)
            return images, plain
        targets = []
        for group, start, stop in self._layout.segments(rank, micro):
            # The parts of a group that lie in other micro-batches draw the same numbers from the same seed.
            with seeded(derive_seed(self._seed, "mix", epoch, step, group)):
                _, target = self._mixup(images[start:stop], labels[start:stop])
            targets.append(target)
        return images, torch.cat(targets)


class Classification(Task):
    """Which class an image is of (DeiT): cross-entropy of mixed images against their soft targets.

    mixing: see `BatchMixing`. class_weights: (K,) float32 on the device, what each class's term of the training loss is
    multiplied by; None for 1. Evaluation counts every class as it is.
    """

    scores = ("top1", "top5", "loss", "images")
    headline = "top1"
    shown = (
        ("top-1", "val_top1"),
        ("full size", "val_top1_full"),
        ("EMA", "ema_top1"),
        ("top-5", "val_top5"),
    )

    def __init__(self, mixing: Callable[..., tuple[Tensor, Any]], class_weights: Tensor | None = None) -> None:
        self._mixing = mixing
        self._cross_entropy = SoftTargetCrossEntropy()
        self._class_weights = class_weights

    def example_targets(self, batch: int) -> Any:
        """Labels (batch,) int64."""
        return torch.zeros(batch, dtype=torch.int64)

    def mix(self, images: Tensor, targets: Any, epoch: int, step: int, rank: int, micro: int) -> tuple[Tensor, Any]:
        """Images mixed in place, labels (b,) -> soft targets (b, K)."""
        return self._mixing(images, targets, epoch, step, rank, micro)

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of logits (b, K) against soft targets (b, K) (DeiT main.py with mixup).

        With weights w of the classes it is that of -sum_c w_c t_c log p_c, over the images and not over their weights
        (torch's rule for targets that are distributions): so the split of a batch changes nothing.
        """
        if self._class_weights is not None:
            targets = targets * self._class_weights
        return self._cross_entropy(output.float(), targets)

    def score(
        self,
        models: Mapping[str, nn.Module],
        batches: Any,
        processes: Processes,
        autocast: AbstractContextManager[None],
        poll: Callable[[], None] = lambda: None,
    ) -> dict[str, float]:
        """Top-1 and top-5 in percent, mean cross-entropy, and the number of images that they are over."""
        found = evaluate(list(models.values()), batches, processes, autocast, poll)
        return {
            f"{name}_{score}": value
            for name, scores in zip(models, found, strict=True)
            for score, value in asdict(scores).items()
        }
