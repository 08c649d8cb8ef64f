"""What a folder of transformers, or a name on the Hugging Face hub, holds: architecture, weights, preprocessing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toe_train.errors import UserError
from toe_train.expansion import find_layout
from toe_train.models.hub import cached_file, hub_file, require_hub

PREFIX = "hf:"
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS = tuple(f"{stem}{end}" for end in ("", ".index.json") for stem in ("model.safetensors", "pytorch_model.bin"))
# Of a config.json, what is of the file and its classes and not of the architecture.
NOT_THE_ARCHITECTURE = ("id2label", "label2id", "num_labels", "transformers_version", "dtype", "torch_dtype")


@dataclass(frozen=True)
class Pretrained:
    """Weights of a folder or of the hub.

    Attributes:
        path: of the folder, or the name on the hub.
        tensors: by today's names of the model's, float32.
        missing: the model's that the files do not have.
        unused: of the files, those that the model does not have.
        config: what `read_architecture` gives, and the `name`.
        classes: names of the classifier's outputs; None where it is missing or they have no names.
    """

    path: Path
    tensors: dict[str, Tensor]
    missing: list[str]
    unused: list[str]
    config: dict[str, Any]
    classes: list[str] | None


def read_architecture(name: str) -> dict[str, Any]:
    """What config.json of a folder or of the hub says of the architecture.

    Raises:
        UserError: there is none, or it is not of transformers.
    """
    option = f"model.name = {name}"
    content = read_json(name, CONFIG)
    if content is None:
        raise UserError(f"{option}: there is no {CONFIG} in it; give a folder that save_pretrained wrote")
    if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
        raise UserError(
            f"{option}: its {CONFIG} names no model_type, so that it is not of transformers; give a folder that "
            "save_pretrained wrote, or a name of timm"
        )
    return {key: value for key, value in content.items() if key not in NOT_THE_ARCHITECTURE}


def read_json(name: str, file: str) -> Any:
    """The content of a JSON file of a folder or of the hub; None where that has no such file.

    Raises:
        UserError: there is no such folder, the hub is out of reach, or the file cannot be read.
    """
    option, place = f"model.name = {name}", name.removeprefix(PREFIX)
    inside = Path(place) / file
    path: Path | None
    if Path(place).is_dir():
        path = inside if inside.is_file() else None
    elif Path(place).is_absolute():
        raise UserError(f"{option}: there is no such folder; give one that save_pretrained wrote, or a name on the hub")
    else:
        path = hub_file(place, file, option)
    if path is None:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{option}: {file} cannot be read ({error}); give another folder") from None


def read_pretrained(name: str, option: str) -> Pretrained:
    """The weights of a folder or of the hub, brought to today's names by transformers.

    Args:
        name: hf:FOLDER or hf:NAME.
        option: what asks for them, for messages.

    Raises:
        UserError: they are not there or cannot be read, or the hub is out of reach.
    """
    place = name.removeprefix(PREFIX)
    is_here = Path(place).is_dir() or None not in (cached_file(place, [CONFIG]), cached_file(place, WEIGHTS))
    content = {**read_architecture(name), "name": name}
    if not is_here:
        require_hub(f"{option}: the weights of {place} are", "check the connection, or give a folder")
    found = library(name)
    try:
        with quietly():
            config = found.AutoConfig.from_pretrained(place, local_files_only=is_here)
            model, report = classifier_class(name, config).from_pretrained(
                place, config=config, dtype=torch.float32, output_loading_info=True, local_files_only=is_here
            )
    except UserError:
        raise
    except Exception as error:  # what a damaged file or a download may raise is nearly any kind
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{option}: its weights cannot be read ({reason}); give another folder") from None
    missing, unused = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    names = [str(config.id2label[number]) for number in range(config.num_labels)]
    is_named = names != [f"LABEL_{number}" for number in range(len(names))]
    path = find_layout(model).path.partition(".")[0]
    has_head = all(key.startswith(f"{path}.") for key in missing)
    tensors = {key: value for key, value in model.state_dict().items() if key not in missing}
    return Pretrained(Path(place), tensors, missing, unused, content, names if is_named and has_head else None)


def library(name: str) -> Any:
    """The package transformers.

    Raises:
        UserError: it is not installed, or too old for the model that is named.
    """
    remedy = "python -m pip install 'toe-train[transformers]'"
    try:
        found = import_module("transformers")
    except ImportError:
        raise UserError(f"model.name = {name}: needs transformers, which is not installed: {remedy}") from None
    if int(found.__version__.partition(".")[0]) < 5:
        raise UserError(
            f"model.name = {name}: needs transformers 5 or later, and this is {found.__version__}: {remedy}"
        )
    return found


def classifier_class(name: str, config: Any) -> Any:
    """transformers' class of image classifiers for a configuration.

    Raises:
        UserError: it has none.
    """
    known = import_module("transformers.models.auto.modeling_auto").MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    if config.model_type == "timm_wrapper" or type(config) not in known:
        raise UserError(
            f"model.name = {name}: transformers has no image classifier of {config.model_type}; look for the model in "
            "timm (timm.list_models), which has DINOv3, EVA-02 and more"
        )
    found = known[type(config)]
    return (
        found[0] if isinstance(found, tuple) else found
    )  # DeiT has a second one, of distilled weights, without a loss


@contextmanager
def quietly() -> Iterator[None]:
    """Keeps what transformers reports and draws from the console; what matters of it is told."""
    logging: Any = import_module("transformers.utils.logging")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
