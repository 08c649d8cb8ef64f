"""Scripts in two processes that talk over gloo."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

PROLOGUE = """
import os, sys
import numpy
import torch
import torch.distributed as dist
from torch import nn
from toe_train.errors import Interrupted, Preempted, RunFailed, UserError
from toe_train.runs.processes import Processes

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{os.getcwd()}/store", rank=rank, world_size=2)
here = Processes(rank, 2, torch.device("cpu"), dist.new_group(backend="gloo"))
"""


@pytest.fixture
def in_two(tmp_path):
    """in_two(script): runs it with `rank` and `here` in two processes; what each left, by rank."""

    def runner(script):
        path = tmp_path / "script.py"
        path.write_text(PROLOGUE + script)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        jobs = [
            subprocess.Popen([sys.executable, path.name, str(rank)], cwd=tmp_path, env=environment, **pipes)
            for rank in range(2)
        ]
        try:
            told = [job.communicate(timeout=100) for job in jobs]
        finally:
            for job in jobs:
                job.kill()
        return [
            SimpleNamespace(code=job.returncode, out=out, err=err) for job, (out, err) in zip(jobs, told, strict=True)
        ]

    return runner
