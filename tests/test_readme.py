"""What the README shows as code runs."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_its_python_runs(code):
    exec(compile(code, "README.md", "exec"), {})


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (Path(__file__).parents[1] / target).exists(), target


def test_the_tools_that_it_names_exist():
    from toe_train.cli.options import tools_parser

    named = set(re.findall(r"toe-tools ([a-z]+)", README))
    known = tools_parser().format_help()
    assert named
    assert all(f"    {name} " in known for name in named)
