"""What the sections of the YAML file are made of: their base class, the types of their values, and marks on fields."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    model_validator,
)

from toe_train.errors import is_text


@dataclass(frozen=True)
class Mark:
    """Says something of a field, in its annotation."""

    meaning: str


@dataclass(frozen=True)
class Forms:
    """Values of a field of which one in the place of another makes no other experiment; the first stands for all."""

    values: tuple[str, ...]


INCIDENTAL = Mark("another value, after a restart or on another machine, makes no other experiment of a run")
OF_WEIGHTS = Mark("null, as if it were not given, leaves it to the weights that the run starts from")
PATH = Mark("a path, which older runs may hold relative to some folder")


def _none_of_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


def _absolute(path: str) -> str:
    """The path from the root, so that it means the same in every folder; a shell expands no ~ behind a =."""
    if not path:
        raise ValueError("must be a path, and is empty; name one (`.` is the folder that you are in)")
    whole = os.path.abspath(os.path.expanduser(path))
    if not is_text(whole):  # the folder that a relative one counts from, for one
        shown = os.fsencode(whole).decode(errors="backslashreplace")
        raise ValueError(
            f"comes to {shown}, which holds bytes that are no text, and a configuration is text: rename the folder or "
            "file, or give a link to it (ln -s) by its path from the root"
        )
    return whole


def _weights(source: str) -> str:
    if source in (TIMM, TIMM_OR_NEW, NEW):
        return source
    return _model(source) if source.startswith(HF) else _absolute(source)


def _model(name: str) -> str:
    """A model's name; of one in a folder with the path from the root."""
    place = name.removeprefix(HF)
    if name.startswith(HF) and (place.startswith((".", "/", "~")) or os.path.isdir(place) or not place):
        return HF + _absolute(place)
    return name


TIMM = "timm"  # in place of a path of weights: timm's pre-trained ones
TIMM_OR_NEW = "timm_or_new"  # the same, and new ones where they are not at hand
NEW = "new"  # new ones, for a model that has its own
HF = "hf:"  # before a folder or a name on the hub: a model of transformers, or its weights

# YAML's true would otherwise count as 1.
Integer = Annotated[int, BeforeValidator(_none_of_bool)]
Number = Annotated[float, BeforeValidator(_none_of_bool), Field(allow_inf_nan=False)]
PositiveInteger = Annotated[Integer, Field(gt=0)]
Probability = Annotated[Number, Field(ge=0, le=1)]
BelowOne = Annotated[Number, Field(ge=0, lt=1)]
NonNegative = Annotated[Number, Field(ge=0)]
Positive = Annotated[Number, Field(gt=0)]


def _size(value: Any) -> Size:
    sides = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(sides) not in (1, 2) or any(isinstance(side, bool) or not isinstance(side, int) for side in sides):
        raise ValueError("must be a side in pixels such as 224, or for task.kind=detection height and width")
    if min(sides) < 1:
        raise ValueError("must be greater than 0")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


Size = int | tuple[int, int]  # of an image in pixels: a square's side, or height and width
ImageSize = Annotated[
    Size, PlainValidator(_size), PlainSerializer(lambda size: size if isinstance(size, int) else list(size))
]


AUTO: Literal["auto"] = "auto"


def _batch(value: Any) -> int | Literal["auto"]:
    if value == AUTO:
        return AUTO
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("must be a number of images, or auto, which follows the number of training images")
    if value < 1:
        raise ValueError("should be greater than 0")
    return value


GlobalBatch = Annotated[int | Literal["auto"], PlainValidator(_batch)]


def side_of(size: Size) -> int:
    """The side of an image that is a square, as all but those with boxes are."""
    assert isinstance(size, int), size
    return size


def sides_of(size: Size) -> tuple[int, int]:
    """Height and width in pixels of an image's size, which as one number is a square's side."""
    return (size, size) if isinstance(size, int) else size


# A relative path counts from the folder that the command runs in, and is kept absolute: a run's config.yaml means the
# same anywhere.
Folder = Annotated[str, AfterValidator(_absolute)]
PathBelow = Annotated[str, Field(min_length=1)]  # some other folder
Weights = Annotated[str, AfterValidator(_weights)]
ModelName = Annotated[str, AfterValidator(_model)]

Interpolation = Literal["bicubic", "bilinear", "nearest", "lanczos", "random"]


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, no protected names (a section is called `model`)."""

    @classmethod
    def of_weights(cls) -> list[str]:
        """The fields that are marked `OF_WEIGHTS`."""
        return [name for name, field in cls.model_fields.items() if OF_WEIGHTS in field.metadata]

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), str_strip_whitespace=True)

    @model_validator(mode="before")
    @classmethod
    def _left_to_the_weights(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if value is not None or key not in cls.of_weights()}
