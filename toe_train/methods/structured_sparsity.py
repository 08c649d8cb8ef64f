"""Structured sparsity (S2ViTE, arXiv 2106.04533): a part of the heads and hidden units is off, and which ones moves.

Off are the rows of queries, keys and values of a head, and the row and column of a unit of the perceptron. Weights that
are off are 0 after each step, gradients are dense. Every so many steps the weakest give way to those with the largest
gradients, see mask_update.py. Under the released rules what is off is not computed between two updates, see
sparse_parts.py; the released code computes it. Evaluation is the plain model with zeros in its weights.

Rules, and what the released code's rules lead to: docs/fidelity.md, "Structured sparsity".

Shapes: L blocks, H heads of width d, M hidden units, B images, N tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from toe_train.methods.mask_update import update
from toe_train.methods.method import Method
from toe_train.methods.sparse_parts import HeadScores, make_sparse, split, why_not_sparse
from toe_train.models import blocks_of, why_not_plain

REST_STD = 0.02  # of what is off under revive="small_weights", as DeiT initialises
DENSE = "speed-ups by FLOPs count active heads and units alone, and all are computed: a step takes the plain one's time"


def death_rate(step: int, steps: int, first: float = 0.5, last: float = 0.005) -> float:
    """By a cosine from `first` to `last` over the run, after `step` of its `steps`."""
    return last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2


def unit_magnitude(weights: list[tuple[Tensor, Tensor]]) -> Tensor:
    """(L, M): of each unit the sum of the magnitudes in its row of fc1 (M, D) and its column of fc2 (D, M)."""
    return torch.stack([fc1.float().abs().sum(dim=1) + fc2.float().abs().sum(dim=0) for fc1, fc2 in weights])


class StructuredSparsityMethod(Method):
    """Trains under masks of heads and hidden units, the same in all processes and part of the checkpoint.

    The released masks are drawn by each process and are not saved; here they are a function of the seed, and head
    scores are means over all micro-batches and processes, not those of the last micro-batch of the first one.

    Args:
        heads_kept: share of the heads of each block that is on, rounded down.
        units_kept: share of the hidden units.
        update_every: steps between two updates.
        update_until: share of the run's steps after which the masks stay.
        death_rate: at the beginning, see the function; 0.005 at the end.
        revive: "released": what is off is 0 throughout. From zero biases no unit then has a gradient before it is on,
            so the same units come back at every update, and a head that was never on attends evenly for ever.
            "small_weights": queries, keys and fc1 rest at small random weights while off, values and fc2 at 0, so that
            what is off still adds nothing, has gradients, and can learn once it is on.
        seed: of the masks and these weights.
    """

    def __init__(
        self,
        heads_kept: float,
        units_kept: float,
        update_every: int,
        update_until: float,
        death_rate: float,
        revive: str,
        seed: int,
    ) -> None:
        self._kept = [heads_kept, units_kept]
        self._every, self._until, self._rate = update_every, update_until, death_rate
        self._small, self._seed = revive == "small_weights", seed
        self.note = DENSE if self._small else None
        self._stage = 1
        self._blocks: list[Any] = []
        self._splits: list[Any] = []  # by block, of heads and of units
        self._scores: list[HeadScores] = []
        self._gathers = False
        self._began = False  # until then all is computed, which takes the most memory
        self._steps = 0  # taken in the run
        self._total = 1
        self._average: Callable[[Tensor], Tensor] = lambda values: values

    def prepare(self, model: nn.Module) -> None:
        """Draws the masks and sets to rest what is off."""
        blocks: list[Any] = blocks_of(model)
        self._blocks = blocks
        name = type(model).__name__
        if not blocks or not all(map(_is_plain, blocks)):
            raise ValueError(
                f"{name} has no plain blocks with attn.qkv, attn.proj, mlp.fc1 and mlp.fc2; use a ViT or DeiT"
            )
        heads, units = blocks[0].attn.num_heads, blocks[0].mlp.fc1.out_features
        kept = []
        for what, share, count in zip(("heads", "units"), self._kept, (heads, units), strict=True):
            kept.append(int(share * count))
            if kept[-1] < 1:
                raise ValueError(
                    f"{what}_kept={share} keeps none of {count} {what} of {name}; give at least {1 / count}"
                )
        depth, draws = len(blocks), torch.Generator().manual_seed(self._seed)
        self.heads = _drawn(depth, heads, kept[0], draws)  # (L, H)
        self.units = _drawn(depth, units, kept[1], draws)  # (L, M)
        self._rest = [
            tuple(
                REST_STD * torch.randn(part.shape, generator=draws)
                for part in (block.attn.qkv.weight, block.mlp.fc1.weight)
            )
            for block in blocks
            if self._small
        ]
        self._scores = [HeadScores(heads) for _ in blocks]
        for block, scores in zip(blocks, self._scores, strict=True):
            block.attn.proj.register_forward_pre_hook(scores)
        self._gathers = not self._small and not why_not_plain(model) and not any(map(why_not_sparse, blocks))
        self.note = None if self._gathers else DENSE
        for block in blocks if self._gathers else ():
            make_sparse(block)
        self._split()
        self.set_to_rest()

    def join(self, average: Callable[[Tensor], Tensor], steps: int) -> None:
        """Takes both up, and notes where the masks will not move."""
        self._average, self._total = average, steps
        if self._until and self._every >= self._until * steps:
            more = max(1, int(self._until * steps) // 20)
            when = f"does not come once in the first {self._until:g} of {steps} steps: the masks stay as drawn"
            still = f"method.update_every={self._every} {when}; {more} moves them about 20 times"
            self.note = "; ".join(filter(None, (self.note, still)))

    @property
    def stage(self) -> int:
        """1 where it masks, 0 where the model is the plain one."""
        return self._stage

    @stage.setter
    def stage(self, stage: int) -> None:
        if stage != self._stage:
            self._stage = stage
            self._expect()

    def begin_epoch(self, epoch: int) -> None:
        """Initial weights may have been loaded since."""
        self._began = True
        self.set_to_rest()
        self._expect()

    def forms(self) -> Iterator[None]:
        """With what is on alone, and, as before an update, with all and the heads' scores."""
        self._move()
        if self.stage:
            self._compute(everything=False, scores=False)
            yield
            self._compute(everything=True, scores=True)
        yield
        self._expect()

    @torch.no_grad()
    def set_to_rest(self) -> None:
        """Sets what is off to its resting weights, in place and where the model is; nothing in stage 0."""
        self._move()
        if not self.stage:
            return
        for index, block in enumerate(self._blocks):
            attn, mlp = block.attn, block.mlp
            on = self.heads[index].view(1, -1, 1, 1)  # (1, H, 1, 1)
            qkv = attn.qkv.weight.view(3, attn.num_heads, -1, attn.qkv.in_features)  # (3, H, d, D)
            units = self.units[index]
            mlp.fc2.weight.mul_(units)
            if self._small:
                rest, fc1 = self._rest[index]
                qkv[2].mul_(on[0])
                qkv[:2].copy_(torch.where(on, qkv[:2], rest.view_as(qkv)[:2]))
                mlp.fc1.weight.copy_(torch.where(units.unsqueeze(1), mlp.fc1.weight, fc1))
            else:
                qkv.mul_(on)
                mlp.fc1.weight.mul_(units.unsqueeze(1))

    def after_step(self, good: Tensor) -> None:
        """What is off rests; a step that was not taken left it so."""
        self.set_to_rest()

    @torch.no_grad()
    def after_average(self, good: Tensor) -> None:
        """Counts the step, and moves the masks where their time has come and the step was taken."""
        self._steps += 1
        if self._is_due(self._steps):
            layers = [(block.mlp.fc1.weight, block.mlp.fc2.weight) for block in self._blocks]
            scores = self._average(torch.stack([scores.found for scores in self._scores]))  # (L, 2, H)
            heads, units = update(
                self.heads,
                self.units,
                death_rate(self._steps, self._total, self._rate),
                scores[:, 0],
                scores[:, 1],
                unit_magnitude(layers) * self.units,  # what only rests counts nothing
                unit_magnitude([(fc1.grad, fc2.grad) for fc1, fc2 in layers]),
            )
            self.heads = torch.where(good, heads, self.heads)
            self.units = torch.where(good, units, self.units)
            self._split()
            self.set_to_rest()
        self._expect()

    def _is_due(self, steps: int) -> bool:
        """Whether the masks move after that many steps: at multiples, in the first part of the run."""
        return steps % self._every == 0 and steps < self._until * self._total

    def _expect(self) -> None:
        """The step before an update computes everything, since what is off may grow."""
        due = self._is_due(self._steps + 1)
        self._compute(everything=due or not self._began, scores=due)

    def _compute(self, everything: bool, scores: bool) -> None:
        for found in self._scores:
            found.want(scores, self.heads.device)
        whole = everything or not self.stage
        for block, parts in zip(self._blocks, self._splits, strict=False):  # there are none where it does not gather
            block.attn.split, block.mlp.split = (None, None) if whole else parts

    def _split(self) -> None:
        """Takes the numbers of what is on and off from the masks; waits for the device, once in an update."""
        masks = zip(self.heads, self.units, strict=True) if self._gathers else ()
        self._splits = [(split(heads), split(units)) for heads, units in masks]

    def _move(self) -> None:
        """Brings masks and resting weights to where the model is."""
        device = self._blocks[0].attn.qkv.weight.device
        if self.heads.device != device:
            self.heads, self.units = (masks.to(device, non_blocking=True) for masks in (self.heads, self.units))
            self._rest = [tuple(part.to(device, non_blocking=True) for part in parts) for parts in self._rest]
            self._splits = [
                tuple(tuple(numbers.to(device, non_blocking=True) for numbers in part) for part in parts)
                for parts in self._splits
            ]

    def idle(self, num_tokens: int, stage: int) -> tuple[int, int]:
        """Rows of what is off, and its heads' attention; the projection behind the heads stays whole."""
        linear = attention = 0
        parts = zip(self.heads, self.units, self._blocks, strict=True) if stage else ()
        for heads, units, block in parts:
            columns = int((~heads).sum()) * block.attn.head_dim
            linear += num_tokens * block.attn.qkv.in_features * (3 * columns + 2 * int((~units).sum()))
            attention += 2 * num_tokens**2 * columns
        return linear, attention

    def state(self) -> dict[str, Any]:
        """Masks, the shares that they were drawn with, and the number of steps taken."""
        return {"heads": self.heads, "units": self.units, "kept": self._kept, "steps": self._steps}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes them up; without any, as from a checkpoint of other training, the masks stay as drawn.

        Raises:
            ValueError: masks of other shares, which no update would bring to these.
        """
        if state:
            if (kept := list(state.get("kept", self._kept))) != self._kept:
                raise ValueError(
                    f"its masks were drawn with heads_kept, units_kept = {kept}, not {self._kept}, and keep them; give "
                    "the former values"
                )
            self.heads, self.units, self._steps = state["heads"].clone(), state["units"].clone(), state["steps"]
        self._split()
        self._move()


def _drawn(depth: int, count: int, kept: int, draws: torch.Generator) -> Tensor:
    """(L, count) bool, `kept` of each row."""
    order = torch.rand(depth, count, generator=draws).argsort(dim=1)
    return torch.zeros(depth, count, dtype=torch.bool).scatter(1, order[:, :kept], True)


def _is_plain(block: Any) -> bool:
    parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    modules = dict(block.named_modules())
    is_linear = all(isinstance(modules.get(part), nn.Linear) for part in parts)
    return is_linear and block.mlp.fc1.out_features == block.mlp.fc2.in_features  # no gated units
