"""Brings weights into the form of a model, and tells what was renamed, resized, dropped or newly begun."""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
from torch import Tensor, nn

from toe_train.build.weights.asked import Asked, listed
from toe_train.build.weights.detector import ClassifierInside
from toe_train.build.weights.positions import POSITIONS, fit_prefix, layout_of, token_counts
from toe_train.build.weights.remedy import WORDS, fitting_model, tokens_in_words
from toe_train.build.weights.source import Weights
from toe_train.build.weights.unpack import is_of_the_head

# Names that others give to what timm names otherwise: DINOv2's registers, DeiT III's LayerScale.
NAMES = ((r"^register_tokens$", "reg_token"), (r"\.gamma_([12])$", r".ls\1.gamma"))
# What serves pre-training alone: MAE's decoder, the projections of DINO and iBOT, the token in place of hidden patches,
# and the layer before ImageNet-21k's head.
PRETRAINING = re.compile(r"^(mask_token|decoder|dino_head|ibot_head|predictor|pre_logits)([._]|$)")

Head = Literal["keep", "new"]


def fit(
    model: nn.Module | ClassifierInside,
    weights: Weights,
    name: str,
    asked: Asked,
    head: Head,
    why_new: str = "",
    exact: bool = False,
    optional: tuple[str, ...] = (),
) -> tuple[dict[str, Tensor], list[str]]:
    """A state_dict for the model, complete, and what was done to the weights, a line for each kind.

    Args:
        model: as it was built; what the weights do not have stays as it is there.
        weights: of another training.
        name: the model's, for messages.
        asked: what the user named.
        head: whether the classifier comes from the weights.
        why_new: where it does not, the reason.
        exact: refuses whatever changes what the trained model computes: a dropped token, or a part that is new.
        optional: beginnings of names that weights of another kind of model do not have; where they are missing they
            are new.

    Raises:
        UserError: they are another model's; with the model that fits, where that shows.
    """
    own = model.state_dict()
    told = list(weights.told)
    tensors = _renamed(weights.tensors, own, told)
    dropped = [key for key in tensors if key not in own and PRETRAINING.match(key)]
    theirs = {key: value for key, value in tensors.items() if key not in dropped}
    new = [key for key in own if is_of_the_head(key) and (head == "new" or key not in theirs)]
    # A classifier that the model does not have, as a second one, is no fault: nothing else depends on it.
    unused = [key for key in theirs if is_of_the_head(key) and (key in new or key not in own)]
    dropped += [key for key in unused if key not in own]
    fitted = {key: value for key, value in theirs.items() if key not in unused}
    tokens = [key for key in token_counts(fitted) if key not in own]
    missing = [key for key in token_counts(own) if key not in fitted]
    _require_tokens(model, fitted, own, name, asked, missing, tokens, exact)
    if POSITIONS in fitted and POSITIONS in own and _has_width(fitted[POSITIONS], own[POSITIONS]):
        fitted = fit_prefix(fitted, own, model, layout_of(fitted, weights.grid, model, asked), told)
    fitted = {key: value for key, value in fitted.items() if key not in tokens}
    dropped += tokens
    new += missing
    new += [key for key in own if key.startswith(optional) and key not in fitted and key not in new] if optional else []
    _take_unscaled(fitted, own, told)
    if "fc_norm.weight" in own and "fc_norm.weight" not in fitted and "norm.weight" in fitted and not exact:
        dropped += [key for key in ("norm.weight", "norm.bias") if fitted.pop(key, None) is not None]
        new += [key for key in own if key.startswith("fc_norm.")]
    _require_the_rest(fitted, own, new, weights.tensors, name, asked)
    if dropped:
        told.append(f"dropped: {_grouped(dropped)}" + _keeps(name, tokens, tensors, own))
    if new:
        told.append(f"new: {listed(new)}" + (f" ({why_new})" if why_new and any(map(is_of_the_head, new)) else ""))
    return {**own, **fitted}, told


def _renamed(tensors: dict[str, Tensor], own: dict[str, Tensor], told: list[str]) -> dict[str, Tensor]:
    renamed, count, example = {}, 0, ""
    for key, value in tensors.items():
        short = key
        for pattern, better in NAMES if key not in own else ():
            short = re.sub(pattern, better, short)
        if short != key:
            count, example = count + 1, example or f"{key} to {short}"
        renamed[short] = value
    if count:
        told.append(f"renamed: {example}" + (f", and {count - 1} more" if count > 1 else ""))
    return renamed


def _require_tokens(
    model: Any,
    fitted: dict[str, Tensor],
    own: dict[str, Tensor],
    name: str,
    asked: Asked,
    missing: list[str],
    tokens: list[str],
    exact: bool,
) -> None:
    """Refuses weights without the token that the model's output is read from, and where `exact` any other tokens."""
    reads_token = getattr(model, "global_pool", "token") == "token" and "cls_token" in missing
    is_a_model = any(key.startswith("blocks.") for key in fitted)
    if is_a_model and (reads_token or (exact and (missing or tokens))):
        fits = fitting_model(name, fitted, own)
        raise asked.fault(
            f"these weights have {tokens_in_words(fitted)}, and {name} as it is built here has {tokens_in_words(own)}"
            + (f"; give {fits}" if fits else "; give the model that they were trained as")
        )


def _has_width(theirs: Tensor, ours: Tensor) -> bool:
    return theirs.ndim == ours.ndim == 3 and theirs.shape[2] == ours.shape[2]


def _take_unscaled(fitted: dict[str, Tensor], own: dict[str, Tensor], told: list[str]) -> None:
    """Weights without LayerScale in a model with it: scales of one change nothing, and those of a new model nearly all.

    At 1e-5, the usual beginning, each trained block would be all but taken away.
    """
    scales = [key for key in own if re.search(r"\.ls[12]\.gamma$", key)]
    if scales and not any(key in fitted for key in scales):
        fitted.update({key: torch.ones_like(own[key]) for key in scales})
        told.append(f"set to one: {listed(scales)}, of which the weights have none (the same function)")


def _require_the_rest(
    fitted: dict[str, Tensor],
    own: dict[str, Tensor],
    new: list[str],
    source: dict[str, Tensor],
    name: str,
    asked: Asked,
) -> None:
    counters = [key for key in own if key.endswith(".num_batches_tracked")]  # which old files do not have
    faults = [f"{key} is missing" for key in own if key not in fitted and key not in (*new, *counters)]
    faults += [f"{key} is not the model's" for key in fitted if key not in own]
    faults += [
        f"{key} has shape {list(fitted[key].shape)} and not {list(own[key].shape)}"
        for key in own
        if key in fitted and fitted[key].shape != own[key].shape
    ]
    if not faults:
        return
    fits = fitting_model(name, fitted, own)
    remedy = fits if fits else "those of the same model.name and model.kwargs"
    raise asked.fault(
        f"these are not the weights of {name} as it is built here ({listed_faults(faults)}); give {remedy}"
    )


def listed_faults(faults: list[str]) -> str:
    """The first of them, and how many there are."""
    shown = "; ".join(faults[:5])
    return shown if len(faults) <= 5 else f"{shown}; and {len(faults) - 5} more"


def _grouped(keys: list[str]) -> str:
    """Names of tensors; many of one part by the part's name."""
    parts: dict[str, list[str]] = {}
    for key in keys:
        parts.setdefault(key.partition(".")[0], []).append(key)
    return ", ".join(
        name if found == [name] else f"{found[0]}" if len(found) == 1 else f"{name}.* ({len(found)} tensors)"
        for name, found in parts.items()
    )


def _keeps(name: str, tokens: list[str], tensors: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    """Which model keeps tokens that were dropped."""
    if not tokens:
        return ""
    words = " and ".join(WORDS[token] for token in tokens)
    fits = fitting_model(name, {key: value for key, value in tensors.items() if not is_of_the_head(key)}, own)
    return f"; so the {words} token is lost" + (f", which {fits} keeps" if fits else "")
