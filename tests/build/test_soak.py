"""Killed again and again at random times under torchrun with two processes, a run ends as the quiet run does.

`TOE_SOAK_MINUTES=30 python -m pytest tests/build/test_soak.py -k soak -s` goes on for that long on the quickstart.
"""

import os
import random
import signal
import subprocess
import time

import pytest

from toe_train.runs.log import read_metrics


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
def test_a_process_killed_three_times(tiny, tmp_path, start, run, restarts, steps_done, assert_same_run):
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
    assert_same_run(tmp_path / "quiet", killed)


@pytest.mark.slow
def test_four_processes_go_on_as_four(tiny, tmp_path, start, run, steps_done, assert_same_run):
    """Sums over more than two processes depend on the order in which they are taken."""
    arguments = ["--config", tiny, "epochs=2", "checkpoint.every_steps=1"]
    assert run(*arguments, "--output", "quiet", processes=4).process.returncode == 0
    job = start(*arguments, "--output", "killed", processes=4)
    job.wait_until(lambda: steps_done(tmp_path / "killed") >= 3)
    os.kill(job.workers()[2], signal.SIGKILL)
    assert job.end(timeout=100) == 1
    assert run(*arguments, "--output", "killed", processes=4).process.returncode == 0
    assert_same_run(tmp_path / "quiet", tmp_path / "killed")


@pytest.mark.slow
def test_soak(configs, tmp_path, start, run, assert_same_run):
    minutes = float(os.environ.get("TOE_SOAK_MINUTES", "2"))
    epochs = max(15, round(minutes * 11))  # of about four seconds each; starting again takes as long
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
    assert_same_run(tmp_path / "quiet", tmp_path / "killed")
