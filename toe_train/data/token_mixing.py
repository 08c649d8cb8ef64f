"""MixToken's boxes and a batch's soft targets, whatever the split of the global batch (LV-ViT)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from toe_train.data.order import BatchLayout
from toe_train.data.randomness import generator
from toe_train.data.token_labels import TokenTarget, token_targets


class TokenMixing:
    """Soft targets of the class and patch tokens, and the boxes in which the model exchanges patch tokens.

    MixToken swaps the embedded tokens of a box between the two images of a pair, and swaps the patch tokens' outputs
    back; so the class target is mixed by the box's share of the tokens, and the patch targets are not (TokenLabeling
    tlt/models/lvvit.py, tlt/loss/cross_entropy.py). LV-ViT draws one box for what one process holds and pairs image i
    with image b-1-i; here a mixing group takes that part (see `BatchLayout`).

    grid: rows and columns of patch tokens. smoothing, alignment: see `token_targets`. draw_box: a random box on the
    grid from a generator, (4,) int64 top, left, bottom, right, the last two outside it; its area may be 0.
    hand_over: called with each micro-batch's boxes and partners, (b, 4) and (b,) int64 on the images' device, before
    the model sees it. A partner is a row of the micro-batch.
    """

    def __init__(
        self,
        num_classes: int,
        grid: tuple[int, int],
        smoothing: float,
        alignment: str,
        seed: int,
        layout: BatchLayout,
        draw_box: Callable[[torch.Generator], Tensor],
        hand_over: Callable[[Tensor, Tensor], None],
    ) -> None:
        self._num_classes = num_classes
        self._grid = grid
        self._smoothing = smoothing
        self._alignment = alignment
        self._seed = seed
        self._layout = layout
        self._draw_box = draw_box
        self._hand_over = hand_over

    def __call__(
        self, images: Tensor, targets: TokenTarget, epoch: int, step: int, rank: int, micro: int
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return (images as they are, (class targets (b, K), patch targets (b, N, K))), float32.

        b is `layout.micro_batch`, its rows in the order of `layout.rows(rank, micro)`. Nothing is read back from the
        device: the boxes are drawn on the CPU.
        """
        assert len(images) == self._layout.micro_batch, (len(images), self._layout.micro_batch)
        boxes, partners = self._draw(epoch, step, rank, micro)
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        own = 1 - area[:, None] / (self._grid[0] * self._grid[1])  # (b, 1), the share of an image's own tokens
        boxes, partners, own = (part.to(images.device, non_blocking=True) for part in (boxes, partners, own))
        scores, ids, crop, _ = targets
        of_class, of_patches = token_targets(
            scores, ids, crop, self._num_classes, self._grid, self._smoothing, self._alignment
        )
        self._hand_over(boxes, partners)
        return images, (own * of_class + (1 - own) * of_class[partners], of_patches)

    def _draw(self, epoch: int, step: int, rank: int, micro: int) -> tuple[Tensor, Tensor]:
        """Return the boxes and partners of a micro-batch."""
        boxes = torch.empty(self._layout.micro_batch, 4, dtype=torch.int64)
        partners = torch.empty(self._layout.micro_batch, dtype=torch.int64)
        for group, start, stop in self._layout.segments(rank, micro):
            # The parts of a group that lie in other micro-batches draw the same numbers from the same seed.
            boxes[start:stop] = self._draw_box(generator(self._seed, "mix", epoch, step, group))
            partners[start:stop] = torch.arange(start, stop).flip(0)
        return boxes, partners
