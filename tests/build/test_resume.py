"""Broken off at any step and resumed, any number of times, a run is the uninterrupted run, bit for bit."""

import math
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from support import trainer_of

from toe_train.build.resume import require_same_order
from toe_train.cli.train import main
from toe_train.errors import UserError
from toe_train.recipes import RunConfig, load_config
from toe_train.runs import jobs, sealed
from toe_train.runs.checkpoints import Checkpoints, read
from toe_train.runs.folder import RunFolder
from toe_train.runs.log import read_metrics
from toe_train.runs.memory import StepTooLarge
from toe_train.runs.processes import Processes
from toe_train.runs.progress import Progress
from toe_train.training.loop import Trainer

HERE = Processes(0, 1, torch.device("cpu"))
TIMES = re.compile("seconds|share|images_per_second|memory|hours")


class BrokenOff(BaseException):
    """The process dies."""


def train(file, folder, overrides, stops=(), to_the_end=True):
    """Trains to the end, dying right after the saves at these (epoch, step), then starting again."""
    folder = RunFolder(folder)
    folder.create()
    for stop in [*stops, *([None] if to_the_end else [])]:
        trainer = trainer_of(load_config(file, overrides), folder, "auto")
        save = trainer.keeper.checkpoints.save

        def dying(state, is_best, save=save, stop=stop):
            save(state, is_best)
            if stop == (state["progress"]["epoch"], state["progress"]["step"]):
                raise BrokenOff

        trainer.keeper.checkpoints.save = dying
        try:
            trainer.fit()
        except BrokenOff:
            trainer.log.close()
        else:
            assert stop is None, f"the run never saved at {stop}"
    return folder


def told(folder):
    """The metric lines without times."""
    lines = [*read_metrics(folder.metrics, "step"), *read_metrics(folder.metrics, "epoch")]
    return [{key: value for key, value in line.items() if not TIMES.search(key)} for line in lines]


def tensors(path):
    def walk(value, place):
        if isinstance(value, torch.Tensor):
            yield place, value
        elif isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(inner, f"{place}.{key}")

    return dict(walk(read(path), ""))


def assert_same(one, other):
    assert told(one) == told(other)
    first, second = (tensors(Checkpoints(folder.checkpoints).last) for folder in (one, other))
    assert first.keys() == second.keys()
    assert [place for place in first if not torch.equal(first[place], second[place])] == []


EVERY_STEP = ["checkpoint.every_steps=1", "train.log_every=2"]
VARIANTS = {
    "toe, accumulation, erasing, mixup, average": ["train.max_micro_batch=64"],
    "plain, repeated augmentation": ["expansion=null", "augment.repeats=3"],
    "random initialisation": ["expansion.initialization=random"],
    "workers": ["data.workers=2"],
    "bf16, clipped": ["train.precision=bf16", "optim.clip_grad=0.5"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_broken_off_at_random_steps(tiny, tmp_path, variant):
    """Five places of the fifteen steps, ends of epochs (changes of stage) among them, one after the other."""
    overrides = [*EVERY_STEP, *VARIANTS[variant]]
    places = [(epoch, step) for epoch in range(3) for step in range(5)][1:]
    stops = sorted(random.Random(variant).sample(places, 5))
    whole = train(tiny, tmp_path / "whole", overrides)
    broken = train(tiny, tmp_path / "broken", overrides, stops)
    assert_same(whole, broken)


@pytest.mark.slow
def test_broken_off_after_every_step(tiny, tmp_path):
    places = [(epoch, step) for epoch in range(3) for step in range(5)][1:]
    whole = train(tiny, tmp_path / "whole", EVERY_STEP)
    assert_same(whole, train(tiny, tmp_path / "broken", EVERY_STEP, places))


def test_saving_changes_nothing(tiny, tmp_path):
    often = train(tiny, tmp_path / "often", EVERY_STEP)
    seldom = train(tiny, tmp_path / "seldom", ["train.log_every=2"])
    assert told(often) == told(seldom)


def test_the_skipped_part_of_an_epoch_is_not_read(tiny, tmp_path, monkeypatch):
    seen = []
    from toe_train.data import TrainSet

    augmented = TrainSet._augmented
    monkeypatch.setattr(TrainSet, "_augmented", lambda self, key, read: seen.append(key) or augmented(self, key, read))
    train(tiny, tmp_path / "run", EVERY_STEP, stops=[(1, 3)])
    assert len(seen) == 15 * 256
    assert len(set(seen)) == 15 * 256


def test_a_damaged_checkpoint_costs_one_save_interval(tiny, tmp_path, capsys):
    whole = train(tiny, tmp_path / "whole", EVERY_STEP)
    folder = train(tiny, tmp_path / "run", EVERY_STEP, stops=[(2, 1)], to_the_end=False)
    last = folder.checkpoints / "last.pt"
    content = bytearray(last.read_bytes())
    content[1000] ^= 4
    last.unlink()
    last.write_bytes(content)
    assert main(["--config", str(tiny), "--output", str(folder.root), *EVERY_STEP]) == 0
    out = capsys.readouterr().out
    assert "last.pt is damaged (its content is not what was written" in out
    assert "continuing at epoch 3 of 3" in out
    assert_same(whole, folder)


@pytest.mark.parametrize("override", ["train.global_batch=128", "augment.repeats=2", "seed=4"])
def test_another_order_is_refused_within_an_epoch_only(tiny, tmp_path, capsys, override):
    folder = train(tiny, tmp_path / "run", [*EVERY_STEP, "epochs=1"])
    arguments = ["--config", str(tiny), "--output", str(folder.root), "epochs=2", override]
    within = folder.checkpoints / "previous.pt"  # after four steps of five
    assert main([*arguments, "--resume", str(within)]) == 2
    error = capsys.readouterr().err
    assert "stands within an epoch, after 4 of its steps" in error
    assert f"{override.split('=')[0]}: " in error
    assert main(arguments) == 0  # from its end


def test_other_images_of_the_same_number_are_refused_within_an_epoch_only(tiny, tmp_path, capsys):
    for label in ("cat", "dog"):
        for split, count in (("train", 20), ("val", 2)):
            (tmp_path / "images" / split / label).mkdir(parents=True)
            for number in range(count):
                path = tmp_path / "images" / split / label / f"{number}.png"
                Image.new("RGB", (16, 16), (9 * number, 90, 10)).save(path)
    images = ["data.kind=image_folder", f"data.root={tmp_path / 'images'}"]
    batch = ["train.global_batch=8", "augment.mix_group=8"]
    folder = train(tiny, tmp_path / "run", [*EVERY_STEP, *images, *batch, "epochs=1"])
    arguments = ["--config", str(tiny), "--output", str(folder.root), *images, *batch, "epochs=2"]
    (tmp_path / "images/train/cat/3.png").rename(tmp_path / "images/train/cat/30.png")
    assert main([*arguments, "--resume", str(folder.checkpoints / "previous.pt")]) == 2
    assert "training images.digest: " in capsys.readouterr().err
    assert main(arguments) == 0


def test_resuming_from_an_older_checkpoint_leaves_the_newer_one_behind_at_once(tiny, tmp_path):
    """What the run would go back to, if numbers were not finite, or start from by itself, is where it resumed."""
    folder = train(tiny, tmp_path / "run", ["epochs=2"])
    older = tmp_path / "older.pt"
    shutil.copy(folder.checkpoints / "previous.pt", older)
    trainer = trainer_of(load_config(tiny), folder, str(older))
    places = []
    trainer._run_epoch = lambda plan: places.append(read(folder.checkpoints / "last.pt")["progress"]) or 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.fit()
    assert places == [{**read(older)["progress"], "best": -math.inf}]  # best.pt is not of that checkpoint's folder


def test_so_does_one_that_runs_out_of_memory_while_it_compiles(tiny, tmp_path):
    """The start after it, with a smaller micro-batch, takes `last.pt`."""
    folder = train(tiny, tmp_path / "run", ["epochs=2"])
    older = tmp_path / "older.pt"
    shutil.copy(folder.checkpoints / "previous.pt", older)
    trainer = trainer_of(load_config(tiny), folder, str(older))

    def too_large():
        raise torch.OutOfMemoryError("CUDA out of memory")

    trainer.step.compile = too_large
    with pytest.raises(StepTooLarge):
        trainer.fit()
    assert read(folder.checkpoints / "last.pt")["progress"] == {**read(older)["progress"], "best": -math.inf}


def test_losses_count_by_images_where_the_micro_batch_changes_within_an_epoch(tiny, tmp_path):
    """Step lines and the epoch's agree to the order of summation, inside a window of the log too."""
    overrides = [*EVERY_STEP, "epochs=1"]
    whole = train(tiny, tmp_path / "whole", overrides)
    train(tiny, tmp_path / "run", overrides, stops=[(0, 3)], to_the_end=False)
    folder = train(tiny, tmp_path / "run", [*overrides, "train.max_micro_batch=64"])
    for kind in ("step", "epoch"):
        losses = [[line["train_loss"] for line in read_metrics(run.metrics, kind)] for run in (whole, folder)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_window_that_a_checkpoint_cut_is_shared_out_whole():
    """Whatever the number of processes is now; the same number take their own."""
    progress = Progress(window=[(6.0, 2.0), (10.0, 4.0)])

    def share(rank, count):
        return progress.own_window(Processes(rank, count, torch.device("cpu")), terms=0)[0]

    assert share(0, 1) == [16.0, 6.0]
    assert share(1, 2) == [10.0, 4.0]
    assert share(0, 4) == share(3, 4) == [4.0, 1.5]


def test_minutes_within_an_epoch(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("toe_train.runs.polling.MOST_STEPS", 1)
    folder = RunFolder(tmp_path / "run")
    folder.create()
    places = []
    for minutes in ("1e-9", "null"):
        trainer = trainer_of(load_config(tiny, [f"checkpoint.every_minutes={minutes}"]), folder, "auto")
        save = trainer.keeper.checkpoints.save
        trainer.keeper.checkpoints.save = lambda state, best, save=save: (
            places.append(state["progress"]) or save(state, best)
        )
        trainer.cadence.plans = trainer.cadence.plans[: trainer.progress.epoch + 1]
        trainer.fit()
    assert [(place["epoch"], place["step"]) for place in places] == [
        *[(0, step) for step in range(5)],
        (1, 0),
        (2, 0),
    ]


@pytest.mark.parametrize(
    ("name", "job", "number"),
    [
        ("TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_RUN_ID", "none"),
        ("TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_RUN_ID", "7"),
        ("SLURM_RESTART_COUNT", "SLURM_JOB_ID", "7"),
    ],
)
def test_a_run_that_was_started_again_by_itself_goes_on(tiny, tmp_path, monkeypatch, capsys, name, job, number):
    """Whatever the command said about resuming, which was for its first start."""
    arguments = ["--config", str(tiny), "--output", str(tmp_path / "run"), "--resume", "never"]
    monkeypatch.setenv(job, number)
    assert main([*arguments, "epochs=1"]) == 0
    monkeypatch.setenv(name, "1")
    assert main([*arguments, "epochs=2"]) == 0
    assert "continuing at epoch 2 of 2" in capsys.readouterr().out
    monkeypatch.setenv(job, "8")  # another one, whose first start ended before it had saved
    assert main([*arguments, "epochs=1"]) == 0
    assert "is now" in capsys.readouterr().out
    monkeypatch.setenv(name, "0")
    assert main([*arguments, "epochs=1"]) == 0
    assert "is now" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("restarter", "goes_on"), [("SLURM_RESTART_COUNT", True), ("TORCHELASTIC_RESTART_COUNT", False)]
)
def test_of_slurm_and_torchrun_the_one_that_started_it_again_counts(
    tiny, tmp_path, monkeypatch, capsys, restarter, goes_on
):
    """Within one job of Slurm, a torchrun that is not the one before."""
    arguments = ["--config", str(tiny), "--output", str(tmp_path / "run"), "--resume", "never"]
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    assert main([*arguments, "epochs=1"]) == 0
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    monkeypatch.setenv(restarter, "1")
    assert main([*arguments, "epochs=2"]) == 0
    told = capsys.readouterr().out
    assert ("continuing at epoch 2 of 2" in told) == goes_on
    assert ("is now" in told) == (not goes_on)


def test_an_older_run_under_a_name_that_torchrun_is_given_again_is_another_one(tiny, tmp_path, monkeypatch, capsys):
    """A start that ended before it had saved: the checkpoint there is the older run's."""
    arguments = ["--config", str(tiny), "--output", str(tmp_path / "run"), "--resume", "never", "epochs=1"]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    assert main(arguments) == 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    for before, is_older in ((0, False), (1e6, True)):
        began = time.time() - 1e3
        monkeypatch.setattr(jobs, "_torchrun_began", lambda began=began: began)
        written = time.time() - before
        os.utime(tmp_path / "run/checkpoints/last.pt", (written, written))
        assert main(arguments) == 0
        assert ("is now" in capsys.readouterr().out) == is_older


def test_torchrun_is_found_behind_what_stands_between():
    """A shell here; and it began after the machine did, and before now."""
    script = "from toe_train.runs import jobs; print(jobs._torchrun(), jobs._torchrun_began())"
    command = ["sh", "-c", f"{sys.executable} -c '{script}'; true # torchrun is in the command line of this shell"]
    shell = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    found, began = shell.communicate(timeout=100)[0].split()
    assert int(found) == shell.pid
    assert time.time() - 100 < float(began) <= time.time()


def test_checkpoints_on_a_disk_that_is_not_there_are_not_begun_anew(tiny, tmp_path, capsys):
    folder = train(tiny, tmp_path / "run", ["epochs=1"])
    folder.checkpoints.rename(tmp_path / "disk")
    folder.checkpoints.symlink_to(tmp_path / "disk")
    command = ["--config", str(tiny), "--output", str(folder.root), "epochs=1"]
    assert main(command) == 0
    (tmp_path / "disk").rename(tmp_path / "elsewhere")
    assert main(command) == 2
    assert f"checkpoints leads to {tmp_path / 'disk'}, which is not there: mount that disk" in capsys.readouterr().err
    assert main([*command, "--dry-run"]) == 2
    assert not (tmp_path / "run.old-1").exists()
    folder.metrics.unlink()  # a link that was made before the first run
    assert main([*command, "--resume", "never"]) == 0


def test_another_metric_chooses_the_best_checkpoint_anew(tiny, tmp_path, capsys):
    """Scores of two kinds do not compare: here all of the second are below the first's best."""
    command = ["--config", str(tiny), "--output", str(tmp_path / "run"), "train.ema_decay=0.9"]
    folder = train(tiny, tmp_path / "run", ["train.ema_decay=0.9", "epochs=1"])
    state = read(folder.checkpoints / "last.pt")
    state["progress"]["best"] = 101.0
    sealed.write(folder.checkpoints / "last.pt", state)
    assert main([*command, "epochs=2", "checkpoint.best_metric=ema_top1"]) == 0
    out = capsys.readouterr().out
    assert "best.pt is chosen anew, by ema_top1: the best by val_top1 is no longer counted" in out
    assert (folder.checkpoints / "best.pt.kept-1").exists()
    assert read(folder.checkpoints / "best.pt")["progress"]["epoch"] == 2
    assert main([*command, "epochs=3", "checkpoint.best_metric=ema_top1"]) == 0
    assert "chosen anew" not in capsys.readouterr().out


def test_a_device_that_fails_while_a_checkpoint_is_loaded_is_no_fault_of_the_checkpoint(tiny, tmp_path, monkeypatch):
    folder = train(tiny, tmp_path / "run", ["epochs=1"])
    for fault, told in (
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError),
        (RuntimeError("CUDA error: an illegal memory access"), RuntimeError),
        (RuntimeError("While copying the parameter, CUDA out of memory"), RuntimeError),
        (RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory"), MemoryError),
        (RuntimeError("size mismatch for norm.weight"), UserError),
    ):

        def failing(trainer, state, fault=fault):
            raise fault

        monkeypatch.setattr(Trainer, "load_state", failing)
        with pytest.raises(told) as caught:
            trainer_of(load_config(tiny, ["epochs=2"]), folder)
        assert isinstance(caught.value, UserError) == (told is UserError)


def test_the_lines_before_a_checkpoint_are_on_the_disk_before_it(tiny, tmp_path, monkeypatch):
    """A machine that loses power would else keep the checkpoint alone, and a resume writes no line anew."""
    folder, order = RunFolder(tmp_path / "run"), []
    folder.create()
    trainer = trainer_of(load_config(tiny, ["epochs=1"]), folder)
    metrics, fsync = trainer.log.logs[0].file.fileno(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (order.append(file == metrics and "lines"), fsync(file)))
    save = trainer.keeper.checkpoints.save
    trainer.keeper.checkpoints.save = lambda *given: (order.append("checkpoint"), save(*given))
    trainer.fit()
    told = [what for what in order if what]
    assert told == ["lines", "checkpoint"] * (len(told) // 2)
    assert told


def test_a_run_without_checkpoints_is_set_aside(tiny, tmp_path, capsys):
    folder = train(tiny, tmp_path / "run", ["epochs=1"])
    shutil.rmtree(folder.checkpoints)
    assert main(["--config", str(tiny), "--output", str(folder.root), "epochs=1"]) == 0
    assert "has no checkpoint to continue from; it is now" in capsys.readouterr().out
    assert read_metrics(tmp_path / "run.old-1/metrics.jsonl", "epoch")


def test_what_a_run_from_an_older_checkpoint_writes_over_is_kept(tiny, tmp_path, capsys):
    folder = train(tiny, tmp_path / "run", ["epochs=2"])
    newest, lines = (folder.checkpoints / "last.pt").read_bytes(), folder.metrics.read_bytes()
    older = folder.checkpoints / "previous.pt"
    command = ["--config", str(tiny), "--output", str(folder.root), "epochs=2", "--resume", str(older)]
    assert main([*command, "model.kwargs.depth=3"]) == 2  # what is refused leaves nothing behind
    assert not list(folder.root.rglob("*.kept-*"))
    assert main(command) == 0
    assert "last.pt, which the run will write over, stays as" in capsys.readouterr().out
    assert (folder.root / "metrics.jsonl.kept-1").read_bytes() == lines
    assert (folder.checkpoints / "last.pt.kept-1").read_bytes() == newest
    assert (folder.checkpoints / "best.pt.kept-1").exists()


def test_the_best_of_epochs_that_are_dropped_is_no_longer_the_best(tiny, tmp_path, capsys):
    """Else `eval` would take weights that the run, as it went on, never had."""
    command = ["--config", str(tiny), "--output", str(tmp_path / "run"), "epochs=2"]
    folder = train(tiny, tmp_path / "run", ["epochs=1"])
    older = shutil.copy(folder.checkpoints / "last.pt", tmp_path / "older.pt")
    beside = shutil.copy(folder.checkpoints / "last.pt", folder.checkpoints / "older.pt")
    assert main(command) == 0
    state = read(folder.checkpoints / "best.pt")
    state["progress"].update(epoch=2, best=101.0)
    for name in ("best", "last"):
        sealed.write(folder.checkpoints / f"{name}.pt", state)
    for path in (beside, older):
        capsys.readouterr()
        assert main([*command, "--resume", str(path)]) == 0
        assert "best.pt is chosen anew: the one here is not of the epochs up to that" in capsys.readouterr().out
        assert read(folder.checkpoints / "best.pt")["progress"]["best"] < 101
    sealed.write(folder.checkpoints / "best.pt", read(beside))
    assert main([*command, "--resume", str(beside)]) == 0
    assert "chosen anew" not in capsys.readouterr().out


def test_what_a_run_with_other_values_writes_over_is_kept(tiny, tmp_path, capsys):
    """But not where nothing that is learned depends on them."""
    folder, command = RunFolder(tmp_path / "run"), ["--config", str(tiny), "--output", str(tmp_path / "run")]
    assert main([*command, "epochs=1"]) == 0
    assert main([*command, "epochs=2"]) == 0
    newest, lines = (folder.checkpoints / "last.pt").read_bytes(), folder.metrics.read_bytes()
    assert main([*command, "epochs=3", "expansion=null"]) == 0
    told = capsys.readouterr().out
    assert "with other values than the checkpoint's" in told
    assert "--resume never begins anew" in told
    assert (folder.checkpoints / "last.pt.kept-2").read_bytes() == newest  # kept-1 is of the epoch before
    assert (folder.root / "metrics.jsonl.kept-2").read_bytes() == lines
    assert len({line["experiment_id"] for line in read_metrics(folder.metrics, "start")}) == 3


def test_what_stays_the_same_experiment_keeps_nothing(tiny, tmp_path):
    folder = train(tiny, tmp_path / "run", ["epochs=3"], stops=[(1, 0)], to_the_end=False)
    command = ["--config", str(tiny), "--output", str(folder.root), "epochs=3"]
    assert main([*command, "train.log_every=3", "data.workers=1"]) == 0
    assert not list(folder.root.rglob("*.kept-*"))


@pytest.mark.parametrize("wrong", ["model.kwargs.depth=many", "model.initial_weights=nowhere.pt"])
def test_a_run_that_is_refused_sets_none_aside(tiny, tmp_path, wrong):
    folder = train(tiny, tmp_path / "run", ["epochs=1"])
    before = sorted(folder.root.rglob("*"))
    assert main(["--config", str(tiny), "--output", str(folder.root), "--resume", "never", wrong]) == 2
    assert sorted(path for path in folder.root.rglob("*") if path.name != ".lock") == [
        path for path in before if path.name != ".lock"
    ]
    assert not list(tmp_path.glob("run.old-*"))


def test_the_configuration_in_a_run_folder_continues_it(tiny, tmp_path, capsys):
    folder = RunFolder(tmp_path / "run")
    assert main(["--config", str(tiny), "--output", str(folder.root), "epochs=1"]) == 0
    assert main(["--config", str(folder.config), "epochs=2"]) == 0
    assert "continuing at epoch 2 of 2" in capsys.readouterr().out
    assert len(read_metrics(folder.metrics, "epoch")) == 2


@pytest.mark.parametrize("line", [b"\xff", b"[1]", b"5", b'{"kind": "epoch"}', b'{"kind": []}', b'{"epoch": 3'])
def test_a_line_that_is_none_of_a_run_is_left_out(tiny, tmp_path, line):
    folder = train(tiny, tmp_path / "run", ["epochs=1"])
    folder.metrics.write_bytes(folder.metrics.read_bytes() + line + b"\n")
    assert main(["--config", str(tiny), "--output", str(folder.root), "epochs=2"]) == 0
    assert [record["epoch"] for record in read_metrics(folder.metrics, "epoch")] == [0, 1]


def test_other_versions_are_told(tiny, tmp_path, capsys):
    folder = train(tiny, tmp_path / "run", ["epochs=1"])
    state = read(folder.checkpoints / "last.pt")
    state["versions"]["torch"] = "1.0"
    sealed.write(folder.checkpoints / "last.pt", state)
    assert main(["--config", str(tiny), "--output", str(folder.root), "epochs=2"]) == 0
    assert "version of torch: '1.0' in the checkpoint" in capsys.readouterr().out


def test_one_process_at_a_time_trains_in_a_folder(tiny, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    hold = (
        "import sys, pathlib; from toe_train.runs.folder import RunFolder; folder = RunFolder(pathlib.Path("
        "sys.argv[1])); folder.lock(); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        for resume in ("auto", "never"):
            assert main(["--config", str(tiny), "--output", str(folder), "epochs=1", "--resume", resume]) == 2
            assert f"another process trains in {folder}" in capsys.readouterr().err
        other.stdin.close()
    assert main(["--config", str(tiny), "--output", str(folder), "epochs=1"]) == 0


@pytest.mark.parametrize("key", ["detection.same_size=2", "detection.padding=true"])
def test_what_groups_images_with_boxes_stays_within_an_epoch(configs, key):
    before, now = (load_config(configs / "yolos_small.yaml", more).model_dump(mode="json") for more in ([], [key]))
    images = {"count": 8, "digest": "d"}
    state = {"progress": {"step": 3}, "config": before, "images": images}
    with pytest.raises(UserError, match=key.partition("=")[0]):
        require_same_order(Path("last.pt"), state, now, images)
    require_same_order(Path("last.pt"), {**state, "progress": {"step": 0}}, now, images)
    del state["config"]["detection"]  # of a version that knew no boxes: its defaults
    require_same_order(Path("last.pt"), state, {**now, "detection": RunConfig().detection.model_dump()}, images)
