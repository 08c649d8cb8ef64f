"""What the console shows of an epoch: a line of limited width, the best so far marked."""

import pytest

from toe_train.runs.console import COLUMNS, Console
from toe_train.runs.log import read_metrics
from toe_train.tasks import box_detection, classification

RECORD = {
    "epoch": 1,
    "stage": 0,
    "tokens_kept": 8,
    "lr": 1e-3,
    "train_loss": 2.0,
    "train_seconds": 10.0,
    "data_wait_seconds": 0.4,
    "images_per_second": 100.0,
}
SHOWN = [("score", "score"), ("full size", "score_full"), ("other", "other")]


def line_of(capsys, record, epochs=3, shown=SHOWN, chosen="score"):
    console = Console(epochs, shown, chosen)
    console.epoch({**RECORD, **record})
    return capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize(
    ("record", "line"),
    [
        ({"score": 50.0, "score_full": 60.0, "other": None}, "loss 2.000  score 50.00   full size 60.00  100 img/s"),
        ({"score": 50.0, "score_full": 50.0, "other": 1.0}, "loss 2.000  score 50.00   other  1.00  100 img/s"),
        ({"score": 50.0, "is_best": True}, "loss 2.000  score 50.00*  100 img/s"),
        ({"score": None, "score_full": None}, "loss 2.000  100 img/s"),
        ({"train_loss": None, "data_wait_seconds": 4.0}, "loss not finite  100 img/s  wait 40 %"),
        ({"skipped_images": 3}, "loss 2.000  100 img/s  left out 3"),
    ],
)
def test_a_line_tells_what_there_is(capsys, record, line):
    assert line_of(capsys, record) == f"epoch 2/3  stage 0  tokens   8  lr 1.00e-03  {line}"


def test_the_star_stands_behind_the_score_that_chooses(capsys):
    record = {"score": 50.0, "score_full": 60.0, "other": 1.0, "is_best": True}
    assert "score 50.00  full size 60.00*  other  1.00  " in line_of(capsys, record, chosen="score_full")
    assert "score 50.00  full size 60.00  other  1.00*  " in line_of(capsys, record, chosen="other")
    # At the size that the run ends with both are one score, which is shown once.
    assert "score 60.00*  other" in line_of(capsys, {**record, "score": 60.0}, chosen="score_full")


LONG = {
    "epoch": 298,
    "stage": 3,
    "tokens_kept": 196,
    "lr": 4.9999e-04,
    "train_loss": 6.12345,
    "images_per_second": 12345.6,
    "is_best": True,
}


def test_a_long_run_of_each_task_has_all_its_scores_in_the_line(capsys):
    scores = {"val_top1": 72.345, "ema_top1": 72.111, "val_top5": 91.234}
    shown = classification.Classification.shown
    line = line_of(capsys, {**LONG, **scores}, 300, shown, "val_top1")
    assert "top-1 72.34*  EMA 72.11  top-5 91.23  12346 img/s" in line
    assert len(line) <= COLUMNS == 110
    scores = {"val_ap": 36.123, "ema_ap": 35.999, "val_ap50": 57.012}
    shown = box_detection.BoxDetection.shown
    detector = {**LONG, **scores, "epoch": 149, "tokens_kept": 1045.25, "images_per_second": 345.6}
    line = line_of(capsys, detector, 150, shown, "val_ap")
    assert "AP 36.12*  EMA 36.00  AP50 57.01  346 img/s" in line
    assert len(line) <= COLUMNS


@pytest.mark.parametrize("more", [{}, {"data_wait_seconds": 10.0}, {"skipped_images": 1_281_167}])
@pytest.mark.parametrize("chosen", ["first", "fifth"])
def test_what_does_not_fit_is_left_to_the_metrics(capsys, more, chosen):
    shown = [(f"{name} score", name) for name in ("first", "second", "third", "fourth", "fifth")]
    line = line_of(
        capsys,
        {**LONG, **dict.fromkeys(("first", "second", "third", "fourth"), 100.0), "fifth": 99.0, **more},
        300,
        shown,
        chosen,
    )
    assert len(line) <= 110
    assert f"{chosen} score {'100.00*' if chosen == 'first' else '99.00*'}" in line
    assert "fourth" not in line  # the last ones go first
    assert ("wait 100 %" in line) == ("data_wait_seconds" in more)
    assert ("left out 1281167" in line) == ("skipped_images" in more)


def test_the_best_so_far_is_told_at_a_start(capsys):
    for best, end in ((None, ""), ((4, 71.5), ": until now 71.50 of epoch 5"), ((None, 71.5), ": until now 71.50")):
        Console(3, SHOWN, "val_x", best).start({})
        said = capsys.readouterr().out
        assert said == f"* marks the best epoch so far by val_x, which checkpoints/best.pt holds{end}\n"


def starred(out):
    return [int(line.split("/")[0].split()[1]) for line in out.splitlines() if line.startswith("epoch") and "*" in line]


def test_a_run_marks_its_best_epochs_and_after_a_resume_those_that_are_better(tiny, tmp_path, capsys):
    from toe_train.cli.train import main

    given = ["--config", str(tiny), "--output", str(tmp_path / "run"), "optim.lr=1e-3"]
    assert main([*given, "epochs=2"]) == 0
    first = capsys.readouterr().out
    lines = read_metrics(tmp_path / "run/metrics.jsonl", "epoch")
    best = max(lines, key=lambda line: line["val_top1"])
    assert starred(first)[-1] == best["epoch"] + 1
    assert "best.pt holds\n" in first
    assert main([*given, "epochs=3"]) == 0
    second = capsys.readouterr().out
    assert f"best.pt holds: until now {best['val_top1']:.2f} of epoch {best['epoch'] + 1}\n" in second
    values = [line["val_top1"] for line in read_metrics(tmp_path / "run/metrics.jsonl", "epoch")]
    better = [number + 1 for number, value in enumerate(values) if value > max(values[:number], default=-1)]
    assert starred(first) + starred(second) == better
    assert [
        line["epoch"] + 1 for line in read_metrics(tmp_path / "run/metrics.jsonl", "epoch") if line["is_best"]
    ] == better
