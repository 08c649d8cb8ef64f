"""Metric lines, and logs behind one."""

import inspect
import json

import pytest
import torch

from toe_train.runs.log import JsonLines, RunLog, Several, broken_lines, read_metrics, tell_broken


def test_several_pass_everything_on():
    calls = []

    class Noting(RunLog):
        def __getattribute__(self, name):
            return lambda *given, **named: calls.append((name, given, named))

    several = Several([Noting(), Noting()])
    names = [name for name, _ in inspect.getmembers(RunLog, inspect.isfunction) if not name.startswith("_")]
    assert len(names) == 11
    for name in names:
        count = len(inspect.signature(getattr(RunLog, name)).parameters) - 1
        assert getattr(several, name)(*range(count)) is None
        assert calls == [(name, tuple(range(count)), {})] * 2
        calls.clear()
    several.picture("kept", torch.zeros(1), epoch=3)
    assert calls[0][2] == {"epoch": 3}


def test_what_is_not_finite_is_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "step", "epoch": 0, "step": 1, "train_loss": NaN}\n')  # as earlier versions wrote it
    log = JsonLines(path, 1, 0)
    log.epoch({"epoch": 1, "val_loss": float("inf"), "parts": [1.0, float("nan")], "more": {"a": float("-inf")}})
    log.close()
    lines = path.read_text().splitlines()
    assert json.loads(lines[0], parse_constant=pytest.fail)["train_loss"] is None
    last = json.loads(lines[1], parse_constant=pytest.fail)
    assert (last["val_loss"], last["parts"], last["more"]) == (None, [1.0, None], {"a": None})


def test_what_is_not_finite_is_read_as_none(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "epoch", "epoch": 0, "val_top1": NaN, "ema_top1": 5.0}\n')
    assert read_metrics(path, "epoch") == [{"kind": "epoch", "epoch": 0, "val_top1": None, "ema_top1": 5.0}]
    assert broken_lines(path) == []


def test_broken_lines_are_counted_and_told(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = '{"kind": "epoch", "epoch": 0}\n'
    path.write_text(whole + '{"kind": "epoch", "epo\n' + whole + "5\n")
    assert broken_lines(path) == [2, 4]
    assert tell_broken(path) == [f"note: {path}: lines 2, 4 are no whole lines of a run (2 in all) and left out"]
    path.write_text(whole + '{"kind": "epoch", "epoch": 1, "val_top1": "x"}\n')
    assert broken_lines(path) == [2]
    path.write_text(whole)
    assert tell_broken(path) == tell_broken(tmp_path / "none") == []
