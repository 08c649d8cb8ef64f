"""What Token Expansion does to given images: pictures of what it keeps and merges, and where its tokens lie.

Shapes: B images, N = rows * columns patch tokens, K kept ones, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toe_train import data
from toe_train.build.inputs import build_eval_transform
from toe_train.build.model import BuiltModel, build_model
from toe_train.build.weights.trained import Trained
from toe_train.errors import UserError
from toe_train.expansion import TokenExpansion, kept_mask
from toe_train.methods.pictures import DIMMED
from toe_train.methods.token_expansion import TokenExpansionMethod
from toe_train.models import blocks_of
from toe_train.recipes import ExpansionConfig

SHOWN_SIDE = 448  # pixels of an image in the picture, about
# Where the run had no ToE: the paper's for DeiT-T (docs/fidelity.md, "Speed-up factors").
USUAL = ExpansionConfig(stage_epochs=(0, 100, 200), keep_rates=(0.5, 0.75, 1.0), initial_keep_rate=0.25)


@dataclass(frozen=True)
class Viewer:
    """A trained model with ToE, and images as it sees them, (B, 3, H, W), and as they are, in 0..1.

    noise: (1, N), what random initialisation draws of every image. told: what was done to the weights, a line each.
    """

    built: BuiltModel
    expansion: TokenExpansion
    names: tuple[str, ...]
    images: Tensor
    pictures: Tensor
    noise: Tensor
    told: tuple[str, ...] = ()

    @property
    def stages(self) -> list[int]:
        """Those in which tokens are dropped."""
        schedule = self.expansion.schedule
        return [stage for stage in range(1, schedule.num_stages + 1) if not schedule.is_dense(stage)]


def open_viewer(trained: Trained, paths: Sequence[Path]) -> Viewer:
    """Builds a trained model and reads images.

    Args:
        trained: the model; one without ToE gets the paper's r1 = 0.5.
        paths: image files.

    Raises:
        UserError: weights of another model, a run with another method, or an image that cannot be read.
    """
    config = trained.built_as
    if config.method is not None:
        raise UserError(
            f"--checkpoint {trained.weights.path}: its run has method.kind={config.method.kind}, and pictures are of "
            "Token Expansion alone; to see what that would do with these weights, export them and give the folder"
        )
    config = config.model_copy(update={"expansion": config.expansion or USUAL})
    built = build_model(config, trained.num_classes or 1)
    assert isinstance(built.method, TokenExpansionMethod)
    expansion = built.method.expansion
    told = trained.put_in(built.model, with_head=trained.num_classes > 0)
    built.model.eval()
    expansion.remember_owner = True
    transform = build_eval_transform(config)
    images = torch.stack(
        [transform(data.load_rgb(path, config.data.exif_orientation)) for path in paths]
    )  # (B, 3, H, W)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.augment.mean, config.augment.std))
    names = tuple(data.legible(path.name) for path in paths)
    # Of random initialisation, the same draws for every image and each time.
    noise = torch.rand(1, built.num_tokens, generator=data.generator(config.seed, "pictures"))
    return Viewer(built, expansion, names, images, (images * std + mean).clamp(0, 1), noise, tuple(told))


def kept_and_merged(viewer: Viewer, stage: int) -> tuple[Tensor, Tensor]:
    """Pictures of a stage, two of (B, 3, h, w) in 0..1, larger than the images by a whole factor.

    In the first, patches that are not kept are dim. In the second, all patches that became one token have their mean
    colour and a common border; without merging, those that are left out are black.
    """
    expansion, grid = viewer.expansion, viewer.built.grid
    with _at(viewer, stage, len(viewer.images)):
        viewer.built.model(viewer.images)
        kept, owner = expansion.kept, expansion.owner
    assert kept is not None
    batch, num_tokens = kept.shape[0], viewer.built.num_tokens
    keeps = kept_mask(kept, num_tokens).float()  # (B, N)
    factor = max(1, SHOWN_SIDE // viewer.images.shape[-1])
    large = F.interpolate(viewer.pictures, scale_factor=factor, mode="nearest")  # (B, 3, h, w)
    dimmed = large * _spread((DIMMED + (1 - DIMMED) * keeps).unsqueeze(1), grid, large)
    groups = owner if owner is not None else _slots(kept, num_tokens)  # (B, N), -1 for none
    colours = F.adaptive_avg_pool2d(viewer.pictures, grid).flatten(2)  # (B, 3, N)
    members = F.one_hot(groups + 1, kept.shape[1] + 1).float()  # (B, N, K+1)
    means = (colours @ members) / members.sum(1, keepdim=True).clamp(min=1)  # (B, 3, K+1)
    means[:, :, 0] = 0
    painted = _spread((means @ members.mT), grid, large)  # (B, 3, h, w)
    return dimmed, painted * ~_borders(groups.view(batch, 1, *grid), large)


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


def token_sets(viewer: Viewer, image: int, blocks: Sequence[int], stage: int, seed: int = 0) -> list[TokenSets]:
    """Where an image's tokens lie after some blocks, without ToE and at one of its stages (paper, Figures 2 and 7).

    Right at the block after which tokens are dropped, ToE's set is what it hands on.

    Raises:
        UserError: a block that the model does not have.
    """
    from sklearn.manifold import TSNE  # takes a second to import

    depth = len(blocks_of(viewer.built.model))
    if wrong := [block for block in blocks if not 1 <= block <= depth]:
        raise UserError(f"--blocks {wrong[0]}: the model has blocks 1 to {depth}")
    shown = viewer.images[image : image + 1]
    with _at(viewer, 0, 1):
        full, _ = _outputs(viewer, shown)
    with _at(viewer, stage, 1):
        reduced, handed_on = _outputs(viewer, shown)
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


def draw_kept(viewer: Viewer) -> Any:
    """A matplotlib figure: a row for each image; the image, then what each stage keeps and merges."""
    from matplotlib.figure import Figure

    columns = [("image", viewer.pictures)]
    for stage in viewer.stages:
        count = viewer.expansion.num_kept(viewer.built.num_tokens, stage)
        kept, merged = kept_and_merged(viewer, stage)
        columns += [(f"stage {stage}: keeps {count} of {viewer.built.num_tokens}", kept), ("merged", merged)]
    rows = len(viewer.images)
    figure = Figure(figsize=(2.6 * len(columns), 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, (title, pictures) in enumerate(columns):
        for row in range(rows):
            place = axes[row, column]
            place.imshow(pictures[row].permute(1, 2, 0).numpy(), interpolation="nearest")
            place.set(xticks=[], yticks=[], title=title if row == 0 else "")
            if column == 0:
                place.set_ylabel(viewer.names[row][:24], fontsize="small", parse_math=False)
    return figure


def draw_features(viewer: Viewer, sets: Sequence[Sequence[TokenSets]]) -> Any:
    """A matplotlib figure of `token_sets`: a row for each image, a column for each block."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(sets[0]), 3.4 * len(sets)), layout="constrained")
    axes = figure.subplots(len(sets), len(sets[0]), squeeze=False)
    for row, of_image in enumerate(sets):
        for place, found in zip(axes[row], of_image, strict=True):
            full, reduced = found.distances
            place.scatter(*found.full.T, s=9, color="lightgrey", label=f"all {len(found.full)}, distance {full:.1f}")
            label = f"ToE's {len(found.reduced)}, distance {reduced:.1f}"
            place.scatter(*found.reduced.T, s=9, color="tab:red", label=label)
            place.set(xticks=[], yticks=[], title=f"block {found.block}" if row == 0 else "")
            place.legend(fontsize="x-small", loc="upper right")
        axes[row, 0].set_ylabel(viewer.names[row][:24], fontsize="small", parse_math=False)
    return figure


@contextmanager
def _at(viewer: Viewer, stage: int, batch: int) -> Iterator[None]:
    """The model in evaluation but for ToE, which drops tokens of `batch` images as in `stage`; 0 for none."""
    former = viewer.expansion.stage
    viewer.expansion.stage = stage
    viewer.expansion.noise = viewer.noise.expand(batch, -1)
    viewer.expansion.train(stage > 0)
    try:
        with torch.no_grad():
            yield
    finally:
        viewer.expansion.stage, viewer.expansion.noise = former, None
        viewer.expansion.eval()


def _outputs(viewer: Viewer, image: Tensor) -> tuple[dict[int, Tensor], Tensor | None]:
    """Patch tokens (n, D) after each block, by its number, and those that ToE handed on."""
    prefix, found = viewer.expansion.num_prefix_tokens, {}
    handed_on: list[Tensor] = []

    def keep(number: int) -> Any:
        def hook(module: nn.Module, given: Any, output: Tensor) -> None:
            found[number] = output[0, prefix:].float()

        return hook

    blocks = blocks_of(viewer.built.model)
    hooks = [block.register_forward_hook(keep(number)) for number, block in enumerate(blocks, start=1)]
    hooks.append(
        viewer.expansion.register_forward_hook(lambda module, given, output: handed_on.append(output[0][0, prefix:]))
    )
    try:
        viewer.built.model(image)
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


def _slots(kept: Tensor, num_tokens: int) -> Tensor:
    """(B, K) positions -> (B, N): the place of a kept token among them, -1 for the others."""
    slots = torch.arange(kept.shape[1]).expand_as(kept)
    return torch.full((kept.shape[0], num_tokens), -1).scatter(1, kept, slots)


def _spread(values: Tensor, grid: tuple[int, int], like: Tensor) -> Tensor:
    """(B, C, N) -> (B, C, h, w): each patch's value over its pixels."""
    return F.interpolate(values.unflatten(2, grid), size=like.shape[-2:], mode="nearest")


def _borders(groups: Tensor, like: Tensor) -> Tensor:
    """(B, 1, rows, columns) -> (B, 1, h, w): True on lines between patches of different groups."""
    large = F.interpolate(groups.float(), size=like.shape[-2:], mode="nearest")
    lines = torch.zeros_like(large, dtype=torch.bool)
    lines[:, :, 1:] |= large[:, :, 1:] != large[:, :, :-1]
    lines[:, :, :, 1:] |= large[:, :, :, 1:] != large[:, :, :, :-1]
    return F.max_pool2d(lines.float(), 3, stride=1, padding=1).bool()  # three pixels wide
