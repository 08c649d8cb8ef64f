"""Threads: as many as there are cores to use, waiting asleep."""

import os
import subprocess
import sys

import pytest
import torch

from toe_train import cores
from toe_train.cli import threads
from toe_train.cli.tools import main as tools
from toe_train.cli.train import main as train


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 4),
        ({"cpu.max": "max 100000"}, 4),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "900000 100000"}, 4),
        ({"cpu.max": "torn"}, 4),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 4),
    ],
)
def test_affinity_and_the_quota_of_the_container_decide(tmp_path, monkeypatch, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5, 7})
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert cores.usable_cores(tmp_path) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, str(threads.SPINS)), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "None")],
)
def test_how_threads_wait_is_chosen_before_torch_is_there(given, expected):
    """torch's threads read it when their library is loaded."""
    unset = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    script = "import toe_train.cli, os, sys; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=unset | given, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{expected} False\n", done.stderr


@pytest.fixture
def asked(monkeypatch):
    """Numbers of threads that torch was asked for, on a machine where 3 cores may be used."""
    numbers = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "usable_cores", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    return numbers


@pytest.mark.parametrize(("set_before", "taken"), [(None, [3]), ("1", [])])
def test_a_command_takes_the_cores_that_it_may(monkeypatch, asked, set_before, taken):
    if set_before:
        monkeypatch.setenv("OMP_NUM_THREADS", set_before)
    threads.take_threads()
    assert asked == taken


def test_each_tool_takes_them(monkeypatch, asked, tmp_path, capsys):
    assert tools(["report", str(tmp_path)]) == 2
    assert asked == [3]


def test_a_run_takes_them(asked, tiny, tmp_path, capsys):
    assert train(["--config", str(tiny), "--output", str(tmp_path / "run"), "epochs=1"]) == 0
    assert asked == [3]


def test_a_busy_machine_is_said(monkeypatch, capsys):
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 0, 0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    threads.tell_if_busy()
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(os, "getloadavg", lambda: (1.9, 0, 0))
    threads.tell_if_busy()
    assert "note: other programs take this machine's cores (load 1.9 of 2)" in capsys.readouterr().out
