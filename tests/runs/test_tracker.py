"""What a tracker is told: the lines of metrics.jsonl, each once, up to the last checkpoint, whatever happens."""

import json
import threading
import time

import pytest

from toe_train.runs import tracker as tracking
from toe_train.runs.curves import groups_of
from toe_train.runs.log import JsonLines, Several
from toe_train.runs.tracker import Service, Tracker, end_all

GROUPS = groups_of(["val_top1"], ["train_loss"])
STEPS = 2


class Noting(Service):
    """Keeps what it is told, by run; `faults` are raised by the next calls of `send`."""

    name, where, is_open = "noting", "here", None

    def __init__(self, runs):
        self.runs, self.faults, self.statuses, self.gate = runs, [], [], None

    def begin(self, run):
        assert self.is_open is None or self.is_open == run, "another run is open"
        run = run or f"run-{len(self.runs) + 1}"
        self.runs.setdefault(run, {})
        self.now = self.is_open = run
        return run

    def send(self, points, first):
        if self.gate is not None:
            self.gate.wait()
        if self.faults:
            raise self.faults.pop()
        for number, point in enumerate(points, first):
            assert number not in self.runs[self.now], "sent twice"
            self.runs[self.now][number] = (point.axis, point.at, point.values)

    def finish(self, status):
        self.statuses.append(status)
        self.is_open = None


class Run:
    """A process of a run whose epochs have two steps."""

    def __init__(self, folder, service, place=(0, 0)):
        metrics = folder / "metrics.jsonl"
        self.tracker = Tracker(service, metrics, folder / "trackers/noting.json", GROUPS, STEPS)
        self.log = Several([JsonLines(metrics, *place), self.tracker])
        self.log.start({})

    def step(self, epoch, step, loss=1.0):
        self.log.step({"epoch": epoch, "step": step, "train_loss": loss, "lr": 0.1, "images_per_second": 3.0})

    def epoch(self, epoch, loss=1.0, from_step=0):
        for step in range(from_step, STEPS):
            self.step(epoch, step, loss)
        self.log.epoch(
            {"epoch": epoch, "train_loss": loss, "val_top1": 50, "lr": 0.1, "skipped_steps": 0, "gone": None}
        )

    def end(self, status="finished"):
        self.log.close()
        end_all([self.tracker], status)


def points(folder):
    """What metrics.jsonl holds, as a tracker is to have it."""
    found = []
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["kind"] == "step":
            values = {"steps/loss/train_loss": record["train_loss"], "steps/loss/lr": record["lr"]}
            found.append(("step", record["epoch"] * STEPS + record["step"] + 1, values))
        elif record["kind"] == "epoch":
            loss = {"loss/train_loss": record["train_loss"], "loss/lr": record["lr"]}
            values = {**loss, "accuracy/val_top1": record["val_top1"], "system/skipped_steps": 0}
            found.append(("epoch", record["epoch"] + 1, values))
    return dict(enumerate(found, 1))


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def runs():
    return {}


def test_a_run_is_told_once_and_how_it_ended(tmp_path, runs, capsys):
    service = Noting(runs)
    run = Run(tmp_path, service)
    run.epoch(0)
    run.epoch(1)
    run.log.saved()
    run.end()
    assert runs == {"run-1": points(tmp_path)}
    assert len(runs["run-1"]) == 6
    assert service.statuses == ["finished"]
    assert json.loads((tmp_path / "trackers/noting.json").read_text()) == {"run": "run-1", "lines": 6}
    assert capsys.readouterr().out == "noting: run run-1, here\n"


def test_a_resumed_run_has_one_curve(tmp_path, runs):
    first = Run(tmp_path, Noting(runs))
    first.step(0, 0)
    first.log.saved()
    first.step(0, 1, loss=9.0)  # no checkpoint holds it
    first.end("failed")
    assert len(runs["run-1"]) == 1
    again = Run(tmp_path, Noting(runs), place=(0, 1))
    again.epoch(0, from_step=1)
    again.log.saved()
    again.end()
    assert runs == {"run-1": points(tmp_path)}


def test_a_process_that_was_killed_before_it_sent_is_made_up_for(tmp_path, runs):
    service = Noting(runs)
    service.gate = threading.Event()
    killed = Run(tmp_path, service)
    killed.epoch(0)
    killed.log.saved()
    wait_for((tmp_path / "trackers/noting.json").exists)
    again = Run(tmp_path, Noting(runs), place=(1, 0))
    again.end("preempted")
    assert runs == {"run-1": points(tmp_path)}


def test_lines_before_a_roll_back_are_never_sent(tmp_path, runs):
    run = Run(tmp_path, Noting(runs))
    run.epoch(0)
    run.log.saved()
    run.step(1, 0, loss=9.0)
    run.log.rewind(1, 0)
    run.epoch(1)
    run.log.saved()
    run.end()
    assert runs == {"run-1": points(tmp_path)}


@pytest.mark.parametrize("how", ["resume", "roll-back"])
def test_from_an_older_checkpoint_a_new_run_has_the_lines_before(tmp_path, runs, how, capsys):
    run = Run(tmp_path, Noting(runs))
    run.epoch(0)
    run.epoch(1, loss=2.0)
    run.log.saved()
    wait_for(lambda: len(runs.get("run-1", ())) == 6)
    former = dict(runs["run-1"])
    if how == "resume":
        run.end("preempted")
        run = Run(tmp_path, Noting(runs), place=(1, 0))
    else:
        run.log.rewind(1, 0)
    run.epoch(1, loss=3.0)
    run.log.saved()
    run.end()
    assert runs == {"run-1": former, "run-2": points(tmp_path)}
    assert "run run-1 has lines after this place and stays as it is; a new one is begun" in capsys.readouterr().out


def test_a_fault_is_told_once_and_tried_again(tmp_path, runs, monkeypatch, capsys):
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.01)
    service = Noting(runs)
    service.faults = [ConnectionError("no network\nmore")] * 3
    run = Run(tmp_path, service)
    run.epoch(0)
    run.log.saved()
    wait_for(lambda: runs.get("run-1") == points(tmp_path))
    run.end()
    out = capsys.readouterr().out
    assert out.count("no network; the run goes on, and it is tried again; metrics.jsonl has all lines") == 1
    assert "more" not in out
    assert "noting: it works again" in out


def test_a_library_that_hangs_does_not_hold_up_the_run(tmp_path, runs, monkeypatch, capsys):
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 0.05)
    service = Noting(runs)
    service.gate = threading.Event()
    run = Run(tmp_path, service)
    begin = time.monotonic()
    run.epoch(0)
    run.log.saved()
    run.end()
    assert time.monotonic() - begin < 5
    assert "noting: 3 lines, or the run's end, did not come to it; metrics.jsonl has them\n" in capsys.readouterr().out
    assert run.tracker._thread.daemon


def test_an_older_checkpoint_while_lines_are_on_their_way(tmp_path, runs):
    service = Noting(runs)
    service.gate = threading.Event()
    run = Run(tmp_path, service)
    run.epoch(0, loss=9.0)
    run.log.saved()
    wait_for(lambda: run.tracker._curve.given == 3)
    run.log.rewind(0, 0)
    run.epoch(0)
    run.log.saved()
    service.gate.set()
    run.end()
    assert runs["run-2"] == points(tmp_path)
    assert service.statuses == ["preempted", "finished"]


def test_an_older_checkpoint_after_a_fault_closes_the_former_run(tmp_path, runs, monkeypatch):
    service = Noting(runs)
    run = Run(tmp_path, service)
    run.epoch(0, loss=9.0)
    run.log.saved()
    wait_for(lambda: len(runs.get("run-1", ())) == 3)
    service.faults = [ConnectionError("no network")]
    run.epoch(1)
    run.log.saved()
    wait_for(lambda: run.tracker._fault)
    run.log.rewind(0, 0)
    run.epoch(0)
    run.log.saved()
    run.end()
    assert runs["run-2"] == points(tmp_path)


def test_several_share_the_patience_and_a_fault_at_the_end_promises_nothing(tmp_path, runs, monkeypatch, capsys):
    monkeypatch.setattr(tracking, "HURRY_SECONDS", 0.3)
    services = [Noting(runs) for _ in range(3)]
    trackers = []
    for number, service in enumerate(services):
        (tmp_path / str(number)).mkdir()
        service.gate = threading.Event()
        run = Run(tmp_path / str(number), service)
        run.step(0, 0)
        run.log.saved()
        trackers.append(run.tracker)
    begin = time.monotonic()
    end_all(trackers, "preempted")
    assert 0.3 <= time.monotonic() - begin < 0.8
    assert capsys.readouterr().out.count("did not come to it") == 3
    services[0].faults = [ConnectionError("no network")]
    for service in services:
        service.gate.set()
    trackers[0]._thread.join(5)
    assert "noting: no network; metrics.jsonl has all lines\n" in capsys.readouterr().out


def test_what_is_not_kept_for_sure_is_sent_again(tmp_path, runs):
    """Killed within the seconds in which the library holds what it was given."""
    service = Noting(runs)
    service.settles = 60.0
    run = Run(tmp_path, service)
    run.epoch(0)
    run.log.saved()
    wait_for(lambda: len(runs.get("run-1", ())) == 3)
    assert json.loads((tmp_path / "trackers/noting.json").read_text())["lines"] == 0
    run.end()
    assert json.loads((tmp_path / "trackers/noting.json").read_text())["lines"] == 3
