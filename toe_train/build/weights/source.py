"""Reads weights: a run's, a checkpoint of it, an exported folder, or a file that others published."""

from __future__ import annotations

import argparse
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from toe_train import data
from toe_train.build.weights.asked import Asked, listed
from toe_train.build.weights.unpack import unpack
from toe_train.errors import UserError
from toe_train.models import pretrained
from toe_train.runs import checkpoints, sealed
from toe_train.training.guard import not_finite

CARD = "config.json"  # of timm and the Hugging Face hub, beside the weights
FILES = ("model.safetensors", "pytorch_model.bin")  # of such a folder
SHARDED = tuple(f"{name}.index.json" for name in FILES)  # of transformers, where the weights are large
RUN_FILES = ("checkpoints/best.pt", "checkpoints/last.pt", "best.pt", "last.pt")  # of a run, the first that is there


@dataclass(frozen=True)
class Weights:
    """Weights by the names of the model's tensors, and what is known of them.

    Attributes:
        path: the file.
        tensors: on the CPU.
        told: what was done to find them, a line for each.
        run: the whole checkpoint, where it is one of toe-train's.
        classes: names of its classes, in the order of the head's outputs; None where the file does not tell.
        mean, std: of the normalisation that it was trained with, of images in 0..1; None where the file does not tell.
        grid: rows and columns of patches; None where the file does not tell.
        card: what stands in `config.json` beside it.
    """

    path: Path
    tensors: dict[str, Tensor]
    told: tuple[str, ...] = ()
    run: dict[str, Any] | None = None
    classes: list[str] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    grid: tuple[int, int] | None = None
    card: dict[str, Any] | None = None

    @property
    def head(self) -> Tensor | None:
        """(classes, D) of the classifier, timm's or transformers'; None where there is none."""
        return self.tensors.get("head.weight", self.tensors.get("classifier.weight"))


def locate(asked: Asked) -> Path:
    """The file that a path means: itself; of a run folder the best checkpoint; of an exported one its weights.

    Raises:
        UserError: there is no such file, or nothing of the kind in the folder.
    """
    path = Path(asked.path).expanduser()
    if path.suffix in (".yaml", ".yml"):
        run = path.parent if (path.parent / "checkpoints").is_dir() else Path("runs") / path.stem
        raise asked.fault(f"is a configuration and no trained model; give its run folder, such as {run}")
    if path.is_file():
        return path
    if not path.is_dir():
        raise asked.fault(
            "there is no such file; give a run folder, a checkpoint such as RUN/checkpoints/last.pt, or a file of "
            "weights (.pt, .pth, .safetensors)"
        )
    for name in (*RUN_FILES, *FILES, *SHARDED):
        if (path / name).is_file():
            return path / name
    raise asked.fault(
        f"is a folder with neither a run ({RUN_FILES[0]}) nor exported weights ({FILES[0]}); name the file in it"
    )


def is_of_a_run(path: Path) -> bool:
    """Whether a file was written by toe-train as a checkpoint, damaged or not."""
    return path.suffix != ".safetensors" and sealed.has_seal(path)


def read_weights(asked: Asked) -> Weights:
    """The weights that a user named; nothing in a file is run.

    Raises:
        UserError: no such file, one that is not of weights, no averaged ones where they are wanted, or numbers that are
            not finite.
    """
    weights = _read(asked)
    if packed := [key for key, value in weights.tensors.items() if value.layout != torch.strided or value.is_quantized]:
        raise asked.fault(
            f"these of its tensors are sparse or quantised: {listed(packed)}; give the weights before that"
        )
    if broken := not_finite(weights.tensors):
        raise asked.fault(f"these of its tensors hold numbers that are not finite: {listed(broken)}; give another file")
    return weights


def of_transformers(path: Path) -> bool:
    """Whether a file of weights lies in a folder that transformers wrote."""
    card = read_card(path.with_name(CARD)) if path.name in (*FILES, *SHARDED) else None
    return card is not None and "model_type" in card


def _read(asked: Asked) -> Weights:
    if asked.path.startswith(pretrained.PREFIX):
        return _of_transformers(asked.path, asked)
    path = locate(asked)
    if of_transformers(path):
        return _of_transformers(f"{pretrained.PREFIX}{path.absolute().parent}", asked)
    return _of_run(path, asked) if is_of_a_run(path) else _published(path, asked)


def _of_transformers(name: str, asked: Asked) -> Weights:
    if asked.averaged:
        raise asked.has_none()
    with data.seeded(0):  # a head that is missing is drawn, and thrown away
        found = pretrained.read_pretrained(name, asked.option)
    told = (f"dropped: {listed(found.unused)}",) if found.unused else ()
    return Weights(found.path, found.tensors, told, classes=found.classes, card=found.config)


def normalisation_note(weights: Weights, mean: tuple[float, ...], std: tuple[float, ...]) -> list[str]:
    """A line where weights were trained with another mean and std than are used now; none where that is not known."""
    if weights.mean is None or weights.std is None:
        return []
    theirs, ours = weights.mean + weights.std, mean + std
    if len(theirs) == len(ours) and all(abs(a - b) < 1e-3 for a, b in zip(theirs, ours, strict=True)):
        return []
    return [
        f"note: these weights were trained on images normalised with mean {list(weights.mean)} and std "
        f"{list(weights.std)}, and this run takes {list(mean)} and {list(std)}; "
        f'"augment.mean={list(weights.mean)}" "augment.std={list(weights.std)}" would be theirs'
    ]


def _of_run(path: Path, asked: Asked) -> Weights:
    try:
        run = checkpoints.read(path)
    except UserError as error:
        raise asked.fault(str(error)) from None
    tensors = run["ema" if asked.averaged else "model"]
    if tensors is None:
        raise asked.fault(
            f"holds no averaged weights (train.ema_decay was null), which {asked.how} asks for; use {asked.how_not}"
        )
    augment = run["config"]["augment"]
    told = ("taken: the averaged weights",) if asked.averaged else ()
    return Weights(path, dict(tensors), told, run, list(run["classes"]), tuple(augment["mean"]), tuple(augment["std"]))


def _published(path: Path, asked: Asked) -> Weights:
    tensors, told = unpack(_content(path, asked), asked)
    card = read_card(path.with_name(CARD)) if path.name in FILES else None
    known: dict[str, Any] = {}
    if card is not None:
        settings = card.get("pretrained_cfg", {})
        names = card.get("label_names") or settings.get("label_names")
        known["classes"] = [str(name) for name in names] if isinstance(names, list) else None
        for key in ("mean", "std"):
            if isinstance(settings.get(key), list):
                known[key] = tuple(float(value) for value in settings[key])
        patch, size = tensors.get("patch_embed.proj.weight"), settings.get("input_size")
        if patch is not None and patch.ndim == 4 and isinstance(size, list) and len(size) == 3:
            known["grid"] = (size[1] // patch.shape[2], size[2] // patch.shape[3])
    return Weights(path, tensors, tuple(told), card=card, **known)


def read_card(path: Path) -> dict[str, Any] | None:
    """The content of a config.json; None where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _content(path: Path, asked: Asked) -> Any:
    remedy = "give a checkpoint of toe-train, a state_dict (.pt, .pth) or safetensors"
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # DeiT, MAE and timm keep their options beside
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        kinds = _kinds(path)
        if kinds:
            raise asked.fault(
                f"holds objects that could run a program when they are loaded ({listed(kinds)}), which is never done; "
                "save the state_dict alone, where you trust the file"
            ) from None
        raise asked.fault(f"cannot be read as weights; {remedy}") from None
    except OSError as error:
        raise asked.fault(f"cannot be read ({error.strerror or error}); {remedy}") from None
    except MemoryError:
        raise
    except Exception as error:  # what a damaged or foreign file may raise is nearly any kind
        reason = " ".join(str(error).split())[:200]
        told = f" ({type(error).__name__}: {reason})" if " " in reason else ""  # a lone word or number says nothing
        raise asked.fault(f"cannot be read as weights{told}; {remedy}") from None


def _kinds(path: Path) -> list[str]:
    """What a file holds beside tensors and plain values; nothing where that cannot be told."""
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # whatever reading a damaged file raises
        return []
    return sorted(set(found) - {"argparse.Namespace"})
