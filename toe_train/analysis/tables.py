"""Tables that the commands print: the plan of a run before it, and its summary by stage after it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from statistics import median

from toe_train.analysis.conditions import change
from toe_train.analysis.flops import PlannedRun, plan_costs
from toe_train.build.model import build_model
from toe_train.build.step import build_optimizer, build_schedule
from toe_train.recipes import RunConfig, Size, curriculum_stages, plan_epochs, sides_of
from toe_train.runs.folder import RunFolder
from toe_train.runs.log import Record, read_metrics

IMAGENET_IMAGES = 1_281_167  # in an epoch; only a schedule by step depends on it


def plan_table(config: RunConfig, num_classes: int) -> str:
    """Segments of the run with tokens, learning rate, FLOPs per image and predicted speed-up."""
    planned = plan_costs(config, num_classes)
    optimizer = build_optimizer(config, build_model(config, num_classes).model)
    schedule = build_schedule(config, optimizer, max(1, IMAGENET_IMAGES // config.global_batch))
    pixels = math.prod(sides_of(config.model.image_size))
    rows = [
        (
            f"{part.stretch.first + 1}-{part.stretch.last + 1}",
            str(part.stretch.stage),
            size_text(part.stretch.plan.image_size),
            f"{part.cost.tokens_kept}/"
            f"{planned.full.tokens_kept * math.prod(sides_of(part.stretch.plan.image_size)) // pixels}",
            f"{schedule.mean(part.stretch.first):.2e} .. {schedule.mean(part.stretch.last):.2e}",
            f"{part.cost.macs / 1e9:.4f}",
            f"{part.cost.thop_macs / 1e9:.4f}",
            f"{part.cost.expansion_macs / 1e9:.4f}",
            f"{part.speedup:.3f}x",
        )
        for part in planned.stretches
    ]
    heads = (
        "epochs",
        "stage",
        "pixels",
        "tokens",
        "learning rate",
        "GMACs/image",
        "by thop",
        "+ method's own",
        "predicted",
    )
    augmented = ""
    if config.curriculum is not None:
        stages = curriculum_stages(plan_epochs(config))
        augmented = "".join(
            f"\nfrom epoch {plan.epoch + 1} on: {plan.rand_augment}, micro-batches of {plan.micro_batch}"
            for plan in stages
        )
    frozen = ""
    if count := config.model.frozen_epochs:
        frozen = (
            f"\nepochs 1-{count} train the head alone, with forward passes through the rest: about a third of the work "
            "that is counted here"
        )
    over = "" if planned.baseline_epochs == config.epochs else f" over {planned.baseline_epochs} plain epochs"
    return (
        table(heads, rows)
        + augmented
        + frozen
        + f"\npredicted speed-up of the whole schedule{over}: {planned.speedup:.3f}x by FLOPs, attention counted "
        f"(full tokens: {planned.full.macs / 1e9:.4f} GMACs/image); {planned.thop_speedup:.3f}x as the paper counts, "
        "by thop, which leaves attention's products out"
    )


def size_text(size: Size) -> str:
    """An image's size as people write it: a square's side, or height x width."""
    return str(size) if isinstance(size, int) else f"{size[0]}x{size[1]}"


def recorded_size(record: Record) -> Size:
    """The image size in an epoch's line."""
    size = record["image_size"]
    return size if isinstance(size, int) else (size[0], size[1])


def summary_table(planned: PlannedRun, folder: RunFolder) -> str:
    """Per stage: tokens kept, images/s (median over its epochs), speed-up measured and predicted, last top-1.

    Measured speed-up is over the stage of the same run that trains plainly; without one there is nothing to compare
    with, and where the conditions changed within the run it is left out, with the reason under the table.
    """
    frozen = max((part.stretch.last + 1 for part in planned.stretches if part.stretch.plan.frozen), default=0)
    epochs = [record for record in read_metrics(folder.metrics, "epoch") if record["epoch"] >= frozen]
    predicted = {(part.stretch.stage, part.stretch.plan.image_size): part.speedup for part in planned.stretches}
    stages = [(key, list(group)) for key, group in groupby(epochs, key=lambda e: (e["stage"], recorded_size(e)))]
    dense = [record for record in epochs if predicted.get((record["stage"], recorded_size(record))) == 1]
    changed = change(read_metrics(folder.metrics, "start"), [records for _, records in stages])
    base = _rate(dense) if dense and not changed else None
    headline, words = ("ap", "AP") if epochs and "val_ap" in epochs[0] else ("top1", "top-1 %")
    rows = []
    for key, records in stages:
        rate = _rate(records)
        rows.append(
            (
                str(key[0]),
                f"{records[0]['epoch'] + 1}-{records[-1]['epoch'] + 1}",
                f"{records[0]['tokens_kept']}/{records[0]['tokens']}",
                f"{rate:.0f}",
                f"{rate / base:.2f}x" if base else "-",
                f"{predicted[key]:.2f}x" if key in predicted else "-",
                _score(records, f"val_{headline}"),
                _score(records, f"ema_{headline}"),
            )
        )
    heads = ("stage", "epochs", "tokens", "images/s", "measured", "by FLOPs", f"last {words}", f"last EMA {words}")
    return (
        table(heads, rows)
        + (f"\nspeed-ups measured are left out: {changed}" if changed else "")
        + (f"\nepochs 1-{frozen}, which train the head alone, are left out" if frozen else "")
        + f"\nrun folder: {folder.root}\ncurves and pictures: {folder.watch}"
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that lines up in a terminal too; columns to the right."""
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    return "\n".join([line(heads), rule, *(line(row) for row in rows)])


def _rate(records: Sequence[Record]) -> float:
    return median(record["images_per_second"] for record in records)


def _score(records: Sequence[Record], key: str) -> str:
    scores = [record[key] for record in records if record[key] is not None]
    return f"{scores[-1]:.2f}" if scores else "-"
