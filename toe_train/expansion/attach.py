"""Attach a `TokenExpansion` to a vision transformer from outside, by hooks on its blocks.

The first hook drops tokens; tokens behind the patches (`num_suffix_tokens`, as YOLOS's detection tokens) pass it by. It
and those of the later blocks gather what belongs to the tokens beside them, rotary positions and attention masks
(`positions.py`), and so do hooks on modules that add positions between the blocks (`mid_additions`). A model that gives
an output for every patch position (`dense_output`, as LV-ViT) gets another hook, on its last norm, which puts the kept
tokens back into the full grid.

The model's code and its state_dict stay those of the plain model. Models in which dropping tokens between blocks would
be wrong are refused (`suitable.py`), and so are calls in which it would be: arguments of a block that seem to belong to
the full set of tokens in an unknown way, and feature maps, which would be made of the kept tokens.

Shapes: B batch, P prefix tokens, N patch tokens, K kept tokens, S suffix tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from toe_train.expansion.hooks import Beside, ExpandInput, GatherInput, Pass, RestoreGrid, guard_maps
from toe_train.expansion.layout import Layout, innermost_with, named
from toe_train.expansion.module import TokenExpansion
from toe_train.expansion.schedule import RESTORES, check_option
from toe_train.expansion.suitable import masks_padding, require_suitable

NAME = "token_expansion"


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
        current = Pass()
        padded = any(masks_padding(owner) for owner in layout.owners)
        first, *later = layout.blocks[after_block:]
        expand = ExpandInput(expansion, layout.num_suffix_tokens, current, Beside(first, padded))
        later += layout.additions[after_block:]
        self._hooks = [first.register_forward_pre_hook(expand, with_kwargs=True)]
        for module in later:
            hook = GatherInput(current, Beside(module, padded))
            self._hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        if norm is not None:
            self._hooks.append(norm.register_forward_hook(RestoreGrid(expansion, copy)))
        expansion.remember_owner = copy
        model.add_module(NAME, expansion.train(model.training))
        self._replaced = guard_maps(layout.owners, expansion)

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
    and copy.deepcopy (an averaged copy expands by its own module, and not at all in eval mode). The expansion takes the
    model's mode.

    Args:
        model: a vision transformer of timm, transformers or torchvision, or any other with a list of equal blocks
            (B, P+N, D) -> (B, P+N, D) that do not care about the tokens' order; rotary positions that blocks are given
            as `rope` or `position_embeddings` go with the tokens. `model.token_expansion` becomes `expansion`. Its
            last `num_suffix_tokens` tokens (0 without the attribute) are never scored nor merged, and stay behind.
            Positions that it adds after its blocks it must add in modules `mid_additions`, the i-th after block i,
            which it calls with the whole table as the keyword argument `positions` (1 or B, P+N+S, D). Such attributes
            count in a model inside a wrapper too: those of the innermost module on the way to the blocks that has them.
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
    _refuse_taken(model)
    layout = require_suitable(model, after_block, expansion.num_prefix_tokens, blocks, width)
    norm = _dense_norm(layout.owners, expansion, restore)
    return Attachment(model, expansion, layout, after_block, norm, copy=restore == "copy")


def _refuse_taken(model: nn.Module) -> None:
    """Refuse what is attached already, what would run the expansion as a part of its own, and a compiled model, whose
    graphs may run without hooks that come later."""
    if isinstance(model, nn.Sequential):
        raise ValueError(
            f"{named(model)} runs all modules that it holds, and would run the expansion too: attach to the model "
            "inside of it, or give it a class with a forward of its own"
        )
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:  # both ways of torch
        raise ValueError(
            f"{named(model)} is compiled, and its graphs would not drop tokens: attach to the model first, then compile"
        )
    if getattr(model, NAME, None) is not None:
        raise ValueError(f"{named(model)} has a token expansion already: call remove() on its handle first")


def _dense_norm(owners: Sequence[nn.Module], expansion: TokenExpansion, restore: str) -> nn.Module | None:
    """The norm after which the grid is restored; None for a model without dense outputs.

    owners: of the blocks, from the model itself inwards.
    """
    check_option("restore", restore, RESTORES)
    dense = innermost_with(owners, "dense_output")
    if dense is None or not dense.dense_output:
        if restore != "zero":
            raise ValueError(
                f"restore={restore!r} is for models with an output for every patch (LV-ViT), and {named(owners[0])} "
                "has none: its dropped tokens need no place; leave restore at 'zero'"
            )
        return None
    if restore == "copy" and not expansion.merging:
        raise ValueError(
            "restore='copy' gives a dropped position the token that it was merged into, and this expansion has "
            "merging=False; use restore='zero' or 'ignore', or merging=True"
        )
    norm = getattr(dense, "norm", None)
    if not isinstance(norm, nn.Module):
        raise ValueError(
            f"{named(dense)} has dense outputs and no module `norm` after its blocks, where the grid is put together "
            "again; name its last norm so"
        )
    return norm
