"""Stand-ins for methods that have no file yet: each uses the hooks that Token Expansion does not.

`python -m doubles KIND ...` is `toe-train ...` with one of them in place of plain training.
"""

import os
import sys

import torch

from toe_train.methods.method import Method
from toe_train.recipes import MethodSection, RunConfig

GROWS_AT = 2  # epoch


class GrowingSection(MethodSection):
    """As depth growth: a trainer of its own from an epoch on."""

    def segment(self, epoch):
        return int(epoch >= GROWS_AT)


class Growing(Method):
    """Carries a checkpoint over the growth: weights halved, averages from the new weights, moments anew."""

    def carry(self, state, segment):
        assert segment == 1
        halved = {name: value / 2 if value.is_floating_point() else value for name, value in state["model"].items()}
        fresh = {**state["optimizer"], "state": {}}
        return {**state, "model": halved, "ema": halved, "optimizer": fresh}


class Masking(Method):
    """As structured sparsity: a mask on the head's weights that its gradients move every third step, with state."""

    def prepare(self, model):
        self.weight = model.head.weight
        self.mask = torch.ones_like(self.weight)
        self.steps = torch.zeros((), dtype=torch.int64)

    def _on(self, device):
        self.mask, self.steps = self.mask.to(device), self.steps.to(device)

    def after_step(self, good):
        self._on(self.weight.device)
        with torch.no_grad():
            self.weight.mul_(torch.where(good, self.mask, torch.ones_like(self.mask)))

    def after_average(self, good):
        self.steps = self.steps + good
        kept = (self.weight.grad.abs() >= self.weight.grad.abs().median()).to(self.mask.dtype)
        moves = good & (self.steps % 3 == 0)
        self.mask = torch.where(moves, kept, self.mask)

    def state(self):
        return {"mask": self.mask, "steps": self.steps}

    def load_state(self, state):
        self.mask, self.steps = state["mask"].clone(), state["steps"].clone()


KINDS = {"growing": (GrowingSection, Growing), "masking": (MethodSection, Masking)}


def put_in(kind, monkeypatch):
    """Makes every run train by it."""
    section, method = KINDS[kind]
    monkeypatch.setattr(RunConfig, "cheaper", property(lambda config: section()))
    monkeypatch.setattr("toe_train.build.model.build_method", lambda config: method())


if __name__ == "__main__":
    import pytest

    from toe_train.cli.train import main

    put_in(sys.argv[1], pytest.MonkeyPatch())
    code = main(sys.argv[2:])
    sys.stdout.flush()
    os._exit(code)
