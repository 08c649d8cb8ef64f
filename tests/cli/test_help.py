"""`--help`: the tools by purpose, examples that work, nothing wider than a terminal, and no torch."""

import shlex
import subprocess
import sys

import pytest

from toe_train.cli.help import EXAMPLES, GROUPS, OF_TOOLS, TRAIN, WIDTH
from toe_train.cli.options import tools_parser, train_parser
from toe_train.cli.tool_options import TOOLS


def parser_of(command):
    if command in (TRAIN, OF_TOOLS):
        return train_parser() if command == TRAIN else tools_parser()
    choices = next(action.choices for action in tools_parser()._actions if action.choices)
    return choices[command]


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", str(WIDTH))


def test_each_tool_stands_in_one_group_with_its_examples(terminal):
    grouped = [name for group in GROUPS.values() for name in group]
    assert sorted(grouped) == sorted(TOOLS)
    assert EXAMPLES.keys() == {TRAIN, OF_TOOLS, *TOOLS}
    said = parser_of(OF_TOOLS).format_help()
    for title, names in GROUPS.items():
        assert f"  {title}:\n    {next(iter(names))} " in said


@pytest.mark.parametrize("command", sorted(EXAMPLES))
def test_help_fits_a_terminal_and_shows_two_to_four_examples_that_parse(command, terminal):
    said = parser_of(command).format_help()
    assert [line for line in said.splitlines() if len(line) > WIDTH] == []
    assert 2 <= len(EXAMPLES[command]) <= 4
    for typed in EXAMPLES[command]:
        assert f"\n  {typed}\n" in f"{said}\n"
        program, *given = shlex.split(typed.rpartition("| ")[2])
        assert program == (TRAIN if command == TRAIN else OF_TOOLS)
        if program == TRAIN:
            options, unknown = train_parser().parse_known_intermixed_args(given)
        else:
            options, unknown = tools_parser().parse_known_args(given)
            assert command in (OF_TOOLS, given[0])
        assert [text for text in unknown if "=" not in text or text.startswith("-")] == []
        assert all("=" in text for text in getattr(options, "overrides", [])) or hasattr(options, "takes_folder")


@pytest.mark.parametrize("module", ["train", "tools"])
def test_help_needs_no_torch(module):
    script = f"""
import sys
from toe_train.cli.{module} import main
try:
    main(["--help"])
finally:
    assert not {{"torch", "numpy", "yaml"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "examples:" in done.stdout
    assert "loading" not in done.stdout
