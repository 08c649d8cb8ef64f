"""`scripts/slurm.sh` with stand-ins for Slurm's programs: real processes, two tasks on this machine."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from toe_train.runs.log import read_metrics

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/slurm.sh"
LONGER = ["epochs=40", "expansion.stage_epochs=[0,13,26]", "checkpoint.every_steps=2"]
JOB = 4711

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps"),
]

# Two tasks, of which it signals the shells alone, as Slurm by cgroups. Where one ends badly it asks the others to end
# and kills them five seconds later; its own code is the highest.
SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys, time
with open(os.environ["CALLS"], "a") as calls:
    print("srun", os.environ["SLURM_RESTART_COUNT"], file=calls)
assert sys.argv[1] == "--kill-on-bad-exit=1"
def task(rank):
    numbers = dict(SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank), SLURM_NTASKS="2")
    return subprocess.Popen(sys.argv[2:], env=dict(os.environ, **numbers), start_new_session=True)
tasks = [task(0), task(1)]
def to_all(number):
    for each in tasks:
        if each.poll() is None:
            os.kill(each.pid, number)
signal.signal(signal.SIGUSR1, lambda number, frame: to_all(number))
patience = None
while any(each.poll() is None for each in tasks):
    if patience is None and any(each.poll() for each in tasks):
        to_all(signal.SIGTERM)
        patience = time.monotonic() + 5
    if patience is not None and time.monotonic() > patience:
        for each in tasks:
            if each.poll() is None:
                os.killpg(each.pid, signal.SIGKILL)
    time.sleep(0.05)
sys.exit(max(code if code >= 0 else 128 - code for code in (each.wait() for each in tasks)))
"""
SCONTROL = """#!/bin/sh
echo "scontrol $@" >> "$CALLS"
echo localhost
"""


class Cluster:
    """Stand-ins in `folder`, and what was submitted to them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, folder / "calls"
        self.calls.touch()
        python = f'#!/bin/sh\nexec {sys.executable} "$@"\n'
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", python)):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    def submit(self, *arguments, restarts=0) -> None:
        environment = {
            **os.environ,
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "CALLS": str(self.calls),
            "SLURM_JOB_ID": str(JOB),
            "SLURM_JOB_NODELIST": "localhost",
            "SLURM_RESTART_COUNT": str(restarts),
            "CUDA_VISIBLE_DEVICES": "",
        }
        command = ["bash", str(SCRIPT), *map(str, arguments)]
        self.script = subprocess.Popen(command, cwd=self.folder, env=environment, start_new_session=True)

    def shells(self) -> list[int]:
        """Of the tasks, by rank."""
        return [shell for srun in _children(self.script.pid) for shell in _children(srun)]

    def pythons(self) -> list[int]:
        """Of the tasks, by rank."""
        return [python for shell in self.shells() for python in _children(shell)]

    def wait_until(self, condition) -> None:
        end = time.monotonic() + 200
        while not condition():
            assert self.script.poll() is None, "it ended"
            assert time.monotonic() < end, "it never came to that"
            time.sleep(0.05)

    def end(self) -> int:
        return self.script.wait(300)

    def asked(self, what: str) -> list[str]:
        return [line for line in self.calls.read_text().splitlines() if line.startswith(what)]

    def clear(self) -> None:
        running = [self.script.pid, *_children(self.script.pid), *self.shells(), *self.pythons()]
        for number in (signal.SIGSTOP, signal.SIGKILL):  # the parents first: none may start another
            for pid in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        self.script.wait()


def _children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "--ppid", str(pid), "-o", "pid=,stat="], capture_output=True, text=True).stdout
    return sorted(int(line.split()[0]) for line in found.splitlines() if not line.split()[1].startswith("Z"))


@pytest.fixture
def cluster(tmp_path):
    made = Cluster(tmp_path)
    yield made
    made.clear()


def test_it_goes_on_after_usr1_and_after_lost_tasks(tiny, tmp_path, cluster, run, steps_done, assert_same_run):
    """`--resume never` counts for the first start alone."""
    assert run("--config", tiny, "--output", "quiet", *LONGER, processes=2).process.returncode == 0
    killed = tmp_path / "killed"
    arguments = [tiny, "--output", "killed", *LONGER, "--resume", "never"]

    cluster.submit(*arguments)
    cluster.wait_until(lambda: steps_done(killed) >= 23)
    os.kill(cluster.script.pid, signal.SIGUSR1)
    assert cluster.end() == 75
    assert cluster.asked("scontrol requeue") == [f"scontrol requeue {JOB}"]
    assert 23 <= steps_done(killed) < steps_done(tmp_path / "quiet")

    cluster.submit(*arguments, restarts=1)
    for kill in range(2):
        cluster.wait_until(lambda kill=kill: steps_done(killed) >= 60 * (kill + 1) and len(cluster.pythons()) == 2)
        os.kill(cluster.pythons()[kill], signal.SIGKILL)
        starts = kill + 3
        cluster.wait_until(lambda s=starts: len(read_metrics(killed / "metrics.jsonl", "start")) == s)
    assert cluster.end() == 0
    assert cluster.asked("srun") == ["srun 0", "srun 1", "srun 2", "srun 3"]
    assert len(cluster.asked("scontrol requeue")) == 1
    assert_same_run(tmp_path / "quiet", killed)


def test_term_ends_it_with_its_place_saved(tiny, tmp_path, cluster, steps_done):
    cluster.submit(tiny, "--output", "run", *LONGER)
    cluster.wait_until(lambda: steps_done(tmp_path / "run") >= 5)
    for pid in (cluster.script.pid, *cluster.shells()):
        os.kill(pid, signal.SIGTERM)
    assert cluster.end() == 75
    assert cluster.asked("srun") == ["srun 0"]
    assert cluster.asked("scontrol requeue") == []


def test_it_leaves_what_the_user_has_to_mend(tiny, tmp_path, cluster):
    cluster.submit(tiny, "--output", "wrong", "optim.lr=-1")
    assert cluster.end() == 2
    assert cluster.asked("srun") == ["srun 0"]
    assert not (tmp_path / "wrong/metrics.jsonl").exists()
