"""Whether two configurations are of one experiment."""

from __future__ import annotations

import hashlib
import json
from pathlib import PurePath
from typing import Any

from pydantic.fields import FieldInfo

from toe_train.recipes.fields import INCIDENTAL, PATH, Forms, Section
from toe_train.recipes.schema import RunConfig, section_of


def completed(saved: dict[str, Any], kind: type[Section] = RunConfig) -> dict[str, Any]:
    """A dumped configuration with today's default for each key that its version of the program had not.

    A section that was left out (null) stays so.
    """
    whole = {}
    for name, field in kind.model_fields.items():
        inner = section_of(field.annotation, saved.get(name))
        if name not in saved and not field.is_required():
            default = field.get_default(call_default_factory=True)
            whole[name] = _plain(default)
        elif name in saved:
            is_section = inner is not None and isinstance(saved[name], dict)
            whole[name] = completed(saved[name], inner) if is_section and inner else saved[name]
    return {**whole, **{name: value for name, value in saved.items() if name not in whole}}


def differences(saved: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """One line for each value that differs between two dumped configurations, the first that of a checkpoint."""
    lines = []
    for key in {**saved, **now}:
        before, after = saved.get(key), now.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            if before.get("kind") != after.get("kind") and before.keys() != after.keys():  # whose keys say nothing
                before, after = ({"kind": values.get("kind")} for values in (before, after))
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after and not (f"{prefix}{key}" in _PATHS and _is_same_path(before, after)):
            lines.append(f"{prefix}{key}: {before!r} in the checkpoint, {after!r} now")
    return lines


def essential(config: dict[str, Any], kind: type[Section] | None = RunConfig) -> dict[str, Any]:
    """A dumped configuration without what does not decide what is learned: its fields marked `INCIDENTAL`."""
    kept = {}
    for name, value in config.items():
        field = kind.model_fields.get(name) if kind else None
        if field is None or INCIDENTAL not in field.metadata:
            inner = section_of(field.annotation, value) if field else None
            kept[name] = essential(value, inner) if inner and isinstance(value, dict) else _form(value, field)
    return kept


def _form(value: Any, field: FieldInfo | None) -> Any:
    """The value that stands for one of several forms of the same."""
    for mark in field.metadata if field else ():
        if isinstance(mark, Forms) and value in mark.values:
            return mark.values[0]
    return value


def experiment(config: dict[str, Any]) -> str:
    """A short name of what a dumped configuration decides of what is learned: equal for equal `essential` values.

    Values that are the defaults do not enter, so that a key that a later version adds changes no name.
    """
    return hashlib.sha256(json.dumps(_chosen(essential(config)), sort_keys=True).encode()).hexdigest()[:12]


def _chosen(config: dict[str, Any], kind: type[Section] = RunConfig) -> dict[str, Any]:
    """What of a dumped configuration is not its field's default; one that may be null counts where it is not."""
    found = {}
    for name, value in config.items():
        field = kind.model_fields.get(name)
        inner = section_of(field.annotation, value) if field else None
        if field is not None and inner is not None and isinstance(value, dict):
            chosen = _chosen(value, inner)
            if chosen or field.default is None:
                found[name] = chosen
        elif field is None or field.is_required() or value != _plain(field.get_default(call_default_factory=True)):
            found[name] = value
    return found


def _is_same_path(before: Any, after: Any) -> bool:
    """Whether the one is the other as it was written relative to some folder."""
    if not isinstance(before, str) or not isinstance(after, str):
        return False
    one, other = PurePath(before), PurePath(after)
    return not one.is_absolute() and other.parts[-len(one.parts) :] == one.parts


def _paths(kind: type[Section], prefix: str = "") -> set[str]:
    """Dotted names of the fields that hold a path and decide what is learned."""
    found = set()
    for name, field in kind.model_fields.items():
        if inner := section_of(field.annotation):
            found |= _paths(inner, f"{prefix}{name}.")
        elif PATH in field.metadata:
            found.add(f"{prefix}{name}")
    return found


def _plain(value: Any) -> Any:
    """A default as a dumped configuration holds it."""
    if isinstance(value, Section):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, tuple) else value


_PATHS = frozenset(_paths(RunConfig))
