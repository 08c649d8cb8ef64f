"""The tables that the commands print, and the benchmark behind the README's speed figures."""

import json
import os
import time

import pytest
import torch
from forms import flat_tar
from PIL import Image

from toe_train.analysis.flops import plan_costs
from toe_train.analysis.step_speed import benchmark_step
from toe_train.analysis.tables import summary_table, table
from toe_train.cli import tools
from toe_train.recipes import load_config
from toe_train.runs.folder import RunFolder

LOADERS = ["ours", "timm's, float32", "timm's, bytes"]


def test_a_table_lines_up():
    assert (
        table(("a", "long"), [("1", "2"), ("333", "4")])
        == "|   a | long |\n|----:|-----:|\n|   1 |    2 |\n| 333 |    4 |"
    )


def epoch(number, stage, tokens, rate, top1):
    return {
        "kind": "epoch",
        "epoch": number,
        "stage": stage,
        "image_size": 16,
        "tokens": 64,
        "tokens_kept": tokens,
        "images_per_second": rate,
        "val_top1": top1,
        "ema_top1": None,
    }


@pytest.fixture
def finished(tmp_path):
    def write(records):
        folder = RunFolder(tmp_path)
        folder.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
        return folder

    return write


def cells(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[0] == "|"]


def test_the_summary_compares_with_the_full_token_stage_of_the_same_run(configs, finished):
    folder = finished(
        [
            epoch(0, 1, 32, 100.0, 50.0),
            epoch(1, 1, 32, 180.0, 60.0),
            epoch(2, 1, 32, 170.0, None),
            epoch(10, 2, 48, 130.0, 70.0),
            epoch(20, 3, 64, 100.0, 80.0),
        ]
    )
    rows = cells(summary_table(plan_costs(load_config(configs / "quickstart.yaml"), 10), folder))[2:]
    assert rows == [
        ["1", "1-3", "32/64", "170", "1.70x", "1.54x", "60.00", "-"],
        ["2", "11-11", "48/64", "130", "1.30x", "1.22x", "70.00", "-"],
        ["3", "21-21", "64/64", "100", "1.00x", "1.00x", "80.00", "-"],
    ]


def test_without_a_full_token_stage_nothing_is_compared(configs, finished):
    rows = cells(
        summary_table(
            plan_costs(load_config(configs / "quickstart.yaml"), 10), finished([epoch(0, 1, 32, 100.0, 50.0)])
        )
    )
    assert rows[2][4] == "-"


STEADY = [epoch(n, 1, 32, 180.0 + n % 3, 50.0) for n in range(6)] + [
    epoch(n, 3, 64, 100.0 + n % 3, 80.0) for n in range(6, 12)
]
START = {"kind": "start", "device": "H100", "world_size": 8, "versions": "torch 2.14"}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ([START, *STEADY], None),
        ([START, *STEADY, epoch(12, 3, 64, 20.0, 80.0)], None),  # one slow epoch moves no quartile far
        ([START, *STEADY, *(epoch(n, 3, 64, 50.0, 80.0) for n in range(12, 16))], "quartiles 50 .. 101 images/s"),
        ([START, *STEADY[:6], {**START, "device": "A100"}, *STEADY[6:]], "changed its device on the way (A100, H100)"),
        ([START, *STEADY[:6], {**START, "world_size": 4}, *STEADY[6:]], "number of processes on the way (4, 8)"),
        ([{**START, "threads": 1}, *STEADY[:6], {**START, "threads": 2}, *STEADY[6:]], "of threads on the way (1, 2)"),
        ([START, *STEADY[:6], {**START, "threads": 2}, *STEADY[6:]], None),  # began before that was told
    ],
)
def test_no_speed_up_is_called_measured_where_the_conditions_changed(configs, finished, changed, reason):
    told = summary_table(plan_costs(load_config(configs / "quickstart.yaml"), 10), finished(changed))
    measured = [row[4] for row in cells(told)[2:]]
    assert measured == (["-", "-"] if reason else ["1.79x", "1.00x"])
    assert reason is None or reason in told
    assert ("speed-ups measured are left out" in told) == bool(reason)


def test_the_benchmark_times_every_stage(tiny, tmp_path, capsys):
    output = tmp_path / "bench/step.json"
    assert tools.main(["bench", "--config", str(tiny), "--batch", "4", "--rounds", "3", "--json", str(output)]) == 0
    rows = cells(capsys.readouterr().out)
    assert [row[1:4] for row in rows[2:]] == [["full", "16", "16"], ["1", "16", "8"], ["2", "16", "12"]]
    result = json.loads(output.read_text())
    assert (result["rounds"], result["compiled"]) == (3, False)
    assert result["command"].startswith("toe-tools bench --config")
    stages = result["stages"]
    assert all(s["step"]["spread"][0] <= s["step"]["milliseconds"] <= s["step"]["spread"][1] for s in stages)
    assert stages[0]["step"]["speedup"] == stages[0]["flop_ratio"] == 1.0
    assert stages[1]["flop_ratio"] > stages[2]["flop_ratio"] > 1
    for stage in stages:
        assert (stage["batch"], stage["image_size"]) == (4, 16)
        flops = 6 * stage["cost"]["macs"] * 4 / (stage["step"]["milliseconds"] / 1000)
        assert stage["utilization"] == pytest.approx(flops / result["matmul_rate"])


def test_the_benchmark_times_every_segment_of_a_curriculum(tiny):
    given = {"stage_epochs": [0, 1, 2, 4], "image_sizes": [8, 8, 8, 16], "micro_batches": [2] * 4}
    sections = [
        f"curriculum={json.dumps({**given, 'rand_augments': ['rand-m1', 'rand-m2', 'rand-m3', 'rand-m4']})}",
        "expansion={stage_epochs: [0, 1, 3], keep_rates: [0.5, 0.75, 1.0], initial_keep_rate: 0.25}",
    ]
    result = benchmark_step(load_config(tiny, ["epochs=6", *sections]), [4], 2, device=torch.device("cpu"))
    timed = [(stage.image_size, stage.cost.stage, stage.cost.tokens_kept) for stage in result.stages]
    assert timed == [(16, 0, 16), (8, 1, 2), (8, 2, 3), (8, 0, 4)]
    ratios = [stage.flop_ratio for stage in result.stages]
    assert ratios[0] == 1.0 < ratios[3] < ratios[2] < ratios[1]


def test_the_benchmark_of_the_operation_alone(tiny, capsys):
    command = ["bench", "--what", "expansion", "--config", str(tiny), "--batch", "2", "--rounds", "2"]
    assert tools.main(command) == 0
    assert [row[:2] for row in cells(capsys.readouterr().out)[2:]] == [["1", "8/16"], ["2", "12/16"]]
    assert tools.main([*command, "expansion.metric=manhattan"]) == 2
    assert "the literal version knows cosine alone" in capsys.readouterr().err


def test_the_benchmark_of_the_loader(tiny, tmp_path, capsys):
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (20, 20), (9 * number, 90, 10)).save(folder / f"{number}.jpg")
    command = ["bench", "--what", "loader", "--config", str(tiny), "train.global_batch=4", "--rounds", "3"]
    assert tools.main([*command, "data.kind=image_folder", f"data.root={tmp_path / 'images'}", "data.workers=1"]) == 0
    rows = cells(capsys.readouterr().out)[2:]
    assert [row[:2] for row in rows] == [[name, to] for to in ("none", "1") for name in LOADERS]
    assert tools.main(command) == 2
    assert "data.kind = digits: timm's loader is compared on data.kind=image_folder alone" in capsys.readouterr().err


@pytest.mark.slow
def test_the_benchmark_of_several_batches_and_sizes(tiny, tmp_path, capsys):
    command = ["bench", "--config", str(tiny), "--rounds", "1"]
    assert tools.main([*command, "--batch", "2,4", "--sizes", "8,16"]) == 0
    rows = cells(capsys.readouterr().out)[2:]
    assert [(row[0], row[2], row[3]) for row in rows if row[1] == "full"] == [
        ("2", "8", "4"),
        ("4", "8", "4"),
        ("2", "16", "16"),
        ("4", "16", "16"),
    ]
    assert tools.main([*command, "--sizes", "8", "expansion=null"]) == 0  # the plain step alone
    assert [row[:3] for row in cells(capsys.readouterr().out)[2:]] == [["32", "full", "8"]]
    for wrong, words in [
        (["--batch", "2,4", "--profile", "trace.json"], "a trace is of one --batch"),
        (["--what", "saving", "--graph", "model"], "--sizes, --graph and --profile are of --what step"),
        (["--what", "loader", "--sizes", "8"], "--sizes, --graph and --profile are of --what step"),
        (["--what", "expansion", "--batch", "2,4"], "takes one number"),
        (["--batch", "3"], "nearest legal values: 2 and 4"),
        (["--sizes", "9"], "9"),
    ]:
        assert tools.main([*command, *wrong]) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        tools.main([*command, "--batch", "0,4"])


def test_a_trace_of_a_step_of_each_stage(tiny, tmp_path):
    trace = tmp_path / "deep/trace.json"
    assert tools.main(["bench", "--config", str(tiny), "--batch", "2", "--rounds", "1", "--profile", str(trace)]) == 0
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {f"stage {stage} at 16 pixels" for stage in (0, 1, 2)} <= names


@pytest.mark.parametrize("workers", [0, 1])
def test_the_benchmark_from_end_to_end(tiny, capsys, workers):
    command = ["bench", "--what", "end-to-end", "--config", str(tiny), f"data.workers={workers}", "--rounds", "3"]
    assert tools.main([*command, "train.global_batch=64", "train.max_micro_batch=32"]) == 0
    rows = cells(capsys.readouterr().out)[2:]
    stages = [["plain", "16", "16"], ["1", "16", "8"], ["2", "16", "12"], ["3", "16", "16"]]
    assert [row[:3] for row in rows] == stages
    assert all(0 < int(row[6].rstrip(" %")) < 100 for row in rows)
    assert rows[0][5] == rows[3][5] == "1.00x"  # the dense stage is the plain run's


def test_the_plan_as_printed(configs, capsys):
    assert tools.main(["plan", "--config", str(configs / "deit_tiny_toe_r05.yaml")]) == 0
    out = capsys.readouterr().out
    assert cells(out)[2:] == [
        ["1-100", "1", "224", "98/196", "1.00e-06 .. 7.61e-04", "0.6543", "0.6000", "0.0037", "1.916x"],
        ["101-200", "2", "224", "147/196", "7.57e-04 .. 2.67e-04", "0.9438", "0.8393", "0.0055", "1.328x"],
        ["201-300", "3", "224", "196/196", "2.62e-04 .. 1.01e-05", "1.2537", "1.0786", "0.0000", "1.000x"],
    ]
    assert "whole schedule: 1.319x by FLOPs, attention counted" in out
    assert "1.285x as the paper counts, by thop" in out


def test_the_plan_of_a_batch_that_follows_the_images_says_so(tiny, capsys):
    for given, told in ((["train.global_batch=auto"], True), ([], False)):
        assert tools.main(["plan", "--config", str(tiny), *given, "augment.mix_group=128"]) == 0
        assert ("follow the number of images; here 128" in capsys.readouterr().out) == told


def test_the_benchmark_of_a_start(tiny, image_root, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("toe_train.data.sources.remembered.WORTH_KEEPING", 0)
    for path in (image_root, *image_root.rglob("*")):
        os.utime(path, (1_600_000_000, 1_600_000_000))
    command = ["bench", "--what", "start", "--config", str(tiny), "--rounds", "2"]
    figures = tmp_path / "start.json"
    assert tools.main([*command, "data.kind=image_folder", f"data.root={image_root}", "--json", str(figures)]) == 0
    out = capsys.readouterr().out
    assert f"image_folder {image_root}, 18 images" in out
    assert [row[0] for row in cells(out)[2:]] == ["torchvision's ImageFolder", "first time", "remembered"]
    assert json.loads(figures.read_text())["images"] == 18
    given, ahead = flat_tar(image_root, tmp_path / "tars"), time.time() + 3600
    os.utime(tmp_path / "tars/val.tar", (ahead, ahead))
    os.utime(tmp_path / "tars/train.tar", (ahead, ahead))  # too new to be kept
    assert tools.main([*command, *given]) == 0
    out = capsys.readouterr().out
    assert [row[0] for row in cells(out)[2:]] == ["first time"]
    assert "or the data is too new" in out
    nowhere = ["data.kind=image_folder", f"data.root={tmp_path / 'nowhere'}"]
    for wrong, words in (
        ([], "data.kind = digits is not timed"),
        (["--batch", "4"], "this is start; leave it out"),
        (nowhere, "nowhere is not a folder"),
    ):
        assert tools.main([*command, *wrong]) == 2
        assert words in capsys.readouterr().err


def test_the_benchmark_of_reading(tiny, image_root, tmp_path, capsys):
    given = flat_tar(image_root, tmp_path / "tars")
    command = ["bench", "--what", "reading", "--config", str(tiny), "--rounds", "2"]
    assert tools.main([*command, *given, "--beside", str(image_root)]) == 0
    rows = cells(capsys.readouterr().out)[2:]
    assert [row[0] for row in rows] == [f"tar {tmp_path / 'tars'}", f"image_folder {image_root}"]
    (image_root / "train/cat/cat_0.JPEG").unlink()
    assert tools.main([*command, *given, "--beside", str(image_root)]) == 2
    assert "holds other training images than" in capsys.readouterr().err
    assert tools.main(command) == 2
    assert "data.kind = digits is not timed" in capsys.readouterr().err
    assert tools.main([*command[:2], "loader", *command[3:], "--beside", str(image_root)]) == 2
    assert "--beside is of --what step and reading, and this is loader" in capsys.readouterr().err
