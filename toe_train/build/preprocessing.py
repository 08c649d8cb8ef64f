"""What a configuration leaves to the weights that the run starts from, taken from their card."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from toe_train.build.preflight import begins
from toe_train.build.weights.cards import card_of
from toe_train.models import pretrained
from toe_train.recipes import HF, RunConfig, left_to_weights, load_saved, load_saved_values
from toe_train.runs.checkpoints import Checkpoints
from toe_train.runs.folder import RunFolder

# What a card tells -> the keys that take it.
KEYS = {
    "mean": ("augment.mean",),
    "std": ("augment.std",),
    "interpolation": ("augment.interpolation", "evaluate.interpolation"),
    "crop_pct": ("evaluate.crop_pct",),
}


@dataclass
class FromWeights:
    """Answers what a configuration leaves to the weights; `lines` then says what it took and from where.

    Args:
        folder: of the run, which goes on with what it began with.
        resume: auto, never or a path.
    """

    folder: RunFolder
    resume: str
    lines: list[str] = field(default_factory=list)

    def __call__(self, config: RunConfig) -> dict[str, Any]:
        """Values by dotted keys.

        Raises:
            UserError: the weights are to be read for it, and are not there.
        """
        if not begins(self.folder, self.resume):
            return self._resumed(config)
        values: dict[str, Any] = {}
        name = config.model.name
        if name.startswith(HF) and config.model.architecture is None:
            values["model.architecture"] = pretrained.read_architecture(name)
        source, card = card_of(config)
        if not source:
            return values
        found = {key: value for told, value in card.items() for key in KEYS[told]}
        left = left_to_weights(config)
        taken = {key: value for key, value in found.items() if key in left}
        told = ", ".join(f"{key} {list(value) if isinstance(value, tuple) else value}" for key, value in taken.items())
        unlike = [key for key in found if key not in left and _value(config, key) != found[key]]
        own = f"; the configuration gives its own {', '.join(unlike)}" if unlike else ""
        self.lines.append(f"preprocessing by {source}: {told or 'nothing'}{own}")
        return {**values, **taken}

    def _resumed(self, config: RunConfig) -> dict[str, Any]:
        """What the run began with."""
        if self.resume == "auto" and self.folder.config.is_file():
            former = load_saved(self.folder.config)
        else:
            checkpoints = Checkpoints(self.folder.checkpoints)
            found = checkpoints.newest() if self.resume == "auto" else checkpoints.find(self.resume)
            if found is None:  # which is said where the run goes on
                return {}
            former = load_saved_values(found[1]["config"], str(found[0]))
        values = {key: _value(former, key) for key in left_to_weights(config)}
        if config.model.name != former.model.name:
            values.pop("model.architecture", None)
        return {key: value for key, value in values.items() if value is not None}


def _value(config: RunConfig, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)
