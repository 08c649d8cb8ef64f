"""What of a run follows the number of its images: the batch, with train.global_batch=auto, and by it the rates."""

from __future__ import annotations

from toe_train.errors import UserError
from toe_train.recipes.fields import AUTO
from toe_train.recipes.oddities import refusals
from toe_train.recipes.schema import MOST_OF_AUTO, RunConfig

LEAST = 8  # images of a step: fewer make a gradient of little but noise
STEPS = 8  # that an epoch has at least, where it can


def batch_of(images: int) -> int:
    """The global batch for a number of training images: a power of two that leaves an epoch 8 steps.

    It is 128 at most, and 8 at least, or all of fewer images.
    """
    most = max(min(images, LEAST), min(images // STEPS, MOST_OF_AUTO))
    return 1 << max(most.bit_length() - 1, 0)


def of_images(config: RunConfig, images: int) -> RunConfig:
    """The run with its batch as a number, see `batch_of`; the learning rate follows by `optim.lr_base_batch`.

    Raises:
        UserError: with that number the plan means nothing.
    """
    if config.train.global_batch != AUTO:
        return config
    batch = batch_of(images)
    now = config.model_copy(update={"train": config.train.model_copy(update={"global_batch": batch})})
    if lines := refusals(now):
        raise UserError("\n".join([*lines, f"train.global_batch=auto is {batch} for {images} training images"]))
    return now
