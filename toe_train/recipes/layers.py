"""What a run is put together of: a YAML file over its parents, and `KEY=VALUE` overrides over both."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from toe_train.errors import UserError, is_text

Values = dict[str, Any]  # by section and key, as YAML has them

# Of two keys that say the same in two ways, the one that is given replaces the other one's earlier value.
EPOCHS, SHARES = "stage_epochs", "stage_shares"
MERGE = "tag:yaml.org,2002:merge"  # of the key <<, which takes the keys of another mapping
WRITER = "written_by"  # first key of a file that the program wrote, with its version
INSTEAD = {EPOCHS: SHARES, SHARES: EPOCHS}
SHIPPED = Path(__file__).parents[1] / "configs"  # a link in a checkout, files in an installation
STARTERS = ("quickstart", "photos", "deit_tiny_toe_r05")  # of them, named where a name leads nowhere
OF_A_RUN = ("config.yaml", "metrics.jsonl")  # what a run folder holds
OF_WEIGHTS = (".pt", ".pth", ".safetensors", ".bin")  # suffixes


@dataclass(frozen=True)
class Layer:
    """One file, or all overrides together.

    Attributes:
        own: what it gives itself.
        values: all values, it and the layers before it laid over each other.
        is_saved: whether the program wrote the file, a run's config.yaml, and no person.
    """

    own: Values
    values: Values
    is_saved: bool = False

    def keys(self) -> Values:
        """Dotted key and value of each thing that it gives itself and that is no section."""
        return _leaves(self.own)


class _Loader(yaml.SafeLoader):
    """SafeLoader that takes `5e-4` for a number (YAML 1.1 makes it a string) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == MERGE:
                continue
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


def read_layers(path: Path, overrides: Sequence[str]) -> list[Layer]:
    """A layer for each file, the first parent's first, and one for the overrides; the last one has the run's values.

    Raises:
        UserError: a file cannot be read, or an override is none.
    """
    layers: list[Layer] = []
    for own in _read_with_parents(_or_shipped(path, str(path)), chain=()):
        is_saved = own.pop(WRITER, None) is not None
        layers.append(Layer(own, _merged(layers[-1].values if layers else {}, own), is_saved))
    return [*layers, overridden(layers[-1].values, overrides)]


def overridden(values: Values, overrides: Sequence[str]) -> Layer:
    """The layer of the overrides over `values`, which stay as they are.

    Raises:
        UserError: one is none.
    """
    typed = Layer({}, values)
    for before, override in zip(("", *overrides), overrides, strict=False):
        if "=" in before and "=" not in override:
            raise UserError(
                f"override {override!r} must have the form KEY=VALUE; if it is a part of {before!r}, whose value has "
                f'a space in it, quote the whole: "{before} {override}"'
            )
        one = _apply(override, typed.values)
        typed = Layer(_merged(typed.own, one.own), one.values)
    return typed


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return all((folder / name).is_file() for name in OF_A_RUN)


def _or_shipped(path: Path, given: str) -> Path:
    """The file; of a run folder its configuration.

    Where there is none and only a name was given, the package's file of it, with or without `.yaml`.
    """
    if is_run(path):
        return path / OF_A_RUN[0]
    shipped = SHIPPED / f"{given.removesuffix('.yaml')}.yaml"
    return shipped if not path.exists() and Path(given).name == given and shipped.is_file() else path


def _read_with_parents(path: Path, chain: tuple[Path, ...]) -> list[Values]:
    resolved = path.resolve()
    if resolved in chain:
        loop = " -> ".join(p.name for p in (*chain[chain.index(resolved) :], resolved))
        raise UserError(f"extends: the files extend each other in a loop: {loop}; remove one `extends`")
    values = _read(path, asked_by=chain[-1] if chain else None)
    parent = values.pop("extends", None)
    if parent is None:
        return [values]
    if not isinstance(parent, str):
        raise UserError(f"{path}: extends: {parent!r} must be the path of one YAML file, relative to this file")
    return [*_read_with_parents(_or_shipped(path.parent / parent, parent), (*chain, resolved)), values]


def _read(path: Path, asked_by: Path | None) -> Values:
    origin = f" (extended by {asked_by})" if asked_by else ""
    if path.is_dir():
        names = sorted(file.name for file in path.glob("*.yaml"))
        hint = f"; name a file in it, such as {path / names[0]}" if names else _run_above(path) or "; name a YAML file"
        raise UserError(f"config {path} is a folder, not a YAML file{origin}{hint}")
    if not path.is_file():
        neighbours = [file.name for file in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        shipped = [] if path.parts[1:] else sorted(file.stem for file in SHIPPED.glob("*.yaml"))
        hint = nearest(path.name, neighbours) or nearest(path.stem, shipped, 0.8)
        if not hint and shipped:
            hint = f"; name a YAML file, or one of the {len(shipped)} shipped ones, such as {', '.join(STARTERS)}"
        elif not hint and path.parent.is_dir():
            hint = f"; {path.parent} has no YAML files"
        elif not hint:
            hint = f"; there is no folder {path.parent}"
        raise UserError(f"config file {path} does not exist{origin}{hint}")
    if path.suffix in OF_WEIGHTS:
        hint = _run_above(path) or "; name the YAML file, or the run folder, that goes with them"
        raise UserError(f"config {path} holds weights and is no YAML file{origin}{hint}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}, is not UTF-8{origin}; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read{origin}: {error}") from None
    try:
        values = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{path}{place} is not valid YAML{origin}: {error.problem}") from None
    except RecursionError:
        raise UserError(f"{path}{origin} is nested too deeply; a configuration has sections in one level") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or number that there is not
        raise UserError(f"{path} is not valid YAML{origin}: {' '.join(str(error).split())}") from None
    if values is None:
        raise UserError(f"{path}{origin} is empty; write at least `extends: deit_tiny.yaml` or the like")
    if not isinstance(values, dict):
        raise UserError(f"{path}{origin} must hold `key: value` lines at the top, not {_kind(values)}")
    if odd := [key for key in values if not isinstance(key, str)]:
        raise UserError(f"{path}{origin}: the key {odd[0]!r} is no word; remove its line, or quote it")
    return values


def _run_above(path: Path) -> str:
    """A hint at the run folder that a path lies in; empty where there is none."""
    found = next((folder for folder in path.absolute().parents[:2] if is_run(folder)), None)
    return f"; name its run folder: {found}" if found else ""


def _merged(base: Values, changes: Values) -> Values:
    """`base` with `changes` laid over it; sections are merged key by key, lists and what is a model's whole."""
    merged = {key: value for key, value in base.items() if key not in _replaced(changes)}
    for key, value in changes.items():
        former = merged.get(key)
        if (
            isinstance(former, dict)
            and isinstance(value, dict)
            and key not in ("kwargs", "architecture")
            and (key != "method" or _of_one_kind(former, value))
        ):
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = value
    return merged


def _of_one_kind(former: Values, value: Values) -> bool:
    """Whether the keys of two values of a section belong together: a method of another kind has keys of its own."""
    return "kind" not in value or "kind" not in former or value["kind"] == former["kind"]


def _replaced(changes: Values) -> set[str]:
    """The keys of which `changes` say the same in another way; stage_shares=null leaves stage_epochs alone."""
    return {INSTEAD[key] for key, value in changes.items() if key in INSTEAD and not (key == SHARES and value is None)}


def _apply(override: str, values: Values) -> Layer:
    """What an override gives, and all values after it; a section or list that it names is replaced whole."""
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
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"override {override!r}: the value {text!r} is not valid YAML; quote it") from None
    after = copy.deepcopy(values)
    here = after
    for depth, part in enumerate(path[:-1], 1):
        if here.get(part) is None:
            here[part] = {}
        if not isinstance(here[part], dict):
            raise UserError(f"override {override!r}: {'.'.join(path[:depth])} is a value, not a section")
        here = here[part]
    for key in _replaced({path[-1]: value}):
        here.pop(key, None)
    here[path[-1]] = value
    given: Any = value
    for part in reversed(path):
        given = {part: given}
    return Layer(given, after)


def _leaves(values: Values, prefix: str = "") -> Values:
    found: Values = {}
    for key, value in values.items():
        found |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def nearest(word: str, legal: Iterable[str], likeness: float = 0.5) -> str:
    """A hint at the legal word that comes nearest, `; did you mean X?`; empty where none is near."""
    near = difflib.get_close_matches(word, list(legal), n=1, cutoff=likeness)
    return f"; did you mean {near[0]}?" if near else ""


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", int: "a number", float: "a number"}.get(type(value), "something else")
