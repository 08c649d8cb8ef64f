"""The page that says which models tokens can be dropped in, and why not in others: each is tried."""

from __future__ import annotations

import torch

from toe_train.analysis.families import PIXELS, REFUSED, SERVED, Family, Reordered, answer, build, refusal
from toe_train.expansion import ExpansionSchedule, attach

_HEAD = """# Models that Token Expansion goes with

Made by `toe-tools models --output docs/models.md`, which tries each: a tiny model of the family with random weights,
no download.

## Served

`attach` finds the list of blocks, their width and the number of tokens in front of the patches. Each model here was
given all of its tokens in another order for each image, with the positions that belong to them, and said the same (to
1e-5 of its largest answer). *Positions* are those that its blocks are given, which are gathered for the kept tokens;
absolute ones are in the tokens already. `num_prefix_tokens` is of the tiny model: more or fewer registers make
another number.
"""
_BETWEEN = """
LV-ViT and YOLOS of this package are served too (`toe_train.models`). In a model with two towers, name the blocks of
the one that sees images: `attach(model, expansion, blocks="vision_model.encoder.layers")`. A model of yours is served
if its list of equal blocks takes tokens (batch, tokens, width) in any order; positions are gathered by the names
`rope` and `position_embeddings`, masks by `attn_mask` and `attention_mask`, positions that modules in `mid_additions`
add by `positions`. Gradient checkpointing with positions needs `use_reentrant=False`, the default of timm and
transformers.

## Refused

The message of `attach`. NaFlex models are served with images of one size, and refuse padded batches when they are
given one while tokens are dropped.
"""


def page() -> str:
    """The text of `docs/models.md`.

    Raises:
        ValueError: a family that should be served is not, or the other way round.
    """
    served = [
        [
            f.library,
            f.name,
            f"`{f.example}`",
            f"`{f.blocks}`",
            str(f.num_prefix_tokens),
            "gathered" if f.rotary else "-",
        ]
        for f in SERVED
    ]
    for family in SERVED:
        _require_served(family)
    refused = [[*_named(f), _reason(f)] for f in REFUSED]
    return "\n".join(
        [
            _HEAD,
            _table(["library", "family", "for instance", "blocks", "num_prefix_tokens", "positions"], served),
            _BETWEEN,
            _table(["library", "family", "for instance", "reason"], refused),
            "",
        ]
    )


def _named(family: Family) -> list[str]:
    return [family.library, family.name, f"`{family.example}`"]


def _require_served(family: Family) -> None:
    model = build(family).train()
    images = torch.randn(2, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        dense = answer(model, images)
        reordered = Reordered(ExpansionSchedule([0], [0.5], 0.25), family.num_prefix_tokens)
        reordered.set_epoch(0)
        attach(model, reordered)
        error = float((answer(model, images) - dense).abs().max() / dense.abs().max())
    if not error < 1e-5:
        raise ValueError(f"{family.id}: tokens in another order change its answer by {error:.1e} of the largest")


def _reason(family: Family) -> str:
    reason = refusal(family)
    if reason is None:
        raise ValueError(f"{family.id} should be refused, and attach takes it")
    return reason


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
