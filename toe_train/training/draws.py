"""Random numbers of the forward pass as a function of a sample's place in the run.

Shapes: G images of a global batch, b of a micro-batch, L drop-path layers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from toe_train.data import BatchLayout, generator
from toe_train.methods.method import Method
from toe_train.models import DropPathDraws


class ForwardDraws:
    """Hands the draws of each micro-batch to the drop-path layers and to the method.

    They are drawn for the whole global batch from (seed, purpose, epoch, step) and cut to the micro-batch's rows, so
    that the number of processes and of micro-batches changes nothing.
    """

    def __init__(
        self,
        seed: int,
        layout: BatchLayout,
        rank: int,
        drop_path: DropPathDraws,
        method: Method,
        device: torch.device,
    ) -> None:
        self.seed = seed
        self.global_batch = layout.global_batch
        self.rows = [layout.rows(rank, micro) for micro in range(layout.accumulation)]
        self.drop_path = drop_path
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

        if self.drop_path.count:
            self.drop_path.give(uniform("drop_path", self.drop_path.count).T.contiguous())  # (L, b)
        self.method.draw(uniform)
