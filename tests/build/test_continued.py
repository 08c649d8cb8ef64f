"""A run is continued from another folder, and by a later version of the program."""

import pytest

from toe_train.cli.train import main
from toe_train.recipes import load_config
from toe_train.runs import sealed
from toe_train.runs.checkpoints import read

GIVEN = ["data.kind=image_folder", "data.root=images", "train.global_batch=4", "augment.mix_group=4", "epochs=1"]


@pytest.fixture
def finished(tiny, tmp_path, image_root, monkeypatch):
    """A run of one epoch, made in tmp_path of images that are named relative to it."""
    monkeypatch.chdir(tmp_path)
    assert image_root == tmp_path / "images"
    assert main(["--config", "tiny.yaml", "--output", "run", *GIVEN]) == 0
    return tmp_path / "run"


def test_its_config_continues_it_from_any_folder(finished, tmp_path, monkeypatch, capsys):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert load_config(finished / "config.yaml").data.root == str(tmp_path / "images")
    assert main(["--config", "../run/config.yaml", "epochs=2"]) == 0
    assert "continuing at epoch 2 of 2" in capsys.readouterr().out
    assert list(elsewhere.iterdir()) == []


def older(path, *keys):
    """Writes a checkpoint as a version of the program that had not these keys."""
    state = read(path)
    for key in keys:
        *sections, last = key.split(".")
        section = state["config"]
        for name in sections:
            section = section[name]
        del section[last]
    with sealed.written(path, state):
        pass


def test_keys_of_a_later_version_leave_a_finished_run_finished(finished, capsys):
    older(finished / "checkpoints/last.pt", "augment.on_device", "schedule.stepping", "allow")
    again = ["--config", "tiny.yaml", "--output", "run", *GIVEN]
    given = ["schedule.stepping=plain", "data.workers=1", "evaluate.every_epochs=3", "train.max_rollbacks=1"]
    capsys.readouterr()
    assert main([*again, *given[1:], "schedule.stepping=released"]) == 0
    assert "all 1 epochs in" in capsys.readouterr().out
    assert main([*again, *given]) == 2
    assert "schedule.stepping: 'released' in the checkpoint, 'plain' now" in capsys.readouterr().err
