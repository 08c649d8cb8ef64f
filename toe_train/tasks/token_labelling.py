"""Token labelling (LV-ViT, arXiv 2104.10858): the class of an image, and of each of its patches as a teacher sees it.

Shapes: B images, b of a micro-batch, k candidate classes of a cell, H x W cells of a map, K classes, N = rows * columns
patch tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from toe_train import data, models
from toe_train.data import BatchLayout, TokenTarget, generator
from toe_train.tasks.classification import Classification

BEYOND = 4  # times its own size that a map's edge values go on outwards
PUBLISHED_MAP = (5, 18, 18)  # candidate classes, rows and columns of the published label files


def token_targets(
    scores: Tensor,
    ids: Tensor,
    crop: Tensor,
    num_classes: int,
    grid: tuple[int, int],
    smoothing: float,
    alignment: str,
) -> tuple[Tensor, Tensor]:
    """Return soft targets for the class token, (B, K), and for the patch tokens, (B, N, K), row by row; float32.

    Of the part of the map that `crop` names, RoIAlign takes `grid` cells for the patch tokens and one for the class
    token; softmax over the classes, those that are no candidates at score 0; then (1 - smoothing) of it plus
    smoothing / K, and smoothing / K more, so a target sums to 1 + smoothing / K (TokenLabeling tlt/data/mixup.py).
    Beyond the map its edge values go on.

    scores, ids: (B, k, H, W). crop: (B, 4), see `TokenTarget`. grid: rows and columns of patch tokens.
    alignment: "correct", or "released" for what the released code trains with: it hands RoIAlign (top, left) for
    (left, top), so labels come from the transposed place.
    """
    assert alignment in data.ALIGNMENTS, alignment
    height, width = scores.shape[2:]
    maps = scores.new_zeros(len(scores), height, width, num_classes, dtype=torch.float32)
    maps.scatter_(3, ids.long().movedim(1, 3), scores.float().movedim(1, 3))  # (B, H, W, K)
    down, across = crop[:, 0::2], crop[:, 1::2]  # start and length; a list as an index would be copied to the device
    if alignment == "released":
        down, across = across, down
    on, off = 1 - smoothing + smoothing / num_classes, smoothing / num_classes

    def soft(rows: int, columns: int) -> Tensor:
        logits = (_shares(down, height, rows) @ maps.flatten(2)).unflatten(2, (width, num_classes))  # (B, rows, W, K)
        logits = _shares(across, width, columns)[:, None] @ logits  # (B, rows, columns, K)
        return (logits.softmax(dim=3) * on + off).flatten(1, 2)  # (B, rows * columns, K)

    return soft(1, 1)[:, 0], soft(*grid)


def _shares(span: Tensor, cells: int, bins: int) -> Tensor:
    """Return what each of `bins` equal parts of a span takes from each cell along one axis, (B, bins, cells).

    RoIAlign is linear in the map and the product of one such matrix for each axis, so these come from RoIAlign itself,
    of a one-dimensional map that has a channel for each cell. It is the released code's: not aligned, half a cell back.

    span: (B, 2), start and length in shares of the axis.
    """
    margin = BEYOND * cells
    of_cell = torch.arange(-margin, cells + margin, device=span.device).clamp(0, cells - 1)
    axis = F.one_hot(of_cell, cells).double().T[None, :, None]  # (1, cells, 1, cells + 2 margin)
    low, length = (span.double() * cells).unbind(1)
    low, none = low - 0.5 + margin, torch.zeros_like(low)
    boxes = torch.stack([none, low, none, low + length, none + 1], dim=1)  # image, left, top, right, bottom
    return roi_align(axis, boxes, (1, bins)).squeeze(2).mT.float()


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


class TokenLabelling(Classification):
    """What `Classification` learns, and the class of each patch, from label files; images are mixed by MixToken.

    Args:
        model: an LV-ViT with an output for each patch: it mixes, and tells what it mixed.
        grid: rows and columns of patch tokens.
        num_classes: width of the targets.
        smoothing: of the targets.
        alignment: see `token_targets`.
        seed: of the run.
        layout: of the global batch.
        files: folder of the label files, of the images that `train_set` is given.
        geometry: what part of its image a map covers, see `JointTransform`.
        dense_weight: of the patch tokens' part of the loss.
        cls_weight: of the class token's part.
        counted: gives, after each forward pass, which of the tokens that the model's blocks saw the dense part is over,
            (b, N) bool, or None for all; see `Method.counted`.
    """

    def __init__(
        self,
        model: nn.Module,
        grid: tuple[int, int],
        num_classes: int,
        smoothing: float,
        alignment: str,
        seed: int,
        layout: BatchLayout,
        files: Path,
        geometry: str = "full",
        dense_weight: float = 1.0,
        cls_weight: float = 1.0,
        counted: Callable[[], Tensor | None] = lambda: None,
    ) -> None:
        draw_box = partial(models.draw_box, grid)
        super().__init__(TokenMixing(num_classes, grid, smoothing, alignment, seed, layout, draw_box, self._hand_over))
        self._model: Any = model
        self._grid = grid
        self._files = files
        self._geometry = geometry
        self._counted = counted
        self._criterion = TokenLabelLoss(dense_weight, cls_weight, self._own_counted)

    def train_set(
        self, images: data.ImageSource, transform: Any, seed: int, skipped: data.SkippedImages | None
    ) -> data.TrainSet:
        """Augmented training images with their label maps moved along."""
        files = data.TokenLabelFiles(self._files, images.classes)
        return data.TrainSet(images, data.JointTransform(transform, self._geometry), seed, skipped, files)

    def example_targets(self, batch: int) -> Any:
        """Maps of the published size."""
        scores = torch.zeros(batch, *PUBLISHED_MAP, dtype=torch.float16)
        crop = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(batch, 1)
        return TokenTarget(scores, scores.to(torch.int16), crop, torch.zeros(batch, dtype=torch.int64))

    def loss(self, output: Any, targets: Any) -> Tensor:
        """See `TokenLabelLoss`."""
        return self._criterion(output, targets)

    def _hand_over(self, boxes: Tensor, partners: Tensor) -> None:
        self._model.given_mix = models.TokenMix(boxes, partners)

    def _own_counted(self) -> Tensor | None:
        """The tokens were chosen among mixed ones, and the outputs are each image's own again."""
        counted = self._counted()
        return None if counted is None else models.swap_in_boxes(counted, self._model.last_mix, self._grid)
