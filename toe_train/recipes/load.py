"""YAML file and `KEY=VALUE` overrides to a `RunConfig`, with every fault reported at once."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from toe_train._version import __version__
from toe_train.errors import UserError
from toe_train.recipes.effect import without_effect
from toe_train.recipes.fields import Section
from toe_train.recipes.layers import INSTEAD, WRITER, Layer, Values, nearest, overridden, read_layers
from toe_train.recipes.methods import KINDS
from toe_train.recipes.oddities import refusals
from toe_train.recipes.schema import RunConfig, section_of

# How values are shown: as far as one reads them, however large they are.
SHOWN = reprlib.Repr()
SHOWN.maxlevel, SHOWN.maxlist, SHOWN.maxtuple, SHOWN.maxdict = 2, 12, 12, 6
SHOWN.maxstring = SHOWN.maxother = SHOWN.maxlong = 200

# What a file holds that the program wrote before it named itself in it: every section of then, those of null too.
SAVED_BEFORE = {
    "model",
    "expansion",
    "curriculum",
    "data",
    "augment",
    "token_labels",
    "optim",
    "schedule",
    "train",
    "evaluate",
    "checkpoint",
}


# Gives values by dotted keys, for those that a configuration leaves to the weights.
Known = Callable[[RunConfig], Mapping[str, Any]]


def load_config(path: str | Path, overrides: Sequence[str] = (), known: Known = lambda config: {}) -> RunConfig:
    """The validated run of a YAML file, as it is to be trained.

    Args:
        path: file; its `extends:` names a parent, relative to the file, whose values it overrides key by key.
        overrides: `dotted.key=value` strings, values parsed as YAML, applied last and in order.
        known: of the weights that the run starts from; what is neither given nor known has its default.

    Raises:
        UserError: with one line per fault, each with the path, the value, the rule and the nearest legal key. A key
            that has no effect in this run is a fault, and so is a plan that means nothing and that `allow` does not
            name.
    """
    layers = read_layers(Path(path), overrides)
    config = _validated(path, layers[-1].values)
    if lines := [*_idle_keys(config, layers), *refusals(config)]:
        raise _faulty(path, lines)
    return filled(config, known(config)) if left_to_weights(config) else config


def left_to_weights(config: RunConfig) -> set[str]:
    """Dotted keys that may be left to the weights, and are."""
    sections = ((name, getattr(config, name)) for name in RunConfig.model_fields)
    return {
        f"{name}.{key}"
        for name, section in sections
        if isinstance(section, Section)
        for key in section.of_weights()
        if key not in section.model_fields_set
    }


def filled(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """The configuration with values by dotted keys in the place of what it leaves to the weights."""
    left = left_to_weights(config)
    sections: dict[str, dict[str, Any]] = {}
    for key in left & values.keys():
        section, _, field = key.partition(".")
        sections.setdefault(section, {})[field] = values[key]
    changed = {
        name: type(getattr(config, name)).model_validate({**getattr(config, name).model_dump(), **given})
        for name, given in sections.items()
    }
    return config.model_copy(update=changed)


def load_saved(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """As `load_config`, of a run that is not to be trained: keys without effect and plans without meaning are taken."""
    return _validated(path, read_layers(Path(path), overrides)[-1].values)


def load_saved_values(values: Values, origin: str, overrides: Sequence[str] = ()) -> RunConfig:
    """As `load_saved`, of a configuration that a file of weights holds.

    Args:
        values: dumped; today's defaults stand for keys that it does not have.
        origin: of the values, for messages.
        overrides: see `load_config`.

    Raises:
        UserError: see `load_config`.
    """
    return _validated(origin, overridden(values, overrides).values)


def _validated(path: str | Path, values: Values) -> RunConfig:
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise _faulty(path, [_describe(fault, values) for fault in error.errors()]) from None


def _faulty(path: str | Path, lines: Sequence[str]) -> UserError:
    return UserError(f"{len(lines)} fault{'s'[: len(lines) > 1]} in {path}:\n  " + "\n  ".join(lines))


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal one; it names its writer.

    Of stages that were given as shares only those are written, so that they follow another number of `epochs`.
    """
    values = {WRITER: f"toe-train {__version__}", **config.model_dump(mode="json")}
    for section in values.values():
        if isinstance(section, dict) and section.get("stage_shares"):
            del section["stage_epochs"]
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=120)


def _idle_keys(config: RunConfig, layers: Sequence[Layer]) -> list[str]:
    """A line for each key that was given where it has no effect, and has none in the whole run.

    What a file gave stays without complaint where only a child of it or the command line takes its effect away. A file
    that the program wrote, a run's config.yaml, gives what is needed and what is not.
    """
    lines = {}
    for layer in layers:
        given = {} if layer.is_saved or layer.own.keys() >= SAVED_BEFORE else layer.keys()
        idle = without_effect(config, given)
        if not idle:
            continue
        try:
            there = RunConfig.model_validate(layer.values)
        except ValidationError:  # what follows makes it whole
            continue
        for key in without_effect(there, idle):
            lines[key] = f"{key} = {given[key]!r}: has no effect in this run: {idle[key]}"
    return list(lines.values())


def _describe(fault: Any, values: Values) -> str:
    """One line for one pydantic fault."""
    location, section = _where(fault["loc"])
    path = ".".join(str(part) for part in location)
    rule = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if not location:
        return str(rule)
    given = fault["input"]
    # A whole section says less than the rule, which names the key.
    value = "" if fault["type"] == "missing" or isinstance(given, dict) else f" = {SHOWN.repr(given)}"
    if fault["type"] == "extra_forbidden":
        return f"{path}{value}: there is no such key" + _nearest_key(location, section)
    if fault["type"] in ("union_tag_invalid", "union_tag_not_found"):
        kind = given.get("kind") if isinstance(given, dict) else given
        hint = nearest(str(kind), KINDS) or f"; one of {', '.join(KINDS)}, or method=null"
        return f"{path}.kind{' is missing' if kind is None else f' = {kind!r}: there is no such method'}{hint}"
    if fault["type"] in ("model_type", "model_attributes_type"):
        return f"{path}{value}: must be a section of `key: value` lines; remove the line for the defaults"
    if fault["type"] == "tuple_type":
        return f"{path}{value}: must be a list; of one value: [{given}]"
    if fault["type"] == "missing" and isinstance(location[-1], int):
        return f"{'.'.join(map(str, location[:-1]))}: the list is too short; entry {location[-1] + 1} is missing"
    if fault["type"] == "missing":
        instead = f" or {INSTEAD[location[-1]]}" if location[-1] in INSTEAD else ""
        return f"{path}: is required; give it{instead}, or set {'.'.join(map(str, location[:-1]))}=null"
    if fault["type"] == "literal_error" and isinstance(fault["input"], str):
        rule += nearest(fault["input"], re.findall(r"'([^']*)'", fault["ctx"]["expected"]))
    return f"{path}{value}: {rule}"


def _where(loc: Sequence[Any]) -> tuple[tuple[Any, ...], Any]:
    """The dotted place of a fault, without the kind that pydantic puts between, and the section that it lies in."""
    location: list[Any] = list(loc)
    section: Any = None
    if location[:1] == ["method"] and len(location) > 1 and location[1] in KINDS:
        section = KINDS[location.pop(1)]
        if len(location) > 2:  # what pydantic adds of a union's member, or of a list's entry
            location = location[:2]
        return tuple(location), section
    section = RunConfig
    for part in location[:-1]:
        field = section.model_fields.get(part) if section is not None else None
        section = section_of(field.annotation) if field is not None else None
    return tuple(location), section


def _nearest_key(location: tuple[Any, ...], section: Any) -> str:
    name = str(location[-1])
    if ":" in name:
        key, _, value = name.partition(":")
        return f"; write a space after the colon: {key}: {value}"
    near = nearest(name, section.model_fields)
    if near:
        return near
    for key, field in RunConfig.model_fields.items():
        inner = section_of(field.annotation)
        if inner is not None and name in inner.model_fields:
            return f"; did you mean {key}.{name}?"
    return f"; legal here: {', '.join(section.model_fields)}"
