"""The layers: a file imports from its own layer or a lower one, and only what its folder may know."""

import ast
import re
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "toe_train"
ROOT_FILES = {"errors", "cores", "_version"}  # below all layers but the algorithm, which needs neither
LOWER = {"expansion", "models", "methods", "runs", "data", "recipes", "tasks", "training", "build"}

# Folder -> (the project's folders it may import, libraries it may import; None: any that is installed)
ALLOWED = {
    "expansion": ({"expansion"}, {"torch"}),
    "models": ({"expansion", "models"}, {"torch", "timm", "huggingface_hub"}),
    "methods": ({"expansion", "models", "methods"}, {"torch"}),
    "runs": ({"runs"}, {"torch", "torchvision.__version__", "timm.__version__", "numpy", "tqdm", "wandb", "mlflow"}),
    "data": ({"data"}, {"torch", "torchvision", "timm.data", "numpy", "PIL", "sklearn", "tqdm", "scipy.io", "pyarrow"}),
    "recipes": ({"recipes", "expansion.schedule"}, {"yaml", "pydantic"}),
    "tasks": (
        {"models", "runs", "data", "tasks"},
        {"torch", "torchvision", "timm", "numpy", "scipy", "pycocotools", "PIL", "matplotlib"},
    ),
    "training": ({"models", "methods.method", "runs", "data", "recipes", "tasks.task", "training"}, None),
    "build": (LOWER, None),
    "analysis": (LOWER | {"analysis"}, None),
    "cli": (LOWER | {"analysis", "cli"}, None),
    "integrations": (
        {"expansion", "models", "methods", "data", "integrations"},
        {"torch", "transformers", "lightning"},
    ),
}
# What a folder may not name although it may import the package that has it.
NOT_NAMED = {"training": {"RunConfig", "load_config", ""}}  # "": the whole package, by which all of it is named
# Packages of which others import what `__init__` names, and no files; but `recipes` does without torch, which the
# algorithm's package brings, and takes its schedule alone.
BY_PACKAGE = ("data", "recipes", "expansion", "models")
BY_FILE = {("recipes", "expansion.schedule")}


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
        package, _, inner = rest.partition(".")
        if package in ROOT_FILES:
            return "the algorithm stands alone" if folder == "expansion" else None
        if package == "recipes" and inner in NOT_NAMED.get(folder, ()):
            return f"{folder} takes plain arguments and no {inner}"
        by_file = "." in inner
        if (
            package in BY_PACKAGE
            and folder != package
            and by_file
            and not any(folder == who and rest.startswith(what) for who, what in BY_FILE)
        ):
            return f"{package} is imported from as a package: from toe_train.{package} import ..."
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


KINDS = r"token.?expansion|\btoe\b|token.?label|token.?merg|depth.?growth|sparsity|classif|detection|top-?1|mixup"


@pytest.mark.parametrize("name", ["loop.py", "step.py"])
def test_the_loop_and_the_step_name_no_task_and_no_method(name):
    text = (PACKAGE / "training" / name).read_text()
    assert re.findall(KINDS, text, re.IGNORECASE) == []


@pytest.mark.parametrize("folder", ["training", "runs"])
def test_nobody_below_build_asks_which_task_or_method_it_is(folder):
    for path in (PACKAGE / folder).glob("*.py"):
        assert not re.search(r"expansion is None|token_labels|val_top1", path.read_text()), path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_fits_the_eye(path):
    """At most 300 lines, and no function over 70."""
    text = path.read_text()
    assert text.count("\n") <= 300
    functions = [
        node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    long = {node.name: node.end_lineno - node.lineno + 1 for node in functions if node.end_lineno - node.lineno >= 70}
    assert long == {}


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("expansion", "timm.layers"),
        ("expansion", "toe_train.errors"),
        ("data", "timm.models"),
        ("data", "toe_train.recipes.RunConfig"),
        ("recipes", "torch"),
        ("recipes", "toe_train.expansion.TokenExpansion"),
        ("runs", "toe_train.models.create_model"),
        ("runs", "toe_train.recipes.RunConfig"),
        ("methods", "toe_train.recipes.RunConfig"),
        ("training", "toe_train.recipes.RunConfig"),
        ("training", "toe_train.recipes"),
        ("training", "toe_train.tasks.classification.Classification"),
        ("training", "toe_train.methods.token_expansion.TokenExpansionMethod"),
        ("runs", "timm.create_model"),
        ("tasks", "toe_train.methods.method.Method"),
        ("training", "toe_train.build.model.build_model"),
        ("training", "toe_train.analysis.flops"),
        ("build", "toe_train.data.sets.TrainSet"),
        ("analysis", "toe_train.cli.train"),
        ("analysis", "toe_train.integrations.HuggingFaceCallback"),
        ("cli", "toe_train.integrations.HuggingFaceCallback"),
        ("integrations", "toe_train.training.loop.Trainer"),
    ],
)
def test_the_rule_finds_what_is_forbidden(folder, name):
    assert fault(folder, name)


def test_the_tests_of_every_folder_are_run(pytestconfig):
    """Unless told otherwise, pytest leaves out folders called build, and says nothing."""
    left_out = pytestconfig.getini("norecursedirs")
    folders = [path.name for path in Path(__file__).parent.rglob("*") if path.is_dir() and list(path.glob("test_*.py"))]
    assert "build" in folders
    assert [name for name in folders for pattern in left_out if fnmatch(name, pattern)] == []
