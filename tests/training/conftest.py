"""Runs in processes of their own, alone or under torchrun, that a test can watch and kill."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from toe_train.training.checkpoint import read
from toe_train.training.runlog import read_metrics

TIMES = re.compile("seconds|share|images_per_second|memory|hours")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


class Job:
    """A command that runs in `folder`.

    arguments: of the module. processes: under torchrun where more than one. restarts: that torchrun may make.
    """

    def __init__(self, folder: Path, *arguments: object, module="toe_train", processes=1, restarts=0) -> None:
        launcher = []
        if processes > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
            launcher.append(f"--max-restarts={restarts}")
        self.module = module
        self.out, self.err = (folder / f"{name}.{time.monotonic_ns()}" for name in ("out", "err"))
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, *launcher, "-m", module, *map(str, arguments)],
                cwd=folder,
                env=ENVIRONMENT,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def workers(self) -> list[int]:
        """Process numbers of what torchrun started, by rank."""
        command = ["ps", "--ppid", str(self.process.pid), "-o", "pid=,args="]
        found = subprocess.run(command, capture_output=True, text=True).stdout
        return sorted(int(line.split()[0]) for line in found.splitlines() if self.module in line)

    def wait_until(self, condition, seconds=120) -> None:
        """Waits for something that the run does while it lives."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.stderr
            assert time.monotonic() < end, "it never came to that"
            time.sleep(0.01)

    def end(self, timeout=300) -> int:
        """The exit code."""
        return self.process.wait(timeout)

    @property
    def stdout(self) -> str:
        return self.out.read_text()

    @property
    def stderr(self) -> str:
        return self.err.read_text()

    def clear(self) -> None:
        """Leaves nothing running."""
        for worker in self.workers():
            os.kill(worker, 9)
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start(tmp_path):
    """start(*arguments, module=, processes=, restarts=) -> Job in tmp_path; ended with the test."""
    jobs = []

    def begin(*arguments, **options):
        jobs.append(Job(tmp_path, *arguments, **options))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.clear()


@pytest.fixture
def run(start):
    """run(...) as start(...), ended; the Job."""

    def whole(*arguments, **options):
        job = start(*arguments, **options)
        job.end()
        return job

    return whole


@pytest.fixture
def assert_same_run():
    """assert_same_run(quiet, killed): the two run folders hold the same, but for times."""
    return _assert_same_run


@pytest.fixture
def steps_done():
    """steps_done(folder): number of steps that the run in it has logged."""
    return _steps_done


@pytest.fixture
def graphs(monkeypatch):
    """What torch.compile makes in the test, as graphs that run as they are; with the numbers of calls of each."""
    made = []
    real = torch.compile

    def counting(graph, inputs):
        calls = []
        made.append(calls)

        def run(*given):
            calls.append(1)
            return graph.forward(*given)

        return run

    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(torch, "compile", lambda model, **options: real(model, backend=counting, **options))
    yield made
    torch.compiler.reset()


def _told(folder: Path):
    """The metric lines without times."""
    path = folder / "metrics.jsonl"
    lines = [*read_metrics(path, "step"), *read_metrics(path, "epoch")]
    return [{key: value for key, value in line.items() if not TIMES.search(key)} for line in lines]


def _tensors(value, place=""):
    if isinstance(value, torch.Tensor):
        yield place, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _tensors(inner, f"{place}.{key}")


def _assert_same_run(quiet: Path, killed: Path):
    """Metric lines, weights, averages and the optimiser's moments, to the last bit."""
    assert _told(quiet) == _told(killed)
    one, other = (dict(_tensors(read(folder / "checkpoints/last.pt"))) for folder in (quiet, killed))
    assert one.keys() == other.keys()
    assert [place for place in one if not torch.equal(one[place], other[place])] == []


def _steps_done(folder: Path) -> int:
    return len(read_metrics(folder / "metrics.jsonl", "step"))
