"""A run from its folder to its last epoch: what is refused beforehand, what it resumes from, stage after stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

from toe_train import data
from toe_train.build.inputs import (
    batch_layout,
    build_train_transform,
    check_data,
    describe_split,
    of_data,
    open_images,
)
from toe_train.build.model import (
    batch_norm_notes,
    require_resizable,
    require_whole_in_the_end,
)
from toe_train.build.preflight import dry_build, require_outside_data
from toe_train.build.resume import Found, belonging, require_same_experiment, resume_point
from toe_train.build.step import MicroBatches, micro_batches
from toe_train.build.tracking import Tracking, build_tracking
from toe_train.build.trainer import Setting, build_trainer
from toe_train.recipes import (
    MethodSection,
    RunConfig,
    config_at,
    curriculum_stages,
    dump_config,
    experiment,
    notes,
    plan_epochs,
)
from toe_train.runs import memory
from toe_train.runs.checkpoints import Checkpoints
from toe_train.runs.folder import RunFolder, provenance
from toe_train.runs.jobs import restarted_jobs
from toe_train.runs.log import read_metrics
from toe_train.runs.preemption import StopRequest
from toe_train.runs.processes import Processes
from toe_train.runs.progress import Progress
from toe_train.training.loop import Trainer
from toe_train.training.precision import describe_precision


@dataclass
class Run:
    """A run that is ready to train, or done.

    Attributes:
        setting: what its trainers share.
        trainer: for the epoch at which it stands; None where all epochs are done.
        stop: whether a signal asks it to stop.
        started: what is written of its origin.
    """

    setting: Setting
    trainer: Trainer | None
    stop: StopRequest
    started: dict[str, str] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Width of the classifier."""
        return len(self.setting.belongs_to["classes"])

    def train(self) -> None:
        """Trains to the end, with a trainer for each stage of the curriculum.

        Raises:
            Preempted: a signal asked it to stop; the place is saved.
            RanOut: the device's memory did not hold a step; a later start takes smaller ones.
            RunFailed: it cannot go on.
        """
        trainer, self.trainer = self.trainer, None
        setting = self.setting
        config, folder, here = setting.config, setting.folder, setting.processes
        assert trainer is not None
        self._begin(trainer)
        while True:
            trainer.stop = self.stop
            try:
                trainer.fit()
            except memory.StepTooLarge as error:
                alone = here.world_size == 1
                raise memory.ran_out(
                    folder.micro_batch, trainer.layout.micro_batch, error, alone, _smallest(config)
                ) from None
            epoch = trainer.progress.epoch
            if epoch == config.epochs:
                return
            del trainer  # a stage is over, and its model makes room for the next one's
            memory.release()
            trainer = here.together(partial(build_trainer, setting, find_checkpoint(setting, "auto")))
            if here.is_main:
                plan = trainer.cadence.plans[epoch]
                depth = (config.method or MethodSection()).model_kwargs(plan.segment).get("depth")
                blocks = f"{depth} blocks, " if depth else ""
                shown = f"{plan.image_size} pixels, {plan.rand_augment or 'no rand_augment'}"
                thawed = "all weights train, " if trainer.cadence.plans[epoch - 1].frozen and not plan.frozen else ""
                print(f"from epoch {epoch + 1} on: {thawed}{blocks}{shown}")
                print(describe_split(trainer.layout))

    def _begin(self, trainer: Trainer) -> None:
        config, folder, here = self.setting.config, self.setting.folder, self.setting.processes
        first, step = trainer.progress.epoch, trainer.progress.step
        if here.is_main:
            folder.write_config(dump_config(config), self.started)
            print(f"run folder {folder.root}; watch it with: {folder.watch}")
            print(f"{describe_split(trainer.layout)}; {describe_precision(here.device, config.train.precision)}")
            if first or step:
                after = f", after {step} of its steps" if step else ""
                print(f"continuing at epoch {first + 1} of {config.epochs}{after}")
            for line in [*notes(config), *batch_norm_notes(trainer.model, here.world_size)]:
                print(line)
        trainer.log.start(
            {
                "first_epoch": first,
                "first_step": step,
                "world_size": here.world_size,
                "threads": torch.get_num_threads(),
                "num_classes": self.num_classes,
                "experiment_id": experiment(config.model_dump(mode="json")),
                **self.started,
            }
        )


def complete(
    config: RunConfig,
    folder: RunFolder,
    resume: str,
    here: Processes,
    given: list[str],
    stop: StopRequest,
    opened: Callable[[int], None] = lambda num_classes: None,
) -> bool:
    """Trains a run to its end, from its checkpoint again where the device's memory ran out; see `open_run`.

    Args:
        config, folder, resume, here, given, stop: see `open_run`.
        opened: called before the training, with the width of the classifier.

    Returns:
        Whether there was anything left to train.
    """
    if here.from_main(lambda: Checkpoints(folder.checkpoints).is_of_any(restarted_jobs())):
        resume = "auto"  # else it would begin there again each time
    tracking = build_tracking(config, folder, here)
    with tracking.watching():
        while True:
            try:
                run = open_run(config, folder, resume, here, given, stop, tracking)
                opened(run.num_classes)
                if run.trainer is not None:
                    run.train()
                    return True
                return False
            except memory.RanOut as fault:
                if here.world_size > 1:  # the others wait for this process in vain, and end with it
                    raise
                print(fault)
            memory.release()
            resume = "auto"


def open_run(
    config: RunConfig,
    folder: RunFolder,
    resume: str,
    here: Processes,
    given: list[str],
    stop: StopRequest,
    tracking: Tracking,
) -> Run:
    """All that comes before the first step; all processes call it together.

    Args:
        config: the run.
        folder: where it lives.
        resume: auto, never or a path.
        here: this process.
        given: the command's arguments, to be written down.
        stop: looked at where little is lost.
        tracking: trackers of the run.

    Raises:
        UserError: what the user must mend, before anything is written over.
        RunFailed: the device does not hold the smallest step; the disk does not take a file.
        Preempted: a signal asked to stop.
    """
    here.main_only(lambda: require_outside_data(config, folder))
    if resume != "never":
        here.main_only(folder.require_checkpoints)
    here.main_only(lambda: check_data(config))
    images = open_images(config, here)
    asked, config = config, of_data(config, images)
    if here.is_main and config != asked:
        rate = f"peak learning rate {config.peak_lr:g}"
        print(f"global batch {config.global_batch} for {len(images[0])} training images; {rate}")
    if resume == "never" and here.from_main(folder.holds_a_run):  # which is not set aside for one that cannot be
        here.main_only(lambda: dry_build(config, here.world_size, images, begins=True))
    stop.leave(here, "in start-up")
    here.main_only(lambda: _open_folder(folder, resume))
    limits = _fit_to_memory(config, folder, here, len(images[0].classes))
    stop.leave(here, "in start-up")
    setting = Setting(config, folder, here, images, belonging(config, images), limits, tracking)
    found = find_checkpoint(setting, resume)
    if found is not None and Progress(**found[1]["progress"]).epoch >= config.epochs:
        return Run(setting, None, stop)
    trainer = here.together(partial(build_trainer, setting, found))
    return Run(setting, trainer, stop, provenance(given))


def find_checkpoint(setting: Setting, resume: str) -> Found | None:
    """The checkpoint to go on from, read by the main process; refused where it does not belong to the run."""
    config, folder = setting.config, setting.folder

    def read() -> Found | None:
        found = resume_point(Checkpoints(folder.checkpoints), resume, setting.belongs_to)
        if found is not None and found[1]["progress"]["epoch"] >= config.epochs:
            require_same_experiment(folder.root, config.epochs, found[1]["config"], setting.belongs_to["config"])
        return found

    return setting.processes.from_main(read)


def _open_folder(folder: RunFolder, resume: str) -> None:
    folder.lock()
    checkpoints = Checkpoints(folder.checkpoints)
    if resume == "never" and (aside := folder.set_aside()):
        print(f"the earlier run in {folder.root} is now {aside}")
    if resume == "auto":
        for line in checkpoints.heal():
            print(line)
        if not checkpoints.last.exists() and folder.metrics.exists() and read_metrics(folder.metrics, "epoch"):
            print(f"the run in {folder.root} has no checkpoint to continue from; it is now {folder.set_aside()}")
    folder.create()
    folder.lock()
    if not folder.has_locks:
        print(f"note: {folder.root} is on a file system without locks: nothing keeps a second run from training there")


def _smallest(config: RunConfig) -> int:
    return data.smallest_micro_batch(config.mixes_images)


def _fit_to_memory(config: RunConfig, folder: RunFolder, here: Processes, num_classes: int) -> MicroBatches:
    """The micro-batches that the device holds, as far as that is known before the first step."""
    stages = curriculum_stages(plan_epochs(config))
    for plan in stages:  # what a later one has to be refused for is said now
        here.together(partial(batch_layout, config_at(config, plan), here.world_size))
        here.together(partial(build_train_transform, config_at(config, plan), plan.loaded_size))
    here.together(partial(require_resizable, config, [plan.image_size for plan in stages]))
    here.together(partial(require_whole_in_the_end, config))
    left = here.from_main(lambda: memory.remembered(folder.micro_batch, _smallest(config)))
    limits = micro_batches(config, num_classes, here, left)
    for plan in stages:
        asked, now = batch_layout(config_at(config, plan), here.world_size).micro_batch, limits[plan.curriculum]
        if now < asked and here.is_main:
            print(f"micro-batches of {now} images instead of {asked}, which the device's memory does not hold")
    return limits
