"""Image classifiers of transformers, by a folder or by a name on the Hugging Face hub: `hf:FOLDER`.

Each is the library's own class; only its forward pass gives the logits, and it says of itself what training asks for.
Its state_dict is the library's.
"""

from __future__ import annotations

import copy
import difflib
import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from toe_train.errors import UserError
from toe_train.expansion import find_layout
from toe_train.models.pretrained import CONFIG, PREPROCESSOR, classifier_class, library, quietly, read_architecture

ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout")  # which is no module that could be replaced


class TransformersClassifier(nn.Module):
    """What is added in front of a class of transformers; see `create`.

    Attributes:
        num_classes: width of the classifier.
        num_prefix_tokens: tokens in front of the patches.
        embed_dim: width of the tokens.
        patch_embed: `grid_size`, `patch_size` (both rows and columns) and `num_patches`.
        block_path: dotted name of the list of blocks.
    """

    num_classes: int
    num_prefix_tokens: int
    embed_dim: int
    patch_embed: SimpleNamespace
    block_path: str

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) -> logits (B, classes)."""
        output: Any = super().forward(pixel_values=images)
        logits: Tensor = output.logits
        return logits

    @property
    def transformer_blocks(self) -> list[nn.Module]:
        """The blocks, in order."""
        return list(self.get_submodule(self.block_path).children())

    def attend_plainly(self) -> None:
        """Attention as two products from now on, in place of a fused kernel."""
        this: Any = self
        this.set_attn_implementation("eager")

    def is_of_the_head(self, key: str) -> bool:
        """Whether a parameter is outside of the network that others share: the classifier's."""
        return key.partition(".")[0] != self.block_path.partition(".")[0]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters are of the embedding and which of each block, for timm's layer-wise rates."""
        path, base = (re.escape(name) for name in (self.block_path, self.block_path.partition(".")[0]))
        stem = "|".join(map(re.escape, self._embedding()))
        return {"stem": f"^(?:{stem})$", "blocks": [(rf"^{path}\.(\d+)", None), (rf"^{base}\.", (99999,))]}

    def no_weight_decay(self) -> set[str]:
        """Tokens and positions, as with timm's models."""
        weights = (nn.Conv2d, nn.Linear, nn.LayerNorm)
        return {
            name for name in self._embedding() if not isinstance(self.get_submodule(name.rpartition(".")[0]), weights)
        }

    def _embedding(self) -> list[str]:
        """Parameters in front of the first block."""
        names = [name for name, _ in self.named_parameters()]
        first = next(place for place, name in enumerate(names) if name.startswith(f"{self.block_path}."))
        return names[:first]

    def save(self, folder: Path, classes: list[str] | None, preprocessor: Mapping[str, Any]) -> list[str]:
        """Writes what `from_pretrained` opens, with the rights that the umask gives; the names of the files."""
        this: Any = self
        if classes is not None:
            this.config.id2label = dict(enumerate(classes))
            this.config.label2id = {name: number for number, name in enumerate(classes)}
        with quietly():
            this.save_pretrained(folder)
        (folder / PREPROCESSOR).write_text(json.dumps(preprocessor, indent=2) + "\n", encoding="utf-8")
        names = sorted(path.name for path in folder.iterdir())
        for name in names:  # its writer of tensors makes files that their owner alone may read
            shutil.copyfile(folder / name, folder / f"{name}.copy")
            (folder / f"{name}.copy").replace(folder / name)
        return names


class InTurn(nn.ModuleList):
    """Layers that drop out, in the place of one that a forward pass goes through several times: each pass takes one.

    With one layer, which has one draw for a sample, both branches of a block would drop the same. Each forward pass in
    training has to go through all of them.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__(layers)
        self.turn = 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if not self.training:
            return x
        layer, self.turn = self[self.turn], (self.turn + 1) % len(self)
        dropped: Tensor = layer(x)
        return dropped


def create(
    name: str,
    num_classes: int,
    drop_path_rate: float,
    img_size: int,
    architecture: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """A freshly initialised image classifier of transformers.

    Args:
        name: hf:FOLDER or hf:NAME, for its config.json.
        num_classes: width of the classifier.
        drop_path_rate: of the last block; linear from 0 over the blocks.
        img_size: side of the images in pixels, which the positions are made for.
        architecture: what `read_architecture` gave, in place of reading it.
        kwargs: values of its configuration in place of the file's.

    Raises:
        UserError: transformers is missing, there is no such folder, or the model is none that can be trained here.
    """
    config = _config(name, dict(architecture or read_architecture(name)))
    vision = getattr(config, "vision_config", config)
    _set_values(name, vision, img_size, drop_path_rate, kwargs)
    config.num_labels = num_classes
    base = classifier_class(name, config)
    with quietly():
        model: Any = base._from_config(config, dtype=torch.float32)
        with torch.device("meta"):
            twin = _with_logits(base)(config)
    model.__class__ = type(twin)
    layout = find_layout(model)
    grid, patch = img_size // vision.patch_size, vision.patch_size
    model.num_classes, model.embed_dim, model.block_path = num_classes, layout.width, layout.path
    model.num_prefix_tokens = layout.num_prefix_tokens
    model.patch_embed = SimpleNamespace(grid_size=(grid, grid), patch_size=(patch, patch), num_patches=grid * grid)
    passes = _count_passes(twin)
    # What the logits do not depend on: a token for hidden patches, a second way of pooling. DDP would wait for it.
    twin(torch.zeros(1, 3, img_size, img_size, device="meta")).sum().backward()
    for (_, parameter), (_, seen) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        parameter.requires_grad_(seen.grad is not None)
    for place, count in passes.items():
        if count > 1:
            model.set_submodule(place, InTurn([copy.deepcopy(model.get_submodule(place)) for _ in range(count)]))
    if drop_path_rate and not any(hasattr(layer, "drop_prob") for layer in model.modules()):
        raise UserError(
            f"model.drop_path = {drop_path_rate}: {vision.model_type} of transformers has no drop path; set it to 0"
        )
    _spread_drop_path(model.transformer_blocks, drop_path_rate)
    result: nn.Module = model
    return result


def _config(name: str, values: dict[str, Any]) -> Any:
    kind = values.pop("model_type")
    try:
        return library(name).AutoConfig.for_model(kind, **values)
    except UserError:
        raise
    except Exception as error:  # an unknown kind, or values that are none
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"model.name = {name}: transformers makes no {kind} of its {CONFIG}: {reason}") from None


def _set_values(name: str, vision: Any, size: int, drop_path: float, kwargs: dict[str, Any]) -> None:
    """Puts values into the configuration of the part that sees images."""
    option = f"model.name = {name}"
    for key, value in kwargs.items():
        if not hasattr(vision, key):
            near = difflib.get_close_matches(key, vision.to_dict(), n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"model.kwargs.{key}: the configuration of {vision.model_type} has no such value{hint}")
        setattr(vision, key, value)
    if not isinstance(getattr(vision, "patch_size", None), int) or not hasattr(vision, "image_size"):
        raise UserError(
            f"{option}: {vision.model_type} has no patches of one size in images of one size; toe-train trains plain "
            "vision transformers (ViT, DeiT, DINOv2, SigLIP, CLIP)"
        )
    vision.image_size = size
    if hasattr(vision, "drop_path_rate"):
        vision.drop_path_rate = drop_path
    for key in ATTENTION_DROPOUT:
        if getattr(vision, key, 0):
            raise UserError(
                f"{option}: drops out of its attention with {key}={getattr(vision, key)}, which would draw other "
                f"numbers for every number of processes; set model.kwargs={{{key}: 0.0}}"
            )


@cache
def _with_logits(base: type) -> Any:
    """A class whose instances give logits; by the name of the library's, which goes into what is saved."""
    return type(base.__name__, (TransformersClassifier, base), {"__module__": base.__module__})


def _count_passes(model: nn.Module) -> Counter[str]:
    """Counts, from now on, how often the forward pass goes through each layer that drops out, by its name."""
    passes: Counter[str] = Counter()
    for name, layer in model.named_modules():
        if getattr(layer, "drop_prob", 0) or (isinstance(layer, nn.Dropout) and layer.p):
            layer.register_forward_hook(partial(_count, passes, name))
    return passes


def _count(passes: Counter[str], name: str, *_: Any) -> None:
    passes[name] += 1


def _spread_drop_path(blocks: list[nn.Module], rate: float) -> None:
    """The library gives all blocks one rate."""
    for number, block in enumerate(blocks):
        for layer in block.modules():
            if hasattr(layer, "drop_prob"):
                layer.drop_prob = rate * number / max(1, len(blocks) - 1)  # type: ignore[assignment]
