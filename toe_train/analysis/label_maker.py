"""Label files from a teacher: its classifier at each place of its last feature map (TokenLabeling generate_label.py).

Shapes: B images, h x w places of the teacher's last feature map, C its width, K classes, k candidates kept.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from tqdm import tqdm

from toe_train import data
from toe_train.analysis.teacher import Teacher
from toe_train.data import LabelRecord, label_name, shorten
from toe_train.errors import RunFailed, UserError
from toe_train.runs.processes import Processes
from toe_train.training.precision import Precision, autocast_on

CANDIDATES = 5  # as published
LARGEST_EXACT = 2048  # float16 holds all whole numbers up to this one


@dataclass(frozen=True)
class Made:
    """What `make_labels` did, over all processes: files made, and files that were there already."""

    made: int
    skipped: int


def dense_logits(model: nn.Module, images: Tensor) -> Tensor:
    """What a timm classifier says of each place of its last feature map: (B, 3, S, S) -> (B, h, w, K).

    Each place goes through the model's own head as if the whole image looked like it: pooling over one place changes
    nothing, then norm and classifier act as always. A head that is linear in the features therefore gives its usual
    logits as the mean over the places. Where the model has a head for its patch tokens (LV-ViT), that one is used.

    Raises:
        UserError: the features are neither a map nor the tokens of a plain grid.
    """
    features = model.forward_features(images)  # type: ignore[operator]
    width = int(model.num_features)  # type: ignore[arg-type]
    if isinstance(features, Tensor) and features.ndim == 4 and width in (features.shape[1], features.shape[3]):
        is_channels_first = features.shape[1] == width
        places = features.permute(0, 2, 3, 1) if is_channels_first else features  # (B, h, w, C)
        single = places.reshape(-1, width, 1, 1) if is_channels_first else places.reshape(-1, 1, 1, width)
        return model.forward_head(single).view(*places.shape[:3], -1)  # type: ignore[operator]
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    prefix = getattr(model, "num_prefix_tokens", 1)
    if not isinstance(features, Tensor) or grid is None or features.shape[1:] != (prefix + grid[0] * grid[1], width):
        raise UserError(
            f"--teacher: {type(model).__name__} has no last feature map that its classifier could be applied to place "
            "by place; use a convolutional network, a ViT or a Swin"
        )
    places = features[:, prefix:].unflatten(1, grid)  # (B, h, w, C)
    if hasattr(model, "aux_head"):
        return model.aux_head(places)  # type: ignore[operator]
    # The prefix tokens' rows hold the place too, so that any pooling sees it alone.
    tokens = places.reshape(-1, 1, width).expand(-1, prefix + 1, -1)
    return model.forward_head(tokens).view(*places.shape[:3], -1)  # type: ignore[operator]


def make_labels(
    images: data.IndexedImages,
    output: Path,
    teacher: Teacher,
    geometry: str,
    batch: int,
    workers: int,
    precision: Precision,
    here: Processes,
    progress: bool = False,
) -> Made:
    """Write a label file for each image of a folder of class folders, or of archives; each process makes its share.

    A file has its name only once it is whole, and whole files are left alone, so the same command continues what was
    broken off. `output` also gets the record that `toe-tools doctor` compares with the run.

    Args:
        images: of the folder, e.g. ImageNet's train.
        output: holds <class>/<image>.pt in the end.
        teacher: on the CPU or on `here.device`, where it is moved.
        geometry: "full" squashes the whole image to the teacher's square input, so a map covers all of it;
            "center_crop" resizes the shorter side and cuts out the central square, as LV-ViT's generator does.
        batch: images per process and forward pass.
        workers: loader processes per process.
        precision: of the forward pass.
        here: this process among its fellows.
        progress: show a bar.

    Raises:
        UserError: an image that cannot be read (it is named), images that would share a label file, or an `output`
            that holds label files made otherwise.
        RunFailed: scores that float16 does not hold, or a full disk.
    """
    if len(images.classes) > LARGEST_EXACT:
        raise UserError(
            f"{len(images.classes)} classes: label files hold ids as float16, up to {LARGEST_EXACT} classes"
        )
    paths = _label_paths(images, output)
    record = LabelRecord(
        teacher.name, teacher.weights, teacher.image_size, geometry, images.classes, images.exif_orientation
    )
    here.main_only(lambda: _prepare(output, record))
    share = data.evaluation_indices(len(images), here.rank, here.world_size)
    shown = progress and here.is_main
    looking = tqdm(share, desc="looking for made ones", unit="file", disable=not shown)
    todo = [index for index in looking if not _is_whole(paths[index], len(images.classes))]
    transform = create_transform(
        teacher.image_size,
        crop_pct=1.0,
        crop_mode="squash" if geometry == "full" else "center",
        interpolation=teacher.interpolation,
        mean=teacher.mean,
        std=teacher.std,
    )
    pin = here.device.type == "cuda"
    batches = data.eval_loader(data.EvalSet(images, data.cutting_thin_ones(transform)), todo, batch, workers, pin)
    model = teacher.model.to(here.device).eval()
    left = iter(todo)
    bar = tqdm(desc="making labels", unit="file", total=len(todo), disable=not shown)
    with torch.inference_mode(), batches.watching(), bar:
        for pictures, _ in batches:
            with autocast_on(here.device, precision):
                logits = dense_logits(model, pictures.to(here.device, non_blocking=True))
            for labels in label_tensors(logits).cpu():
                index = next(left)
                _require_finite(labels, images.describe(index))
                _save(paths[index], labels)
            bar.update(len(pictures))
    made = sum(here.gather(len(todo)))
    return Made(made, len(images) - made)


def label_tensors(logits: Tensor) -> Tensor:
    """The content of the label files of a batch: (B, h, w, K) -> (B, 2, k, h, w) float16, scores and class ids."""
    scores, ids = logits.float().topk(min(CANDIDATES, logits.shape[3]), dim=3)  # (B, h, w, k)
    return torch.stack([scores.half(), ids.half()], dim=1).permute(0, 1, 4, 2, 3).contiguous()


def _label_paths(images: data.IndexedImages, output: Path) -> list[Path]:
    named = [Path(images.describe(index)) for index in range(len(images))]
    classes = [images.classes[images.label(index)] for index in range(len(images))]
    paths = [output / name / label_name(image) for name, image in zip(classes, named, strict=True)]
    uses = Counter(paths)
    sharing = [str(image) for image, path in zip(named, paths, strict=True) if uses[path] > 1]
    if sharing:
        raise UserError(
            f"{len(sharing)} images would share a label file with another, as a name counts up to its first '.': "
            f"{shorten(sharing)}; rename them"
        )
    return paths


def _prepare(output: Path, record: LabelRecord) -> None:
    """Makes the folders; refuses a folder of label files that were made otherwise."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        former = LabelRecord.read(output)
        if former is None and any(output.iterdir()):
            raise UserError(
                f"--output {output} holds what `toe-tools labels` did not write: name an empty or a new folder"
            )
        if former is not None and former != record:
            before, now = asdict(former), asdict(record)
            differing = [key for key in now if before[key] != now[key]]
            told = [f"{key} {before[key]} there, {now[key]} now" for key in differing if key != "classes"]
            raise UserError(
                f"--output {output} holds label files that were made otherwise "
                f"({'; '.join(told) or 'of other classes'}): name another folder"
            )
        record.write(output)
        for name in record.classes:
            (output / name).mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written ({error.strerror}): choose another folder") from None


def _is_whole(path: Path, num_classes: int) -> bool:
    try:
        data.read_token_labels(path, num_classes)
    except UserError:
        return False
    return True


def _require_finite(labels: Tensor, image: str) -> None:
    if not labels.isfinite().all():
        raise RunFailed(
            f"the teacher's scores of {image} are not finite or beyond float16's 65504; what was made is whole. Use "
            "--precision fp32, or other weights"
        )


def _save(path: Path, labels: Tensor) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(labels.clone(), file)  # a view would bring the whole batch along
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch makes a RuntimeError of a full disk
        reason = getattr(error, "strerror", None) or error
        raise RunFailed(
            f"{path} cannot be written ({reason}); what was made is whole, and the same command continues with the rest"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
