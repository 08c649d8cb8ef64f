"""Pictures of what Token Expansion keeps and merges of given images, and of what the model says of them.

Shapes: N = rows * columns patch tokens of an image, K kept ones, n boxes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import to_pil_image

from toe_train import data
from toe_train.analysis.viewer import Look, Photo, Viewer
from toe_train.build.box_prediction import FoundObjects, chosen
from toe_train.expansion import kept_mask
from toe_train.methods.pictures import enlarged, hatched
from toe_train.tasks.box_pictures import with_boxes
from toe_train.tasks.detection import postprocess

SHOWN_SIDE = 448  # pixels of an image in the picture, at least
NAMED = 28  # letters of a name in a caption
RIGHT, WRONG = "tab:green", "tab:red"
CELL = (3.0, 4.2)  # inches of an image's width in the picture: a classifier's, a detector's


class Cell(NamedTuple):
    """One image of the picture.

    Attributes:
        picture: (3, h, w) in 0..1, or a PIL image.
        caption: below it.
        colour: of the caption.
        lines: between patches, as ends (column, row); see `borders`.
    """

    picture: Any
    caption: str
    colour: str = "black"
    lines: Sequence[Any] = ()


def draw_kept(viewer: Viewer, least_score: float) -> Any:
    """A matplotlib figure: a row for each image; the image, then what each stage keeps and merges.

    least_score: of the boxes that are drawn, where the model is a detector.
    """
    from matplotlib.figure import Figure

    titles = ["with all tokens"]
    for stage in viewer.stages:
        titles += [f"stage {stage}: kept", f"stage {stage}: merged"]
    rows = [_row(viewer, photo, least_score) for photo in viewer.photos]
    width = CELL[viewer.finds_boxes]
    heights = [width * photo.grid[0] / photo.grid[1] + 0.45 for photo in viewer.photos]
    figure = Figure(figsize=(width * len(titles) + 0.3, sum(heights) + 0.9), layout="constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False, height_ratios=heights)
    for places, cells, photo in zip(axes, rows, viewer.photos, strict=True):
        for place, cell in zip(places, cells, strict=True):
            _draw(place, cell, photo.grid)
        places[0].set_ylabel(photo.name[:NAMED], fontsize="small", parse_math=False)
    for place, title in zip(axes[0], titles, strict=True):
        place.set_title(title, fontsize="medium")
    figure.supxlabel(textwrap.fill(_legend(viewer), 34 * len(titles)), fontsize="small")
    return figure


def _row(viewer: Viewer, photo: Photo, least_score: float) -> list[Cell]:
    """The image, then two cells for each stage in which tokens are dropped."""
    whole = viewer.look(photo)
    if viewer.finds_boxes:
        found = _found(photo, whole, least_score)
        cells = [Cell(_with_boxes(photo.picture, photo, found, viewer.classes), _said_of_boxes(found, least_score))]
    else:
        found = None
        cells = [Cell(photo.picture, *_said(viewer, photo, whole, named=True))]
    for stage in viewer.stages:
        look = viewer.look(photo, stage)
        kept, merged, lines = kept_and_merged(photo, look)
        assert look.kept is not None
        share = f"{len(look.kept)} of {photo.num_tokens} tokens"
        if found is None:
            said, colour = _said(viewer, photo, look)
            cells.append(Cell(kept, "\n".join(filter(None, (share, said))), colour))
        else:
            inside = _share_inside(photo, look.kept, found.boxes)
            again = len(_found(photo, look, least_score).scores)
            text = f"{share}{inside}\n{again} boxes with these tokens"
            cells.append(Cell(_with_boxes(kept, photo, found, None), text))
        most = torch.bincount(look.owner).max().item() if look.owner is not None else 1
        largest = f"the largest of {most} patches" if look.owner is not None else "nothing is merged"
        cells.append(Cell(merged, f"{len(look.kept)} tokens, {largest}", lines=lines))
    return cells


def _draw(place: Any, cell: Cell, grid: tuple[int, int]) -> None:
    from matplotlib.collections import LineCollection

    shown = cell.picture if isinstance(cell.picture, Image.Image) else cell.picture.permute(1, 2, 0).numpy()
    place.imshow(shown, extent=(0, grid[1], grid[0], 0))
    for width, colour in ((1.8, "black"), (0.7, "white")):  # seen on dark and on bright patches
        lines = LineCollection(cell.lines, linewidths=width, colors=colour, capstyle="projecting")
        place.add_collection(lines, autolim=False)
    place.set(xticks=[], yticks=[])
    place.set_xlabel(cell.caption, fontsize="small", color=cell.colour, parse_math=False)


def kept_and_merged(photo: Photo, look: Look) -> tuple[Tensor, Tensor, list[Any]]:
    """Two pictures (3, h, w) in 0..1 of what a stage does, and lines for the second.

    In the first, patches that are not kept are hatched. In the second, all patches that became one token have their
    mean colour, and lines are around them; without merging, those that are left out are hatched too.
    """
    assert look.kept is not None
    keeps = kept_mask(look.kept[None], photo.num_tokens)  # (1, N)
    large = enlarged(photo.picture[None], SHOWN_SIDE)  # (1, 3, h, w)
    groups = _slots(look.kept, photo.num_tokens) if look.owner is None else look.owner  # (N,), -1 for none
    colours = F.adaptive_avg_pool2d(photo.picture, photo.grid).flatten(1)  # (3, N)
    members = F.one_hot(groups + 1, len(look.kept) + 1).float()  # (N, K+1)
    means = (colours @ members) / members.sum(0).clamp(min=1)  # (3, K+1)
    painted = (means @ members.T).unflatten(1, photo.grid)[None]  # (1, 3, rows, columns)
    merged = F.interpolate(painted, size=large.shape[-2:], mode="nearest")
    if look.owner is None:
        merged = hatched(merged, keeps, photo.grid)
    return hatched(large, keeps, photo.grid)[0], merged[0], borders(groups.view(photo.grid))


def borders(groups: Tensor) -> list[Any]:
    """Lines between neighbours of different groups (rows, columns), as pairs of (column, row); and around them all."""
    rows, columns = groups.shape
    outside = F.pad(groups, (1, 1, 1, 1), value=-2)  # no group
    upright = (outside[1:-1, 1:] != outside[1:-1, :-1]).nonzero().tolist()
    level = (outside[1:, 1:-1] != outside[:-1, 1:-1]).nonzero().tolist()
    assert groups.numel() == rows * columns
    return [((x, y), (x, y + 1)) for y, x in upright] + [((x, y), (x + 1, y)) for y, x in level]


def _slots(kept: Tensor, num_tokens: int) -> Tensor:
    """(K,) positions -> (N,): the place of a kept token among them, -1 for the others."""
    return torch.full((num_tokens,), -1).scatter(0, kept, torch.arange(len(kept)))


def _said(viewer: Viewer, photo: Photo, look: Look, named: bool = False) -> tuple[str, str]:
    """What a classifier takes a photo for, and a colour that says whether it is right.

    named: with the class, which the folder's name tells where it is one.
    """
    if not viewer.classes:
        return "", "black"
    probability, index = look.output.float().softmax(1).max(1)
    taken = viewer.classes[int(index)]
    text = f"taken for {_short(taken)}, {100 * probability.item():.0f} %"
    if photo.folder not in viewer.classes:
        return text, "black"
    return f"is {_short(photo.folder)}\n{text}" if named else text, RIGHT if taken == photo.folder else WRONG


def _found(photo: Photo, look: Look, least_score: float) -> FoundObjects:
    """The boxes of a photo, in pixels of its picture."""
    (logits, boxes), (height, width) = look.output, photo.picture.shape[-2:]
    found = postprocess(logits, boxes, torch.tensor([[height, width]]))[0]
    return chosen(photo.name, (height, width), found, least_score)


def _with_boxes(picture: Tensor, photo: Photo, found: FoundObjects, classes: Sequence[str] | None) -> Image.Image:
    """A picture of a photo with its boxes; with `classes` each has its name and score."""
    texts = [""] * len(found.labels)
    if classes is not None:
        texts = [
            f"{_short(classes[label])} {score:.2f}" for label, score in zip(found.labels, found.scores, strict=True)
        ]
    factor = picture.shape[-1] / photo.picture.shape[-1]
    return with_boxes(to_pil_image(picture), found.boxes * factor, found.labels, texts, SHOWN_SIDE)


def _said_of_boxes(found: FoundObjects, least_score: float) -> str:
    if found.fault is not None:
        return found.fault
    highest = "" if found.scores else f"; the highest is {found.highest:.2f}"
    return f"{len(found.scores)} boxes of a score of {least_score:g} or more{highest}"


def _share_inside(photo: Photo, kept: Tensor, boxes: Tensor) -> str:
    """Which share of the patches whose middles lie within boxes is kept, in words; none where there are none."""
    rows, columns = photo.grid
    side = photo.picture.shape[-1] / columns
    down, across = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
    middles = torch.stack([across, down], dim=2).view(-1, 1, 2) * side  # (N, 1, 2)
    inside = ((middles >= boxes[:, :2]) & (middles <= boxes[:, 2:])).all(2).any(1)  # (N,)
    if not inside.any():
        return ""
    return f", {100 * inside[kept].sum().item() / inside.sum().item():.0f} % of those in boxes"


def _short(name: str) -> str:
    legible = data.legible(name)
    return legible if len(legible) <= NAMED else f"{legible[: NAMED - 1]}…"


def _legend(viewer: Viewer) -> str:
    """What is to be seen, in words."""
    merging = viewer.expansion.merging
    dropped = "merged into the nearest kept one" if merging else "left out"
    second = (
        "Right of it: patches that became one token have their mean colour and a line around them."
        if merging
        else "Right of it: the mean colours of the kept ones."
    )
    return (
        f"Hatched: patches whose tokens are dropped in the stage and {dropped}. {second} An evaluation takes all "
        "tokens, as in the first column; below a stage stands what the model says with the tokens of that stage."
    )
