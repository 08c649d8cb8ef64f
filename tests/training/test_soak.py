"""Killed again and again at random times under torchrun with two processes, a run ends in the quiet run's weights.

`TOE_SOAK_MINUTES=30 python -m pytest tests/training/test_soak.py -k soak` goes on for that long on the quickstart.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from toe_train.training.checkpoint import read
from toe_train.training.runlog import read_metrics

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def start(config, output, overrides, log):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "toe_train"]
    return subprocess.Popen(
        [*launcher, "--config", str(config), "--output", str(output), *overrides],
        env=ENVIRONMENT,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def workers(parent):
    """Process numbers of the training processes that torchrun started."""
    found = subprocess.run(["ps", "--ppid", str(parent), "-o", "pid=,args="], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if "toe_train" in line]


def losses(folder):
    steps = read_metrics(folder / "metrics.jsonl", "step")
    return [(record["epoch"], record["step"], record["train_loss"]) for record in steps]


def assert_same(quiet: Path, killed: Path):
    assert losses(quiet) == losses(killed)
    one, other = (read(folder / "checkpoints/last.pt") for folder in (quiet, killed))
    for part in ("model", "ema"):
        assert all(torch.equal(value, other[part][name]) for name, value in one[part].items()), part


def kill_until_done(config, folder, overrides, log, chosen, seconds, deadline):
    """Starts the run and kills one of its processes after so many seconds, until the deadline; then lets it end."""
    kills = 0
    while True:
        run = start(config, folder, overrides, log)
        if time.monotonic() < deadline:
            try:
                run.wait(timeout=chosen.uniform(*seconds))
            except subprocess.TimeoutExpired:
                for victim in workers(run.pid)[:1] if chosen.random() < 0.5 else workers(run.pid)[1:]:
                    os.kill(victim, signal.SIGKILL)
                    kills += 1
        code = run.wait(timeout=1200)
        if code == 0:
            return kills
        assert time.monotonic() < deadline + 600, "it does not come to an end undisturbed"


@pytest.mark.slow
def test_a_process_killed_three_times(tiny, tmp_path):
    """SIGKILL in the middle of an epoch, found by the metric lines, and the same command again."""
    overrides = ["epochs=40", "expansion.stage_epochs=[0,13,26]", "checkpoint.every_steps=2"]
    with open(tmp_path / "log", "w") as log:
        assert start(tiny, tmp_path / "quiet", overrides, log).wait(timeout=300) == 0
        for kill in range(3):
            run = start(tiny, tmp_path / "killed", overrides, log)
            end = time.monotonic() + 100
            while len(losses(tmp_path / "killed")) < 60 * kill + 23:
                assert time.monotonic() < end
                assert run.poll() is None, (tmp_path / "log").read_text()[-3000:]
                time.sleep(0.01)
            os.kill(workers(run.pid)[kill % 2], signal.SIGKILL)
            assert run.wait(timeout=100) != 0
        assert start(tiny, tmp_path / "killed", overrides, log).wait(timeout=300) == 0
    assert len(read_metrics(tmp_path / "killed/metrics.jsonl", "start")) == 4
    assert_same(tmp_path / "quiet", tmp_path / "killed")


@pytest.mark.slow
def test_soak(configs, tmp_path):
    minutes = float(os.environ.get("TOE_SOAK_MINUTES", "2"))
    epochs = max(15, round(minutes * 15))  # of about four seconds on two cores, so that it lasts as long undisturbed
    stages = f"expansion.stage_epochs=[0,{epochs // 3},{2 * epochs // 3}]"
    overrides = [f"epochs={epochs}", stages, "checkpoint.every_steps=10", "train.global_batch=32"]
    quickstart, chosen = configs / "quickstart.yaml", random.Random(0)
    with open(tmp_path / "log", "w") as log:
        assert start(quickstart, tmp_path / "quiet", overrides, log).wait() == 0
        deadline = time.monotonic() + 60 * minutes
        kills = kill_until_done(quickstart, tmp_path / "killed", overrides, log, chosen, (20, 60), deadline)
    print(f"{kills} kills, {len(read_metrics(tmp_path / 'killed/metrics.jsonl', 'start'))} starts")
    assert kills >= 1
    assert_same(tmp_path / "quiet", tmp_path / "killed")
