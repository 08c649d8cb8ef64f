"""Two gloo processes under torchrun against one process, at the same global batch."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from toe_train.cli.train import main
from toe_train.runs.checkpoints import read
from toe_train.runs.folder import RunFolder
from toe_train.runs.log import read_metrics


def test_two_processes_train_what_one_trains(tiny, tmp_path, run, monkeypatch):
    """Losses agree to 2e-4 (gradients are summed in another order, all that is drawn is the same); counts are equal."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["--config", str(tiny), "--output", str(tmp_path / "one")]) == 0
    done = run("--config", str(tiny), "--output", "two", processes=2)
    assert done.process.returncode == 0, done.stderr
    assert "global batch 256 = 2 processes x 1 accumulation x 128 images" in done.stdout
    one, two = (RunFolder(tmp_path / name).metrics for name in ("one", "two"))
    assert read_metrics(two, "start")[0]["world_size"] == 2
    steps = [[record["train_loss"] for record in read_metrics(path, "step")] for path in (one, two)]
    assert len(steps[0]) == 15
    assert steps[1] == pytest.approx(steps[0], rel=2e-4)
    images = [[record["val_images"] for record in read_metrics(path, "epoch")] for path in (one, two)]
    assert images[0] == images[1] == [364] * 3
    # Of these one may fall on the other side of a tie.
    for key in ("val_top1", "val_top5", "ema_top1"):
        tops = [[record[key] for record in read_metrics(path, "epoch")] for path in (one, two)]
        assert tops[1] == pytest.approx(tops[0], abs=100 / 364 + 1e-9)


def test_each_image_counts_once_where_the_processes_do_not_divide_them(tiny, tmp_path, run):
    """364 images over 3 processes: what one process says of a checkpoint, to the last digit."""
    assert main(["--config", str(tiny), "--output", str(tmp_path / "run"), "epochs=1"]) == 0
    arguments = ["eval", "--config", str(tiny), "--checkpoint", str(tmp_path / "run/checkpoints/last.pt")]
    done = run(*arguments, module="toe_train.cli.tools", processes=3)
    assert done.process.returncode == 0, done.stderr
    record = read_metrics(tmp_path / "run/metrics.jsonl", "epoch")[0]
    assert f"top-1 {record['val_top1']:.3f} %, top-5 {record['val_top5']:.3f} %" in done.stdout
    assert "over 364 images" in done.stdout


def test_a_run_goes_on_with_another_number_of_processes(tiny, tmp_path, run):
    assert main(["--config", str(tiny), "--output", str(tmp_path / "whole")]) == 0
    assert main(["--config", str(tiny), "--output", str(tmp_path / "run"), "epochs=3", "--resume", "never"]) == 0
    previous = tmp_path / "run/checkpoints/previous.pt"  # after two epochs
    done = run("--config", str(tiny), "--output", "run", "--resume", str(previous), processes=2)
    assert done.process.returncode == 0, done.stderr
    steps, again = (
        [r["train_loss"] for r in read_metrics(tmp_path / name / "metrics.jsonl", "step")] for name in ("whole", "run")
    )
    assert again[:10] == steps[:10]
    assert again[10:] == pytest.approx(steps[10:], rel=2e-4)
    assert [start["world_size"] for start in read_metrics(tmp_path / "run/metrics.jsonl", "start")] == [1, 2]
    # Device-seconds of both parts together: the first two epochs' count once, whatever the processes were later.
    first, last = read_metrics(tmp_path / "run/metrics.jsonl", "epoch")[1:]
    assert last["gpu_hours"] - first["gpu_hours"] == pytest.approx(2 * last["compute_seconds"] / 3600)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_within_an_epoch_too(tiny, tmp_path, run, monkeypatch, capsys, before, after):
    """Broken off after four steps of five, inside a window of the log; losses count by images, whoever saw them."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    every = ["epochs=1", "checkpoint.every_steps=1", "train.log_every=3"]

    def train(name, processes):
        options = ["--config", str(tiny), "--output", str(tmp_path / name), *every]
        if processes == 1:
            assert main(options) == 0
            return capsys.readouterr().out
        done = run(*options, processes=processes)
        assert done.process.returncode == 0, done.stderr
        return done.stdout

    train("whole", 1)
    train("run", before)
    (tmp_path / "run/checkpoints/last.pt").unlink()  # and the one before takes its place
    assert "continuing at epoch 1 of 1, after 4 of its steps" in train("run", after)
    whole, other = (tmp_path / name / "metrics.jsonl" for name in ("whole", "run"))
    for kind in ("step", "epoch"):
        losses = [[record["train_loss"] for record in read_metrics(path, kind)] for path in (whole, other)]
        assert losses[1] == pytest.approx(losses[0], rel=2e-4)


def test_a_fault_of_one_process_is_told(tiny, tmp_path, run):
    """The bad file is met by one process in the middle of an epoch; its name must reach the user."""
    for split, count in (("train", 24), ("val", 2)):
        for label in ("cat", "dog"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (20, 20), (9 * number, 90, 10)).save(folder / f"{number}.jpg")
    bad = tmp_path / "images/train/cat/3.jpg"
    bad.write_bytes(b"broken")
    data = ["data.kind=image_folder", f"data.root={tmp_path / 'images'}", "data.check_sample=0"]
    done = run(
        "--config", str(tiny), "--output", "run", *data, "train.global_batch=8", "augment.mix_group=8", processes=2
    )
    assert done.process.returncode != 0
    assert f"error: {bad} cannot be read as an image" in done.stderr


@pytest.mark.slow
def test_one_command_starts_the_processes_itself_and_says_a_fault_once(tiny, tmp_path):
    command = [sys.executable, "-m", "toe_train", "--config", str(tiny), "--nproc", "2", "--output", "run"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 300}
    wrong = subprocess.run([*command, "train.global_batch=30"], **options)
    assert wrong.returncode == 2
    assert wrong.stderr.count("global batch 30") == 1
    assert "Traceback" not in wrong.stderr
    (tmp_path / "file").touch()
    blocked = subprocess.run([*command[:-1], "file/run"], **options)
    assert blocked.returncode == 2
    assert blocked.stderr.count("choose another with --output") == 1
    assert "Traceback" not in blocked.stderr
    done = subprocess.run([*command, "epochs=1"], **options)
    assert done.returncode == 0, done.stderr
    assert read_metrics(tmp_path / "run/metrics.jsonl", "start")[0]["world_size"] == 2


POISONED = """
import math, sys
from toe_train.cli.train import main
from toe_train.tasks.classification import BatchMixing

mix, left = BatchMixing.__call__, {places}

def mixing(self, images, labels, epoch, step, rank, micro):
    images, targets = mix(self, images, labels, epoch, step, rank, micro)
    if rank == 1 and (epoch, step) in left:
        left.remove((epoch, step))
        images = images * math.nan
    return images, targets

BatchMixing.__call__ = mixing
sys.exit(main())
"""


def test_what_is_not_finite_in_one_process_is_left_out_in_all(tiny, tmp_path, run):
    """In the first epoch one step, in the second a row of three, which takes the run back once."""
    places = [(0, 3), (1, 0), (1, 1), (1, 2)]
    (tmp_path / "poisoned.py").write_text(POISONED.replace("{places}", repr(places)))
    limit = "train.max_skipped_steps=2"
    done = run("--config", str(tiny), "--output", "run", limit, module="poisoned", processes=2)
    assert done.process.returncode == 0, done.stderr
    assert done.stdout.count("from step 1 of epoch 2 on: back to after step 0 of epoch 2, and on in another order") == 1
    epochs = read_metrics(tmp_path / "run/metrics.jsonl", "epoch")
    assert [record["skipped_steps"] for record in epochs] == [1, 0, 0]
    (report,) = (json.loads(line) for line in (tmp_path / "run/not_finite.jsonl").read_text().splitlines())
    assert len(report["samples"]) == 128  # of the second process


STARVED = """
import sys, torch
from toe_train.cli.train import main
from toe_train.training.step import TrainStep

take = TrainStep.__call__

def step(self, batches, clock, epoch, number):
    if self.processes.rank == 1 and epoch == 1 and number == 2 and self.layout.micro_batch > 64:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return take(self, batches, clock, epoch, number)

TrainStep.__call__ = step
sys.exit(main())
"""


@pytest.mark.slow
def test_one_process_out_of_memory_makes_all_of_them_take_smaller_micro_batches(tiny, tmp_path, run):
    (tmp_path / "starved.py").write_text(STARVED)
    done = run("--config", str(tiny), "--output", "run", module="starved", processes=2, restarts=1)
    assert done.process.returncode == 0, done.stderr
    assert "out of device memory (CUDA out of memory)" in done.stderr
    assert "global batch 256 = 2 processes x 2 accumulation x 64 images" in done.stdout
    assert run("--config", str(tiny), "--output", "whole", processes=2).process.returncode == 0
    starved, whole = (
        [record["train_loss"] for record in read_metrics(tmp_path / name / "metrics.jsonl", "step")]
        for name in ("run", "whole")
    )
    assert starved == pytest.approx(whole, rel=1e-5)


@pytest.mark.slow
def test_a_run_that_is_never_finite_ends_all_processes_together(tiny, tmp_path, run):
    done = run("--config", str(tiny), "--output", "run", "optim.lr=1e30", "optim.name=sgd", processes=2)
    assert done.process.returncode == 1  # torchrun's own; it prints the processes'
    assert done.stderr.count("run failed: ") == 1
    assert "exitcode  : 3" in done.stderr
    assert done.stderr.count("Traceback") == 1  # torchrun's own


def test_a_process_that_is_gone_ends_the_others(tiny, tmp_path, start):
    """One is killed in the middle of an epoch; the other must not wait for it."""
    job = start("--config", tiny, "--output", "run", "epochs=1000", processes=2)
    job.wait_until(lambda: len(read_metrics(tmp_path / "run/metrics.jsonl", "step")) > 7)
    os.kill(job.workers()[1], signal.SIGKILL)
    begin = time.monotonic()
    assert job.end(timeout=60) == 1
    assert time.monotonic() - begin < 40
    assert "Signal 9 (SIGKILL)" in job.stderr
    assert "another process of the run is gone" in job.stderr
    assert job.stderr.count("Traceback") == 1  # torchrun's own


APART = """
import os, sys
from toe_train.cli.train import main
from toe_train.training.keeper import digest
from toe_train.training.loop import Trainer

rank = os.environ["RANK"]
sys.argv[sys.argv.index("--output") + 1] += rank
fit = Trainer.fit

def telling(self):
    fit(self)
    print("digest", rank, digest(self.step.tensors()), flush=True)

Trainer.fit = telling
sys.exit(main())
"""


POISONED_APART = POISONED.replace("{places}", "[(1, 0), (1, 1), (1, 2)]").removesuffix("sys.exit(main())\n") + APART


@pytest.mark.slow
def test_what_the_main_process_reads_is_what_all_go_on_from(tiny, tmp_path, run):
    """Each rank has a run folder of its own, with another run's checkpoint in it: rank 0's counts for both."""
    (tmp_path / "apart.py").write_text(APART)
    for rank in (0, 1):
        given = ["--config", tiny, "--output", f"run{rank}", "epochs=1", "model.drop_path=0.2", f"seed={rank}"]
        done = run(*given)
        assert done.process.returncode == 0, done.stderr
    one, other = (read(tmp_path / f"run{rank}/checkpoints/last.pt")["ema"]["head.weight"] for rank in (0, 1))
    assert not torch.equal(one, other)
    done = run("--config", tiny, "--output", "run", "epochs=2", "model.drop_path=0.2", module="apart", processes=2)
    assert done.process.returncode == 0, done.stderr
    told = dict(re.findall(r"digest (\d) (\w+)", done.stdout))
    assert told["0"] == told["1"]


@pytest.mark.slow
def test_a_roll_back_takes_all_to_what_the_main_process_reads(tiny, tmp_path, run):
    """The second process's run folder holds another run's checkpoint, to which it would go back by itself."""
    (tmp_path / "apart.py").write_text(POISONED_APART)
    other = ["--config", tiny, "--output", "run1", "epochs=1", "seed=1"]
    assert run(*other).process.returncode == 0
    limit = "train.max_skipped_steps=2"
    done = run("--config", tiny, "--output", "run", limit, "epochs=2", module="apart", processes=2)
    assert done.process.returncode == 0, done.stderr
    assert "roll-back 1 of" in done.stdout
    told = dict(re.findall(r"digest (\d) (\w+)", done.stdout))
    assert told["0"] == told["1"]


ASTRAY = """
import sys
from toe_train.cli.train import main
from toe_train.training.step import TrainStep

load = TrainStep.load_state

def astray(self, state):
    load(self, state)
    if self.processes.rank == 1:
        self.ema.module.head.bias.data[0] += 1e-6

TrainStep.load_state = astray
sys.exit(main())
"""


def test_processes_that_do_not_hold_the_same_numbers_end_before_the_first_step(tiny, tmp_path, run):
    (tmp_path / "astray.py").write_text(ASTRAY)
    done = run("--config", tiny, "--output", "run", module="astray", processes=2)
    assert done.process.returncode == 1  # torchrun's own; it prints the processes'
    assert "exitcode  : 3" in done.stderr
    assert "rank 1 differs from rank 0" in done.stderr
    assert read_metrics(tmp_path / "run/metrics.jsonl", "step") == []
