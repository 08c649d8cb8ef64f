"""Batches on the device: one is copied and normalised there while the one before is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from toe_train.data import CleanErrors, Pixels, Views

Batch = tuple[Tensor, Any]  # images, labels


class DeviceBatches:
    """What a training loader gives, on the device and as the model takes it, in the same order.

    On a GPU the next batch is copied and finished on a stream of its own; nothing here waits for the device.

    Args:
        loader: gives (Pixels or Views, labels); labels are a tensor or a named tuple of tensors with `to`.
        device: where they go.
        finish: makes images of them there.
        in_steps: see `Task.in_steps`; on the batches as the loader gives them.
    """

    def __init__(
        self,
        loader: CleanErrors | Iterable[Any],
        device: torch.device,
        finish: Callable[[Pixels | Views], Tensor],
        in_steps: Callable[[Iterator[Any]], Iterator[Any]] = lambda batches: batches,
    ) -> None:
        self.loader = loader
        self.device = device
        self.finish = finish
        self.in_steps = in_steps

    def __iter__(self) -> Iterator[Batch]:
        return self._one_ahead() if self.device.type == "cuda" else map(self._finished, self._batches())

    def close(self) -> None:
        """Stops the loader's workers."""
        if isinstance(self.loader, CleanErrors):
            self.loader.close()

    def _batches(self) -> Iterator[Any]:
        return self.in_steps(iter(self.loader))

    def _finished(self, batch: Any) -> Batch:
        pixels, labels = (part.to(self.device, non_blocking=True) for part in batch)
        return self.finish(pixels), labels

    def _one_ahead(self) -> Iterator[Batch]:
        side, ready = torch.cuda.Stream(self.device), None
        for batch in self._batches():
            with torch.cuda.stream(side):
                following = self._finished(batch), side.record_event()
            if ready is not None:
                yield _handed_over(*ready)
            ready = following
        if ready is not None:
            yield _handed_over(*ready)


def _handed_over(batch: Batch, done: torch.cuda.Event) -> Batch:
    """The batch, for use on the current stream once the side stream is done with it."""
    current = torch.cuda.current_stream()
    current.wait_event(done)
    images, labels = batch
    for tensor in (images, *(labels if isinstance(labels, tuple) else (labels,))):
        if tensor.is_cuda:
            tensor.record_stream(current)  # else its memory could be given out again on the side stream while in use
    return batch
