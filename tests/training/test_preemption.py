"""Asked to stop by a signal at any time, a run saves its place and goes on later as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from toe_train.errors import Preempted
from toe_train.recipes import load_config
from toe_train.training import loop
from toe_train.training.build import build_trainer
from toe_train.training.checkpoint import Checkpoints, read
from toe_train.training.distributed import Processes
from toe_train.training.runfolder import RunFolder
from toe_train.training.runlog import read_metrics

HERE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture
def trainer_in(tiny, tmp_path):
    def builder(name):
        folder = RunFolder(tmp_path / name)
        folder.create()
        return build_trainer(load_config(tiny), HERE, folder, "auto")

    return builder


def outcome(trainer):
    """Final weights and losses of a finished run."""
    folder = trainer.checkpoints.folder.parent
    losses = [
        (line["epoch"], line["step"], line["train_loss"]) for line in read_metrics(folder / "metrics.jsonl", "step")
    ]
    tops = [
        (line["epoch"], line["train_loss"], line["ema_top1"])
        for line in read_metrics(folder / "metrics.jsonl", "epoch")
    ]
    return losses, tops, read(trainer.checkpoints.last)["model"]


def assert_same(one, other):
    first, second = outcome(one), outcome(other)
    assert first[:2] == second[:2]
    assert all(torch.equal(value, second[2][name]) for name, value in first[2].items())


def ask_in_step(trainer):
    step = trainer._step

    def asked(batches, clock, epoch, number):
        if (epoch, number) == (1, 2):
            trainer.stop.signal = signal.SIGTERM
        return step(batches, clock, epoch, number)

    trainer._step = asked


def ask_in_evaluation(trainer):
    forward = trainer.ema.module.forward

    def asked(images):
        if trainer.progress.epoch == 1:
            trainer.stop.signal = signal.SIGTERM
        return forward(images)

    trainer.ema.module.forward = asked


def ask_while_saving(trainer):
    save = trainer.checkpoints.save

    def asked(state, is_best):
        if state["progress"]["epoch"] == 1 and not trainer.stop.signal:
            os.kill(os.getpid(), signal.SIGUSR1)
        save(state, is_best)

    trainer.checkpoints.save = asked


@pytest.mark.parametrize(
    ("ask", "place"),
    [(ask_in_step, (1, 3)), (ask_in_evaluation, (1, 5)), (ask_while_saving, (1, 1))],
)
def test_asked_at_any_time(trainer_in, monkeypatch, ask, place):
    monkeypatch.setattr(loop, "POLL_STEPS", 1)
    monkeypatch.setattr("toe_train.training.evaluate.POLL_BATCHES", 1)
    whole, broken = trainer_in("whole"), trainer_in("broken")
    whole.fit()
    ask(broken)
    message = "by a signal, .*; the same command continues"
    with broken.stop.listening(), pytest.raises(Preempted, match=message):
        broken.fit()
    progress = read(broken.checkpoints.last)["progress"]
    assert (progress["epoch"], progress["step"]) == place
    resumed = trainer_in("broken")
    resumed.fit()
    assert_same(whole, resumed)


def test_asked_before_the_first_step(trainer_in):
    trainer = trainer_in("run")
    trainer.stop.signal = signal.SIGTERM
    with pytest.raises(Preempted, match="before its first step; nothing was to save"):
        trainer.fit()
    assert not trainer.checkpoints.last.exists()


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)


def command(tiny, *arguments, processes=1):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    return [sys.executable, *launcher, "-m", "toe_train", "--config", str(tiny), "epochs=400", *arguments]


def children(parent):
    """Process numbers of the training processes under torchrun."""
    found = subprocess.run(["ps", "--ppid", str(parent), "-o", "pid=,args="], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if "toe_train" in line]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_real_signal_ends_with_75_and_a_checkpoint(tiny, tmp_path, number):
    metrics = tmp_path / "run/metrics.jsonl"
    run = subprocess.Popen(
        command(tiny, "--output", "run"), cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    wait_for(lambda: len(read_metrics(metrics, "step")) > 7)
    run.send_signal(number)
    _, error = run.communicate(timeout=60)
    assert run.returncode == 75, error
    assert error.startswith("stopped: by a signal, ")
    progress = read(tmp_path / "run/checkpoints/last.pt")["progress"]
    assert 5 * progress["epoch"] + progress["step"] >= 8
    Checkpoints(tmp_path / "run/checkpoints").heal()


def test_a_second_signal_ends_at_once(tmp_path):
    script = """
import os, signal, time
from toe_train.training.preemption import StopRequest
stop = StopRequest()
with stop.listening():
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGUSR1)  # so soon it is the same request
    print(stop.signal, flush=True)
    time.sleep(3.1)
    os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
    assert done.stdout == f"{int(signal.SIGTERM)}\n"
    assert done.returncode == 128 + signal.SIGUSR1


def test_one_process_of_two_that_is_asked_stops_both(tiny, tmp_path):
    metrics = tmp_path / "run/metrics.jsonl"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.Popen(
        command(tiny, "--output", "run", processes=2),
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    wait_for(lambda: len(read_metrics(metrics, "step")) > 7)
    os.kill(children(run.pid)[1], signal.SIGTERM)
    _, error = run.communicate(timeout=60)
    assert error.count("stopped: by a signal, ") == 1
    assert run.returncode != 0
    assert read(tmp_path / "run/checkpoints/last.pt")["progress"]["epoch"] >= 1
