"""Detection as a run's task: sets of boxes in training, COCO's average precision in the evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toe_train import data
from toe_train.errors import RunFailed
from toe_train.runs.processes import Processes
from toe_train.tasks.average_precision import COLUMNS, STATISTICS, coco_statistics, require_pycocotools, rows_of
from toe_train.tasks.detection import losses, postprocess
from toe_train.tasks.matching import BoxesNotFinite, match, require_scipy
from toe_train.tasks.set_loss import set_sums
from toe_train.tasks.task import Task

TERMS = ("loss_ce", "loss_bbox", "loss_giou")
REPORTED = STATISTICS[:6]  # average precision; recall is not reported


class BoxDetection(Task):
    """Which objects an image shows, and where (YOLOS).

    Args:
        mean, std: per channel, of images scaled to 0..1.
        group: training images in a row that share their size, see `data.ShapedOrder`.
        accumulation: micro-batches of an optimiser step.
        average: gives the mean of a tensor over the processes that take a step together, which must all call it.

    Raises:
        UserError: a package that it needs is not there.
    """

    scores = (*REPORTED, *TERMS, "images")
    headline = "ap"
    shown = (("AP", "val_ap"), ("EMA", "ema_ap"), ("AP50", "val_ap50"))
    loss_terms = TERMS

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        group: int,
        accumulation: int,
        average: Callable[[Tensor], Tensor],
    ) -> None:
        require_scipy()
        require_pycocotools()
        self._normal = mean, std
        self._group = group
        self._accumulation = accumulation
        self._average = average
        self._terms: tuple[Tensor, ...] = ()
        self._scored: data.CocoImages | None = None

    def order(
        self, images: Any, global_batch: int, seed: int, repeats: int, sampling: data.Sampling = "shuffled"
    ) -> data.GlobalOrder:
        """Groups of images of like shape in a row, which have no class to be balanced by."""
        assert sampling == "shuffled", sampling
        return data.ShapedOrder(len(images), global_batch, seed, repeats, shapes=images.sizes, group=self._group)

    def train_set(self, images: Any, transform: Any, seed: int, skipped: data.SkippedImages | None) -> data.TrainSet:
        """Augmented training images with their objects."""
        return data.BoxTrainSet(images, transform, seed, skipped)

    def eval_set(self, images: Any, transform: Any, skipped: data.SkippedImages | None) -> data.EvalSet:
        """Evaluation images with their objects; `score` is of the images that were given here last."""
        self._scored = images
        return data.BoxEvalSet(images, transform, *self._normal, skipped)

    def eval_batches(self, eval_set: Any, indices: Sequence[int], batch: int) -> list[list[int]]:
        """Batches of images that are evaluated at one size."""
        return eval_set.batches(indices, batch)

    def collate(self, samples: list[Any]) -> tuple[Any, Any]:
        """Pixels and `data.Objects`."""
        return data.collate_boxes(samples)

    def eval_collate(self, samples: list[Any]) -> Any:
        """Images, and for each what it shows."""
        return data.collate_seen(samples)

    def in_steps(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The boxes' terms are divided by the objects of a whole step, so that its micro-batches change nothing."""
        return data.in_steps(batches, self._accumulation)

    def example_targets(self, batch: int) -> Any:
        """One object an image."""
        boxes = torch.tensor([0.5, 0.5, 0.5, 0.5]).repeat(batch, 1)
        counts = torch.ones(batch, dtype=torch.int64)
        return data.Objects(counts.clone(), boxes, counts, torch.tensor(batch * self._accumulation))

    def loss(self, output: Any, targets: data.Objects) -> Tensor:
        """Total of a micro-batch's set loss, see `losses`; not finite where an image's boxes are not.

        The terms of boxes are divided by the objects of the step over all micro-batches of all processes, which for a
        micro-batch a process is the released rule (YOLOS models/detector.py).
        """
        logits, boxes = output
        own = torch.full((), float(targets.of_step), device=logits.device) / self._accumulation
        num_boxes = self._average(own).clamp(min=1)
        try:
            found = losses(logits, boxes, targets.by_image(), num_boxes)
        except BoxesNotFinite:  # the guard leaves the step out, and names it and its images where it comes to that
            broken = (logits.float().sum() + boxes.float().sum()) * torch.nan
            found = dict.fromkeys((*TERMS, "total"), broken)
        self._terms = tuple(found[term].detach() for term in TERMS)
        return found["total"]

    def terms(self) -> tuple[Tensor, ...]:
        """Of the last loss, by the names in `loss_terms`."""
        return self._terms

    @torch.no_grad()
    def score(
        self,
        models: Mapping[str, nn.Module],
        batches: Any,
        processes: Processes,
        autocast: AbstractContextManager[None],
        poll: Callable[[], None] = lambda: None,
    ) -> dict[str, float]:
        """COCO's average precision in percent, mean losses over the images, and how many images they are.

        What there is nothing of to score, small objects for instance, is not a number.

        Raises:
            RunFailed: what a model gives for some images is not finite; naming them.
        """
        assert self._scored is not None
        tallies = {name: _Tally(processes.device) for name in models}
        were_training = {name: model.training for name, model in models.items()}
        for model in models.values():
            model.eval()
        ids: list[int] = []
        for _, batch in zip_longest(range(int(processes.max(len(batches)))), batches):
            poll()
            if batch is None:
                continue
            images, seen = batch[0].to(processes.device, non_blocking=True), batch[1]
            ids += [self._scored.image_id(one.index) for one in seen if one.index != data.NOT_COUNTED]
            for name, model in models.items():
                with autocast:
                    output = model(images)
                tallies[name].add(output, seen, self._scored)
        for name, model in models.items():
            model.train(were_training[name])
        return self._together(tallies, ids, processes)

    def _together(self, tallies: Mapping[str, _Tally], ids: list[int], processes: Processes) -> dict[str, float]:
        """Scores over the images of all processes."""
        assert self._scored is not None
        broken = [path for tally in tallies.values() for part in processes.gather(tally.broken) for path in part]
        if broken:
            failure = RunFailed(
                f"what the model finds in {len(broken)} validation images is not finite: {data.shorten(broken)}; "
                "continue from an earlier checkpoint with a lower optim.lr"
            )
            failure.shared = True
            raise failure
        everyone = [identity for part in processes.gather(ids) for identity in part]
        if not everyone:
            failure = RunFailed("no validation image could be read; `toe-tools doctor --config FILE` lists them")
            failure.shared = True
            raise failure
        truth, scores = self._scored.ground_truth() if processes.is_main else {}, dict[str, float]()
        for name, tally in tallies.items():
            rows = np.concatenate(processes.gather(np.concatenate([np.empty((0, COLUMNS)), *tally.rows])))
            with processes.waiting():  # a slow machine may take longer than a step ever does
                counted = processes.from_main(lambda rows=rows: coco_statistics(truth, rows, everyone).tolist())  # type: ignore[misc]
            for statistic, value in zip(STATISTICS, counted, strict=True):
                if statistic in REPORTED:
                    scores[f"{name}_{statistic}"] = 100 * value if value >= 0 else float("nan")
            for term, value in tally.losses(processes).items():
                scores[f"{name}_{term}"] = value
            scores[f"{name}_images"] = len(everyone)
        return scores


class _Tally:
    """What one model gave for this process's images so far."""

    def __init__(self, device: torch.device) -> None:
        self.rows: list[np.ndarray] = []
        self.broken: list[str] = []  # images for which it is not finite
        self._sums = torch.zeros(5, dtype=torch.float64, device=device)  # see `Sums`; and objects

    def add(self, output: tuple[Tensor, Tensor], seen: Sequence[data.Seen], images: data.CocoImages) -> None:
        """Takes up a batch."""
        logits, boxes = output
        counted = [row for row, one in enumerate(seen) if one.index != data.NOT_COUNTED]
        logits, boxes, seen = logits[counted], boxes[counted], [seen[row] for row in counted]
        if not seen:
            return
        targets = [
            {"labels": one.objects.labels.to(logits.device), "boxes": one.objects.boxes.to(logits.device)}
            for one in seen
        ]
        try:
            sums = set_sums(logits, boxes, targets, match(logits, boxes, targets))
        except BoxesNotFinite as fault:
            self.broken += [images.describe(seen[row].index) for row in fault.images]
            return
        objects = sums.ce.new_tensor(float(sum(len(target["labels"]) for target in targets)))
        self._sums += torch.stack([*sums, objects]).double()
        found = postprocess(logits, boxes, torch.tensor([one.size for one in seen]))
        self.rows += [rows_of(images.image_id(one.index), own) for one, own in zip(seen, found, strict=True)]

    def losses(self, processes: Processes) -> dict[str, float]:
        """Terms over the images of all processes, as of one batch of them all."""
        ce, weight, l1, giou, objects = processes.sum(self._sums).tolist()
        return {"loss_ce": ce / weight, "loss_bbox": l1 / max(1, objects), "loss_giou": giou / max(1, objects)}
