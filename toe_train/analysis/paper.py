"""What the paper printed of the runs that have a configuration or a script here, Tables 2 to 10 and Appendix B.1.

What of it is unclear or lost: docs/fidelity.md, "Printed tables".
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperRow:
    """A row of a table of the paper.

    Attributes:
        table: its number; "B1" for the appendix's.
        top1: percent; of the averaged weights where `averaged`. For detection COCO's AP.
        hours: GPU-hours.
        practical: speed-up in hours.
        by_flops: speed-up by the paper's count.
        stage_seconds: GPU-seconds an epoch in each stage (Table 10).
        epochs: of the run; another number is another experiment.
        kind: of its data.
        averaged: whether the paper reports the averaged weights (LV-ViT).
        averaged_top1: percent of the averaged weights, where the paper prints both as "a / b".
        note: what a reader of the figure has to know.
    """

    table: int | str
    top1: float
    hours: float | None = None
    practical: float | None = None
    by_flops: float | None = None
    stage_seconds: tuple[float, ...] = ()
    epochs: int = 300
    kind: str = "image_folder"
    averaged: bool = False
    averaged_top1: float | None = None
    note: str | None = None


COOLDOWN = (
    "LV-ViT trains 310 epochs, the last 10 a cool-down; the paper's hours and FLOPs are of 300 (its Table 10 adds up "
    "to them), ours of all 310."
)
NO_EXPANSION = (
    "The paper does not say which of the two readings of no expansion its figure is of: it stands beside both."
)
DISTANCES = (
    "A correct Euclidean distance of unit vectors selects the cosine's tokens. The released code takes the farthest "
    "token for the nearest with Manhattan and Euclidean distances (rows ..._released); which code the paper's figures "
    "for them come from is unknown: they stand beside the correct ones."
)


PAIR = (
    "The paper prints two accuracies, most probably the best ones of the raw and of the averaged model of one run "
    '(docs/fidelity.md, "Depth growth"); ours are those of the last epoch.'
)
STACKBERT = "The paper does not give the row's schedule; ours is the authors' own split of the steps."
S2VITE = (
    "S2ViTE trains 600 epochs; the paper's FLOPs are of one image, so that the whole run is dearer than 300 plain "
    "epochs. A speed-up in hours needs a plain run of 600 epochs with its batch of 512 beside it."
)


def _lvvit(
    top1: float, hours: float, practical: float = 1.0, by_flops: float = 1.0, seconds: tuple[float, ...] = ()
) -> PaperRow:
    return PaperRow(3, top1, hours, practical, by_flops, seconds, epochs=310, averaged=True, note=COOLDOWN)


def _fine(top1: float, kind: str) -> PaperRow:
    return PaperRow(5, top1, epochs=1000, kind=kind)


# By the name of the configuration, or the one that a script gives to an ablation. Of Table 6 the columns are lost
# (docs/fidelity.md, "Printed tables").
PAPER = {
    "deit_tiny": PaperRow(2, 72.2, 54.6, 1.0, 1.0),
    "deit_tiny_toe_r05": PaperRow(2, 72.6, 44.2, 1.24, 1.27, (395, 542, 655)),
    "deit_tiny_s2vite": PaperRow(2, 70.1, None, 1.19, 1.32, epochs=600, note=S2VITE),
    "deit_tiny_tome_r8": PaperRow(2, 71.7, 53.3, 1.02, 1.32),
    "deit_tiny_networkexpansion_6_12": PaperRow(2, 70.3, 43.2, 1.26, 1.32, averaged_top1=70.1, note=PAIR),
    "deit_small": PaperRow(2, 79.8, 124.5, 1.0, 1.0),
    "deit_small_toe_r05": PaperRow(2, 79.8, 102.2, 1.22, 1.30, (948, 1244, 1488)),
    "deit_small_tome_r8": PaperRow(2, 79.7, 121.5, 1.02, 1.33),
    "deit_small_networkexpansion_6_12": PaperRow(2, 78.8, 100.3, 1.24, 1.33, averaged_top1=78.6, note=PAIR),
    "deit_base": PaperRow(2, 81.8, 292.8, 1.0, 1.0),
    "deit_base_stackbert": PaperRow(2, 80.8, 231.6, 1.26, 1.24, note=STACKBERT),
    "deit_base_networkexpansion_6_12": PaperRow(2, 81.0, 226.8, 1.29, 1.33, averaged_top1=81.5, note=PAIR),
    "deit_base_toe_r05": PaperRow(2, 81.6, 231.2, 1.27, 1.30, (2028, 2784, 3512)),
    "deit_base_toe_r04": PaperRow(2, 81.4, 225.2, 1.30, 1.37, (1852, 2740, 3512)),
    "deit_base_toe_hyper_r05": PaperRow(2, 81.8, 213.2, 1.37, 1.44),
    "deit_base_toe_hyper_r04": PaperRow(2, 81.7, 202.8, 1.44, 1.58),
    "lvvit_t": _lvvit(79.1, 130.5),
    "lvvit_t_toe_r04": _lvvit(79.4, 113.9, 1.15, 1.17, (1180, 1356, 1566)),
    "lvvit_t_networkexpansion": _lvvit(78.8, 114.4, 1.14, 1.15),
    "lvvit_s": _lvvit(83.3, 237.3),
    "lvvit_s_toe_r04": _lvvit(83.3, 195.3, 1.22, 1.36, (1828, 2356, 2848)),
    "lvvit_s_networkexpansion": _lvvit(82.9, 195.5, 1.21, 1.27),
    "lvvit_m": _lvvit(84.1, 368.7),
    "lvvit_m_toe_r04": _lvvit(84.1, 292.5, 1.26, 1.37, (2596, 3512, 4424)),
    "lvvit_m_networkexpansion": _lvvit(84.0, 292.7, 1.26, 1.28),
    "deit_tiny_et_baseline": PaperRow(4, 72.5, 52.5, 1.0, 1.0),
    "deit_tiny_et": PaperRow(4, 73.3, 36.5, 1.44, 1.48),
    "deit_tiny_et_toe_r06": PaperRow(4, 73.5, 32.3, 1.63, 1.71),
    "deit_small_et_baseline": PaperRow(4, 80.3, 121.3, 1.0, 1.0),
    "deit_small_et": PaperRow(4, 80.4, 85.2, 1.42, 1.53),
    "deit_small_et_toe_r06": PaperRow(4, 80.4, 79.4, 1.53, 1.79),
    "finetune_deit_tiny": _fine(98.07, "cifar10"),
    "finetune_deit_tiny_toe": _fine(98.10, "cifar10"),
    "finetune_deit_tiny_from_toe": _fine(98.19, "cifar10"),
    "finetune_deit_tiny_from_toe_toe": _fine(98.16, "cifar10"),
    "finetune_deit_small": _fine(98.93, "cifar10"),
    "finetune_deit_small_toe": _fine(98.96, "cifar10"),
    "finetune_deit_small_from_toe": _fine(99.03, "cifar10"),
    "finetune_deit_small_from_toe_toe": _fine(98.99, "cifar10"),
    "finetune_deit_tiny_cifar100": _fine(86.78, "cifar100"),
    "finetune_deit_tiny_toe_cifar100": _fine(86.74, "cifar100"),
    "finetune_deit_tiny_from_toe_cifar100": _fine(87.10, "cifar100"),
    "finetune_deit_tiny_from_toe_toe_cifar100": _fine(86.91, "cifar100"),
    "finetune_deit_small_cifar100": _fine(90.15, "cifar100"),
    "finetune_deit_small_toe_cifar100": _fine(90.19, "cifar100"),
    "finetune_deit_small_from_toe_cifar100": _fine(90.37, "cifar100"),
    "finetune_deit_small_from_toe_toe_cifar100": _fine(90.26, "cifar100"),
    "deit_tiny_random_init": PaperRow(7, 72.3),
    "deit_tiny_no_expansion_seeds": PaperRow(7, 71.2, note=NO_EXPANSION),
    "deit_tiny_no_expansion_even": PaperRow(7, 71.2, note=NO_EXPANSION),
    "deit_tiny_no_merging": PaperRow(7, 71.7),
    "deit_small_random_init": PaperRow(7, 79.7),
    "deit_small_no_expansion_seeds": PaperRow(7, 79.1, note=NO_EXPANSION),
    "deit_small_no_expansion_even": PaperRow(7, 79.1, note=NO_EXPANSION),
    "deit_small_no_merging": PaperRow(7, 79.6),
    "deit_tiny_after_block_0": PaperRow(8, 72.1, 43.5),
    "deit_tiny_after_block_2": PaperRow(8, 72.2, 45.2),
    "deit_tiny_after_block_3": PaperRow(8, 72.1, 46.9),
    "deit_tiny_manhattan": PaperRow(9, 69.8, note=DISTANCES),
    "deit_tiny_euclidean": PaperRow(9, 70.6, note=DISTANCES),
    "deit_small_manhattan": PaperRow(9, 78.0, note=DISTANCES),
    "deit_small_euclidean": PaperRow(9, 78.4, note=DISTANCES),
    "yolos_small": PaperRow("B1", 36.1, 1193, 1.0, epochs=150, kind="coco"),
    "yolos_small_toe_r05": PaperRow("B1", 36.0, 964, 1.24, epochs=150, kind="coco"),
}


def paper_row(name: str, epochs: int, kind: str) -> PaperRow | None:
    """The paper's row for a run called `name`, if it is that experiment: by its epochs and data."""
    row = PAPER.get(name)
    return row if row is not None and (row.epochs, row.kind) == (epochs, kind) else None
