"""Killed again and again at random times under torchrun with two processes, a run ends as the quiet run does.

`TOE_SOAK_MINUTES=30 python -m pytest tests/training/test_soak.py -k soak -s` goes on for that long on the quickstart.
"""

import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from toe_train.training.checkpoint import read
from toe_train.training.runlog import read_metrics

TIMES = re.compile("seconds|share|images_per_second|memory|hours")


def told(folder: Path):
    """The metric lines without times."""
    path = folder / "metrics.jsonl"
    lines = [*read_metrics(path, "step"), *read_metrics(path, "epoch")]
    return [{key: value for key, value in line.items() if not TIMES.search(key)} for line in lines]


def tensors(value, place=""):
    if isinstance(value, torch.Tensor):
        yield place, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from tensors(inner, f"{place}.{key}")


def assert_same(quiet: Path, killed: Path):
    """Metric lines, weights, averages and the optimiser's moments, to the last bit."""
    assert told(quiet) == told(killed)
    one, other = (dict(tensors(read(folder / "checkpoints/last.pt"))) for folder in (quiet, killed))
    assert one.keys() == other.keys()
    assert [place for place in one if not torch.equal(one[place], other[place])] == []


def steps_done(folder: Path) -> int:
    return len(read_metrics(folder / "metrics.jsonl", "step"))


def kill_until_done(begin, chosen, seconds, deadline):
    """Starts the run and kills one of its processes after so many seconds, until the deadline; then lets it end."""
    kills = 0
    while True:
        job = begin()
        if time.monotonic() < deadline:
            try:
                job.process.wait(timeout=chosen.uniform(*seconds))
            except subprocess.TimeoutExpired:
                for victim in job.workers()[:1] if chosen.random() < 0.5 else job.workers()[1:]:
                    os.kill(victim, signal.SIGKILL)
                    kills += 1
        if job.end(timeout=2400) == 0:
            return kills
        assert time.monotonic() < deadline + 600, "it does not come to an end undisturbed"


LONGER = ["epochs=40", "expansion.stage_epochs=[0,13,26]", "checkpoint.every_steps=2"]


@pytest.mark.slow
@pytest.mark.parametrize("restarts", [0, 3])
def test_a_process_killed_three_times(tiny, tmp_path, start, run, restarts):
    """SIGKILL in the middle of an epoch; then the same command again, by hand or by torchrun's --max-restarts."""
    assert run("--config", tiny, "--output", "quiet", *LONGER, processes=2).process.returncode == 0
    arguments, killed = ["--config", tiny, "--output", "killed", *LONGER], tmp_path / "killed"
    job = start(*arguments, processes=2, restarts=restarts)
    for kill in range(3):
        job.wait_until(lambda kill=kill: steps_done(killed) >= 60 * kill + 23)
        os.kill(job.workers()[kill % 2], signal.SIGKILL)
        if restarts:
            starts = kill + 2
            job.wait_until(lambda s=starts: len(read_metrics(killed / "metrics.jsonl", "start")) == s)
        else:
            assert job.end(timeout=100) == 1
            job = start(*arguments, processes=2)
    assert job.end() == 0, job.stderr
    assert len(read_metrics(killed / "metrics.jsonl", "start")) == 4
    assert_same(tmp_path / "quiet", killed)


@pytest.mark.slow
def test_four_processes_go_on_as_four(tiny, tmp_path, start, run):
    """Sums over more than two processes depend on the order in which they are taken."""
    arguments = ["--config", tiny, "epochs=2", "checkpoint.every_steps=1"]
    assert run(*arguments, "--output", "quiet", processes=4).process.returncode == 0
    job = start(*arguments, "--output", "killed", processes=4)
    job.wait_until(lambda: steps_done(tmp_path / "killed") >= 3)
    os.kill(job.workers()[2], signal.SIGKILL)
    assert job.end(timeout=100) == 1
    assert run(*arguments, "--output", "killed", processes=4).process.returncode == 0
    assert_same(tmp_path / "quiet", tmp_path / "killed")


@pytest.mark.slow
def test_soak(configs, tmp_path, start, run):
    minutes = float(os.environ.get("TOE_SOAK_MINUTES", "2"))
    epochs = max(15, round(minutes * 15))  # of about four seconds on two cores, so that it lasts as long undisturbed
    stages = f"expansion.stage_epochs=[0,{epochs // 3},{2 * epochs // 3}]"
    overrides = [f"epochs={epochs}", stages, "checkpoint.every_steps=10", "train.global_batch=32"]
    arguments = ["--config", configs / "quickstart.yaml", *overrides]
    quiet = start(*arguments, "--output", "quiet", processes=2)
    assert quiet.end(timeout=7200) == 0, quiet.stderr
    kills = kill_until_done(
        lambda: start(*arguments, "--output", "killed", processes=2),
        random.Random(0),
        (20, 60),
        time.monotonic() + 60 * minutes,
    )
    print(f"{kills} kills, {len(read_metrics(tmp_path / 'killed/metrics.jsonl', 'start'))} starts")
    assert kills >= 1
    assert_same(tmp_path / "quiet", tmp_path / "killed")
