"""Mixup and CutMix that do not depend on how a global batch is split."""

from timm.data.mixup import Mixup, mixup_target
from torch import Tensor, cat

from toe_train.data.order import BatchLayout
from toe_train.data.randomness import derive_seed, seeded


class BatchMixing:
    """timm's Mixup in batch mode (one ratio, one box), applied to each mixing group of the global batch.

    DeiT mixes what one process holds; here the group takes that part (see `BatchLayout`), so pairs, ratios and boxes
    are the same for any number of processes and accumulation steps. DeiT's values (DeiT main.py): mixup 0.8,
    cutmix 1.0, prob 1.0, switch_prob 0.5, smoothing 0.1.

    mixup, cutmix: alphas of the Beta distribution, 0 switches one off; with both 0 only the labels are smoothed.
    prob: probability that a group is mixed at all. switch_prob: that it is CutMix when both are on.
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
        return images, cat(targets)
