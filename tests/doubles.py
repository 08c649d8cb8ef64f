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
    """As depth growth: one block, and from an epoch on two, with a trainer of their own."""

    def segment(self, epoch):
        return int(epoch >= GROWS_AT)

    def model_kwargs(self, segment):
        return {"depth": 1 + segment}


class Growing(Method):
    """The second block is a copy of the first one; averages start from the grown weights, and moments anew."""

    def carry(self, state, former, segment):
        assert (former, segment) == (0, 1)
        copied = {name.replace("blocks.0", "blocks.1"): value for name, value in state["model"].items()}
        grown = {**state["model"], **copied}
        return {**state, "model": grown, "ema": grown, "optimizer": None}


class Masking(Method):
    """As structured sparsity: a mask on the head's weights that its gradients move every third good step."""

    def prepare(self, model):
        self.weight = model.head.weight
        self.mask = torch.ones_like(self.weight)
        self.steps = torch.zeros((), dtype=torch.int64)
        self.averaged = False  # whether the averaged model's turn is between the two hooks

    def after_step(self, good):
        assert self.weight.grad is not None
        self.before = self.weight.detach().clone()
        with torch.no_grad():
            self.weight.mul_(torch.where(good, self.mask, torch.ones_like(self.mask)))

    def after_average(self, good):
        assert self.weight.grad is not None
        self.steps = self.steps + good
        kept = (self.weight.grad.abs() >= self.weight.grad.abs().median()).to(self.mask.dtype)
        moves = good & (self.steps % 3 == 0)
        self.mask = torch.where(moves, kept, self.mask)

    def state(self):
        return {"mask": self.mask, "steps": self.steps}

    def load_state(self, state):
        if state:
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

    if sys.argv[1] in KINDS:
        put_in(sys.argv[1], pytest.MonkeyPatch())
    code = main(sys.argv[2:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
