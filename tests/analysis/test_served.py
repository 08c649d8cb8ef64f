from pathlib import Path

from toe_train.analysis.families import REFUSED, SERVED
from toe_train.cli.tools import main

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_page_is_what_the_command_makes(tmp_path, capsys):
    assert main(["models", "--output", str(tmp_path / "models.md")]) == 0
    made = (tmp_path / "models.md").read_text()
    assert len([line for line in made.splitlines() if line.startswith("| t")]) == len(SERVED) + len(REFUSED)
    # What an error of torch's says may change from one version to the next.
    assert [line for line in made.splitlines() if "reduction dim" not in line] == [
        line for line in PAGE.read_text().splitlines() if "reduction dim" not in line
    ]
    assert "written" in capsys.readouterr().out
