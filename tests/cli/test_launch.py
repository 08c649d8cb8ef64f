"""Several processes started by one command: what is started again, what is not, and how it ends."""

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from toe_train.cli import launch as launch_module
from toe_train.cli import running, train
from toe_train.cli.exits import START_AGAIN
from toe_train.cli.launch import RESTARTS
from toe_train.errors import Preempted
from toe_train.runs import joining
from toe_train.runs.log import read_metrics

# Leaves a file for each start; the second process ends as the argument after the number of starts so far says.
WORKER = """
import os, sys, time
from pathlib import Path
rank = os.environ["RANK"]
if rank == "0":
    time.sleep(60)
begun = len(list(Path.cwd().glob("start-*")))
Path(f"start-{begun}-{sys.argv[1]}").touch()
ending = sys.argv[2:][min(begun, len(sys.argv) - 3)]
if ending.startswith("-"):
    os.kill(os.getpid(), -int(ending))
sys.exit(int(ending))
"""

LAUNCHER = """
import sys
from toe_train.cli.exits import guarded
from toe_train.cli.launch import launch

endings = sys.argv[1:]
again = lambda codes: None if codes & {2, 75} else ["again", *endings]
sys.exit(guarded(lambda: launch(2, ["first", *endings], module="worker", again=again)))
"""


@pytest.fixture
def launched(tmp_path):
    """launched(*endings): the exit code, the names of the starts in order, and what was told."""
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "launcher.py").write_text(LAUNCHER)

    def runner(*endings):
        command = [sys.executable, "launcher.py", *map(str, endings)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
        return done.returncode, sorted(path.name for path in tmp_path.glob("start-*")), done.stdout

    return runner


@pytest.mark.parametrize("code", [2, 75])
def test_what_is_for_the_user_or_a_signal_is_not_started_again(launched, code):
    assert launched(code) == (code, ["start-0-first"], "")


def test_a_crash_is_started_again_a_few_times(launched):
    code, starts, told = launched(-9, 2)
    assert (code, starts) == (2, ["start-0-first", "start-1-again"])
    assert told == f"all processes are started again (1 of at most {RESTARTS} times)\n"


@pytest.mark.parametrize(("ending", "expected"), [(1, 1), (-9, 4)])
def test_a_crash_at_each_start_ends_it(launched, ending, expected):
    code, starts, told = launched(ending)
    assert (code, len(starts)) == (expected, 1 + RESTARTS)
    assert told.endswith(f"started again {RESTARTS} times, and ended each time; the same command goes on\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_asked_in_the_start_up_of_the_launcher(tiny, tmp_path, monkeypatch, capsys, number):
    def slow(*arguments, **options):
        signal.raise_signal(number)
        time.sleep(0.2)  # a thread reads it

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(running, "dry_build", slow)
    monkeypatch.setattr(running, "launch", None)
    given = ["--config", str(tiny), "--output", str(tmp_path / "run"), "--nproc", "2", "--resume", "never"]
    assert train.main(given) == 75
    assert capsys.readouterr().err == "stopped: by a signal, in start-up; the same command continues\n"


def test_which_runs_are_started_again(tiny, tmp_path, monkeypatch, capsys):
    """By the exit codes; from the checkpoint once this run wrote one."""
    run = tmp_path / "run"
    asked = []

    def launching(count, arguments, again):
        assert [again({code}) for code in (2, 3, 75)] == [None, None, None]
        asked.append(again({-9}))
        (run / "checkpoints").mkdir(parents=True)
        (run / "checkpoints/last.pt").touch()
        asked.append(again({1, 4}))
        asked.append(again({4}))
        assert again({3, 4}) is None
        raise Preempted("by a signal", then="{command} continues")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(running, "dry_build", lambda *arguments, **options: None)
    monkeypatch.setattr(running, "launch", launching)
    given = ["--config", str(tiny), "--output", str(run), "--resume", "never"]
    assert train.main([*given, "--nproc", "2"]) == 75
    assert [given[given.index("--resume") + 1] for given in asked] == ["never", "auto", "auto"]
    assert "the same command without --resume continues" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("codes", "told"), [([4, 3], 3), ([1, 2], 2), ([-9, 75], 75), ([4, 1], 4), ([-9, 1], START_AGAIN)]
)
def test_what_would_be_the_same_again_is_told_by_whichever_process_ended_so(monkeypatch, codes, told):
    """One that waits for it in vain may fail first."""

    def fails(arguments):
        failures = {}
        for rank, code in enumerate(codes):
            failures[rank] = ProcessFailure(local_rank=rank, pid=1, exitcode=code, error_file="none")
            failures[rank].timestamp = rank
        raise ChildFailedError("toe-train", failures)

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(launch_module, "torchrun", fails)
    assert launch_module.launch(2, []) == told


def test_processes_wait_for_each_other_as_long_on_a_gpu(monkeypatch):
    given = {}
    monkeypatch.setattr(joining, "rendezvous", lambda url: iter([(None, 0, 2)]))
    monkeypatch.setattr(joining.dist, "init_process_group", lambda backend, **options: given.update(options))
    joining.join(0, 2, torch.device("cpu"), timedelta(hours=3))
    assert given["timeout"] == timedelta(hours=3)


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_after_a_crash_and_stops_at_a_signal(tiny, tmp_path):
    """A real one, whose `--resume never` counts once: killed in one process, started again, asked to stop."""
    metrics = tmp_path / "run/metrics.jsonl"
    options = ["epochs=4000", "checkpoint.every_steps=1", "--resume", "never", "--nproc", "2"]
    command = [sys.executable, "-m", "toe_train", "--config", str(tiny), "--output", "run", *options]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

    def wait_for(starts, steps):
        end = time.monotonic() + 120
        while len(read_metrics(metrics, "start")) < starts or len(read_metrics(metrics, "step")) < steps:
            assert job.poll() is None
            assert time.monotonic() < end, "it never came to that"
            time.sleep(0.05)

    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as job:
        try:
            wait_for(1, 4)
            listed = subprocess.run(["ps", "--ppid", str(job.pid), "-o", "pid="], capture_output=True, text=True)
            os.kill(max(map(int, listed.stdout.split()[:2])), signal.SIGKILL)
            wait_for(2, len(read_metrics(metrics, "step")) + 4)
            job.terminate()
            out, error = job.communicate(timeout=100)
        finally:
            job.kill()
    assert job.returncode == 75, error
    assert "all processes are started again (1 of at most 3 times)" in out
    assert "the same command without --resume continues" in error
    again = read_metrics(metrics, "start")[1]
    assert (again["first_epoch"], again["first_step"]) != (0, 0)
