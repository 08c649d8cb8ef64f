"""Structured sparsity (S2ViTE, arXiv 2106.04533): a part of the heads and hidden units is off, and which ones moves.

Off are the rows of queries, keys and values of a head, and the row and column of a unit of the perceptron. Weights that
are off are 0 after each step, gradients are dense. Every so many steps the weakest give way to those with the largest
gradients. Computing stays dense, so training takes the time of the plain model; the saving counted is that of active
heads and units. Evaluation is the plain model with zeros in its weights.

Rules, and what the released code's rules lead to: docs/fidelity.md, "Structured sparsity".

Shapes: L blocks, H heads of width d, M hidden units, B images, N tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from toe_train.methods.method import Method
from toe_train.models import blocks_of

REST_STD = 0.02  # of what is off under revive="small_weights", as DeiT initialises


def update(
    heads: Tensor,
    units: Tensor,
    rate: float | Tensor,
    head_score: Tensor,
    head_growth: Tensor,
    unit_score: Tensor,
    unit_growth: Tensor,
) -> tuple[Tensor, Tensor]:
    """The masks after an update, by the released rules; nothing is read back from the device.

    In each block ceil(rate x active) heads and units die, those of the lowest scores, and as many grow among the
    inactive ones, just killed ones included, those of the largest gradients. Units die and grow by thresholds, so that
    equal ones share their fate, and a threshold of 0 switches on all.

    Args:
        heads: (L, H) bool, active ones.
        units: (L, M) bool.
        rate: the death rate, 0..1.
        head_score: (L, H) by which heads die.
        head_growth: (L, H) by which they grow.
        unit_score: (L, M) by which units die.
        unit_growth: (L, M) by which they grow.
    """
    return _update_heads(heads, rate, head_score, head_growth), _update_units(units, rate, unit_score, unit_growth)


def _deaths(active: Tensor, rate: float | Tensor) -> Tensor:
    """How many die in each block, (L, 1)."""
    return (active.sum(dim=1, keepdim=True).double() * rate).ceil().long()


def _update_heads(heads: Tensor, rate: float | Tensor, score: Tensor, growth: Tensor) -> Tensor:
    dying = _deaths(heads, rate)  # (L, 1)
    living = heads & (_ranks(score.masked_fill(~heads, float("inf"))) >= dying)
    grown = _ranks(-growth.masked_fill(living, -float("inf"))) < dying
    return living | grown


def _ranks(values: Tensor) -> Tensor:
    """The place of each value in its row when sorted, 0 for the lowest."""
    return values.argsort(dim=1, stable=True).argsort(dim=1)


def _update_units(units: Tensor, rate: float | Tensor, score: Tensor, growth: Tensor) -> Tensor:
    dying = _deaths(units, rate)  # (L, 1)
    gone = dying + (~units).sum(dim=1, keepdim=True)  # (L, 1)
    threshold = score.sort(dim=1).values.gather(1, (gone - 1).clamp(min=0))
    living = (score > threshold) | (gone == 0)
    growth = growth.masked_fill(living, 0.0)
    threshold = growth.sort(dim=1, descending=True).values.gather(1, (dying - 1).clamp(min=0))
    return living | ((growth >= threshold) & (dying > 0))


def death_rate(step: int, steps: int, first: float = 0.5, last: float = 0.005) -> float:
    """By a cosine from `first` to `last` over the run, after `step` of its `steps`."""
    return last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2


def unit_magnitude(weights: list[tuple[Tensor, Tensor]]) -> Tensor:
    """(L, M): of each unit the sum of the magnitudes in its row of fc1 (M, D) and its column of fc2 (D, M)."""
    return torch.stack([fc1.float().abs().sum(dim=1) + fc2.float().abs().sum(dim=0) for fc1, fc2 in weights])


class HeadScores:
    """Of one block's heads, while `wanted`: what their outputs o and the gradients of these give in a training step.

    Hung before `attn.proj`, whose input is o. Sums over micro-batches of means over images.

    Attributes:
        wanted: whether a step's are taken.
        score: (H,) sums over images of | sum of o times its gradient |, by which heads die.
        growth: (H,) sums of the magnitudes of the gradient, by which they grow.
    """

    def __init__(self, heads: int) -> None:
        self.heads = heads
        self.wanted = False
        self.score = self.growth = torch.zeros(heads)

    def __call__(self, proj: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Watches the gradient of o, (B, N, H d)."""
        output = args[0]  # (B, N, H d)
        if self.wanted and proj.training and output.requires_grad:
            seen = output.detach()
            output.register_hook(lambda gradient: self.note(seen, gradient))

    @torch.no_grad()
    def note(self, output: Tensor, gradient: Tensor) -> None:
        """Adds those of a micro-batch, from o and its gradient, (B, N, H d) each."""
        by_head = gradient.float().unflatten(2, (self.heads, -1))  # (B, N, H, d)
        products = output.float().unflatten(2, (self.heads, -1)) * by_head
        self.score = self.score + products.sum(dim=(1, 3)).abs().mean(dim=0)
        self.growth = self.growth + by_head.abs().sum(dim=(1, 3)).mean(dim=0)

    def want(self, wanted: bool, device: torch.device) -> None:
        """Begins anew."""
        self.wanted = wanted
        self.score = self.growth = torch.zeros(self.heads, device=device)


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
        self._heads_kept, self._units_kept = heads_kept, units_kept
        self._every, self._until, self._rate = update_every, update_until, death_rate
        self._small, self._seed = revive == "small_weights", seed
        self.stage = 1
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
        for what, share, count in (("heads", self._heads_kept, heads), ("units", self._units_kept, units)):
            if int(share * count) < 1:
                raise ValueError(
                    f"{what}_kept={share} keeps none of {count} {what} of {name}; give at least {1 / count}"
                )
        depth, draws = len(blocks), torch.Generator().manual_seed(self._seed)
        self.heads = _drawn(depth, heads, int(self._heads_kept * heads), draws)  # (L, H)
        self.units = _drawn(depth, units, int(self._units_kept * units), draws)  # (L, M)
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
        self.set_to_rest()

    def join(self, average: Callable[[Tensor], Tensor], steps: int) -> None:
        """Takes both up, and notes where the masks will not move."""
        self._average, self._total = average, steps
        if self._every >= self._until * steps:
            more = max(1, int(self._until * steps) // 20)
            when = f"does not come once in the first {self._until:g} of {steps} steps: the masks stay as drawn"
            self.note = f"note: method.update_every={self._every} {when}; {more} moves them about 20 times"

    def begin_epoch(self, epoch: int) -> None:
        """Initial weights may have been loaded since."""
        self.set_to_rest()
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
            scores = self._average(torch.stack([torch.stack([s.score, s.growth]) for s in self._scores]))  # (L, 2, H)
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
            self.set_to_rest()
        self._expect()

    def _is_due(self, steps: int) -> bool:
        """Whether the masks move after that many steps: at multiples, in the first part of the run."""
        return steps % self._every == 0 and steps < self._until * self._total

    def _expect(self) -> None:
        for scores in self._scores:
            scores.want(self._is_due(self._steps + 1), self.heads.device)

    def _move(self) -> None:
        """Brings masks and resting weights to where the model is."""
        device = self._blocks[0].attn.qkv.weight.device
        self.heads, self.units = self.heads.to(device), self.units.to(device)
        self._rest = [tuple(part.to(device) for part in parts) for parts in self._rest]

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
        """Masks and the number of steps taken."""
        return {"heads": self.heads, "units": self.units, "steps": self._steps}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes them up; without any, as from a checkpoint of other training, the masks stay as drawn."""
        if state:
            self.heads, self.units, self._steps = state["heads"].clone(), state["units"].clone(), state["steps"]
        self._move()


def _drawn(depth: int, count: int, kept: int, draws: torch.Generator) -> Tensor:
    """(L, count) bool, `kept` of each row."""
    order = torch.rand(depth, count, generator=draws).argsort(dim=1)
    return torch.zeros(depth, count, dtype=torch.bool).scatter(1, order[:, :kept], True)


def _is_plain(block: Any) -> bool:
    parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    modules = dict(block.named_modules())
    return all(isinstance(modules.get(part), nn.Linear) for part in parts)
