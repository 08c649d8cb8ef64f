"""Validation: the plain model with all tokens, each image counted once whatever the number of processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    models: Sequence[nn.Module],
    batches: Iterable[tuple[Tensor, Tensor]],
    processes: Processes,
    autocast: AbstractContextManager[None],
) -> list[Scores]:
    """Scores of each model over the images of all processes together, in one pass over the data.

    Args:
        models: their mode is set to eval, which turns ToE off, and put back.
        batches: this process's share: images (B, 3, S, S) and class indices (B,).
        processes: sums the counts.
        autocast: reusable context for the forward pass.
    """
    device = processes.device
    # Per model: top-1 hits, top-5 hits, sum of losses.
    totals = torch.zeros(len(models), 3, dtype=torch.float64, device=device)
    seen = 0
    were_training = [model.training for model in models]
    for model in models:
        model.eval()
    for batch in batches:
        images, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
        seen += len(labels)
        for model, total in zip(models, totals, strict=True):
            with autocast:
                logits = model(images)
            logits = logits.float()  # (B, classes)
            ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (B, 5)
            hits = ranked == labels[:, None]
            loss = F.cross_entropy(logits, labels, reduction="sum")
            total += torch.stack([hits[:, 0].sum(), hits.sum(), loss]).double()
    for model, training in zip(models, were_training, strict=True):
        model.train(training)
    count = int(processes.sum(torch.tensor(seen, device=device)))
    return [
        Scores(100 * top1 / count, 100 * top5 / count, loss / count, count)
        for top1, top5, loss in processes.sum(totals).tolist()
    ]
