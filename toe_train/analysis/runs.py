"""Run folders as they are compared: runs that differ in nothing but their seed are one row, with what its runs gave."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from statistics import mean

from toe_train.analysis.conditions import Conditions, change, conditions_of
from toe_train.analysis.flops import PlannedRun, plan_costs
from toe_train.analysis.paper import PaperRow, paper_row
from toe_train.analysis.tables import recorded_size
from toe_train.errors import UserError
from toe_train.recipes import DepthGrowthConfig, RunConfig, Size, essential, load_saved, plan_epochs, sides_of
from toe_train.runs.folder import RunFolder
from toe_train.runs.log import Record, read_metrics, tell_broken

SEED = re.compile(r"-s\d+$")
IMAGENET_CLASSES = 1000

Stage = tuple[int, Size]  # of the method, and the size of its images


@dataclass(frozen=True)
class Run:
    """A run folder as it was read.

    Attributes:
        folder: its name.
        config: the resolved configuration.
        starts: lines of its starts, one at least.
        epochs: lines of its epochs.
        tensorboard: where its curves and pictures lie, if they came along.
    """

    folder: str
    config: RunConfig
    starts: list[Record]
    epochs: list[Record]
    tensorboard: Path

    @property
    def name(self) -> str:
        """Its row's: the folder's without a seed at its end."""
        return SEED.sub("", self.folder)

    @property
    def is_finished(self) -> bool:
        """Whether its last epoch is done."""
        return bool(self.epochs) and self.epochs[-1]["epoch"] + 1 == self.config.epochs

    @property
    def is_mixed(self) -> bool:
        """Whether a later start changed what decides what is learned; runs of before that was written down are not."""
        return len({start["experiment_id"] for start in self.starts if "experiment_id" in start}) > 1

    @property
    def origins(self) -> set[str]:
        """Devices and versions that it ran with."""
        return {f"{start.get('device', '?')}, {start.get('versions', '?')}" for start in self.starts}

    @property
    def devices(self) -> set[str]:
        """What it ran on."""
        return {str(start.get("device", "?")) for start in self.starts}

    @property
    def conditions(self) -> Conditions:
        """What its times were taken under."""
        return conditions_of(self.starts[-1])

    @cached_property
    def disturbed(self) -> str:
        """Why its times compare with nothing; empty where they do."""
        return change(self.starts, [list(alike) for _, alike in groupby(self.epochs, key=stage_of)])

    @property
    def boundaries(self) -> list[int]:
        """Epochs, from 0, with which a stage begins, the first one left out."""
        firsts = [next(alike)["epoch"] for _, alike in groupby(self.epochs, key=stage_of)]
        return firsts[1:]

    def last(self, key: str) -> float | None:
        """The last value of an epoch line's key that is not null."""
        found = [record[key] for record in self.epochs if record.get(key) is not None]
        return found[-1] if found else None

    def stage_seconds(self) -> dict[Stage, float]:
        """GPU-seconds of an epoch in each stage, the mean over its epochs, by the paper's clock.

        An epoch whose predecessor's line is missing, as in a run that another folder's checkpoint began, is left out,
        and so are those that train the head alone.
        """
        done, taken = {-1: 0.0}, dict[Stage, list[float]]()
        for record in self.epochs:
            epoch, hours = record["epoch"], record["gpu_hours"]
            if epoch - 1 in done and epoch >= self.config.model.frozen_epochs:
                taken.setdefault(stage_of(record), []).append(3600 * (hours - done[epoch - 1]))
            done[epoch] = hours
        return {stage: mean(seconds) for stage, seconds in taken.items()}


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seed alone."""

    name: str
    runs: list[Run]

    @property
    def config(self) -> RunConfig:
        """That of the first."""
        return self.runs[0].config

    @property
    def headline(self) -> str:
        """The score that its task goes by, as an epoch's line names it."""
        return "ap" if self.config.task_kind == "detection" else "top1"

    @property
    def counted(self) -> list[Run]:
        """Those that its figures are of: the finished ones, or where there are none yet, all."""
        return [run for run in self.runs if run.is_finished] or self.runs

    @property
    def devices(self) -> set[str]:
        """What the counted ones ran on."""
        return set().union(*(run.devices for run in self.counted))

    @property
    def conditions(self) -> list[Conditions]:
        """What the counted ones whose times compare were timed under, what most of them were first."""
        found = [run.conditions for run in self.counted if not run.disturbed]
        return sorted(dict.fromkeys(found), key=found.count, reverse=True)

    def timed(self, conditions: Conditions | None = None) -> list[Run]:
        """The counted runs whose times compare, under these conditions; without any given, under most of theirs."""
        wanted = conditions or next(iter(self.conditions), None)
        return [run for run in self.counted if run.conditions == wanted and not run.disturbed]

    def times(self, key: str, conditions: Conditions | None = None) -> dict[int, float]:
        """The last values of an epoch line's key of times, of `timed`, by seed."""
        timed = self.timed(conditions)
        return {run.config.seed: value for run in timed if (value := run.last(key)) is not None}

    def mean_time(self, key: str, conditions: Conditions | None = None) -> float | None:
        """Mean of `times`."""
        values = self.times(key, conditions).values()
        return mean(values) if values else None

    @property
    def num_classes(self) -> int:
        """Width of its classifier, as its first run says."""
        return int(self.runs[0].starts[-1].get("num_classes", IMAGENET_CLASSES))

    @cached_property
    def costs(self) -> PlannedRun:
        """FLOPs of the whole schedule."""
        return plan_costs(self.config, self.num_classes)

    @property
    def paper(self) -> PaperRow | None:
        """What the paper printed of it."""
        return paper_row(self.name, self.config.epochs, _kind(self.config))

    @property
    def has_default_tokens(self) -> bool:
        """Whether it selects and merges as the paper does, or trains plainly."""
        if self.config.method is not None:
            return False
        section = self.config.expansion
        own = section and (section.initialization, section.expansion, section.metric, section.merging)
        return own in (None, ("spatial", "farthest", "cosine", True))

    @property
    def has_stages(self) -> bool:
        """Whether its method trains in stages: on more and more tokens, or blocks."""
        method = self.config.cheaper
        return (
            self.config.expansion is not None or len({method.stage(epoch) for epoch in range(self.config.epochs)}) > 1
        )

    @property
    def grows(self) -> bool:
        """Whether its model has more and more blocks."""
        return isinstance(self.config.method, DepthGrowthConfig)

    def blocks(self, stage: int) -> str:
        """Of its model in a stage of growth; "-" where it does not grow."""
        method = self.config.method
        return str(method.depths[stage - 1]) if isinstance(method, DepthGrowthConfig) else "-"

    def values(self, key: str) -> list[float]:
        """The last values of an epoch line's key, of the runs that have one."""
        return [value for run in self.counted if (value := run.last(key)) is not None]

    def mean(self, key: str) -> float | None:
        """Their mean."""
        values = self.values(key)
        return mean(values) if values else None

    @property
    def is_plain(self) -> bool:
        """Whether nothing makes it cheaper but fewer epochs or smaller images throughout."""
        return self.config.expansion is None and self.config.method is None and self.config.curriculum is None

    @property
    def expands(self) -> bool:
        """Whether Token Expansion alone makes it cheaper, and does more than drop tokens at random."""
        return self.config.expansion is not None and self.config.curriculum is None and not self.is_simple

    @property
    def is_simple(self) -> bool:
        """Whether it is what a method has to beat: plain training, smaller images, or random dropping of tokens."""
        section = self.config.expansion
        if section is None:
            return self.config.method is None
        return (section.initialization, section.expansion, section.merging) == ("random", "uniform", False)

    @property
    def lasts(self) -> int:
        """Epochs of the plain training that it takes the place of."""
        return (self.config.curriculum and self.config.curriculum.baseline_epochs) or self.config.epochs

    @property
    def recipe(self) -> tuple[object, ...]:
        """What is equal in rows of one model on the same data that are compared, whatever their length and images."""
        config, model, schedule = self.config, self.config.model, self.config.schedule
        learned = config.task_kind, _kind(config), self.num_classes
        begun = model.name, model.kwargs, model.drop_path, model.initial_weights is not None
        rates = config.optim, schedule.unit, schedule.stepping, schedule.min_lr, config.global_batch
        at_last = {"rand_augment": plan_epochs(config)[-1].rand_augment, "mix_group": None}  # a curriculum has its own
        return *learned, *begun, *rates, config.augment.model_copy(update=at_last)

    def stage_seconds(self) -> dict[Stage, float]:
        """Means over the timed runs that reached a stage, in order."""
        by_run = [run.stage_seconds() for run in self.timed()]
        stages = sorted({stage for taken in by_run for stage in taken}, key=_place)
        return {stage: mean(taken[stage] for taken in by_run if stage in taken) for stage in stages}


def _kind(config: RunConfig) -> str:
    """That of the data; the same for image files in all their forms."""
    return "image_folder" if config.data.of_files else config.data.kind


def _place(stage: Stage) -> tuple[int, tuple[int, int]]:
    return stage[0], sides_of(stage[1])


def stage_of(record: Record) -> Stage:
    """What an epoch line's epoch trained with."""
    return record["stage"], recorded_size(record)


def read_rows(folders: Sequence[Path]) -> list[Row]:
    """Reads run folders; those ending in -s0, -s1, ... are one row.

    Raises:
        UserError: one is no run folder, or runs of one name differ in more than their seed and what a machine decides.
    """
    rows: dict[str, list[Run]] = {}
    for run in filter(None, map(_read, folders)):
        rows.setdefault(run.name, []).append(run)
    for name, runs in rows.items():
        first, *others = (_without_seed(run.config) for run in runs)
        if any(other != first for other in others):
            raise UserError(f"the runs called {name} differ in more than their seed: report them under other names")
        if len({run.config.seed for run in runs}) < len(runs):
            raise UserError(f"two of the runs called {name} have the same seed: give each run once")
    return [Row(name, runs) for name, runs in rows.items()]


def _without_seed(config: RunConfig) -> dict[str, object]:
    """What has to be alike; the weights that it starts from may be a run of the same seed."""
    compared = essential(config.model_dump(mode="json"))
    started = compared["model"]["initial_weights"] is not None
    return {**compared, "seed": None, "model": {**compared["model"], "initial_weights": started}}


def _read(root: Path) -> Run | None:
    """None, and a note, for one whose metrics tell of no start and no epoch."""
    folder = RunFolder(root)
    missing = [path.name for path in (folder.config, folder.metrics) if not path.is_file()]
    if missing:
        raise UserError(f"{root} is not a run folder: it holds no {' and no '.join(missing)}")
    for note in tell_broken(folder.metrics):
        print(note, file=sys.stderr)
    starts = read_metrics(folder.metrics, "start")
    epochs = read_metrics(folder.metrics, "epoch")
    if not starts and not epochs:
        print(f"note: {folder.metrics} holds no start of a run; {root} is left out", file=sys.stderr)
        return None
    return Run(folder.root.name, load_saved(folder.config), starts or [{}], epochs, folder.tensorboard)
