"""`toe-train`: one run from one configuration."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from toe_train._version import __version__
from toe_train.analysis.flops import plan_costs
from toe_train.analysis.tables import plan_table, summary_table
from toe_train.cli.exits import PREEMPTED, RUN_FAILED, USER_ERROR, guarded
from toe_train.cli.launch import launch, process_count, under_torchrun
from toe_train.data import BatchLayout, GlobalOrder, open_datasets
from toe_train.errors import Preempted, UserError
from toe_train.recipes import RunConfig, config_at, curriculum_stages, dump_config, experiment, load_config, plan_epochs
from toe_train.training import build, memory
from toe_train.training.build_inputs import (
    batch_layout,
    build_eval_transform,
    build_train_transform,
    check_data,
    describe_split,
)
from toe_train.training.build_model import build_model, load_initial, require_resizable
from toe_train.training.build_step import MicroBatches, build_step, micro_batches
from toe_train.training.checkpoint import Checkpoints
from toe_train.training.distributed import Processes, processes, restarted_jobs
from toe_train.training.precision import describe_precision
from toe_train.training.preemption import StopRequest
from toe_train.training.runfolder import RunFolder, provenance
from toe_train.training.runlog import read_metrics


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, or one of `exits`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_intermixed_args(given)
    folder = RunFolder(_output(options))
    saved = Checkpoints(folder.checkpoints).watch()

    def again() -> str:
        from_its_own = options.resume == "auto" or not saved()
        return "the same command" if from_its_own else "the same command without --resume"

    return guarded(lambda: _run(options, given, folder, saved), again)


def _output(options: argparse.Namespace) -> Path:
    """The run folder: a run's own where its config.yaml is given."""
    config = Path(options.config)
    if options.output:
        return Path(options.output)
    own = RunFolder(config.parent)
    return own.root if config.resolve() == own.config and own.metrics.exists() else Path("runs") / config.stem


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="toe-train",
        allow_abbrev=False,
        description="Train a vision transformer, faster by Token Expansion, from one YAML file.",
    )
    parser.add_argument("--version", action="version", version=f"toe-train {__version__}")
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file; see configs/")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="dotted path and YAML value: optim.lr=1e-3")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|PATH",
        help="auto: from the run folder's last checkpoint if there is one; never: start anew, an earlier run is set "
        "aside; or from a checkpoint file (default: auto)",
    )
    parser.add_argument(
        "--nproc", default="auto", metavar="auto|N", help="processes on this machine (default: one per GPU)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan and the predicted speed-up, build all, train nothing"
    )
    parser.add_argument(
        "--output", metavar="DIR", help="run folder (default: runs/<config name>, or that of a run's config.yaml)"
    )
    return parser


def _run(options: argparse.Namespace, given: list[str], folder: RunFolder, saved: Callable[[], bool]) -> int:
    config = load_config(options.config, options.overrides)
    if options.output == "":
        raise UserError("--output is empty; name a folder, or leave it out")
    if options.dry_run:
        return _dry_run(config, process_count(options.nproc), _begins(folder, options.resume))
    if not under_torchrun() and (count := process_count(options.nproc)) > 1:
        stop = StopRequest()
        with stop.listening():  # what the user must mend is said once, before any process starts
            _dry_build(config, count, _begins(folder, options.resume))
        if stop.signal:
            raise Preempted("by a signal, in start-up; the same command continues")
        return launch(count, _for_each_process(options, options.resume), again=_restarts(options, saved))
    stop = StopRequest()
    with stop.listening(), processes() as here:
        resume = options.resume
        if here.gather(Checkpoints(folder.checkpoints).is_of_any(restarted_jobs()))[0]:
            resume = "auto"  # else it would begin there again each time
        while True:
            try:
                return _train(config, folder, resume, here, given, stop)
            except memory.RanOut as fault:
                if here.world_size > 1:  # the others wait for this process in vain, and end with it
                    raise
                print(fault)
            memory.release()
            resume = "auto"


def _begins(folder: RunFolder, resume: str) -> bool:
    """Whether a run starts from new or initial weights, and not from a checkpoint of its own."""
    return resume == "never" or (resume == "auto" and not Checkpoints(folder.checkpoints).last.exists())


def _for_each_process(options: argparse.Namespace, resume: str) -> list[str]:
    """The arguments without `--nproc`, which torchrun would take for its own."""
    output = ["--output", options.output] if options.output else []
    return ["--config", options.config, "--resume", resume, *output, *options.overrides]


def _restarts(options: argparse.Namespace, saved: Callable[[], bool]) -> Callable[[set[int]], list[str] | None]:
    """For `launch`: after a crash, and with smaller micro-batches after running out of memory, the run goes on."""

    def again(codes: set[int]) -> list[str] | None:
        if codes & {USER_ERROR, RUN_FAILED, PREEMPTED}:
            return None
        return _for_each_process(options, "auto" if saved() else options.resume)

    return again


def _train(
    config: RunConfig, folder: RunFolder, resume: str, here: Processes, given: list[str], stop: StopRequest
) -> int:
    here.main_only(lambda: check_data(config))
    if resume == "never" and folder.holds_a_run():  # which is not set aside for one that cannot be
        here.main_only(lambda: _dry_build(config, here.world_size, begins=True))
    stop.leave(here, "in start-up")
    here.main_only(lambda: _open_folder(folder, resume))
    limits = _fit_to_memory(config, folder, here)
    stop.leave(here, "in start-up")
    trainer = here.together(lambda: build.build_trainer(config, here, folder, resume, limits))
    first, step = trainer.progress.epoch, trainer.progress.step
    started, made_by = provenance(given), {"experiment": experiment(config.model_dump(mode="json"))}
    # Before the training rather than after it, so that nothing can go wrong once the time is spent.
    num_classes = len(trainer.belongs_to["classes"])
    planned = plan_costs(config, num_classes) if here.is_main else None
    if first >= config.epochs:
        trainer.log.close()
        if planned is not None:
            print(f"all {config.epochs} epochs in {folder.root} are done: nothing to train")
            print("to train anew: --resume never (sets this run aside), or another --output")
            print(summary_table(planned, folder))
        return 0
    if here.is_main:
        folder.write_config(config, started)
        _greet(config, folder, trainer.layout, here, first, step)
    trainer.log.start(
        {
            "first_epoch": first,
            "first_step": step,
            "world_size": here.world_size,
            "num_classes": num_classes,
            **made_by,
            **started,
        }
    )
    while True:
        trainer.stop = stop
        try:
            trainer.fit()
        except memory.StepTooLarge as error:
            alone = here.world_size == 1
            raise memory.ran_out(folder.micro_batch, trainer.layout.micro_batch, error, alone) from None
        epoch = trainer.progress.epoch
        if epoch == config.epochs:
            break
        del trainer  # a stage of the curriculum is over, and its model makes room for the next one's
        memory.release()
        trainer = here.together(lambda: build.build_trainer(config, here, folder, "auto", limits))
        if here.is_main:
            plan = trainer.plans[epoch]
            print(f"from epoch {epoch + 1} on: {plan.image_size} pixels, {plan.rand_augment or 'no rand_augment'}")
            print(describe_split(trainer.layout))
    if planned is not None:
        print(summary_table(planned, folder))
    return 0


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


def _fit_to_memory(config: RunConfig, folder: RunFolder, here: Processes) -> MicroBatches:
    """The micro-batches that the device holds, as far as that is known before the first step."""
    stages = curriculum_stages(plan_epochs(config))
    for plan in stages:  # what a later one has to be refused for is said now
        here.together(partial(batch_layout, config_at(config, plan), here.world_size))
        here.together(partial(build_train_transform, config_at(config, plan), plan.loaded_size))
    here.together(partial(require_resizable, config, [plan.image_size for plan in stages]))
    left = here.gather(memory.remembered(folder.micro_batch))[0]
    train_images, _ = here.together(lambda: open_datasets(config.data.kind, config.data.root))
    limits = micro_batches(config, len(train_images.classes), here, left)
    for plan in stages:
        asked, now = batch_layout(config_at(config, plan), here.world_size).micro_batch, limits[plan.curriculum]
        if now < asked and here.is_main:
            print(f"micro-batches of {now} images instead of {asked}, which the device's memory does not hold")
    return limits


def _greet(config: RunConfig, folder: RunFolder, layout: BatchLayout, here: Processes, first: int, step: int) -> None:
    print(f"run folder {folder.root}; watch it with: tensorboard --logdir {folder.tensorboard}")
    print(f"{describe_split(layout)}; {describe_precision(here.device, config.train.precision)}")
    if first or step:
        print(f"continuing at epoch {first + 1} of {config.epochs}" + (f", after {step} of its steps" if step else ""))
    _note_unreached_stages(config)
    _note_rising_rate(config)


def _note_unreached_stages(config: RunConfig) -> None:
    if config.expansion and config.expansion.stage_epochs[-1] >= config.epochs:
        print(
            f"note: the last stage begins at epoch {config.expansion.stage_epochs[-1] + 1}, after the end of the run: "
            "training never sees all tokens"
        )
    starts = config.curriculum.stage_epochs if config.curriculum else None
    if starts and starts[-1] >= config.epochs:
        print(
            f"note: the curriculum's last stage begins at epoch {starts[-1] + 1}, after the end of the run: training "
            f"never sees images of {config.model.image_size} pixels"
        )


def _note_rising_rate(config: RunConfig) -> None:
    if config.schedule.min_lr > config.peak_lr:
        print(
            f"note: schedule.min_lr {config.schedule.min_lr:g} is above the peak learning rate {config.peak_lr:g}, so "
            "that the rate rises after the warm-up, to min_lr; DeiT's commands for fine-tuning do so. Lower min_lr if "
            "it is to fall"
        )


def _dry_build(config: RunConfig, world_size: int, begins: bool) -> list[str]:
    """Builds what can be wrong, for `world_size` processes, its initial weights where it `begins`; the class names."""
    check_data(config)
    train_images, _ = open_datasets(config.data.kind, config.data.root)
    GlobalOrder(len(train_images), config.train.global_batch, config.seed, config.augment.repeats)
    num_classes = len(train_images.classes)
    alone = Processes(0, world_size, torch.device("cpu"))
    require_resizable(config, [plan.image_size for plan in curriculum_stages(plan_epochs(config))])
    for plan in curriculum_stages(plan_epochs(config)):
        now, size = config_at(config, plan), plan.image_size
        build_train_transform(now, plan.loaded_size)
        build_eval_transform(config, plan.loaded_size)
        layout = batch_layout(now, world_size)
        built = build_model(config, num_classes, size)
        if begins:
            load_initial(config, built)
        build_step(now, built, num_classes, layout, alone, size)
    return train_images.classes


def _dry_run(config: RunConfig, world_size: int, begins: bool) -> int:
    classes = _dry_build(config, world_size, begins)
    print(dump_config(config))
    for plan in curriculum_stages(plan_epochs(config)):
        print(describe_split(batch_layout(config_at(config, plan), world_size)))
    print(plan_table(config, len(classes)))
    _note_unreached_stages(config)
    _note_rising_rate(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
