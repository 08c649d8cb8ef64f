"""What `toe-train` does with its options: a dry run, processes of their own, or the run itself in this one."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from toe_train.analysis.flops import PlannedRun, plan_costs
from toe_train.analysis.tables import plan_table, summary_table
from toe_train.build.inputs import batch_layout, describe_split, listing_notes, of_data
from toe_train.build.lifecycle import complete
from toe_train.build.preflight import begins, dry_build, require_place
from toe_train.build.preprocessing import FromWeights
from toe_train.build.tracking import require_trackers
from toe_train.cli.ending import LAUNCHED, Ending
from toe_train.cli.exits import ENDS, guarded
from toe_train.cli.launch import launch, process_count, under_torchrun
from toe_train.cli.printing import print_any_name
from toe_train.cli.threads import take_threads, tell_if_busy
from toe_train.cli.typed import require_understood
from toe_train.errors import UserError
from toe_train.recipes import RunConfig, config_at, curriculum_stages, dump_config, load_config, notes, plan_epochs
from toe_train.runs.checkpoints import Checkpoints
from toe_train.runs.folder import RunFolder
from toe_train.runs.preemption import StopRequest, preempted
from toe_train.runs.processes import processes


def carry_out(options: argparse.Namespace, unknown: list[str], given: list[str]) -> int:
    """Returns the exit code: 0 done, or one of `exits`.

    Args:
        options: see `options.train_parser`.
        unknown: arguments that are none of them.
        given: all arguments, as they were typed.
    """
    print_any_name()
    folder = RunFolder(_output(options))
    saved = Checkpoints(folder.checkpoints).watch()
    ending = Ending(folder, saved)

    def again() -> str:
        from_its_own = options.resume == "auto" or not saved()
        return "the same command" if from_its_own else "the same command without --resume"

    def run() -> int:
        require_understood(given, unknown, options.overrides)
        return _run(options, given, folder, saved, ending)

    return ending.after(lambda: guarded(run, again))


def _output(options: argparse.Namespace) -> Path:
    """The run folder: a run's own where it or its config.yaml is given."""
    config = Path(options.config)
    if options.output:
        return Path(options.output)
    own = RunFolder(config if config.is_dir() else config.parent)
    is_own = config.resolve() in (own.config, own.root) and own.metrics.exists()
    return own.root if is_own else Path("runs") / config.stem


def _run(
    options: argparse.Namespace, given: list[str], folder: RunFolder, saved: Callable[[], bool], ending: Ending
) -> int:
    if options.output == "":
        raise UserError("--output is empty; name a folder, or leave it out")
    if options.resume == "":
        raise UserError("--resume is empty; give auto, never or the path of a checkpoint, or leave it out")
    from_weights = FromWeights(folder, options.resume)

    def load() -> RunConfig:
        return load_config(options.config, options.overrides, from_weights)

    asked = load_config(options.config, options.overrides)  # in every process: what is wrong is no matter of weights
    if options.dry_run:
        config = load()
        print("".join(f"{line}\n" for line in from_weights.lines), end="")
        return _dry_run(config, process_count(options.nproc), folder, options.resume)
    ending.of(asked)
    take_threads()
    tell_if_busy()
    stop = StopRequest()
    if not under_torchrun() and (count := process_count(options.nproc)) > 1:
        with stop.listening():  # what the user must mend is said once, before any process starts
            config = load()
            dry_build(config, count, begins=begins(folder, options.resume))
            require_place(config, folder, options.resume)
            require_trackers(config)
        if stop.signal:
            raise preempted("in start-up")
        os.environ[LAUNCHED] = "1"  # for the processes
        try:
            return launch(count, _for_each_process(options, options.resume), again=_restarts(options, saved))
        finally:
            del os.environ[LAUNCHED]
    with stop.listening(), processes() as here:
        config = here.from_main(load)
        print("".join(f"{line}\n" for line in from_weights.lines), end="")
        planned: list[PlannedRun] = []

        def plan(num_classes: int) -> None:
            """Before the training rather than after it, so that nothing can go wrong once the time is spent."""
            planned[:] = [plan_costs(config, num_classes)] if here.is_main else []

        if not complete(config, folder, options.resume, here, given, stop, plan) and here.is_main:
            print(f"all {config.epochs} epochs in {folder.root} are done: nothing to train")
            print("to train anew: --resume never (sets this run aside), or another --output")
        for done in planned:
            print(summary_table(done, folder))
        return 0


def _for_each_process(options: argparse.Namespace, resume: str) -> list[str]:
    """The arguments without `--nproc`, which torchrun would take for its own."""
    output = ["--output", options.output] if options.output else []
    return ["--config", options.config, "--resume", resume, *output, *options.overrides]


def _restarts(options: argparse.Namespace, saved: Callable[[], bool]) -> Callable[[set[int]], list[str] | None]:
    """For `launch`: after a crash, and with smaller micro-batches after running out of memory, the run goes on."""

    def again(codes: set[int]) -> list[str] | None:
        if codes & set(ENDS):
            return None
        return _for_each_process(options, "auto" if saved() else options.resume)

    return again


def _dry_run(config: RunConfig, world_size: int, folder: RunFolder, resume: str) -> int:
    images, started_from = dry_build(config, world_size, begins=begins(folder, resume))
    require_place(config, folder, resume)
    require_trackers(config)
    config = of_data(config, images)
    print(dump_config(config))
    print(started_from or "", end="\n" if started_from else "")
    for plan in curriculum_stages(plan_epochs(config)):
        print(describe_split(batch_layout(config_at(config, plan), world_size)))
    print(plan_table(config, len(images[0].classes)))
    for line in [*listing_notes(images), *notes(config)]:
        print(line)
    return 0
