"""Where the tokens of an image lie, without and with Token Expansion (paper, Figures 2 and 7).

Shapes: N patch tokens, K kept ones, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toe_train.analysis.viewer import Photo, Viewer
from toe_train.errors import UserError
from toe_train.models import blocks_of


@dataclass(frozen=True)
class TokenSets:
    """Tokens of one image after a block, without and with ToE, as points of a common t-SNE map.

    Attributes:
        block: number, from 1.
        full: (N, 2).
        reduced: (K, 2).
        full_cosine, reduced_cosine: mean cosine distance of two different tokens of the set, in the model's space.
    """

    block: int
    full: np.ndarray
    reduced: np.ndarray
    full_cosine: float
    reduced_cosine: float

    @property
    def distances(self) -> tuple[float, float]:
        """Mean distance of two different points, of the full set and of ToE's (paper, Figure 2)."""
        full, reduced = (float(torch.pdist(torch.from_numpy(points)).mean()) for points in (self.full, self.reduced))
        return full, reduced


def token_sets(viewer: Viewer, photo: Photo, blocks: Sequence[int], stage: int, seed: int = 0) -> list[TokenSets]:
    """Where an image's tokens lie after some blocks, without ToE and at one of its stages (paper, Figures 2 and 7).

    Right at the block after which tokens are dropped, ToE's set is what it hands on.

    Raises:
        UserError: a block that the model does not have.
    """
    from sklearn.manifold import TSNE  # takes a second to import

    depth = len(blocks_of(viewer.built.model))
    if wrong := [block for block in blocks if not 1 <= block <= depth]:
        raise UserError(f"--blocks {wrong[0]}: the model has blocks 1 to {depth}")
    full, _ = _outputs(viewer, photo, 0)
    reduced, handed_on = _outputs(viewer, photo, stage)
    found = []
    for block in blocks:
        at_drop = full[block].shape == reduced[block].shape and handed_on is not None and _drops_after(viewer, block)
        own = handed_on if at_drop and handed_on is not None else reduced[block]
        both = torch.cat([full[block], own])  # (N + K, D)
        perplexity = min(30.0, (len(both) - 1) / 3)
        points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(both.numpy())
        count = len(full[block])
        found.append(TokenSets(block, points[:count], points[count:], _cosine(full[block]), _cosine(own)))
    return found


def draw_features(viewer: Viewer, sets: Sequence[Sequence[TokenSets]]) -> Any:
    """A matplotlib figure of `token_sets`: a row for each image, a column for each block."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(sets[0]) + 0.3, 3.9 * len(sets) + 0.8), layout="constrained")
    axes = figure.subplots(len(sets), len(sets[0]), squeeze=False)
    for row, of_image in enumerate(sets):
        for place, found in zip(axes[row], of_image, strict=True):
            full, reduced = found.distances
            place.scatter(*found.full.T, s=12, color="silver", label="tokens of the plain model")
            place.scatter(*found.reduced.T, s=12, color="tab:red", label="tokens with Token Expansion")
            place.set(xticks=[], yticks=[], title=f"after block {found.block}" if row == 0 else "")
            place.set_xlabel(
                f"mean distance of two tokens\nin this map: {full:.1f} of {len(found.full)}, {reduced:.1f} of "
                f"{len(found.reduced)} with ToE\ncosine: {found.full_cosine:.3f}, {found.reduced_cosine:.3f} with ToE",
                fontsize="small",
            )
        axes[row, 0].set_ylabel(viewer.photos[row].name[:28], fontsize="small", parse_math=False)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", fontsize="small")
    return figure


def _outputs(viewer: Viewer, photo: Photo, stage: int) -> tuple[dict[int, Tensor], Tensor | None]:
    """Patch tokens (n, D) after each block, by its number, and those that ToE handed on; stage 0 drops none."""
    model: Any = viewer.built.model
    prefix, suffix = viewer.expansion.num_prefix_tokens, getattr(model, "num_suffix_tokens", 0)
    found: dict[int, Tensor] = {}
    handed_on: list[Tensor] = []

    def keep(number: int) -> Any:
        def hook(module: nn.Module, given: Any, output: Tensor) -> None:
            found[number] = output[0, prefix : output.shape[1] - suffix].float()

        return hook

    # What is added between two blocks belongs to the first: ToE sees it.
    behind = [*enumerate(blocks_of(model), start=1), *enumerate(getattr(model, "mid_additions", ()), start=1)]
    hooks = [part.register_forward_hook(keep(number)) for number, part in behind]
    hooks.append(
        viewer.expansion.register_forward_hook(lambda module, given, output: handed_on.append(output[0][0, prefix:]))
    )
    try:
        viewer.look(photo, stage)
    finally:
        for hook in hooks:
            hook.remove()
    return found, handed_on[0].float() if handed_on else None


def _drops_after(viewer: Viewer, block: int) -> bool:
    """Whether ToE stands right behind a block, before the next one."""
    blocks = blocks_of(viewer.built.model)
    following = blocks[block] if block < len(blocks) else None
    return following is not None and any(
        getattr(hook, "expansion", None) is viewer.expansion for hook in following._forward_pre_hooks.values()
    )


def _cosine(tokens: Tensor) -> float:
    """Mean cosine distance of two different tokens of (n, D)."""
    similarity = F.normalize(tokens, dim=1) @ F.normalize(tokens, dim=1).T
    count = len(tokens)
    return float(1 - (similarity.sum() - similarity.diagonal().sum()) / (count * (count - 1)))
