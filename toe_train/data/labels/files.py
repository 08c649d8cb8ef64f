"""Token labels (LV-ViT): what a teacher sees in each part of an image, as soft targets for each patch token.

A label file holds, for each cell of a coarse map over one image, the teacher's best classes and their logits: one
float16 tensor [2, k, H, W], scores and class ids; the published ones have k = 5 and 18 x 18 cells (TokenLabeling
generate_label.py). It lies at <label root>/<class folder>/<image name up to the first '.'>.pt.

Shapes: k candidate classes of a cell, H x W cells of a map, K classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from toe_train.errors import NoMemory, UserError, host_memory

ALIGNMENTS = ("correct", "released")


class TokenMap(NamedTuple):
    """One image's label map: scores (k, H, W) float16, ids (k, H, W) int16."""

    scores: Tensor
    ids: Tensor


class TokenTarget(NamedTuple):
    """What a sample carries for its patch tokens, small enough for workers to send; batches stack each field.

    scores (k, H, W) float16 and ids (k, H, W) int16: the map, moved with the image. crop (4,) float32: top, left,
    height and width of what the sample shows, in shares of the map's sides; it may reach beyond the map. label: the
    image's class, int64, which LV-ViT's targets leave aside ("ground truth off").
    """

    scores: Tensor
    ids: Tensor
    crop: Tensor
    label: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> TokenTarget:
        """Return all fields on `device`."""
        return TokenTarget(*(field.to(device, non_blocking=non_blocking) for field in self))


class TokenLabelFiles:
    """The label files of an image folder's training images.

    root: folder of the label files. classes: names of the class folders, in the order of the labels.
    """

    def __init__(self, root: Path, classes: list[str]) -> None:
        self._root = root
        self._classes = classes
        self._first: tuple[Path, torch.Size] | None = None

    def path(self, image: str | Path, label: int) -> Path:
        """Return where the labels of an image file are."""
        return self._root / self._classes[label] / label_name(image)

    def read(self, image: str | Path, label: int) -> TokenMap:
        """Return the label map of an image file.

        Raises UserError as `read_token_labels` does, and for a map of another size than this process read before:
        a batch holds one size.
        """
        path = self.path(image, label)
        found = read_token_labels(path, len(self._classes))
        first, shape = self._first = self._first or (path, found.ids.shape)
        if found.ids.shape != shape:
            raise UserError(
                f"{path} holds labels of {_size(found.ids.shape)} and {first} of {_size(shape)}: all must be of one "
                "size; make them with one teacher at one image size (`toe-tools labels`)"
            )
        return found


def label_name(image: str | Path) -> str:
    """Return the name of an image's label file: the image's up to the first '.', and '.pt'."""
    return f"{Path(image).name.partition('.')[0]}.pt"


def read_token_labels(path: Path, num_classes: int) -> TokenMap:
    """Read a label file.

    Raises UserError naming it where it is missing, damaged, or not what the format says.
    """
    try:
        with host_memory():
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(
            f"label file {path} is missing: make it with `toe-tools labels`, or set token_labels.root to the folder "
            "that holds <class>/<image>.pt"
        ) from None
    except MemoryError:
        raise NoMemory(f"the memory does not hold label file {path}") from None
    except Exception as fault:  # on broken bytes torch raises nearly any kind
        reason = (str(fault).strip() or type(fault).__name__).splitlines()[0][:200]
        raise _unusable(path, f"it cannot be read: {reason}") from fault
    return _checked(path, content, num_classes)


def _checked(path: Path, content: Any, num_classes: int) -> TokenMap:
    if not isinstance(content, Tensor):
        raise _unusable(path, f"it holds a {type(content).__name__}, and must hold one tensor")
    if content.ndim != 4 or len(content) != 2 or not content.numel() or content.dtype != torch.float16:
        kind = f"{str(content.dtype).removeprefix('torch.')} {list(content.shape)}"
        raise _unusable(path, f"it holds {kind}, and must hold float16 [2, candidate classes, rows, columns]")
    scores, ids = content
    if not scores.isfinite().all():
        raise _unusable(path, "it holds scores that are not finite")
    low, high = ids.min().item(), ids.max().item()
    if not (low >= 0 and high < num_classes) or (ids != ids.round()).any():  # false for nan too
        raise _unusable(
            path,
            f"it holds class ids from {low:g} to {high:g}, and they must be whole numbers from 0 to {num_classes - 1}, "
            "the number of the data set's classes less one: the teacher must know the same classes",
        )
    return TokenMap(scores, ids.to(torch.int16))


def _unusable(path: Path, reason: str) -> UserError:
    return UserError(f"label file {path} cannot be used: {reason}; remove it and make it again with `toe-tools labels`")


def _size(shape: torch.Size) -> str:
    return f"{shape[1]} x {shape[2]} cells with {shape[0]} classes each"
