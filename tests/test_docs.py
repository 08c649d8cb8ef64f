"""What README and docs show as code runs, their links lead somewhere, and what they name exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text()
CODE = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]
# Where each command of the README runs; or why it does not.
RUN_BY = {
    "git clone": "needs the network",
    "make quickstart": "tests/build/test_soak.py trains its configuration; CI makes .venv",
    "toe-tools split photos": "tests/cli/test_photos.py",
    "toe-tools doctor photos_split": "tests/cli/test_photos.py",
    "toe-train --config configs/photos.yaml": "tests/cli/test_photos.py",
    "toe-tools eval runs/photos": "tests/cli/test_photos.py",
    "toe-tools predict runs/photos": "tests/cli/test_photos.py",
    "toe-tools doctor /data/imagenet": "needs ImageNet; tests/cli/test_doctor.py",
    "toe-train --config configs/deit_tiny_toe_r05.yaml data.root=/data/imagenet --dry-run": "needs ImageNet",
    "toe-train --config configs/deit_tiny_toe_r05.yaml": "needs ImageNet and GPUs",
    "torchrun --nnodes=2": "needs two machines; tests/cli/test_launch.py starts torchrun on one",
    "-m toe_train": "the line before",
    "sbatch": "needs Slurm; tests/runs/test_slurm.py has stand-ins for srun and scontrol",
    "configs/deit_base_toe_r05.yaml": "the line before",
    "toe-tools report runs --output": "tests/analysis/test_folders.py",
    "toe-tools report results/light_proxy_cpu": "tests/analysis/test_report.py",
}


@pytest.mark.parametrize("code", CODE)
def test_their_python_runs(code):
    exec(compile(code, "page", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_the_index_has_every_page():
    index = (ROOT / "docs/README.md").read_text()
    assert {page.name for page in PAGES[2:]} - {"README.md"} == set(
        re.findall(r"^\| \[([^\]]+)\]", index, re.MULTILINE)
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tools_and_configurations_that_they_name_exist(page):
    from toe_train.cli.options import tools_parser

    known = tools_parser().format_help()
    for name in re.findall(r"toe-tools ([a-z]+)\b", page.read_text()):
        assert f"    {name} " in known, name
    for name in re.findall(r"configs/([\w.]+\.yaml)", page.read_text()):
        assert (ROOT / "configs" / name).exists(), name


def test_every_command_of_the_readme_is_run_or_says_why_not():
    commands = [line.strip() for line in README.splitlines() if line.startswith("    ") and line.strip()]
    commands = [line for line in commands if re.match(r"(git|make|toe-|torchrun|sbatch|-m |configs/)", line)]
    assert len(commands) > 10
    for command in commands:
        assert any(command.startswith(begun) for begun in RUN_BY), command
    for begun, where in RUN_BY.items():
        assert begun in README, begun
        for test in re.findall(r"tests/[\w/]+\.py", where):
            assert (ROOT / test).exists(), test


def test_the_readme_is_short():
    lines = README.splitlines()
    assert len(lines) <= 200
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []  # rows cannot be broken
