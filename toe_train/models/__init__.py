"""Models by name: timm's, the project's own beside them, and transformers' by `hf:` and a folder or name."""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import Any

import timm
from torch import nn

from toe_train.errors import UserError
from toe_train.models import huggingface
from toe_train.models.blocks import PlainAttention, PlainPerceptron, blocks_of, why_not_plain
from toe_train.models.drop_path import GivenDraws, give_drop_path, switch_off
from toe_train.models.dropout import give_dropout
from toe_train.models.huggingface import TransformersClassifier
from toe_train.models.lvvit import LvVit
from toe_train.models.mix_token import TokenMix, draw_box, no_mix, swap_in_boxes
from toe_train.models.positions import resize_positions
from toe_train.models.pretrained import PREFIX
from toe_train.models.yolos import Yolos

__all__ = [
    "PREFIX",
    "GivenDraws",
    "LvVit",
    "PlainAttention",
    "PlainPerceptron",
    "TokenMix",
    "TransformersClassifier",
    "Yolos",
    "blocks_of",
    "create_model",
    "draw_box",
    "give_drop_path",
    "give_dropout",
    "no_mix",
    "resize_positions",
    "swap_in_boxes",
    "switch_off",
    "why_not_plain",
]


def create_model(
    name: str,
    num_classes: int,
    drop_path_rate: float = 0.0,
    img_size: int | tuple[int, int] = 224,
    **kwargs: Any,
) -> nn.Module:
    """A freshly initialised model.

    Args:
        name: any name that `timm.create_model` knows; importing this package adds lvvit_t, _s, _m and _l, and
            yolos_tiny, _small, _small_dwr and _base to them. Or `hf:` and a folder, or a name on the hub, of
            transformers, see `huggingface.create`.
        num_classes: width of the classifier.
        drop_path_rate: of the last block; linear from 0 over the blocks.
        img_size: side of the square input in pixels, or its height and width.
        kwargs: passed to the model's constructor, e.g. `patch_size=4`.

    Raises:
        UserError: unknown name, or arguments that the model does not take.
    """
    if name.startswith(PREFIX):
        assert isinstance(img_size, int), img_size
        return huggingface.create(name, num_classes, drop_path_rate, img_size, **kwargs)
    plain = name.partition(".")[0]
    if plain != name and timm.is_model(plain):
        raise UserError(
            f"model.name = {name!r} names weights too; use {plain!r}, and model.initial_weights=timm for them"
        )
    if not timm.is_model(name):
        raise UserError(f"model.name = {name!r}: there is no such model{_nearest_models(name)}")
    # Of YOLOS: the image's size, and no such positions. timm leaves out what is None.
    for key, meant in (("init_size", img_size), ("mid_size", ())):
        if key in kwargs and kwargs[key] is None:
            kwargs[key] = meant
    try:
        return timm.create_model(
            name, num_classes=num_classes, drop_path_rate=drop_path_rate, img_size=img_size, **kwargs
        )
    except Exception as error:  # whatever a constructor makes of arguments that do not fit
        given = {"img_size": img_size, "drop_path_rate": drop_path_rate, **kwargs}
        reason = f"{type(error).__name__}: {error}"
        if "'img_size'" in reason:
            reason = "it takes no img_size, so it is not a plain vision transformer such as deit_tiny_patch16_224"
        raise UserError(
            f"model.name = {name}: cannot be built with {given}: {reason}; mend model.image_size or model.kwargs"
        ) from error


def _nearest_models(name: str) -> str:
    """A hint at the three models whose names come nearest, or begin nearest: users leave the sizes at the end out."""

    def likeness(model: str) -> tuple[float, float]:
        begin, whole = (SequenceMatcher(None, name, model[:end]).ratio() for end in (len(name), None))
        return max(begin, whole), whole

    near = [model for model in sorted(timm.list_models(), key=likeness, reverse=True)[:3] if likeness(model)[0] >= 0.5]
    return f"; did you mean {' or '.join(near)}?" if near else "; timm.list_models() lists them"
