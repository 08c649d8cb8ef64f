"""`toe-tools plan --equal-compute`: the files that it writes."""

import pytest

from toe_train.analysis.equal_compute import EqualRun, NoRun
from toe_train.cli import plan
from toe_train.recipes import load_config, plain_run


@pytest.fixture
def two(monkeypatch):
    """One run found, in place of the search, whose own tests are in tests/analysis."""

    def found(config, num_classes):
        made = plain_run(config, config.epochs - 1)
        return [EqualRun("shorter", made, f"plain, {made.epochs} epochs", 1.0021), NoRun("random", "that is it")]

    monkeypatch.setattr(plan, "equal_runs", found)


def test_a_file_says_what_it_is_and_loads(two, tiny, tmp_path, said):
    folder = tmp_path / "equal"
    given = (
        "plan",
        "--config",
        tiny,
        "--equal-compute",
        "--output",
        folder,
        "optim.lr=0.5",
        "schedule.warmup_epochs=1",
    )
    code, out, _ = said(*given)
    path = folder / f"{tiny.stem}_shorter.yaml"
    assert code == 0
    assert out.splitlines() == [
        f"plain, 2 epochs, 1.002 of the FLOPs: {path}",
        "random dropping of tokens: none, that is it",
    ]
    assert load_config(path) == plain_run(load_config(tiny, ["optim.lr=0.5", "schedule.warmup_epochs=1"]), 2)
    header = path.read_text().partition("\n\n")[0]
    assert f"\n#   toe-train --config {path}\n" in header
    assert f"# Plain training for fewer epochs, beside {tiny.name} of 3 epochs with what the last line" in header
    assert "\n# plain, 2 epochs, 1.002 of the FLOPs of that run," in header
    assert "\n# Warm-up: 1 of 2 epochs (50.0%), there 1 of 3 (33.3%).\n" in header
    assert "# Made by: toe-tools plan --config" in header
    assert all(line.startswith("#") for line in header.splitlines())

    path.write_text("# mine\n" + path.read_text())
    assert said(*given)[0] == 0
    assert path.read_text().startswith("# mine\n")  # the same run: left as it is
    code, _, err = said(*given, "seed=7")
    assert code == 2
    assert f"{path} is there and another run: name another --output, or remove it" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--equal-compute"], "name a folder for them with --output"),
        (["--output", "there"], "give both or neither"),
    ],
)
def test_both_options_belong_together(tiny, said, options, words):
    code, _, err = said("plan", "--config", tiny, *options)
    assert code == 2
    assert words in err


def test_plain_training_has_nothing_to_equal(tiny, tmp_path, said):
    code, _, err = said("plan", "--config", tiny, "expansion=null", "--equal-compute", "--output", tmp_path / "no")
    assert code == 2
    assert "this run trains plainly" in err
    assert not (tmp_path / "no").exists()
