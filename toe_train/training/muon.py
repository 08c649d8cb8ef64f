"""Muon for the matrices of a model's blocks, AdamW for all else: one optimiser.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) steps along the nearest orthogonal matrix of its momentum.
Its rate is scaled by 0.2 sqrt(max(rows, columns)), so that a step is as long as AdamW's: rate and decay of AdamW serve
both (Liu et al. 2025, arXiv 2502.16982, section 2.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import timm
import torch
from torch import nn

from toe_train.errors import UserError
from toe_train.models import blocks_of

# Modules that may have the class Muon, the preferred one first: torch since 2.9; timm.
PLACES = ("torch.optim", "timm.optim")


class MuonAndAdamW(torch.optim.Optimizer):
    """Two optimisers that share their groups and state with this one, so that both are saved and scaled as one.

    In every precision the scaler waits for the device in each step, to know whether it is left out: Muon does not
    know it by itself, as the fused kernels do.

    Args:
        muon: of matrices.
        adamw: of all else.
    """

    def __init__(self, muon: torch.optim.Optimizer, adamw: torch.optim.Optimizer) -> None:
        self._parts = (muon, adamw)
        self._count = len(muon.param_groups)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Steps both; there is no closure."""
        assert closure is None
        for part in self._parts:
            part.step()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A state_dict that is loaded makes new groups and a new state."""
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        muon, adamw = self._parts
        muon.state = adamw.state = self.state
        muon.param_groups, adamw.param_groups = self.param_groups[: self._count], self.param_groups[self._count :]


def create_muon(
    model: nn.Module, groups: Sequence[dict[str, Any]], lr: float, momentum: float, **adamw: Any
) -> MuonAndAdamW:
    """The optimiser of a model's groups: the 2-D parameters of its blocks by Muon, all others by AdamW.

    Embeddings, tokens, positions and head are AdamW's, as Muon's author has it, and so is what has one dimension.

    Args:
        model: with a list of blocks.
        groups: all of its parameters, with `weight_decay` and what else belongs to a group.
        lr: of both.
        momentum: of Muon, Nesterov's.
        adamw: `betas`, `eps`, and `fused` on a GPU.

    Raises:
        UserError: neither torch nor timm has Muon, or the model has no such parameters.
    """
    matrices = {id(p) for block in blocks_of(model) for p in block.parameters() if p.ndim == 2}
    if not matrices:
        raise UserError(
            f"optim.name = muon: {type(model).__name__} has no list of blocks with matrices, which it is for; use adamw"
        )
    by_muon, by_adamw = (
        [{**group, "params": [p for p in group["params"] if (id(p) in matrices) is wanted]} for group in groups]
        for wanted in (True, False)
    )
    muon = muon_class()(
        [group for group in by_muon if group["params"]],
        lr=lr,
        momentum=momentum,
        nesterov=True,
        adjust_lr_fn="match_rms_adamw",
    )
    rest = torch.optim.AdamW([group for group in by_adamw if group["params"]], lr=lr, **adamw)
    return MuonAndAdamW(muon, rest)


def muon_class() -> Any:
    """The class Muon of torch, or else of timm.

    Raises:
        UserError: neither has it.
    """
    for place in PLACES:
        found = getattr(import_module(place), "Muon", None)
        if found is not None:
            return found
    raise UserError(
        f"optim.name = muon: neither torch {torch.__version__} nor timm {timm.__version__} has Muon; install torch 2.9 "
        "or later, or use adamw"
    )
