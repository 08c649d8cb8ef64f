"""Evaluation counts every image once, over ragged batches, in eval mode."""

import contextlib

import pytest
import torch
from torch.nn import functional as F

from toe_train.runs.processes import Processes
from toe_train.tasks.scoring import evaluate

HERE = Processes(0, 1, torch.device("cpu"))


class Recorder(torch.nn.Module):
    def forward(self, x):
        assert not self.training
        return x


class Shift(Recorder):
    def forward(self, x):
        return super().forward(x).roll(1, 1)


@pytest.mark.parametrize("classes", [3, 10])
def test_scores_over_ragged_batches(classes):
    torch.manual_seed(0)
    logits, labels = torch.randn(25, classes), torch.randint(classes, (25,))
    batches = list(zip(logits.split(7), labels.split(7), strict=True))
    model = Recorder().train()
    scores, shifted = evaluate([model, Shift()], batches, HERE, contextlib.nullcontext())
    top5 = logits.argsort(dim=1, descending=True)[:, :5]
    assert scores.images == 25
    assert scores.top1 == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())
    assert scores.top5 == pytest.approx(100 * (top5 == labels[:, None]).any(1).float().mean().item())
    assert scores.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert model.training
    assert shifted.top1 == pytest.approx(100 * (logits.roll(1, 1).argmax(1) == labels).float().mean().item())
