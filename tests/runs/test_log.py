"""What the console shows of an epoch, and logs behind one."""

import inspect
import json

import pytest
import torch

from toe_train.runs.log import Console, JsonLines, RunLog, Several, broken_lines, tell_broken

RECORD = {
    "epoch": 1,
    "stage": 0,
    "tokens_kept": 8,
    "lr": 1e-3,
    "train_loss": 2.0,
    "train_seconds": 10.0,
    "data_wait_seconds": 1.0,
    "images_per_second": 100.0,
}


@pytest.mark.parametrize(
    ("scores", "line"),
    [
        ({"score": 50.0, "score_full": 60.0, "other": None}, "loss 2.000  score  50.00  at full size  60.00  100 im"),
        ({"score": 50.0, "score_full": 50.0, "other": 1.0}, "loss 2.000  score  50.00  other   1.00  100 images/s"),
        ({"score": None, "score_full": None}, "loss 2.000  100 images/s"),
    ],
)
def test_scores_of_an_epoch(capsys, scores, line):
    shown = [("score", "score"), ("at full size", "score_full"), ("other", "other")]
    Console(3, shown).epoch({**RECORD, **scores})
    assert line in capsys.readouterr().out


def test_several_pass_everything_on():
    calls = []

    class Noting(RunLog):
        def __getattribute__(self, name):
            return lambda *given, **named: calls.append((name, given, named))

    several = Several([Noting(), Noting()])
    names = [name for name, _ in inspect.getmembers(RunLog, inspect.isfunction) if not name.startswith("_")]
    assert len(names) == 10
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


def test_broken_lines_are_counted_and_told(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = '{"kind": "epoch", "epoch": 0}\n'
    path.write_text(whole + '{"kind": "epoch", "epo\n' + whole + "5\n")
    assert broken_lines(path) == [2, 4]
    assert tell_broken(path) == [f"note: {path}: lines 2, 4 are no whole lines of a run (2 in all) and left out"]
    path.write_text(whole)
    assert tell_broken(path) == tell_broken(tmp_path / "none") == []
