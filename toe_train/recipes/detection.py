"""What a run learns, and the section of those that learn to find objects: sizes of images, and how they make batches.

The defaults are YOLOS-S's (hustvl/YOLOS at 5717fc2, datasets/coco.py, main.py).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import PlainSerializer, PlainValidator, ValidationInfo, field_validator

from toe_train.recipes.fields import PositiveInteger, Probability, Section

BALANCED: Literal["balanced"] = "balanced"


def _class_weights(value: Any) -> Literal["balanced"] | tuple[float, ...] | None:
    if value is None:
        return None
    if value == BALANCED:
        return BALANCED
    if not isinstance(value, (list, tuple)) or not all(_is_weight(one) for one in value) or not any(value):
        raise ValueError(
            "must be balanced, null, or a list with a number from 0 up for each class, not all 0, such as [1, 2.5]"
        )
    return tuple(map(float, value))


def _is_weight(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf")


ClassWeights = Annotated[
    Literal["balanced"] | tuple[float, ...] | None,
    PlainValidator(_class_weights),
    PlainSerializer(lambda value: list(value) if isinstance(value, tuple) else value),
]

TaskKind = Literal["classification", "token_labelling", "detection"]


class TaskConfig(Section):
    """What is learned."""

    # A class for each image; one for each of its parts too (LV-ViT), which token_labels asks for by itself; or objects
    # and their boxes (YOLOS).
    kind: TaskKind = "classification"
    # What each class's term of the loss is multiplied by: a list in the order of the classes, or balanced, by the
    # training images that they have; see `build.classes`.
    class_weights: ClassWeights = None


class DetectionConfig(Section):
    """Transforms and batches of images with boxes, in pixels; a side is rounded down to whole patches."""

    short_sides: tuple[PositiveInteger, ...] = tuple(range(480, 801, 16))  # of training images, one is drawn
    longest_side: PositiveInteger | None = 1333  # of training images; null: any
    # In place of resizing alone, with crop_prob: resize to a short side of crop_from, cut a part whose sides are drawn
    # from crop_sides (least, most), and resize that.
    crop_prob: Probability = 0.5
    crop_from: tuple[PositiveInteger, ...] = (400, 500, 600)
    crop_sides: tuple[PositiveInteger, PositiveInteger] = (384, 600)
    eval_short_side: PositiveInteger = 800
    eval_longest_side: PositiveInteger | None = 1333
    # Training images in a row that have like shapes and are brought to one size; a micro-batch holds at most so many.
    same_size: PositiveInteger = 1
    # Images of other sizes in a micro-batch, filled up with zeros that the model takes for image, as released; then
    # train.max_micro_batch alone limits it. A model that was trained so is evaluated without, as all are.
    padding: bool = False
    # Whether biases of the detection heads decay, as released.
    head_bias_decay: bool = True

    @field_validator("short_sides", "crop_from")
    @classmethod
    def _not_empty(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value:
            raise ValueError("must hold one size at least, such as [480, 512]")
        return value

    @field_validator("crop_sides")
    @classmethod
    def _ordered(cls, value: tuple[int, int], info: ValidationInfo) -> tuple[int, int]:
        if value[0] > value[1]:
            raise ValueError(f"must be [least, most]; {sorted(value)} would be in order")
        return value
