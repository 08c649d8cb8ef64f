import sys

import pytest

from toe_train import ExpansionSchedule, TokenExpansion
from toe_train.integrations.stages import Stages


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        (0, 9, "stage 0 (all tokens) in epochs 0 to 1, stage 1 (0.5 of them) in epoch 2, stage 2 (0.75 of them) in "),
        (2, 2, "stage 1 (0.5 of them) in epoch 2; never reached: stage 2"),
        (5, 4, "no epoch to train"),
        (7, None, "stage 2 (0.75 of them) in epochs from 7 on (no fixed end)"),
        (3, sys.maxsize, f"stage 2 (0.75 of them) in epochs 3 to {sys.maxsize}"),
    ],
)
def test_planned(first, last, said):
    stages = Stages(TokenExpansion(ExpansionSchedule([2, 3], [0.5, 0.75], 0.25)))
    assert stages.planned(first, last).startswith(f"token expansion: {said}")


def test_done():
    stages = Stages(TokenExpansion(ExpansionSchedule([2, 3], [0.5, 0.75], 0.25)))
    assert stages.done() == "token expansion ran: no epoch"
    for epoch in (1, 2, 2, 3, 4):
        stages.enter(epoch)
    assert stages.done() == (
        "token expansion ran: stage 0 (all tokens) in epoch 1, stage 1 (0.5 of them) in epoch 2, "
        "stage 2 (0.75 of them) in epochs 3 to 4"
    )
