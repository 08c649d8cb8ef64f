"""What the console shows of an epoch, and logs behind one."""

import inspect

import pytest
import torch

from toe_train.runs.log import Console, RunLog, Several

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
    assert len(names) == 9
    for name in names:
        count = len(inspect.signature(getattr(RunLog, name)).parameters) - 1
        assert getattr(several, name)(*range(count)) is None
        assert calls == [(name, tuple(range(count)), {})] * 2
        calls.clear()
    several.pictures("kept", torch.zeros(1), epoch=3)
    assert calls[0][2] == {"epoch": 3}
