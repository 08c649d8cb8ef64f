"""What TensorBoard shows of a run's images: what ToE keeps, where a stage begins; boxes, after each evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from toe_train import data
from toe_train.build.box_prediction import chosen
from toe_train.build.inputs import Images, build_eval_transform, build_finish, build_train_transform, patch_side
from toe_train.build.model import BuiltModel
from toe_train.methods.pictures import as_pictures, kept_token_pictures, sheet
from toe_train.methods.token_expansion import TokenExpansionMethod
from toe_train.recipes import EpochPlan, RunConfig, side_of
from toe_train.runs.log import RunLog
from toe_train.runs.processes import Processes
from toe_train.tasks.box_pictures import titled, with_boxes
from toe_train.tasks.boxes import corners
from toe_train.tasks.detection import postprocess
from toe_train.tasks.task import Task
from toe_train.tasks.token_labelling import token_targets
from toe_train.training.compiling import uncompiled
from toe_train.training.pictures import Pictures, SeveralPictures
from toe_train.training.precision import autocast_on

KEPT_TOKENS = "kept_tokens"  # tag of the pictures of what ToE keeps
PICTURES = 4  # images that are shown, large enough to be seen in TensorBoard's small cards
BOX_SIDE = 320  # pixels of the shorter side of an image with boxes, at least
LONGEST = 640  # of its longer side, at most


def build_pictures(
    config: RunConfig,
    plans: tuple[EpochPlan, ...],
    plan: EpochPlan,
    built: BuiltModel,
    task: Task,
    images: Images,
    skipped: data.SkippedImages | None,
    processes: Processes,
) -> Pictures:
    """What a run shows, on the main process.

    Args:
        config: that of the stage of the curriculum.
        plans: of the run.
        plan: of the trainer's first epoch.
        built: the model.
        task: that it learns.
        images: train and val.
        skipped: where unreadable ones are noted.
        processes: of which the main one draws.
    """
    shown: list[Pictures] = []
    if processes.is_main and config.task_kind == "detection":
        eval_set = task.eval_set(images[1], build_eval_transform(config), skipped)
        assert isinstance(eval_set, data.BoxEvalSet)
        scenes = Scenes(eval_set, images[1].classes, config, processes.device)
        shown.append(BoxesFound(scenes, built.model, config))
        if isinstance(built.method, TokenExpansionMethod):
            of_scenes = partial(_kept_of_scenes, built, scenes, built.method, config)
            shown.append(KeptTokens(plans, built.method, of_scenes))
    elif processes.is_main and isinstance(built.method, TokenExpansionMethod):
        of_chosen = _kept_of_chosen(config, built, *_chosen(config, plan, built, task, images, skipped), processes)
        shown.append(KeptTokens(plans, built.method, of_chosen))
    return SeveralPictures(shown)


class KeptTokens(Pictures):
    """What ToE keeps, in the epochs with which a stage begins in which tokens are dropped.

    Args:
        plans: of the run.
        method: of the model.
        draw: gives the picture at the method's stage.
    """

    def __init__(
        self, plans: Sequence[EpochPlan], method: TokenExpansionMethod, draw: Callable[[], Tensor | None]
    ) -> None:
        self._plans = plans
        self._schedule = method.expansion.schedule
        self._draw = draw

    def begin(self, plan: EpochPlan, log: RunLog) -> None:
        former = self._plans[plan.epoch - 1].stage if plan.epoch else None
        if plan.stage == former or self._schedule.is_dense(plan.stage):
            return
        with uncompiled():
            picture = self._draw()
        if picture is not None:
            log.picture(KEPT_TOKENS, picture, plan.epoch)


class Scenes:
    """A few evaluation images with boxes, read anew each time, since they are large."""

    def __init__(
        self, eval_set: data.BoxEvalSet, classes: Sequence[str], config: RunConfig, device: torch.device
    ) -> None:
        self._eval_set = eval_set
        self._chosen = _spread(len(eval_set))
        self._config = config
        self.classes = [data.legible(name) for name in classes]
        self.device = device

    def seen(self) -> list[data.Seen]:
        """Those that can be read."""
        scenes = [self._eval_set[index] for index in self._chosen]
        return [one for one in scenes if one.index != data.NOT_COUNTED]

    def pixels(self, seen: data.Seen) -> Tensor:
        """(3, H, W) in 0..1."""
        return as_pictures(seen.image, self._config.augment.mean, self._config.augment.std)


class BoxesFound(Pictures):
    """After each evaluation the true boxes of a few images, and beside them as many that the model finds."""

    def __init__(self, scenes: Scenes, model: nn.Module, config: RunConfig) -> None:
        self._scenes = scenes
        self._model = model
        self._autocast = autocast_on(scenes.device, config.train.precision)

    @torch.no_grad()
    def evaluated(self, plan: EpochPlan, log: RunLog) -> None:
        was_training = self._model.training
        self._model.eval()
        with uncompiled(), self._autocast:
            drawn = [picture for seen in self._scenes.seen() for picture in self._pair(seen)]
        self._model.train(was_training)
        if drawn:
            log.picture("boxes", sheet(drawn, columns=2), plan.epoch)

    def _pair(self, seen: data.Seen) -> list[Tensor]:
        """An image (3, h, w) with its true boxes, and with those of the highest scores, as many of them."""
        pixels, classes = self._scenes.pixels(seen), self._scenes.classes
        height, width = pixels.shape[-2:]
        most = torch.tensor([width, height, width, height])
        true, labels = corners(seen.objects.boxes) * most, seen.objects.labels.tolist()
        logits, boxes = self._model(seen.image[None].to(self._scenes.device))
        everything = postprocess(logits, boxes, torch.tensor([[height, width]]))[0]
        on_cpu = {name: value.cpu() for name, value in everything.items()}
        found = chosen("", (height, width), on_cpu, 0.0, max(1, len(labels)))
        texts = [f"{classes[label]} {score:.2f}" for label, score in zip(found.labels, found.scores, strict=True)]
        image = to_pil_image(pixels)
        pictures = (
            titled(
                with_boxes(image, true, labels, [classes[label] for label in labels], BOX_SIDE), f"true: {len(labels)}"
            ),
            titled(with_boxes(image, found.boxes, found.labels, texts, BOX_SIDE), f"found: the best {len(texts)}"),
        )
        for picture in pictures:
            picture.thumbnail((LONGEST, LONGEST))
        return [pil_to_tensor(picture) / 255 for picture in pictures]


def _kept_of_scenes(
    built: BuiltModel, scenes: Scenes, method: TokenExpansionMethod, config: RunConfig
) -> Tensor | None:
    side, drawn = patch_side(config), []
    for seen in scenes.seen():
        grid = seen.image.shape[1] // side, seen.image.shape[2] // side
        drawn.append(_kept(built.model, method, seen.image[None].to(scenes.device), grid, config)[0].cpu())
    return sheet(drawn, columns=2) if drawn else None


def _kept_of_chosen(
    config: RunConfig, built: BuiltModel, images: Tensor, targets: Tensor | None, processes: Processes
) -> Callable[[], Tensor]:
    noise = torch.rand(len(images), built.num_tokens, generator=data.generator(config.seed, "pictures"))
    shown, noise = images.to(processes.device), noise.to(processes.device)
    of_patches = None if targets is None else targets.to(processes.device)

    def draw() -> Tensor:
        method = built.method
        assert isinstance(method, TokenExpansionMethod)
        drawn = _kept(built.model, method, shown, built.grid, config, noise, of_patches)
        return sheet(list(drawn), columns=2 if of_patches is None else 1)

    return draw


def _kept(
    model: nn.Module,
    method: TokenExpansionMethod,
    images: Tensor,
    grid: tuple[int, int],
    config: RunConfig,
    noise: Tensor | None = None,
    patch_targets: Tensor | None = None,
) -> Tensor:
    """See `kept_token_pictures`."""
    normal = config.augment.mean, config.augment.std
    return kept_token_pictures(model, method.expansion, images, grid, *normal, noise=noise, patch_targets=patch_targets)


def _spread(count: int) -> range:
    """A few indices, spread over all."""
    return range(0, count, max(1, count // PICTURES))[:PICTURES]


def _chosen(
    config: RunConfig,
    plan: EpochPlan,
    built: BuiltModel,
    task: Task,
    images: Images,
    skipped: data.SkippedImages | None,
) -> tuple[Tensor, Tensor | None]:
    """Images as the model sees them, and their patches' targets where the task has such.

    With token labels they are training images, which alone have labels, as the first epoch may show them.
    """
    train_images, val_images = images
    labels = config.token_labels
    chosen = _spread(len(val_images) if labels is None else len(train_images))
    if labels is None:
        eval_set = task.eval_set(val_images, build_eval_transform(config, plan.loaded_size), skipped)
        whole = torch.stack([eval_set[index][0] for index in chosen])
        return data.low_frequency_crop(whole, side_of(plan.image_size)), None
    transform = build_train_transform(config, plan.loaded_size)
    train_set = task.train_set(train_images, transform, config.seed, skipped)
    pixels, (scores, ids, crop, _) = task.collate([train_set[data.SampleKey(index, 0, index)] for index in chosen])
    of_patches = token_targets(scores, ids, crop, len(train_images.classes), built.grid, 0.0, labels.alignment)[1]
    return build_finish(config)(pixels), of_patches
