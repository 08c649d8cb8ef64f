"""Asked to stop by a signal at any time, a run saves its place and goes on later as if nothing had happened."""

import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from support import trainer_of

from toe_train.build import lifecycle
from toe_train.cli import train
from toe_train.errors import Preempted
from toe_train.recipes import load_config
from toe_train.runs.checkpoints import Checkpoints, read
from toe_train.runs.folder import RunFolder
from toe_train.runs.log import read_metrics
from toe_train.runs.processes import Processes

HERE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture
def trainer_in(tiny, tmp_path):
    def builder(name):
        folder = RunFolder(tmp_path / name)
        folder.create()
        return trainer_of(load_config(tiny), folder, "auto")

    return builder


def outcome(trainer):
    """Final weights and losses of a finished run."""
    folder = trainer.keeper.checkpoints.folder.parent
    losses = [
        (line["epoch"], line["step"], line["train_loss"]) for line in read_metrics(folder / "metrics.jsonl", "step")
    ]
    tops = [
        (line["epoch"], line["train_loss"], line["ema_top1"])
        for line in read_metrics(folder / "metrics.jsonl", "epoch")
    ]
    return losses, tops, read(trainer.keeper.checkpoints.last)["model"]


def assert_same(one, other):
    first, second = outcome(one), outcome(other)
    assert first[:2] == second[:2]
    assert all(torch.equal(value, second[2][name]) for name, value in first[2].items())


def ask_in_step(trainer):
    draws = trainer.step.draws.give

    def asked(epoch, step, micro):
        if (epoch, step) == (1, 2):
            trainer.stop.signal = signal.SIGTERM
        draws(epoch, step, micro)

    trainer.step.draws.give = asked


def ask_in_evaluation(trainer):
    forward = trainer.step.ema.module.forward

    def asked(images):
        if trainer.progress.epoch == 1:
            trainer.stop.signal = signal.SIGTERM
        return forward(images)

    trainer.step.ema.module.forward = asked


def ask_while_saving(trainer):
    save = trainer.keeper.checkpoints.save

    def asked(state, is_best):
        if state["progress"]["epoch"] == 1 and not trainer.stop.signal:
            os.kill(os.getpid(), signal.SIGUSR1)
        save(state, is_best)

    trainer.keeper.checkpoints.save = asked


@pytest.mark.parametrize(
    ("ask", "place"),
    [
        (ask_in_step, (1, 3)),
        (ask_in_evaluation, (1, 5)),
        pytest.param(ask_while_saving, (1, 1), marks=pytest.mark.slow),
    ],
)
def test_asked_at_any_time(trainer_in, monkeypatch, ask, place):
    monkeypatch.setattr("toe_train.runs.polling.MOST_STEPS", 1)
    whole, broken = trainer_in("whole"), trainer_in("broken")
    whole.fit()
    ask(broken)
    message = "by a signal, "
    with broken.stop.listening(), pytest.raises(Preempted, match=message) as caught:
        broken.fit()
    assert caught.value.told("it").endswith("; it continues")
    progress = read(broken.keeper.checkpoints.last)["progress"]
    assert (progress["epoch"], progress["step"]) == place
    resumed = trainer_in("broken")
    resumed.fit()
    assert_same(whole, resumed)


def test_asked_before_the_first_step(trainer_in):
    trainer = trainer_in("run")
    trainer.stop.signal = signal.SIGTERM
    with pytest.raises(Preempted, match="before its first step; nothing was to save"):
        trainer.fit()
    assert not trainer.keeper.checkpoints.last.exists()


@pytest.fixture(autouse=True)
def _in_the_foreground():
    """What is started from here hears Ctrl-C, also where the tests run in the background of a shell."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, marks=pytest.mark.slow),
        signal.SIGINT,
    ],
)
def test_a_real_signal_ends_with_75_and_a_checkpoint(tiny, tmp_path, start, number):
    metrics = tmp_path / "run/metrics.jsonl"
    job = start("--config", tiny, "--output", "run", "epochs=400", "data.workers=2")
    job.wait_until(lambda: len(read_metrics(metrics, "step")) > 7)
    os.killpg(job.process.pid, number)  # loader processes too, as a terminal and a scheduler do
    assert job.end(timeout=60) == 75, job.stderr
    asked = "\nCtrl-C: the run saves its place and ends; a second one ends it at once\n" * (number == signal.SIGINT)
    assert job.stderr.startswith(f"{asked}stopped: by a signal, ")
    progress = read(tmp_path / "run/checkpoints/last.pt")["progress"]
    assert 5 * progress["epoch"] + progress["step"] >= 8
    assert Checkpoints(tmp_path / "run/checkpoints").heal() == []


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_the_command_that_continues_is_told(tiny, tmp_path, monkeypatch, capsys, resume):
    """Which `--resume never` would not: it would set this run aside. Before anything is saved it is the same one."""
    arguments = ["--config", str(tiny), "--output", str(tmp_path / "run"), "--resume", resume]
    saves = []

    def asked(step):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.2)  # a thread reads it

    monkeypatch.setattr("toe_train.runs.polling.MOST_STEPS", 1)
    save = Checkpoints.save
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", lambda self, *given: saves.append(1) or save(self, *given) or asked(0))
        assert train.main(arguments) == 75
    named = "the same command" + ("" if resume == "auto" else " without --resume")
    assert capsys.readouterr().err.endswith(f"; {named} continues\n")
    assert saves
    check = lifecycle.check_data
    monkeypatch.setattr(lifecycle, "check_data", lambda config: check(config) or asked(0))
    assert train.main(arguments) == 75
    assert capsys.readouterr().err == "stopped: by a signal, in start-up; the same command continues\n"


def test_a_loader_process_that_is_killed_ends_the_run_with_a_message(tiny, tmp_path, start):
    job = start("--config", tiny, "--output", "run", "epochs=400", "data.workers=1")
    job.wait_until(lambda: len(read_metrics(tmp_path / "run/metrics.jsonl", "step")) > 7)
    children = subprocess.run(["ps", "--ppid", str(job.process.pid), "-o", "pid="], capture_output=True, text=True)
    os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
    assert job.end(timeout=60) == 3, job.stderr
    assert "run failed: a loader process is gone (process " in job.stderr
    assert "with fewer data.workers the same command continues" in job.stderr
    assert "Traceback" not in job.stderr


@pytest.mark.slow
def test_a_loader_process_of_one_process_that_is_killed_is_told_once(tiny, tmp_path, start):
    """The other process, whose neighbour is gone, learns that the cause is told."""
    job = start("--config", tiny, "--output", "run", "epochs=400", "data.workers=1", processes=2)
    job.wait_until(lambda: len(read_metrics(tmp_path / "run/metrics.jsonl", "step")) > 7)
    second = str(job.workers()[1])
    children = subprocess.run(["ps", "--ppid", second, "-o", "pid="], capture_output=True, text=True)
    os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
    assert job.end(timeout=60) == 1
    assert job.stderr.count("run failed: ") == 1, job.stderr
    assert "run failed: a loader process is gone (process " in job.stderr


@pytest.mark.slow
def test_a_run_with_loader_processes_that_fails_ends(tiny, start):
    """The loader processes hold copies of what signals are read from."""
    arguments = ["optim.lr=1e30", "optim.name=sgd", "schedule.warmup_epochs=0", "data.workers=2"]
    job = start("--config", tiny, "--output", "run", *arguments)
    assert job.end(timeout=60) == 3, job.stderr


@pytest.mark.parametrize(
    ("ask", "bad", "place"),
    [(ask_in_step, {(1, 1), (1, 2)}, (1, 4)), (ask_in_evaluation, {(1, 4), (2, 0)}, (2, 2))],
)
def test_asked_in_a_row_of_bad_steps_it_goes_on_to_a_good_one(trainer_in, monkeypatch, ask, bad, place):
    monkeypatch.setattr("toe_train.runs.polling.MOST_STEPS", 1)
    trainer = trainer_in("run")
    mix = trainer.step.task.mix

    def mixing(images, labels, epoch, step, rank, micro):
        images, targets = mix(images, labels, epoch, step, rank, micro)
        return images * (math.nan if (epoch, step) in bad else 1), targets

    trainer.step.task.mix = mixing
    ask(trainer)
    with pytest.raises(Preempted, match=f"after step {place[1]} of epoch {place[0] + 1}"):
        trainer.fit()
    progress = read(trainer.keeper.checkpoints.last)["progress"]
    assert (progress["epoch"], progress["step"]) == place


@pytest.mark.parametrize("part", ["check_data", "micro_batches"])
def test_asked_in_start_up(tiny, tmp_path, monkeypatch, capsys, part):
    """After the check of the data, and after the micro-batches are tried: nothing else is begun."""
    begun = getattr(lifecycle, part)

    def asked(*arguments):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.2)  # a thread reads it
        return begun(*arguments)

    monkeypatch.setattr(lifecycle, part, asked)
    monkeypatch.setattr(lifecycle, "build_trainer", None)
    assert train.main(["--config", str(tiny), "--output", str(tmp_path / "run")]) == 75
    assert "stopped: by a signal, in start-up; the same command continues" in capsys.readouterr().err


def test_a_second_signal_ends_at_once(tmp_path):
    script = """
import os, signal, time
from toe_train.runs.preemption import StopRequest
stop = StopRequest()
with stop.listening():
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGUSR1)  # so soon it is the same request
    time.sleep(0.5)
    print(stop.signal, flush=True)
    time.sleep(3.1)
    os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
    assert done.stdout == f"{int(signal.SIGTERM)}\n"
    assert done.returncode == 128 + signal.SIGUSR1


SECOND_KEY = """
import os, signal, time
from toe_train.runs.preemption import StopRequest
with StopRequest().listening():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.7)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1.5)
"""


@pytest.mark.parametrize(("environment", "code"), [({}, 130), ({"RANK": "0"}, 0)])
def test_a_second_ctrl_c_ends_soon_but_where_a_launcher_may_have_repeated_it(environment, code):
    command = [sys.executable, "-c", SECOND_KEY]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, timeout=50)
    assert done.returncode == code


def test_a_command_in_the_background_of_a_shell_does_not_hear_ctrl_c():
    script = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + SECOND_KEY
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_ctrl_c_stops_a_run_of_two_processes_of_its_own(tiny, tmp_path, start):
    """A terminal signals the launcher and both processes, and the launcher passes it on."""
    job = start("--config", tiny, "--output", "run", "--nproc", "2", "epochs=400")
    job.wait_until(lambda: len(read_metrics(tmp_path / "run/metrics.jsonl", "step")) > 7)
    os.killpg(job.process.pid, signal.SIGINT)
    assert job.end(timeout=60) == 75, job.stderr
    assert "Traceback" not in job.stderr
    assert read(tmp_path / "run/checkpoints/last.pt")["progress"]["epoch"] >= 1


@pytest.mark.slow
def test_a_second_signal_ends_a_process_that_waits_for_another(tiny, tmp_path, start):
    """The other one is held still, so that this one waits in a collective operation, outside Python."""
    job = start("--config", tiny, "--output", "run", "epochs=1000", processes=2)
    job.wait_until(lambda: len(read_metrics(tmp_path / "run/metrics.jsonl", "step")) > 7)
    waiting, still = job.workers()
    os.kill(still, signal.SIGSTOP)
    time.sleep(1)
    os.kill(waiting, signal.SIGTERM)
    time.sleep(3.1)
    assert job.process.poll() is None
    os.kill(waiting, signal.SIGTERM)
    assert job.end(timeout=100) == 1
    assert "exitcode  : 143" in job.stderr


def test_one_process_of_two_that_is_asked_stops_both(tiny, tmp_path, start):
    job = start("--config", tiny, "--output", "run", "epochs=400", processes=2)
    job.wait_until(lambda: len(read_metrics(tmp_path / "run/metrics.jsonl", "step")) > 7)
    os.kill(job.workers()[1], signal.SIGTERM)
    assert job.end(timeout=60) == 1  # torchrun's own; it prints the processes'
    assert job.stderr.count("stopped: by a signal, ") == 1
    assert job.stderr.count("exitcode  : 75") == 2
    assert read(tmp_path / "run/checkpoints/last.pt")["progress"]["epoch"] >= 1
