"""Attach a `TokenExpansion` to a vision transformer from outside, by hooks on its blocks.

The first hook drops tokens. It and those of the later blocks gather what belongs to the tokens beside them, rotary
positions and attention masks (`positions.py`). A model that gives an output for every patch position (`dense_output`,
as LV-ViT) gets another hook, on its last norm, which puts the kept tokens back into the full grid.

The model's code and its state_dict stay those of the plain model. Models in which dropping tokens between blocks would
be wrong are refused (`suitable.py`), and so are calls in which it would be: arguments of a block that seem to belong to
the full set of tokens in an unknown way, and feature maps, which would be made of the kept tokens.

Shapes: B batch, P prefix tokens, N patch tokens, K kept tokens, D width.
"""

from __future__ import annotations

import inspect
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from toe_train.expansion.layout import Layout, named
from toe_train.expansion.module import TokenExpansion
from toe_train.expansion.positions import MASKS, KeptPositions
from toe_train.expansion.schedule import RESTORES, check_option
from toe_train.expansion.selection import gather
from toe_train.expansion.selection import restore as restore_grid
from toe_train.expansion.suitable import masks_padding, require_suitable

NAME = "token_expansion"
# Methods by which a model (timm's) gives out the tokens after its blocks, laid out as the image's grid.
_MAP_METHODS = ("forward_intermediates", "get_intermediate_layers")
# The attribute by which the tokens that a block is given say to which forward pass they belong.
_PASS = "_token_expansion_pass"

_Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Attachment:
    """What `attach` returns: the expansion in use, and the way to take it off again."""

    def __init__(
        self,
        model: nn.Module,
        expansion: TokenExpansion,
        layout: Layout,
        after_block: int,
        norm: nn.Module | None,
        copy: bool,
    ) -> None:
        self.expansion = expansion
        self._model: nn.Module | None = model
        current = _Pass()
        padded = any(masks_padding(owner) for owner in layout.owners)
        first, *later = layout.blocks[after_block:]
        hooks = [(first, _ExpandInput(expansion, current, _Beside(first, padded)))]
        hooks += [(block, _GatherInput(current, _Beside(block, padded))) for block in later]
        self._hooks = [block.register_forward_pre_hook(hook, with_kwargs=True) for block, hook in hooks]
        if norm is not None:
            self._hooks.append(norm.register_forward_hook(_RestoreGrid(expansion, copy)))
        expansion.remember_owner = copy
        model.add_module(NAME, expansion)
        self._replaced = [(owner, name) for owner in layout.owners for name in _MAP_METHODS if hasattr(type(owner), name)]
        for owner, name in self._replaced:
            setattr(owner, name, _WholeMaps(owner, expansion, name))

    def remove(self) -> None:
        """Make the model the plain one again. Does nothing when called twice."""
        if self._model is not None:
            for hook in self._hooks:
                hook.remove()
            self.expansion.remember_owner = False
            delattr(self._model, NAME)
            for owner, name in self._replaced:
                delattr(owner, name)  # the class's method comes to light again
            self._model, self._replaced = None, []


class _Pass:
    """The forward pass that a model is in, as its hooks share it: which tokens it keeps, None for all."""

    kept: KeptPositions | None = None


class _Beside:
    """What a block is given beside its tokens: by name, and gathered for the kept ones.

    Args:
        block: whose forward says the names; only its class's is remembered, so that a copied model's hook holds no
            block of the first one.
        padded: whether an attention mask says which patches are padding.
    """

    def __init__(self, block: nn.Module, padded: bool) -> None:
        self._block = named(block)
        self._names = list(inspect.signature(block.forward).parameters)
        self._padded = padded

    def tokens(self, args: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
        """The tokens, (B, P+N or P+K, D)."""
        tokens: Tensor = args[0] if args else options[self._names[0]]
        return tokens

    def gathered(self, tokens: Tensor, kept: KeptPositions, args: tuple[Any, ...], options: dict[str, Any]) -> _Arguments:
        """All arguments, with these tokens."""
        if not args:
            return (), {
                **{name: self._of(kept, name, value) for name, value in options.items()},
                self._names[0]: tokens,
            }
        others = [self._of(kept, self._name(place), value) for place, value in enumerate(args) if place > 0]
        return (tokens, *others), {name: self._of(kept, name, value) for name, value in options.items()}

    def _name(self, place: int) -> str:
        return self._names[place] if place < len(self._names) else f"argument {place + 1}"

    def _of(self, kept: KeptPositions, name: str, value: Any) -> Any:
        if self._padded and name in MASKS and value is not None:
            raise ValueError(
                f"{self._block} is given `{name}`, which says what patches are padding, and token expansion is not "
                "defined for images with unlike numbers of patches: give images of one size, as a tensor (batch, "
                "channels, height, width), while tokens are dropped"
            )
        try:
            return kept.of(name, value)
        except ValueError as error:
            raise ValueError(
                f"{self._block} is given `{name}`, which belongs to the full set of tokens, and the token expansion has "
                f"dropped some of them: {error}; leave it out while training, or remove() the expansion"
            ) from error


class _ExpandInput:
    """Forward pre-hook of a block. An object, so that copy.deepcopy(model) binds the copy's hook to its own module."""

    def __init__(self, expansion: TokenExpansion, current: _Pass, beside: _Beside) -> None:
        self.expansion = expansion
        self.current = current
        self.beside = beside

    def __call__(self, block: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> _Arguments:
        x = self.beside.tokens(args, options)  # (B, P+N, D)
        tokens, kept = self.expansion(x)
        if kept is None:
            self.current.kept = None
            return args, options
        prefix = self.expansion.num_prefix_tokens
        positions = KeptPositions(kept, x.shape[1] - prefix, prefix, _compute_type(x))
        self.current.kept = positions
        return self.beside.gathered(tokens, positions, args, options)


class _GatherInput:
    """Forward pre-hook of the blocks behind. An object as above.

    Gradient checkpointing runs blocks again, out of their order and perhaps after another forward pass: the tokens
    themselves say which pass they are of. (Checkpointing that is compiled runs no hook again.)
    """

    def __init__(self, current: _Pass, beside: _Beside) -> None:
        self.current = current
        self.beside = beside

    def __call__(self, block: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> _Arguments:
        tokens = self.beside.tokens(args, options)  # (B, P+K, D)
        if not torch.compiler.is_compiling():
            self.current.kept = getattr(tokens, _PASS, self.current.kept)
            setattr(tokens, _PASS, self.current.kept)
        kept = self.current.kept
        return (args, options) if kept is None else self.beside.gathered(tokens, kept, args, options)


def _compute_type(x: Tensor) -> torch.dtype:
    """What blocks compute in with tokens `x`: autocast's type where it is on."""
    device = x.device.type
    autocast = device != "meta" and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocast else x.dtype


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


def attach(
    model: nn.Module,
    expansion: TokenExpansion,
    after_block: int = 1,
    restore: str = "zero",
    blocks: str | None = None,
    width: int | None = None,
) -> Attachment:
    """Let a model drop tokens while it trains.

    Attach before wrapping the model in DDP or compiling it. Works through gradient checkpointing, torch.compile, DDP
    and copy.deepcopy (an averaged copy expands by its own module, and not at all in eval mode).

    Args:
        model: a vision transformer of timm, transformers or torchvision, or any other with a list of equal blocks
            (B, P+N, D) -> (B, P+N, D) that do not care about the tokens' order; rotary positions that blocks are given
            as `rope` or `position_embeddings` go with the tokens. `model.token_expansion` becomes `expansion`.
        expansion: the module that drops the tokens.
        after_block: number of blocks that still see every token: 1 is the paper's choice, 0 expands right after the
            embedding; at most one less than the depth (paper, Table 8).
        restore: what stands at the dropped positions after the last norm, in a model whose `dense_output` is True.
            "zero" has parity with the paper (A.1) and the released code: zeros, so that a head answers there with its
            bias and the dense loss, a mean over all positions, teaches it nothing else. "copy" puts the token there
            that the dropped one was merged into. "ignore" puts zeros too and says that the loss leaves these positions
            out, which is up to the loss: `kept_mask(expansion.kept, N)` names the positions that count.
        blocks: dotted name of the list of blocks, such as "vision_model.encoder.layers", for a model with more than
            one or with an unusual name.
        width: D, for a model that does not say it.

    While tokens are dropped, arguments of the blocks by the names `rope`, `position_embeddings`, `attn_mask` and
    `attention_mask` are gathered for the kept tokens; a merged token has the position, and sees what, its host does.
    The forward pass raises ValueError where a block is given something else that has a row for each token, and so do
    timm's `forward_intermediates` and `get_intermediate_layers`, whose maps need every token. In eval mode and in dense
    stages all of it works as without.

    Returns:
        A handle with `.expansion` and `.remove()`.

    Raises:
        ValueError: when tokens cannot be dropped there; the message names the reason.
    """
    if getattr(model, NAME, None) is not None:
        raise ValueError(f"{named(model)} has a token expansion already: call remove() on its handle first")
    layout = require_suitable(model, after_block, expansion.num_prefix_tokens, blocks, width)
    norm = _dense_norm(model, expansion, restore)
    return Attachment(model, expansion, layout, after_block, norm, copy=restore == "copy")


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
