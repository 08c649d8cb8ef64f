"""Attach a `TokenExpansion` to a vision transformer from outside, by a hook on one of its blocks.

A model that gives an output for every patch position (`dense_output`, as LV-ViT) gets a second hook, on its last norm,
which puts the kept tokens back into the full grid.

The model's code and its state_dict stay those of the plain model. Models in which dropping tokens between blocks would
be wrong are refused (`suitable.py`), and so are calls in which it would be: an attention mask, which belongs to the
full set of tokens, and feature maps, which would be made of the kept tokens.

Shapes: B batch, P prefix tokens, N patch tokens, K kept tokens, D width.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from toe_train.expansion.module import TokenExpansion
from toe_train.expansion.schedule import RESTORES, check_option
from toe_train.expansion.selection import gather
from toe_train.expansion.selection import restore as restore_grid
from toe_train.expansion.suitable import named, require_suitable

NAME = "token_expansion"
# Methods by which a model (timm's) gives out the tokens after its blocks, laid out as the image's grid.
_MAP_METHODS = ("forward_intermediates", "get_intermediate_layers")


class Attachment:
    """What `attach` returns: the expansion in use, and the way to take it off again."""

    def __init__(
        self, model: nn.Module, expansion: TokenExpansion, block: nn.Module, norm: nn.Module | None, copy: bool
    ) -> None:
        self.expansion = expansion
        self._model: nn.Module | None = model
        self._hooks = [block.register_forward_pre_hook(_ExpandInput(expansion), with_kwargs=True)]
        if norm is not None:
            self._hooks.append(norm.register_forward_hook(_RestoreGrid(expansion, copy)))
        expansion.remember_owner = copy
        model.add_module(NAME, expansion)
        self._replaced = [name for name in _MAP_METHODS if hasattr(type(model), name)]
        for name in self._replaced:
            setattr(model, name, _WholeMaps(model, expansion, name))

    def remove(self) -> None:
        """Make the model the plain one again. Does nothing when called twice."""
        if self._model is not None:
            for hook in self._hooks:
                hook.remove()
            self.expansion.remember_owner = False
            delattr(self._model, NAME)
            for name in self._replaced:
                delattr(self._model, name)  # the class's method comes to light again
            self._model = None


class _ExpandInput:
    """Forward pre-hook of a block. An object, so that copy.deepcopy(model) binds the copy's hook to its own module."""

    def __init__(self, expansion: TokenExpansion) -> None:
        self.expansion = expansion

    def __call__(
        self, block: nn.Module, args: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        tokens, kept = self.expansion(args[0])
        if kept is not None:
            _require_tokens_alone(block, args[1:], options)
        return (tokens, *args[1:]), options


def _require_tokens_alone(block: nn.Module, others: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Raise ValueError where a block is given a tensor beside its tokens, or is to attend in the tokens' order."""
    beside = {**{f"argument {place}": value for place, value in enumerate(others, start=2)}, **options}
    for name, value in beside.items():
        if isinstance(value, Tensor) or (name == "is_causal" and value):
            raise ValueError(
                f"{named(block)} is given `{name}`, which belongs to the full set of tokens, and the token expansion "
                "has dropped some of them before it: leave it out while training, or remove() the expansion"
            )


class _WholeMaps:
    """A model's method that gives feature maps, refused while tokens are dropped. An object as above.

    The model holds it, so it must not hold the model: its memory would be free only after a garbage collection.
    """

    def __init__(self, model: nn.Module, expansion: TokenExpansion, name: str) -> None:
        self.model = weakref.ref(model)
        self.expansion = expansion
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return _WholeMaps, (self.model(), self.expansion, self.name)  # so that a copied model's is bound to the copy

    def __call__(self, *args: Any, **options: Any) -> Any:
        if self.expansion.drops:
            raise ValueError(
                f"{self.name} gives feature maps, and in stage {self.expansion.stage} of its training the model keeps "
                "a part of the patch tokens, in no grid's order: call model.eval() before it, or ask for no maps while "
                "tokens are dropped"
            )
        model = self.model()
        return getattr(type(model), self.name)(model, *args, **options)


class _RestoreGrid:
    """Forward hook of the last norm: (B, P+K, D) -> (B, P+N, D) where tokens were dropped. An object as above."""

    def __init__(self, expansion: TokenExpansion, copy: bool) -> None:
        self.expansion = expansion
        self.copy = copy

    def __call__(self, norm: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        kept = self.expansion.kept
        if kept is None:
            return output
        prefix = output[:, : self.expansion.num_prefix_tokens]  # (B, P, D)
        patches = output[:, self.expansion.num_prefix_tokens :]  # (B, K, D)
        if self.copy:
            assert self.expansion.owner is not None
            grid = gather(patches, self.expansion.owner)  # (B, N, D)
        else:
            grid = restore_grid(patches, kept, self.expansion.num_tokens)  # (B, N, D)
        return torch.cat([prefix, grid], dim=1)  # (B, P+N, D)


def attach(model: nn.Module, expansion: TokenExpansion, after_block: int = 1, restore: str = "zero") -> Attachment:
    """Let a model drop tokens while it trains.

    Attach before wrapping the model in DDP or compiling it. Works through gradient checkpointing, torch.compile, DDP
    and copy.deepcopy (an averaged copy expands by its own module, and not at all in eval mode).

    Args:
        model: a vision transformer with a plain list `blocks` of modules (B, P+N, D) -> (B, P+N, D), such as timm's
            VisionTransformer, DeiT, DeiT-III. `model.token_expansion` becomes `expansion`.
        expansion: the module that drops the tokens.
        after_block: number of blocks that still see every token: 1 is the paper's choice, 0 expands right after the
            embedding; at most one less than the depth (paper, Table 8).
        restore: what stands at the dropped positions after the last norm, in a model whose `dense_output` is True.
            "zero" has parity with the paper (A.1) and the released code: zeros, so that a head answers there with its
            bias and the dense loss, a mean over all positions, teaches it nothing else. "copy" puts the token there
            that the dropped one was merged into. "ignore" puts zeros too and says that the loss leaves these positions
            out, which is up to the loss: `kept_mask(expansion.kept, N)` names the positions that count.

    While tokens are dropped, the model's forward pass raises ValueError where a block is given an attention mask, and
    so do timm's `forward_intermediates` and `get_intermediate_layers`, whose maps need every token. In eval mode and
    in dense stages all of it works as without.

    Returns:
        A handle with `.expansion` and `.remove()`.

    Raises:
        ValueError: when tokens cannot be dropped there; the message names the reason.
    """
    if getattr(model, NAME, None) is not None:
        raise ValueError(f"{named(model)} has a token expansion already: call remove() on its handle first")
    block = require_suitable(model, after_block, expansion.num_prefix_tokens)
    norm = _dense_norm(model, expansion, restore)
    return Attachment(model, expansion, block, norm, copy=restore == "copy")


def _dense_norm(model: nn.Module, expansion: TokenExpansion, restore: str) -> nn.Module | None:
    """The norm after which the grid is restored; None for a model without dense outputs."""
    check_option("restore", restore, RESTORES)
    if not getattr(model, "dense_output", False):
        if restore != "zero":
            raise ValueError(
                f"restore={restore!r} is for models with an output for every patch (LV-ViT), and {named(model)} has "
                "none: its dropped tokens need no place; leave restore at 'zero'"
            )
        return None
    if restore == "copy" and not expansion.merging:
        raise ValueError(
            "restore='copy' gives a dropped position the token that it was merged into, and this expansion has "
            "merging=False; use restore='zero' or 'ignore', or merging=True"
        )
    norm = getattr(model, "norm", None)
    if not isinstance(norm, nn.Module):
        raise ValueError(
            f"{named(model)} has dense outputs and no module `norm` after its blocks, where the grid is put together "
            "again; name its last norm so"
        )
    return norm
