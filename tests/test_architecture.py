"""The layers: a file imports from its own layer or a lower one, and only the libraries of its layer."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "toe_train"
ROOT_FILES = {"errors", "_version"}  # below all layers but the algorithm, which needs neither

# Folder -> (the project's folders it may import, libraries it may import; None: any that is installed)
ALLOWED = {
    "expansion": ({"expansion"}, {"torch"}),
    "models": ({"expansion", "models"}, {"torch", "timm"}),
    "data": ({"data"}, {"torch", "torchvision", "timm.data", "numpy", "PIL", "sklearn", "tqdm"}),
    "recipes": ({"recipes", "expansion.schedule"}, {"yaml", "pydantic"}),
    "training": ({"expansion", "models", "data", "recipes", "training"}, None),
    "analysis": ({"expansion", "models", "data", "recipes", "training", "analysis"}, None),
    "cli": ({"expansion", "models", "data", "recipes", "training", "analysis", "cli"}, None),
}


def imported(tree: ast.AST) -> list[str]:
    """Dotted names of all imports in a file, those inside functions too; `from a import b` gives a.b."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import, line {node.lineno}"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def fault(folder: str, name: str) -> str | None:
    """Why a file of `folder` may not import `name`, or None."""
    ours, libraries = ALLOWED[folder]
    top, _, rest = name.partition(".")
    if top == "toe_train":
        if rest.partition(".")[0] in ROOT_FILES:
            return "the algorithm stands alone" if folder == "expansion" else None
        if any(rest == allowed or rest.startswith(f"{allowed}.") for allowed in ours):
            return None
        return f"{folder} may import {sorted(ours)} only"
    if top in sys.stdlib_module_names or libraries is None:
        return None
    if any(name == allowed or name.startswith(f"{allowed}.") for allowed in libraries):
        return None
    return f"{folder} may use {sorted(libraries)} only"


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_what_its_layer_may(path):
    folder = path.relative_to(PACKAGE).parts[0]
    names = imported(ast.parse(path.read_text()))
    assert {name: reason for name in names if (reason := fault(folder, name))} == {}


def test_every_folder_has_a_layer():
    assert {path.relative_to(PACKAGE).parts[0] for path in FILES} == set(ALLOWED)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("expansion", "timm.layers"),
        ("expansion", "toe_train.errors"),
        ("data", "timm.models"),
        ("data", "toe_train.recipes.RunConfig"),
        ("recipes", "torch"),
        ("recipes", "toe_train.expansion.TokenExpansion"),
        ("training", "toe_train.analysis.flops"),
        ("analysis", "toe_train.cli.train"),
    ],
)
def test_the_rule_finds_what_is_forbidden(folder, name):
    assert fault(folder, name)
