"""Two gloo processes under torchrun against one process, at the same global batch."""

import os
import subprocess
import sys

import pytest

from toe_train.cli.train import main
from toe_train.training.runfolder import RunFolder
from toe_train.training.runlog import read_metrics


def torchrun(folder, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "toe_train"]
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_two_processes_train_what_one_trains(tiny, tmp_path, monkeypatch):
    """Losses agree to 2e-4 (gradients are summed in another order, all that is drawn is the same); counts are equal."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["--config", str(tiny), "--output", str(tmp_path / "one")]) == 0
    done = torchrun(tmp_path, "--config", str(tiny), "--output", "two")
    assert done.returncode == 0, done.stderr
    assert "global batch 256 = 2 processes x 1 accumulation x 128 images" in done.stdout
    one, two = (RunFolder(tmp_path / name).metrics for name in ("one", "two"))
    assert read_metrics(two, "start")[0]["world_size"] == 2
    steps = [[record["train_loss"] for record in read_metrics(path, "step")] for path in (one, two)]
    assert len(steps[0]) == 15
    assert steps[1] == pytest.approx(steps[0], rel=2e-4)
    # 364 validation images; one of them may fall on the other side of a tie.
    for key in ("val_top1", "val_top5", "ema_top1"):
        tops = [[record[key] for record in read_metrics(path, "epoch")] for path in (one, two)]
        assert tops[1] == pytest.approx(tops[0], abs=100 / 364 + 1e-9)


def test_one_command_starts_the_processes_itself_and_says_a_fault_once(tiny, tmp_path):
    command = [sys.executable, "-m", "toe_train", "--config", str(tiny), "--nproc", "2", "--output", "run"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 300}
    wrong = subprocess.run([*command, "train.global_batch=30"], **options)
    assert wrong.returncode == 2
    assert wrong.stderr.count("global batch 30") == 1
    assert "Traceback" not in wrong.stderr
    done = subprocess.run([*command, "epochs=1"], **options)
    assert done.returncode == 0, done.stderr
    assert read_metrics(tmp_path / "run/metrics.jsonl", "start")[0]["world_size"] == 2


def test_a_loss_that_is_not_finite_ends_all_processes_together(tiny, tmp_path):
    done = torchrun(tmp_path, "--config", str(tiny), "--output", "run", "optim.lr=1e30", "optim.name=sgd")
    assert done.returncode != 0
    assert done.stderr.count("run failed: the training loss is") == 1
