"""The hooks by which `attach` lets a model drop tokens.

They are objects, so that copy.deepcopy(model) binds the copy's hooks to its own module.

Shapes: B batch, P prefix tokens, N patch tokens, K kept tokens, S suffix tokens, D width.
"""

from __future__ import annotations

import inspect
import warnings
import weakref
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from toe_train.expansion.layout import named
from toe_train.expansion.module import TokenExpansion
from toe_train.expansion.positions import MASKS, KeptPositions
from toe_train.expansion.selection import gather
from toe_train.expansion.selection import restore as restore_grid

# The attribute by which the tokens that a block is given say to which forward pass they belong.
_PASS = "_token_expansion_pass"

_Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Pass:
    """The forward pass that a model is in, as its hooks share it: which tokens it keeps, None for all."""

    kept: KeptPositions | None = None


class Beside:
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
        """The tokens, (B, P+N+S or P+K+S, D)."""
        tokens: Tensor = args[0] if args else options[self._names[0]]
        return tokens

    def gathered(
        self, tokens: Tensor, kept: KeptPositions, args: tuple[Any, ...], options: dict[str, Any]
    ) -> _Arguments:
        """All arguments, with these tokens."""
        others = [self._of(kept, self._name(place), value) for place, value in enumerate(args) if place > 0]
        by_name = {
            name: tokens if not args and name == self._names[0] else self._of(kept, name, value)
            for name, value in options.items()
        }
        return ((tokens, *others) if args else ()), by_name

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
                f"{self._block} is given `{name}`, which belongs to the full set of tokens, and the token expansion "
                f"has dropped some of them: {error}; leave it out while training, or remove() the expansion"
            ) from error


class ExpandInput:
    """Forward pre-hook of a block."""

    def __init__(self, expansion: TokenExpansion, num_suffix_tokens: int, current: Pass, beside: Beside) -> None:
        self.expansion = expansion
        self.num_suffix_tokens = num_suffix_tokens
        self.current = current
        self.beside = beside

    def __call__(self, block: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> _Arguments:
        """Drop tokens, and gather what is given beside them."""
        x = self.beside.tokens(args, options)  # (B, P+N+S, D)
        suffix = self.num_suffix_tokens
        front, behind = (x, None) if suffix == 0 else x.split_with_sizes([x.shape[1] - suffix, suffix], dim=1)
        if self.expansion.training and not getattr(self.expansion, "told_stage", True):
            _warn_untold(self.expansion.stage)
        tokens, kept = self.expansion(front)  # (B, P+K, D), (B, K)
        if kept is None:
            self.current.kept = None
            return args, options
        prefix = self.expansion.num_prefix_tokens
        num_tokens = front.shape[1] - prefix
        self.current.kept = KeptPositions(kept, num_tokens, prefix, suffix, _compute_type(x))
        if behind is not None:
            tokens = torch.cat([tokens, behind], dim=1)  # (B, P+K+S, D)
        return self.beside.gathered(tokens, self.current.kept, args, options)


class GatherInput:
    """Forward pre-hook of the blocks behind, and of what is added between them.

    Gradient checkpointing runs blocks again, out of their order and perhaps after another forward pass: the tokens
    themselves say which pass they are of. (Checkpointing that is compiled runs no hook again.)
    """

    def __init__(self, current: Pass, beside: Beside) -> None:
        self.current = current
        self.beside = beside

    def __call__(self, block: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> _Arguments:
        """Gather what is given beside the tokens, where this forward pass dropped some."""
        tokens = self.beside.tokens(args, options)  # (B, P+K+S, D)
        known = True
        if not torch.compiler.is_compiling():
            known = hasattr(tokens, _PASS) or not (tokens.is_leaf and tokens.requires_grad)
            self.current.kept = getattr(tokens, _PASS, self.current.kept)
            setattr(tokens, _PASS, self.current.kept)
        if self.current.kept is None:
            return args, options
        gathered = self.beside.gathered(tokens, self.current.kept, args, options)
        if not known and _differ((args, options), gathered):
            raise ValueError(
                f"{named(block)} is computed anew by gradient checkpointing with copies of its tokens "
                "(use_reentrant=True), which do not say what positions they have: use torch.utils.checkpoint with "
                "use_reentrant=False"
            )
        return gathered


def _differ(before: _Arguments, after: _Arguments) -> bool:
    """Whether arguments are others than before."""
    (args, options), (others, other_options) = before, after
    return any(a is not b for a, b in zip(args, others, strict=True)) or any(
        options[name] is not other_options[name] for name in options
    )


# Methods by which a model (timm's) gives out the tokens after its blocks, laid out as the image's grid.
_MAP_METHODS = ("forward_intermediates", "get_intermediate_layers")


class Fewer(Protocol):
    """What makes a model's patch tokens fewer."""

    @property
    def why_no_maps(self) -> str | None:
        """Why the tokens cannot be laid out as a grid now, and what to do; None where they can."""


class WholeMaps:
    """A model's method that gives feature maps, refused while the model has no token for each patch.

    The model holds it, so it must not hold the model: its memory would be free only after a garbage collection.
    """

    def __init__(self, model: nn.Module, fewer: Fewer, name: str) -> None:
        self.model = weakref.ref(model)
        self.fewer = fewer
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return WholeMaps, (self.model(), self.fewer, self.name)  # so that a copied model's is bound to the copy

    def __call__(self, *args: Any, **options: Any) -> Any:
        """What the model's own method gives, or ValueError."""
        if self.fewer.why_no_maps:
            raise ValueError(f"{self.name} gives feature maps, and {self.fewer.why_no_maps}")
        model = self.model()
        return getattr(type(model), self.name)(model, *args, **options)


def guard_maps(owners: Iterable[nn.Module], fewer: Fewer) -> list[tuple[nn.Module, str]]:
    """Puts `WholeMaps` in the place of each such method; the places, whose attributes are deleted to undo it."""
    places = [(owner, name) for owner in owners for name in _MAP_METHODS if hasattr(type(owner), name)]
    for owner, name in places:
        setattr(owner, name, WholeMaps(owner, fewer, name))
    return places


class RestoreGrid:
    """Forward hook of the last norm: (B, P+K, D) -> (B, P+N, D) where tokens were dropped."""

    def __init__(self, expansion: TokenExpansion, copy: bool) -> None:
        self.expansion = expansion
        self.copy = copy

    def __call__(self, norm: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The full grid."""
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


def _compute_type(x: Tensor) -> torch.dtype:
    """What blocks compute in with tokens `x`: autocast's type where it is on."""
    device = x.device.type
    autocast = device != "meta" and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocast else x.dtype


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _warn_untold(stage: int) -> None:
    """Say that nobody calls `set_epoch`: once, as Python's warnings do, also while a model is compiled."""
    warnings.warn(
        f"the model trains, and nobody has called set_epoch of its token expansion: it stays in stage {stage}, that of "
        "epoch 0; call expansion.set_epoch(epoch) before each epoch, or give the trainer its callback "
        "(toe_train.integrations)",
        stacklevel=2,
    )
