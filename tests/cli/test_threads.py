"""Threads: as many as there are cores to use, waiting asleep."""

import os
import subprocess
import sys

import pytest
import torch

from toe_train.cli import running, threads


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
    assert threads.usable_cores(tmp_path) == expected


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


@pytest.mark.parametrize(("set_before", "taken"), [(None, [3]), ("1", [])])
def test_a_run_takes_the_cores_that_it_may(monkeypatch, capsys, set_before, taken):
    asked = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if set_before:
        monkeypatch.setenv("OMP_NUM_THREADS", set_before)
    monkeypatch.setattr(running, "usable_cores", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 0, 0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    running._take_threads()
    assert asked == taken
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(os, "getloadavg", lambda: (1.9, 0, 0))
    running._take_threads()
    assert "note: other programs take this machine's cores (load 1.9 of 2): the run takes longer" in (
        capsys.readouterr().out
    )
