"""Attach a `TokenExpansion` to a vision transformer from outside, by a hook on one of its blocks.

A model that gives an output for every patch position (`dense_output`, as LV-ViT) gets a second hook, on its last norm,
which puts the kept tokens back into the full grid. Tokens behind the patches (`num_suffix_tokens`, as YOLOS's detection
tokens) pass the expansion by, and positions that a model adds between its blocks (`mid_additions`) are gathered for the
tokens that are left.

The model's code and its state_dict stay those of the plain model. Models in which dropping tokens between blocks would
be wrong are refused (`suitable.py`), and so are calls in which it would be: an attention mask, which belongs to the
full set of tokens, and feature maps, which would be made of the kept tokens.

Shapes: B batch, P prefix tokens, N patch tokens, K kept tokens, S suffix tokens, D width.
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
        self,
        model: nn.Module,
        expansion: TokenExpansion,
        block: nn.Module,
        additions: list[nn.Module],
        norm: nn.Module | None,
        copy: bool,
    ) -> None:
        self.expansion = expansion
        self._model: nn.Module | None = model
        expand = _ExpandInput(expansion, getattr(model, "num_suffix_tokens", 0))
        self._hooks = [block.register_forward_pre_hook(expand, with_kwargs=True)]
        for addition in additions:
            self._hooks.append(addition.register_forward_pre_hook(_GatherPositions(expand), with_kwargs=True))
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

    def __init__(self, expansion: TokenExpansion, num_suffix_tokens: int) -> None:
        self.expansion = expansion
        self.num_suffix_tokens = num_suffix_tokens
        self.kept: Tensor | None = None  # (B, K), what the expansion gave last

    def __call__(
        self, block: nn.Module, args: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        tokens, suffix = args[0], None
        if self.num_suffix_tokens:
            sizes = [tokens.shape[1] - self.num_suffix_tokens, self.num_suffix_tokens]
            tokens, suffix = tokens.split_with_sizes(sizes, dim=1)  # (B, P+N, D), (B, S, D)
        tokens, self.kept = self.expansion(tokens)  # (B, P+K, D), (B, K)
        if self.kept is None:
            return args, options
        _require_tokens_alone(block, args[1:], options)
        if suffix is not None:
            tokens = torch.cat([tokens, suffix], dim=1)  # (B, P+K+S, D)
        return (tokens, *args[1:]), options


class _GatherPositions:
    """Forward pre-hook of a module that adds positions between blocks: those of the tokens that are left.

    `positions` (1 or B, P+N+S, D) becomes (B, P+K+S, D) where the same forward pass dropped tokens. An object as above.
    """

    def __init__(self, expanded: _ExpandInput) -> None:
        self.expanded = expanded

    def __call__(
        self, addition: nn.Module, args: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        kept, suffix = self.expanded.kept, self.expanded.num_suffix_tokens
        if kept is None:
            return args, options
        prefix = self.expanded.expansion.num_prefix_tokens
        return args, {**options, "positions": gather(options["positions"], kept, prefix, suffix)}  # (B, P+K+S, D)


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
            VisionTransformer, DeiT, DeiT-III. `model.token_expansion` becomes `expansion`. Its last `num_suffix_tokens`
            tokens (0 without the attribute) are never scored nor merged, and stay behind. Positions that it adds after
            its blocks it must add in modules `mid_additions`, the i-th after block i, which it calls with the whole
            table as the keyword argument `positions` (1 or B, P+N+S, D).
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
    additions = list(getattr(model, "mid_additions", ()))[after_block:]
    return Attachment(model, expansion, block, additions, norm, copy=restore == "copy")


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
