"""Random numbers of the forward pass as a function of a sample's place in the run.

Shapes: G images of a global batch, B of a micro-batch, L drop-path layers, N patch tokens.
"""

from __future__ import annotations

import torch

from toe_train.data import BatchLayout, generator
from toe_train.expansion import TokenExpansion
from toe_train.models import DropPathDraws


class ForwardDraws:
    """Hands the draws of each micro-batch to the drop-path layers and to ToE's random initialisation.

    They are drawn for the whole global batch from (seed, epoch, step) and cut to the micro-batch's rows, so that the
    number of processes and of micro-batches changes nothing.
    """

    def __init__(
        self,
        seed: int,
        layout: BatchLayout,
        rank: int,
        drop_path: DropPathDraws,
        expansion: TokenExpansion | None,
        num_tokens: int,
        device: torch.device,
    ) -> None:
        self.seed = seed
        self.global_batch = layout.global_batch
        self.rows = [layout.rows(rank, micro) for micro in range(layout.accumulation)]
        self.drop_path = drop_path
        self.expansion = expansion if expansion is not None and expansion.initialization == "random" else None
        self.num_tokens = num_tokens
        self.device = device

    def give(self, epoch: int, step: int, micro: int) -> None:
        """Sets what micro-batch `micro` of `step` of `epoch` is to draw."""
        rows = self.rows[micro]
        if self.drop_path.count:
            source = generator(self.seed, "drop_path", epoch, step)
            uniform = torch.rand(self.global_batch, self.drop_path.count, generator=source)[rows]  # (B, L)
            self.drop_path.uniform = uniform.T.contiguous().to(self.device, non_blocking=True)  # (L, B)
        if self.expansion is not None:
            source = generator(self.seed, "initialization", epoch, step)
            noise = torch.rand(self.global_batch, self.num_tokens, generator=source)[rows]  # (B, N)
            self.expansion.noise = noise.to(self.device, non_blocking=True)
