"""Random numbers of the forward pass as a function of a sample's place in the run.

Shapes: G images of a global batch, b of a micro-batch, L layers of a kind that draw.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from toe_train.data import BatchLayout, generator
from toe_train.methods.method import Method
from toe_train.models import GivenDraws


class ForwardDraws:
    """Hands the draws of each micro-batch to the layers that draw, by kind (`drop_path`, `dropout`), and to the method.

    They are drawn for the whole global batch from (seed, purpose, epoch, step) and cut to the micro-batch's rows, so
    that the number of processes and of micro-batches changes nothing.
    """

    def __init__(
        self,
        seed: int,
        layout: BatchLayout,
        rank: int,
        layers: Mapping[str, GivenDraws],
        method: Method,
        device: torch.device,
    ) -> None:
        self.seed = seed
        self.global_batch = layout.global_batch
        self.rows = [layout.rows(rank, micro) for micro in range(layout.accumulation)]
        self.layers = layers
        self.method = method
        self.device = device

    def give(self, epoch: int, step: int, micro: int) -> None:
        """Sets what micro-batch `micro` of `step` of `epoch` is to draw."""
        rows = self.rows[micro]

        def uniform(purpose: str, columns: int) -> Tensor:
            source = generator(self.seed, purpose, epoch, step)
            drawn = torch.rand(self.global_batch, columns, generator=source)[rows]  # (b, columns)
            if self.device.type == "cuda":  # from other memory the copy waits for the device
                drawn = drawn.pin_memory()
            return drawn.to(self.device, non_blocking=True)

        for purpose, layers in self.layers.items():
            if layers.count:
                layers.give(uniform(purpose, layers.count).T.contiguous())  # (L, b)
        self.method.draw(uniform)
