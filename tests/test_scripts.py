"""The scripts of the paper's tables and figures: what they name exists, and each runs at the scale of seconds."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from toe_train.recipes import load_config, plan_epochs

SCRIPTS = sorted((Path(__file__).parents[1] / "scripts").glob("*.sh"))
RUNNING = [path for path in SCRIPTS if path.stem not in ("lib", "slurm")]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_each_is_a_shell_script(script):
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0


def test_every_table_and_figure_has_one():
    names = {f"table{number}" for number in range(2, 11)} | {f"fig{number}" for number in (2, 3, 4, 7)} | {"proxy"}
    assert {path.stem for path in RUNNING} == names


@pytest.mark.parametrize("script", RUNNING, ids=lambda path: path.stem)
def test_every_configuration_that_one_names_loads_and_plans(script, configs):
    named = re.findall(r"^ *(?:row\(\) \{ )?run \S+ (\S+) (\S+)", script.read_text(), re.MULTILINE)
    assert named
    for name in {name for pair in named for name in pair} - {"-"}:
        assert plan_epochs(load_config(configs / f"{name}.yaml", []))


@pytest.mark.slow
@pytest.mark.parametrize("script", RUNNING, ids=lambda path: path.stem)
def test_each_runs_and_reports(script, tmp_path):
    binaries = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    command = ["bash", str(script), "--proxy", "--smoke", "--output", str(tmp_path / "out")]
    for _ in range(2):  # the second time all is done
        job = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
        assert job.returncode == 0, job.stderr[-3000:]
    assert "nothing to train" in job.stdout
    if script.stem in ("fig2", "fig7"):
        assert (tmp_path / "out/kept.png").stat().st_size > 10_000
        assert (tmp_path / "out/features.png").stat().st_size > 10_000
        return
    report = (tmp_path / "out/report/report.md").read_text()
    rows = [line for line in report.split("###")[0].splitlines() if line.startswith("| ")]
    assert len(rows) >= 2
    assert "Not finished" not in report
    assert (tmp_path / "out/report/report.html").read_text().count("<table>") >= 1


def test_wrong_use_is_told(tmp_path):
    command = ["bash", str(SCRIPTS[0].parent / "table2.sh")]
    for wrong, words in [(["--smoke"], "scales of --proxy"), (["--what"], "--seeds N")]:
        job = subprocess.run([*command, *wrong], capture_output=True, text=True)
        assert job.returncode == 2
        assert words in job.stderr
