"""How an error tells what went wrong, and how to go on."""

import pickle

import pytest
import torch

from toe_train.cli.exits import guarded
from toe_train.errors import Interrupted, Preempted, Reported, RunFailed, UserError, of_system
from toe_train.runs.memory import RanOut, StepTooLarge, ran_out
from toe_train.runs.preemption import preempted


def failing(error):
    def command():
        raise error

    return command


def test_the_clause_names_the_command():
    error = RunFailed("the disk {is} full", then="make room, then {command} continues")
    assert str(error) == "the disk {is} full"
    assert error.told("a {b}") == "the disk {is} full; make room, then a {b} continues"
    assert RunFailed("over").told("it") == "over"


@pytest.mark.parametrize("kind", [Reported, UserError, RunFailed, Interrupted, Preempted, RanOut])
def test_it_survives_pickling(kind):
    error = kind("the reason", then="{command} continues")
    error.shared = True
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (again.told("it"), again.shared) == ("the reason; it continues", True)


def test_the_command_is_told_with_the_exit_code(capsys):
    assert guarded(failing(preempted("in start-up"))) == 75
    assert guarded(failing(preempted("in start-up")), lambda: "the same command without --resume") == 75
    assert guarded(failing(KeyboardInterrupt()), lambda: "it") == 130
    assert guarded(failing(OSError(28, "No space left on device"))) == 3
    assert capsys.readouterr().err.splitlines() == [
        "stopped: by a signal, in start-up; the same command continues",
        "stopped: by a signal, in start-up; the same command without --resume continues",
        "interrupted: from outside; it continues from the last checkpoint, if there is one",
        "run failed: [Errno 28] No space left on device; make room, or give the right to it, then the same command "
        "continues",
    ]


def test_a_message_is_left_as_it_is(capsys):
    assert guarded(failing(RunFailed("the same command fails")), lambda: "it") == 3
    assert capsys.readouterr().err == "run failed: the same command fails\n"


def test_what_all_raise_is_told_once(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert guarded(failing(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == ""
    assert guarded(failing(RunFailed("alone"))) == 3
    assert capsys.readouterr().err == "run failed: alone\n"


def test_another_runtime_error_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        guarded(failing(RuntimeError("DataLoader worker (pid 1) is killed")))


def test_the_machines_memory_too_where_torch_has_no_type_for_it(capsys):
    """1 PiB, by the allocator of this torch."""
    assert guarded(lambda: int(torch.empty(1 << 50, dtype=torch.uint8)[0])) == 3
    error = capsys.readouterr().err
    assert error.startswith("run failed: the machine's memory is full (can't allocate memory: you tried to allocate")
    assert error.count("\n") == 1
    assert "smaller train.max_micro_batch" in error


def test_a_wrong_path_is_the_users():
    error = of_system(FileNotFoundError(2, "No such file", "x"))
    assert isinstance(error, UserError)
    assert error.told("it") == "No such file: x; name another path, or put this one right"


@pytest.mark.parametrize("alone", [True, False])
def test_running_out_says_how_to_go_on_where_it_does_not_by_itself(tmp_path, alone):
    error = ran_out(tmp_path / "micro_batch", 8, StepTooLarge("CUDA out of memory. Tried"), alone)
    assert str(error).endswith("a micro-batch: a batch norm's statistics, and detection's class loss)")
    assert error.told("it").endswith("--max-restarts") is not alone
    assert ("; start it again, or let torchrun" in error.told("it")) is not alone
