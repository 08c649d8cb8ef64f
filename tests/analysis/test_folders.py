"""Folders of run folders, as `toe-tools report` takes them."""

import json
import re
import shutil

import pytest

from toe_train.analysis.folders import run_folders
from toe_train.cli.tools import main as tools
from toe_train.errors import UserError
from toe_train.recipes import dump_config, load_config


@pytest.fixture
def runs(configs, tmp_path):
    """Two runs, one that was set aside, one of another make, and folders that are none."""
    root = tmp_path / "runs"
    for name in ("b", "a", "a.old-1", "foreign"):
        (root / name).mkdir(parents=True)
        (root / name / "config.yaml").write_text(dump_config(load_config(configs / "proxy.yaml", ["epochs=6"])))
        (root / name / "metrics.jsonl").write_text(json.dumps({"kind": "start", "num_classes": 10}) + "\n")
    (root / "foreign/config.yaml").write_text("model: {nme: x}\n")
    for name in ("pictures", ".cache", "b/tensorboard"):
        (root / name).mkdir()
    (root / "log.txt").touch()
    return root


def test_the_runs_of_a_folder_and_what_is_passed_over(runs):
    found = run_folders([runs])
    assert found.runs == [runs / "a", runs / "b"]
    assert [line.split(": ")[1] for line in found.passed_over] == [
        str(runs / name) for name in ("a.old-1", "foreign", "pictures")
    ]
    aside, foreign, pictures = found.passed_over
    assert "set aside by --resume never; name it" in aside
    assert "model.nme" in foreign
    assert pictures.endswith("it holds no config.yaml and no metrics.jsonl")


def test_runs_and_folders_mixed(runs, tmp_path):
    shutil.copytree(runs / "a", tmp_path / "alone")
    found = run_folders([tmp_path / "alone", runs / "b", runs, runs / "a.old-1"])
    assert found.runs == [tmp_path / "alone", runs / "b", runs / "a", runs / "a.old-1"]


def test_a_folder_without_any_is_refused(runs, tmp_path):
    with pytest.raises(
        UserError, match=r"(?s)b/tensorboard is not a run folder: it holds no .*, and no run folder lies"
    ):
        run_folders([runs / "b/tensorboard"])
    with pytest.raises(UserError, match="none is not a run folder: there is no such folder"):
        run_folders([runs, tmp_path / "none"])
    for name in ("a", "b", "a.old-1"):
        shutil.rmtree(runs / name)
    with pytest.raises(
        UserError, match=r"(?s)no run folder lies in it.*passed over: .*foreign.*passed over: .*pictures"
    ):
        run_folders([runs])


def test_a_report_of_a_folder(runs, capsys):
    assert tools(["report", str(runs)]) == 0
    out, err = capsys.readouterr()
    assert re.findall(r"^\| +(\w+) +\| +6 \|", out, re.MULTILINE) == ["a", "b"]
    assert out.count("passed over") == 0
    assert err.count("passed over: ") == 3
