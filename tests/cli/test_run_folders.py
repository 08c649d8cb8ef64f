"""A run folder stands wherever a checkpoint or a configuration is meant, and the reverse is told."""

import shutil

import pytest
import yaml

from toe_train.cli.train import main
from toe_train.recipes import load_config
from toe_train.runs.checkpoints import newest_in
from toe_train.runs.log import read_metrics


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A run of one epoch, made once; nobody writes to it."""
    from conftest import TINY

    place = tmp_path_factory.mktemp("ran")
    (place / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "epochs": 1}))
    assert main(["--config", str(place / "tiny.yaml"), "--output", str(place / "run")]) == 0
    return place / "run"


@pytest.fixture
def trained(ran, tmp_path):
    """A copy of it."""
    return shutil.copytree(ran, tmp_path / "run")


def test_a_run_as_a_configuration(trained, said, tmp_path, capsys):
    expected = load_config(trained / "config.yaml")
    assert load_config(trained) == expected
    (tmp_path / "child.yaml").write_text("extends: run\nseed: 3\n")
    assert load_config(tmp_path / "child.yaml").seed == 3
    plain = said("plan", "--config", trained / "config.yaml", "--classes", 10)
    assert plain[0] == 0
    assert said("plan", "--config", trained, "--classes", 10) == plain
    assert said("doctor", "--config", trained)[0] == said("doctor", "--config", trained / "config.yaml")[0]
    # It goes on in its own folder.
    assert main(["--config", str(trained), "epochs=2"]) == 0
    assert len(read_metrics(trained / "metrics.jsonl", "epoch")) == 2


def test_benchmarks_name_runs_by_their_folders(trained, said, tmp_path):
    other = shutil.copytree(trained, tmp_path / "other")
    code, out, err = said("bench", "--config", trained, "--beside", other, "--rounds", 1, "--batch", 2)
    assert code == 0, err
    assert "|   run |" in out
    assert "| other |" in out


def test_a_run_as_a_checkpoint(trained, said, tmp_path, capsys):
    given = ["--config", str(trained / "config.yaml"), "--output", str(tmp_path / "next"), "epochs=2"]
    assert main([*given, "--resume", str(trained)]) == 0
    assert "continuing at epoch 2 of 2" in capsys.readouterr().out
    for path in (trained, trained / "checkpoints", trained / "checkpoints/last.pt"):
        assert newest_in(path) == trained / "checkpoints/last.pt"


def test_each_tool_takes_the_model_first_or_behind_checkpoint(trained, said, tmp_path):
    code, out, _ = said("eval", trained)
    assert (code, out) == said("eval", "--checkpoint", trained)[:2]
    for number, named in enumerate(([trained], ["--checkpoint", trained])):
        code, _, err = said("export", *named, "--output", tmp_path / f"out{number}")
        assert code == 0, err
    for tool, more in (
        ("eval", ()),
        ("export", ("--output", "x")),
        ("view", ("--images", trained / "config.yaml", "--output", "x.png")),
    ):
        for named, told in (
            ((), "none is given"),
            ((trained, "--checkpoint", trained), f"{trained} and {trained} are given"),
        ):
            code, _, err = said(tool, *named, *more)
            assert code == 2
            assert (
                f"{tool} takes one run folder, checkpoint or file of weights, and {told}: toe-tools {tool} RUN" in err
            )
    with pytest.raises(SystemExit, match="2"):
        said("predict", "--checkpoint", trained, "a.jpg")


def test_predict_says_where_the_model_stands(said, capsys):
    with pytest.raises(SystemExit, match="2"):
        said("predict", "--checkpoint", "runs/photos", "a.jpg")
    assert "--checkpoint: predict takes the model first: toe-tools predict RUN IMAGE ..." in capsys.readouterr().err


def test_one_in_place_of_the_other_is_told(trained, said, tmp_path, capsys):
    best = trained / "checkpoints/best.pt"
    for given, words in [
        (
            ("plan", "--config", best),
            f"config {best} holds weights and is no YAML file; name its run folder: {trained}",
        ),
        (("plan", "--config", best.parent), f"is a folder, not a YAML file; name its run folder: {trained}"),
        (
            ("eval", trained / "config.yaml"),
            f"is a configuration and no trained model; give its run folder, such as {trained}",
        ),
        (("eval", "photos.yaml"), "is a configuration and no trained model; give its run folder, such as runs/photos"),
        (("doctor", trained), f"is a run folder; for its data set: toe-tools doctor --config {trained}"),
    ]:
        code, _, err = said(*given)
        assert code == 2
        assert words in err
    assert main(["--config", str(trained), "--resume", str(trained / "config.yaml")]) == 2
    assert "config.yaml is a configuration; give a run folder, or a .pt file" in capsys.readouterr().err
