"""A trained model that a tool was given: its weights, and the configuration that goes with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from toe_train.build.resume import does_not_fit, require_same
from toe_train.build.weights.asked import Asked
from toe_train.build.weights.cards import card_of_transformers
from toe_train.build.weights.detector import HEAD, seen_alike
from toe_train.build.weights.fit import Head, fit
from toe_train.build.weights.huggingface import fit_classifier
from toe_train.build.weights.source import Weights, normalisation_note, read_weights
from toe_train.models import TransformersClassifier
from toe_train.recipes import RunConfig, TokenMergingConfig, load_saved, load_saved_values
from toe_train.training.resolution import fit_positions

# Of a model's arguments in a card, those that toe-train gives itself (recipes.ModelConfig).
OWN_ARGUMENTS = ("num_classes", "in_chans", "img_size", "drop_path_rate", "pretrained")


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
        asked: what the user named.
        weights: its weights.
        config: a configuration with its model, normalisation and evaluation.
    """

    asked: Asked
    weights: Weights
    config: RunConfig

    @property
    def num_classes(self) -> int:
        """Width of its classifier; 0 where it has none."""
        if self.weights.classes is not None:
            return len(self.weights.classes)
        head, detector = self.weights.head, self.weights.tensors.get(HEAD)
        if head is None and detector is not None:
            return len(detector) - 1  # the last output is "no object"
        return 0 if head is None else len(head)

    @property
    def class_names(self) -> list[str]:
        """Names of its classes; numbers from 0 where the weights do not tell them."""
        return self.weights.classes or [str(number) for number in range(self.num_classes)]

    @property
    def built_as(self) -> RunConfig:
        """`config` with the model that the weights are of: a method may train a smaller one at first."""
        run, model = self.weights.run, self.config.model
        kwargs = self.config.cheaper.model_kwargs(run.get("segment", 0)) if run else {}
        return self.config.model_copy(update={"model": model.model_copy(update={"kwargs": {**model.kwargs, **kwargs}})})

    def require_same_model(self, classes: list[str]) -> None:
        """Refuses another model or other classes than its own, as far as the file tells them.

        Raises:
            UserError: naming each difference.
        """
        if self.weights.run is not None:
            remedy = "Leave --config out, since the checkpoint holds its own, or give that of its run"
            config = self.config.model_dump(mode="json")
            require_same(self.weights.path, self.weights.run, config, classes, remedy)
            return
        self.require_classifier()
        if self.weights.classes is not None and self.weights.classes != classes:
            raise self.asked.fault(
                "was trained on other classes than the data set's; give data.root of the data set that it was trained "
                "on"
            )
        if self.num_classes != len(classes):
            raise self.asked.fault(
                f"knows {self.num_classes} classes and the data set has {len(classes)}; give data.root of the data set "
                "that it was trained on"
            )

    def refuse_detector(self) -> None:
        """For an export, whose layout is of classifiers.

        Raises:
            UserError: it finds boxes.
        """
        if self.config.task_kind == "detection":
            raise self.asked.fault("finds boxes, and classifiers alone are exported; eval, predict and view take it")

    def require_classifier(self) -> None:
        """Refuses weights that name no class.

        Raises:
            UserError: saying so.
        """
        if not self.num_classes:
            raise self.asked.fault("holds no classifier: there is nothing to evaluate; train one on these weights")

    def notes(self) -> list[str]:
        """What an evaluation takes for granted, a line each."""
        augment = self.config.augment
        told = normalisation_note(self.weights, augment.mean, augment.std)
        if self.weights.classes is None:
            told.append("note: the file does not name its classes; its outputs count as the data set's, in their order")
        return told

    @property
    def merged_tokens(self) -> bool:
        """Whether the run evaluated a model that merges tokens, which the plain one does not."""
        return isinstance(self.config.method, TokenMergingConfig)

    def other_model(self, model: nn.Module) -> list[str]:
        """A note where the run evaluated with what the plain model does not do."""
        merged = self.merged_tokens and not hasattr(model, "token_merging")
        note = (
            "note: the run merged tokens in its evaluation too, and this is the plain model: its accuracy is not the "
            "run's"
        )
        return [note] if merged else []

    def put_in(self, model: nn.Module, with_head: bool = True) -> list[str]:
        """Gives a model the weights; what was done to them, a line each.

        Raises:
            UserError: they are another model's, or part of them would be lost or new.
        """
        if self.weights.run is not None:
            try:
                model.load_state_dict(fit_positions(self.weights.tensors, model))
            except RuntimeError as error:
                remedy = "use what it was written with, or another checkpoint"
                raise self.asked.fault(does_not_fit(self.weights.path, self.weights.run, error, remedy)) from None
            return [*self.weights.told, *self.other_model(model)]
        if isinstance(model, TransformersClassifier):
            state, told = fit_classifier(model, self.weights, self.asked, with_head)
            model.load_state_dict(state)
            return told
        head: Head = "keep" if with_head else "new"
        seen, weights, _ = seen_alike(model, self.weights, self.asked)
        state, told = fit(seen, weights, self.config.model.name, self.asked, head, exact=True)
        seen.load_state_dict(state)
        return told


def open_trained(
    path: str, weights: str, config: str | None = None, overrides: Sequence[str] = (), option: str = "--checkpoint"
) -> Trained:
    """A trained model by what the user gave on the command line.

    Args:
        path: a run folder, a checkpoint, an exported folder, or a file of weights that others published.
        weights: "model" for the raw weights, "ema" for the averaged ones.
        config: YAML file; None where the weights bring their own, as a checkpoint and an exported folder do.
        overrides: of its values.
        option: that `path` was given to; empty where it stands alone.

    Raises:
        UserError: they cannot be read, or nothing tells their model.
    """
    asked = Asked(path, f"{option} {path}".strip(), weights == "ema")
    found = read_weights(asked)
    if config is not None:
        return Trained(asked, found, load_saved(config, overrides))
    if found.run is not None:
        return Trained(asked, found, load_saved_values(found.run["config"], str(found.path), overrides))
    if found.card is not None:
        return Trained(asked, found, load_saved_values(_of_card(found.card, asked), f"{found.path.parent}", overrides))
    raise asked.fault("holds weights and does not tell their model; give --config FILE of a run with that model")


def trained_in_run(state: dict[str, Any], weights: str, path: str = "checkpoint") -> Trained:
    """A checkpoint that was read already; see `open_trained`.

    Raises:
        UserError: it has no such weights.
    """
    asked = Asked(path, f"--checkpoint {path}", weights == "ema")
    if state[weights] is None:
        raise asked.has_none()
    config = load_saved_values(state["config"], path)
    found = Weights(Path(path), dict(state[weights]), run=state, classes=list(state["classes"]))
    return Trained(asked, found, config)


def _of_card(card: dict[str, Any], asked: Asked) -> dict[str, Any]:
    """Values of a configuration from `config.json`, timm's or transformers'."""
    if "model_type" in card:
        return _of_transformers(card)
    settings = card.get("pretrained_cfg", {})
    arguments = card.get("model_args", {})
    size = settings.get("input_size") or [3, 224, 224]
    if "architecture" not in card:
        raise asked.fault("config.json beside it names no architecture; give --config FILE of a run with its model")
    if size[1] != size[2]:
        raise asked.fault(f"is for images of {size[1]} x {size[2]} pixels, and only square ones are read here")
    kwargs = {key: value for key, value in arguments.items() if key not in OWN_ARGUMENTS}
    values: dict[str, Any] = {"model": {"name": card["architecture"], "image_size": size[1], "kwargs": kwargs}}
    for section, keys in (("augment", ("mean", "std")), ("evaluate", ("crop_pct", "interpolation"))):
        values[section] = {key: settings[key] for key in keys if key in settings}
    return values


def _of_transformers(card: dict[str, Any]) -> dict[str, Any]:
    architecture = {key: value for key, value in card.items() if key != "name"}
    vision = architecture.get("vision_config", architecture)
    model = {"name": card["name"], "drop_path": 0.0, "architecture": architecture}
    values: dict[str, Any] = {"model": {**model, "image_size": vision.get("image_size", 224)}}
    _, told = card_of_transformers(card["name"])
    for section, keys in (("augment", ("mean", "std")), ("evaluate", ("crop_pct", "interpolation"))):
        values[section] = {key: told[key] for key in keys if key in told}
    return values
