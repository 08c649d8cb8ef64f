"""YAML file and `KEY=VALUE` overrides to a `RunConfig`, with every fault reported at once."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from toe_train.errors import UserError, is_text
from toe_train.recipes.schema import RunConfig, section_of


class _Loader(yaml.SafeLoader):
    """SafeLoader that takes `5e-4` for a number (YAML 1.1 makes it a string) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (str, int, float)) and key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key!r} stands twice; keep one", problem_mark=key_node.start_mark
                )
            if isinstance(key, (str, int, float)):
                seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The validated run of a YAML file.

    Args:
        path: file; its `extends:` names a parent, relative to the file, whose values it overrides key by key.
        overrides: `dotted.key=value` strings, values parsed as YAML, applied last and in order.

    Raises:
        UserError: with one line per fault, each with the path, the value, the rule and the nearest legal key.
    """
    return _validated(_read_with_parents(Path(path), chain=()), str(path), overrides)


def saved_config(values: dict[str, Any], origin: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The run of a configuration that a file of weights holds.

    Args:
        values: dumped; today's defaults stand for keys that it does not have.
        origin: of the values, for messages.
        overrides: see `load_config`.

    Raises:
        UserError: see `load_config`.
    """
    return _validated(copy.deepcopy(values), origin, overrides)


def _validated(values: dict[str, Any], path: str, overrides: Sequence[str]) -> RunConfig:
    for override in overrides:
        _apply(override, values)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = [_describe(fault, values) for fault in error.errors()]
        raise UserError(f"{len(lines)} fault{'s'[: len(lines) > 1]} in {path}:\n  " + "\n  ".join(lines)) from None


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=120)


def _read_with_parents(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    resolved = path.resolve()
    if resolved in chain:
        loop = " -> ".join(p.name for p in (*chain[chain.index(resolved) :], resolved))
        raise UserError(f"extends: the files extend each other in a loop: {loop}; remove one `extends`")
    values = _read(path, asked_by=chain[-1] if chain else None)
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if not isinstance(parent, str):
        raise UserError(f"{path}: extends: {parent!r} must be the path of one YAML file, relative to this file")
    return _merged(_read_with_parents(path.parent / parent, (*chain, resolved)), values)


def _read(path: Path, asked_by: Path | None) -> dict[str, Any]:
    origin = f" (extended by {asked_by})" if asked_by else ""
    if path.is_dir():
        names = sorted(file.name for file in path.glob("*.yaml"))
        hint = f"; name a file in it, such as {path / names[0]}" if names else ""
        raise UserError(f"config {path} is a folder, not a YAML file{origin}{hint}")
    if not path.is_file():
        neighbours = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        hint = _nearest(path.name, neighbours) or (
            f"; {path.parent} has no YAML files" if path.parent.is_dir() else f"; there is no folder {path.parent}"
        )
        raise UserError(f"config file {path} does not exist{origin}{hint}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read{origin}: {error}") from None
    try:
        values = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{path}{place} is not valid YAML{origin}: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or number that there is not
        raise UserError(f"{path} is not valid YAML{origin}: {' '.join(str(error).split())}") from None
    if values is None:
        raise UserError(f"{path}{origin} is empty; write at least `extends: deit_tiny.yaml` or the like")
    if not isinstance(values, dict):
        raise UserError(f"{path}{origin} must hold `key: value` lines at the top, not {_kind(values)}")
    return values


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it; sections are merged key by key, `model.kwargs` and lists replaced whole."""
    merged = dict(base)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict) and key != "kwargs":
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = value
    return merged


def _apply(override: str, values: dict[str, Any]) -> None:
    key, separator, text = override.partition("=")
    path = key.strip().split(".")
    if not separator or not all(path):
        raise UserError(f"override {override!r} must have the form KEY=VALUE with a dotted path, e.g. optim.lr=1e-3")
    if not is_text(override):
        raise UserError(
            f"override '{override}' holds bytes that are no text, and a configuration is text: rename the file or "
            "folder, or give a link to it (ln -s)"
        )
    if path == ["extends"]:
        raise UserError("extends= cannot be overridden on the command line; name another file with --config")
    try:
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError):
        raise UserError(f"override {override!r}: the value {text!r} is not valid YAML; quote it") from None
    here = values
    for depth, part in enumerate(path[:-1], 1):
        if here.get(part) is None:
            here[part] = {}
        if not isinstance(here[part], dict):
            raise UserError(f"override {override!r}: {'.'.join(path[:depth])} is a value, not a section")
        here = here[part]
    here[path[-1]] = value


def _describe(fault: Any, values: dict[str, Any]) -> str:
    """One line for one pydantic fault."""
    location = tuple(fault["loc"])
    path = ".".join(str(part) for part in location)
    rule = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if not location:
        return str(rule)
    given = fault["input"]
    # A whole section says less than the rule, which names the key.
    value = "" if fault["type"] == "missing" or isinstance(given, dict) else f" = {given!r}"
    if fault["type"] == "extra_forbidden":
        return f"{path}{value}: there is no such key" + _nearest_key(location)
    if fault["type"] in ("model_type", "model_attributes_type"):
        return f"{path}{value}: must be a section of `key: value` lines; remove the line for the defaults"
    if fault["type"] == "tuple_type":
        return f"{path}{value}: must be a list, such as [0.5, 0.75, 1.0]"
    if fault["type"] == "missing" and isinstance(location[-1], int):
        return f"{'.'.join(map(str, location[:-1]))}: the list is too short; entry {location[-1] + 1} is missing"
    if fault["type"] == "missing":
        return f"{path}: is required; give it, or set {'.'.join(map(str, location[:-1]))}=null"
    if fault["type"] == "literal_error" and isinstance(fault["input"], str):
        rule += _nearest(fault["input"], re.findall(r"'([^']*)'", fault["ctx"]["expected"]))
    return f"{path}{value}: {rule}"


def _nearest_key(location: tuple[Any, ...]) -> str:
    section: Any = RunConfig
    for part in location[:-1]:
        section = section_of(section.model_fields[part].annotation)
    name = str(location[-1])
    near = _nearest(name, section.model_fields)
    if near:
        return near
    for key, field in RunConfig.model_fields.items():
        inner = section_of(field.annotation)
        if inner is not None and name in inner.model_fields:
            return f"; did you mean {key}.{name}?"
    return f"; legal here: {', '.join(section.model_fields)}"


def _nearest(word: str, legal: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(legal), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", int: "a number", float: "a number"}.get(type(value), "something else")
