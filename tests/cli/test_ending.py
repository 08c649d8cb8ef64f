"""The command of log.on_end: when it runs, what it learns, and that its own fault changes nothing."""

import json
import os
import signal
import threading
import time

import pytest

from toe_train.cli import ending as endings
from toe_train.cli import running, train
from toe_train.cli.ending import Ending
from toe_train.errors import RunFailed
from toe_train.recipes import load_config
from toe_train.runs.folder import RunFolder

NOTE = "env | grep ^TOE_ | sort >> told; env | grep -c ^RANK >> ranks"


@pytest.fixture
def ended(tiny, tmp_path, monkeypatch):
    """ended(code, command): the exit code, and the variables that the command was told, by name."""
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(tmp_path / "run")
    folder.root.mkdir()
    lines = ['{"kind": "epoch", "epoch": 0, "val_top1": 62.5}', '{"kind": "epoch", "epoch": 1, "val_top1": 50}']
    folder.metrics.write_text("\n".join(lines) + "\n")

    before = {"TOE_DATA", "TOE_GOLDEN"}  # of the tests' own

    def runner(code, command=NOTE, saved=True):
        ending = Ending(folder, lambda: saved)
        ending.of(load_config(tiny, [f"log.on_end={command!r}"]))

        def run():
            if isinstance(code, Exception):
                raise code
            return code

        found = ending.after(run)
        lines = (tmp_path / "told").read_text().splitlines() if (tmp_path / "told").exists() else []
        told = [line for line in lines if line.partition("=")[0] not in before]
        assert len(told) in (0, 5)  # once
        return found, dict(line.split("=", 1) for line in told)

    return runner


@pytest.mark.parametrize(
    ("code", "status"),
    [(0, "finished"), (75, "preempted"), (130, "preempted"), (2, "failed"), (3, "failed"), (4, "failed")],
)
def test_it_is_told_what_happened(ended, tmp_path, code, status):
    assert ended(code) == (
        code,
        {
            "TOE_RUN": str(tmp_path / "run"),
            "TOE_STATUS": status,
            "TOE_EXIT_CODE": str(code),
            "TOE_BEST": "val_top1=62.5",
            "TOE_EPOCHS": "2/3",
        },
    )


def test_a_fault_of_our_own_is_told_too(ended, tmp_path):
    with pytest.raises(ZeroDivisionError):
        ended(ZeroDivisionError())
    assert "TOE_EXIT_CODE=1\n" in (tmp_path / "told").read_text()


def test_where_all_was_done_before_there_is_no_end(ended):
    assert ended(0, saved=False) == (0, {})


@pytest.mark.parametrize(
    ("environment", "code", "is_told"),
    [
        ({"RANK": "1", "WORLD_SIZE": "2"}, 3, False),
        ({"RANK": "0", "WORLD_SIZE": "2"}, 3, True),
        ({"RANK": "0", "TOE_LAUNCHED": "1"}, 0, False),
        ({"RANK": "0", "TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_RESTART_COUNT": "2"}, 4, False),
        ({"RANK": "0", "TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_RESTART_COUNT": "2"}, 0, True),
        ({"RANK": "0", "TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_RESTART_COUNT": "2"}, 75, True),
        ({"RANK": "0", "TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_RESTART_COUNT": "3"}, 4, True),
        ({"RANK": "0", "TORCHELASTIC_MAX_RESTARTS": "0", "TORCHELASTIC_RESTART_COUNT": "0"}, 4, True),
        ({"RANK": "0", "TOE_RESTARTS_LEFT": "2"}, 4, False),
        ({"RANK": "0", "TOE_RESTARTS_LEFT": "2"}, 3, True),
        ({"RANK": "0", "TOE_RESTARTS_LEFT": "0"}, 4, True),
    ],
)
def test_only_the_end_that_matters(ended, tmp_path, monkeypatch, environment, code, is_told):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found, told = ended(code)
    assert (found, bool(told)) == (code, is_told)
    assert not is_told or (tmp_path / "ranks").read_text() == "0\n"  # the command is none of the processes


@pytest.mark.parametrize(
    ("command", "fault"),
    [("exit 7", "it ended with code 7: exit 7"), ("no-such-program", "it ended with code 127: no-such-program")],
)
def test_its_own_fault_changes_no_exit_code(ended, capfd, command, fault):
    assert ended(3, command)[0] == 3
    assert capfd.readouterr().err.splitlines()[-1] == f"note: log.on_end: {fault}"


def test_it_has_a_limit_of_time(ended, capfd, monkeypatch):
    monkeypatch.setattr(endings, "SECONDS", 0.1)
    begin = time.monotonic()
    assert ended(0, "sleep 30; sleep 30")[0] == 0
    assert time.monotonic() - begin < 10
    assert capfd.readouterr().err == "note: log.on_end: not done after 0.1 s, ended: sleep 30; sleep 30\n"


@pytest.mark.parametrize(
    ("number", "fault"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, ""), (signal.SIGUSR1, "")]
)
def test_signals_while_it_runs_leave_the_exit_code(ended, capfd, number, fault):
    def launchers(number, frame):
        raise ZeroDivisionError

    before = signal.signal(number, launchers)
    try:
        threading.Timer(0.3, os.kill, (os.getpid(), number)).start()
        assert ended(75, "sleep 0.6")[0] == 75
        assert signal.getsignal(number) is launchers
    finally:
        signal.signal(number, before)
    assert capfd.readouterr().err == (f"note: log.on_end: {fault}: sleep 0.6\n" if fault else "")


def test_the_best_is_that_of_best_pt(ended, tmp_path):
    metrics = tmp_path / "run/metrics.jsonl"
    scores = [(40, 30, True), (50, 20, False), (None, None, False)]  # of a curriculum: at its size, at full size
    lines = [
        {"kind": "epoch", "epoch": epoch, "val_top1": own, "val_top1_full": full, "is_best": is_best}
        for epoch, (own, full, is_best) in enumerate(scores)
    ]
    metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert ended(0)[1]["TOE_BEST"] == "val_top1=30"


def test_lines_that_cannot_be_read_keep_nobody_from_being_told(ended, tmp_path):
    (tmp_path / "run/metrics.jsonl").unlink()
    (tmp_path / "run/metrics.jsonl").mkdir()
    _, told = ended(3)
    assert (told["TOE_BEST"], told["TOE_EPOCHS"]) == ("", "0/3")


def test_a_run_and_what_is_refused_once_its_configuration_is_read(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = ["--config", str(tiny), "--output", "run", "epochs=1", "log.on_end=echo $TOE_STATUS $TOE_EPOCHS >> told"]
    told = tmp_path / "told"
    assert train.main([*given, "epochs=many"]) == 2  # which is not read
    assert train.main([*given, "--dry-run"]) == 0
    assert not told.exists()
    assert train.main([*given, "train.global_batch=100000"]) == 2
    assert train.main(given) == 0
    assert train.main(given) == 0
    assert "nothing to train" in capsys.readouterr().out
    assert told.read_text() == "failed 0/1\nfinished 1/1\n"


def test_several_processes_leave_it_to_the_command_that_started_them(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    seen = []

    def launching(count, arguments, again):
        seen.append(os.environ.get("TOE_LAUNCHED"))
        raise RunFailed("so")

    monkeypatch.setattr(running, "dry_build", lambda *arguments, **options: None)
    monkeypatch.setattr(running, "launch", launching)
    assert train.main(["--config", str(tiny), "--nproc", "2", "log.on_end=echo $TOE_EXIT_CODE >> told"]) == 3
    assert (tmp_path / "told").read_text() == "3\n"
    assert seen == ["1"]
    assert "TOE_LAUNCHED" not in os.environ
