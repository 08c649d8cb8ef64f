"""Validation: the plain model with all tokens, each image counted once whatever the number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toe_train.data import NOT_COUNTED
from toe_train.errors import RunFailed
from toe_train.runs.processes import Processes


class Batches(Protocol):
    """One process's share of the images in batches: images (B, 3, S, S), or a pair of such, and classes (B,)."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Tensor | Sequence[Tensor], Tensor]]: ...


@dataclass(frozen=True)
class Scores:
    """Shares in percent, mean cross-entropy, the number of images they are over, and of those that were left out."""

    top1: float
    top5: float
    loss: float
    images: int
    left_out: int = 0


@torch.no_grad()
def evaluate(
    models: Sequence[nn.Module],
    batches: Batches,
    processes: Processes,
    autocast: AbstractContextManager[None],
    poll: Callable[[], None] = lambda: None,
    watch: Callable[[Tensor, Tensor], None] = lambda logits, labels: None,
) -> list[Scores]:
    """Scores of each model over the images of all processes together, in one pass over the data.

    Args:
        models: called with a batch's images; their mode is set to eval, which turns ToE off, and put back.
        batches: this process's share.
        processes: sums the counts.
        autocast: reusable context for the forward pass.
        poll: called before each batch, equally often in every process, so that it may communicate; what it raises ends
            the evaluation.
        watch: called with the first model's logits (B, K) float32 and the labels of each batch.
    """
    device = processes.device
    # Per model: top-1 hits, top-5 hits, sum of losses.
    totals = torch.zeros(len(models), 3, dtype=torch.float64, device=device)
    seen = torch.zeros(2, dtype=torch.int64, device=device)  # images, and those among them that count
    were_training = [model.training for model in models]
    for model in models:
        model.eval()
    rounds = int(processes.max(len(batches)))  # a process may have one batch less than another
    for _, batch in zip_longest(range(rounds), batches):
        poll()
        if batch is None:
            continue
        given, labels = batch[0], batch[1].to(device, non_blocking=True)
        if isinstance(given, Tensor):
            images: Any = given.to(device, non_blocking=True)
        else:
            images = tuple(size.to(device, non_blocking=True) for size in given)
        counted = labels != NOT_COUNTED
        seen += torch.stack([torch.ones_like(counted), counted]).sum(1)
        for place, (model, total) in enumerate(zip(models, totals, strict=True)):
            with autocast:
                logits = model(images)
            logits = logits.float()  # (B, classes)
            if place == 0:
                watch(logits, labels)
            ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (B, 5)
            hits = ranked == labels[:, None]  # never where it is not counted
            loss = F.cross_entropy(logits, labels, reduction="sum", ignore_index=NOT_COUNTED)
            total += torch.stack([hits[:, 0].sum(), hits.sum(), loss]).double()
    for model, training in zip(models, were_training, strict=True):
        model.train(training)
    number, count = processes.sum(seen).tolist()
    if not count:
        failure = RunFailed("no validation image could be read; `toe-tools doctor --config FILE` lists all that cannot")
        failure.shared = True
        raise failure
    return [
        Scores(100 * top1 / count, 100 * top5 / count, loss / count, count, number - count)
        for top1, top5, loss in processes.sum(totals).tolist()
    ]
