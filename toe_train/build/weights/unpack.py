"""Where in a published file the weights lie: nested in a dictionary, or under a prefix of their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from toe_train.build.weights.asked import Asked, listed

# Names of a file's sections, the first that is there. DINO's published weights, and those that its own evaluation
# takes, are the teacher's, an average of the student's (facebookresearch/dino, utils.load_pretrained_weights).
RAW = ("model", "state_dict", "model_state_dict", "module", "teacher", "encoder", "backbone", "student", "net")
AVERAGED = ("model_ema", "state_dict_ema", "ema", "ema_state_dict", "ema_model", "teacher", "target_encoder")
ANCHOR = "blocks.0.norm1.weight"  # a tensor that every transformer here has
OTHER_PARTS = ("decoder", "predictor", "text", "transformer")  # first names of what has blocks and is not the encoder
WRAPPERS = {"module", "_orig_mod", "model", "backbone", "encoder"}
HEADS = ("head", "head_dist", "aux_head", "class_embed")
OF_LAYERS = ("class_embed", "bbox_embed")  # YOLOS's heads, the layers of which have numbers
MAX_DEPTH = 4  # sections within sections


def is_of_the_head(key: str) -> bool:
    """Whether a tensor belongs to a classifier: timm's, a distilled model's second, LV-ViT's for
    each patch, or YOLOS's."""
    return key.partition(".")[0] in HEADS


def unpack(content: Any, asked: Asked) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the model in a file, by the model's own names, and what was done to find them, in words.

    Args:
        content: what the file holds.
        asked: what the user named; decides between raw and averaged weights.

    Raises:
        UserError: there are none, no averaged ones where those are wanted, or several that nothing decides between.
    """
    told: list[str] = []
    path: list[str] = []
    found_average = False
    for _ in range(MAX_DEPTH):
        if not isinstance(content, Mapping):
            raise asked.fault(f"holds {type(content).__name__} and no state_dict; give a file of weights")
        if any(torch.is_tensor(value) for value in content.values()):
            break
        name = _section(content, asked, found_average, bool(path))
        found_average = found_average or name in AVERAGED
        others = [str(other) for other, value in content.items() if isinstance(value, Mapping) and other != name]
        path.append(name)
        told += [f"taken: {'.'.join(path)}" + (f", not {listed(others)}" if others else "")]
        content = content[name]
    tensors = {str(key): value for key, value in content.items() if torch.is_tensor(value)}
    if not tensors:
        raise asked.fault("holds no tensors; give a file of weights")
    if strangers := [str(key) for key, value in content.items() if not torch.is_tensor(value) and key != "_metadata"]:
        told.append(f"dropped: {listed(strangers)} (no tensors)")
    return _without_prefix(tensors, asked, found_average, told)


def _section(content: Mapping[Any, Any], asked: Asked, found_average: bool, inside: bool) -> str:
    """Name of the section to go on with."""
    present = [str(name) for name, value in content.items() if isinstance(value, Mapping) and _has_tensors(value)]
    averages = [name for name in AVERAGED if name in present]
    if asked.averaged and not found_average and averages:
        return averages[0]
    raw = [name for name in RAW if name in present]
    if raw:
        return raw[0]
    if averages and len(averages) == len(present) and not asked.averaged and not inside:
        raise asked.fault(f"holds averaged weights alone ({listed(averages)}); use {asked.how}")
    if len(present) == 1:
        return present[0]
    if not present:
        raise asked.fault("holds no tensors; give a file of weights")
    raise asked.fault(
        f"holds several sections ({listed(present)}), none of a known name; save the state_dict of the model alone"
    )


def _has_tensors(value: Mapping[Any, Any], depth: int = MAX_DEPTH) -> bool:
    return any(
        torch.is_tensor(inner) or (depth > 0 and isinstance(inner, Mapping) and _has_tensors(inner, depth - 1))
        for inner in value.values()
    )


def _without_prefix(
    tensors: dict[str, Tensor], asked: Asked, found_average: bool, told: list[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under the prefix of the encoder, without it, and a head that stands beside it."""
    prefixes = sorted(
        key.removesuffix(ANCHOR)
        for key in tensors
        if key == ANCHOR or (key.endswith("." + ANCHOR) and key.partition(".")[0] not in OTHER_PARTS)
    )
    encoders = [prefix for prefix in prefixes if not _is_another_part(prefix)]
    prefix = _choose(encoders, asked) if encoders else _wrapper(tensors)
    if asked.averaged and not found_average and not _is_average(prefix):
        raise asked.has_none()
    aside = tuple(other for other in encoders if other) if not prefix else ()
    found = {
        key.removeprefix(prefix): value
        for key, value in tensors.items()
        if key.startswith(prefix) and not key.startswith(aside)
    }
    if prefix:
        told.append(f"renamed: {len(found)} tensors, {prefix} taken off their names")
    left = []
    for key in tensors:
        if key.removeprefix(prefix) in found and key.startswith(prefix) and not key.startswith(aside):
            continue
        if (short := _beside(key, prefix)) is not None and short not in found:
            found[short] = tensors[key]
        else:
            left.append(key)
    if left:
        told.append(f"dropped: {len(left)} tensors that are not under {prefix or 'the model'} ({listed(left)})")
    return found, told


def _beside(key: str, prefix: str) -> str | None:
    """The name of a tensor of a head that stands beside the encoder, or beside a module around it; None of others."""
    parts = prefix.split(".")[:-1]
    for depth in range(len(parts)):
        around = "".join(f"{part}." for part in parts[:depth])
        short = key.removeprefix(around)
        first, _, rest = short.partition(".")
        if key.startswith(around) and (first in OF_LAYERS or (first in HEADS and "." not in rest)):
            return short
    return None


def _is_another_part(prefix: str) -> bool:
    """Whether blocks belong to something beside the encoder, or to one of its stages."""
    return any(part in OTHER_PARTS or part.isdigit() for part in prefix.split("."))


def _wrapper(tensors: dict[str, Tensor]) -> str:
    """The names of wrappers that all tensors have in front, in a network of another kind."""
    prefix = ""
    while True:
        first = {key.removeprefix(prefix).partition(".")[0] for key in tensors}
        if len(first) != 1 or not first <= WRAPPERS:
            return prefix
        prefix += f"{first.pop()}."


def _is_average(prefix: str) -> bool:
    return any(part in AVERAGED for part in prefix.split("."))


def _choose(prefixes: list[str], asked: Asked) -> str:
    """The prefix of the wanted weights."""
    averages = [prefix for prefix in prefixes if _is_average(prefix)]
    raw = [prefix for prefix in prefixes if prefix not in averages]
    teachers = [prefix for prefix in averages if "teacher" in prefix.split(".")]
    wanted = averages or raw if asked.averaged else teachers or raw
    if not wanted:
        raise asked.fault(f"holds averaged weights alone (under {listed(averages)}); use {asked.how}")
    if "" in wanted:
        return ""
    if len(wanted) > 1:
        raise asked.fault(f"holds several models, under {listed(wanted)}; save the state_dict of one of them alone")
    return wanted[0]
