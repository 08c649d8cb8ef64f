"""Validation: the plain model with all tokens, each image counted once whatever the number of processes."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toe_train.training.distributed import Processes


@dataclass(frozen=True)
class Scores:
    """Shares in percent, mean cross-entropy, and the number of images they are over."""

    top1: float
    top5: float
    loss: float
    images: int


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    processes: Processes,
    autocast: AbstractContextManager[None],
) -> Scores:
    """Scores over the images of all processes together.

    Args:
        model: its mode is set to eval, which turns ToE off, and put back.
        batches: this process's share: images (B, 3, S, S) and class indices (B,).
        processes: sums the counts.
        autocast: reusable context for the forward pass.
    """
    device = processes.device
    totals = torch.zeros(3, dtype=torch.float64, device=device)  # top-1 hits, top-5 hits, sum of losses
    seen = 0
    was_training = model.training
    model.eval()
    for batch in batches:
        images, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
        with autocast:
            logits = model(images)
        logits = logits.float()  # (B, classes)
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (B, 5)
        hits = ranked == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        totals += torch.stack([hits[:, 0].sum(), hits.sum(), loss]).double()
        seen += len(labels)
    model.train(was_training)
    count = int(processes.sum(torch.tensor(seen, device=device)))
    top1, top5, total_loss = processes.sum(totals).tolist()
    return Scores(100 * top1 / count, 100 * top5 / count, total_loss / count, count)
