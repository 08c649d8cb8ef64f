"""`scripts/slurm.sh` with stand-ins for Slurm's programs: real processes, two tasks on this machine."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from toe_train.training.runlog import read_metrics

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/slurm.sh"
LONGER = ["epochs=40", "expansion.stage_epochs=[0,13,26]", "checkpoint.every_steps=2"]

# Starts two tasks, passes USR1 on to all their processes, and ends all where one ends badly, as --kill-on-bad-exit=1.
SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys, time
assert sys.argv[1] == "--kill-on-bad-exit=1"
def task(rank):
    numbers = dict(SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank), SLURM_NTASKS="2")
    return subprocess.Popen(sys.argv[2:], env=dict(os.environ, **numbers), start_new_session=True)
tasks = [task(0), task(1)]
def to_all(number):
    for each in tasks:
        if each.poll() is None:
            os.killpg(each.pid, number)
signal.signal(signal.SIGUSR1, lambda number, frame: to_all(number))
while not all(each.poll() == 0 for each in tasks):
    if any(each.poll() for each in tasks):
        to_all(signal.SIGKILL)
        break
    time.sleep(0.05)
codes = [each.wait() for each in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""
SCONTROL = """#!/bin/sh
echo "$@" >> "$SCONTROL_LOG"
echo localhost
"""


@pytest.fixture
def submit(tmp_path):
    """submit(*arguments) -> the running script."""
    programs, started = tmp_path / "programs", []
    programs.mkdir()
    python = f'#!/bin/sh\nexec {sys.executable} "$@"\n'
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", python)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "SCONTROL_LOG": str(tmp_path / "scontrol.log"),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "localhost",
        "CUDA_VISIBLE_DEVICES": "",
    }

    def begin(*arguments):
        command = ["bash", str(SCRIPT), *map(str, arguments)]
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True))
        return started[-1]

    yield begin
    for script in started:
        for pid in tasks(script):
            os.kill(pid, signal.SIGKILL)
        script.kill()
        script.wait()


def children(pid):
    found = subprocess.run(["ps", "--ppid", str(pid), "-o", "pid="], capture_output=True, text=True).stdout
    return [int(line) for line in found.split()]


def tasks(script):
    """Process numbers of python in each task, by rank."""
    return [python for srun in children(script.pid) for shell in children(srun) for python in children(shell)]


def wait_for(script, condition):
    end = time.monotonic() + 120
    while not condition():
        assert script.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps")
def test_the_script_goes_on_after_usr1_and_after_a_lost_task(tiny, tmp_path, submit, run, steps_done, assert_same_run):
    assert run("--config", tiny, "--output", "quiet", *LONGER, processes=2).process.returncode == 0
    killed, calls = tmp_path / "killed", tmp_path / "scontrol.log"
    arguments = [tiny, "--output", "killed", *LONGER]

    script = submit(*arguments)
    wait_for(script, lambda: steps_done(killed) >= 23)
    os.kill(children(script.pid)[0], signal.SIGUSR1)
    assert script.wait(120) == 0
    assert [line for line in calls.read_text().splitlines() if "requeue" in line] == [f"requeue {os.getpid()}"]
    assert steps_done(killed) < steps_done(tmp_path / "quiet")

    script = submit(*arguments)  # as Slurm would
    for kill in range(2):
        wait_for(script, lambda kill=kill: steps_done(killed) >= 60 * (kill + 1) and len(tasks(script)) == 2)
        os.kill(tasks(script)[kill], signal.SIGKILL)
        starts = kill + 3
        wait_for(script, lambda s=starts: len(read_metrics(killed / "metrics.jsonl", "start")) == s)
    assert script.wait(300) == 0
    assert_same_run(tmp_path / "quiet", killed)


@pytest.mark.slow
def test_the_script_leaves_what_the_user_has_to_mend(tiny, tmp_path, submit):
    script = submit(tiny, "--output", "wrong", "optim.lr=-1")
    assert script.wait(120) == 2
    assert not (tmp_path / "wrong/metrics.jsonl").exists()
