"""What `toe-tools bench` refuses, what it reports of a whole run, and what it keeps when something fails on the way."""

import json

import pytest
import torch
from PIL import Image

from toe_train.analysis import end_to_end, expansion_speed, loader_speed, method_speed, step_speed
from toe_train.analysis.end_to_end import benchmark_end_to_end
from toe_train.analysis.expansion_speed import benchmark_expansion
from toe_train.analysis.flops import plan_costs
from toe_train.analysis.loader_speed import benchmark_loader
from toe_train.analysis.method_speed import benchmark_methods
from toe_train.analysis.step_speed import benchmark_step
from toe_train.cli import tools
from toe_train.errors import RunFailed, UserError
from toe_train.recipes import load_config, plan_epochs, stretches

CPU = torch.device("cpu")
SPARSE = "expansion={stage_epochs: [0, 1], keep_rates: [0.5, 0.75], initial_keep_rate: 0.25}"


def growing(**changes):
    """Two image sizes, as EfficientTrain has them."""
    section = {
        "stage_epochs": [0, 2],
        "image_sizes": [8, 16],
        "micro_batches": [32, 32],
        "rand_augments": ["rand-m1", "rand-m2"],
    }
    return f"curriculum={json.dumps(section | changes)}"


@pytest.fixture
def photographs(tmp_path):
    """An image folder of two classes with 8 images each under train/ and val/."""
    root = tmp_path / "images"
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(8):
                Image.new("RGB", (20, 20), (9 * number, 90, 10)).save(folder / f"{number}.jpg")
    return root


def on_folder(root, *settings):
    data = ["data.kind=image_folder", f"data.root={root}", "data.workers=0"]
    return [*data, "train.global_batch=4", "augment.repeats=1", *settings]


@pytest.mark.parametrize(
    ("what", "wrong", "words"),
    [
        ("loader", ["--batch", "4"], "--batch is of --what step and expansion, and this is loader"),
        ("end-to-end", ["--batch", "32"], "set train.global_batch, and train.max_micro_batch"),
        ("saving", ["--batch", "4"], "this is saving; leave it out"),
        ("step", ["--output", "there"], "--output is of --what saving, and this is step"),
        ("loader", ["--output", "runs"], "--output is of --what saving, and this is loader"),
        ("step", ["--json", "one", "--profile", "./one"], "name two files"),
        ("loader", ["--beside", "other.yaml"], "--beside is of --what step and reading, and this is loader"),
        ("step", ["--beside", "other.yaml", "--sizes", "16"], "--sizes, --graph and --profile are of one run's steps"),
        ("step", ["--beside", "other.yaml", "--batch", "2,4"], "with --beside give one number"),
        ("step", ["--beside", "a.yaml", "a.yaml"], "a file is named twice"),
    ],
)
def test_an_option_that_is_not_read_is_refused(tiny, capsys, what, wrong, words):
    assert tools.main(["bench", "--what", what, "--config", str(tiny), *wrong]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--json", "--profile"])
def test_an_output_that_cannot_be_written_is_found_out_before_anything_is_timed(
    tiny, tmp_path, capsys, monkeypatch, option
):
    monkeypatch.setattr(step_speed, "take_turns", None)
    monkeypatch.setattr(step_speed, "matmul_rate", None)
    (tmp_path / "file").write_text("in the way")
    for output in (tmp_path / "file/out.json", tmp_path):
        assert tools.main(["bench", "--config", str(tiny), option, str(output)]) == 2
        assert f"{option} {output} cannot be written" in capsys.readouterr().err


def test_an_output_stays_as_it_is_where_the_benchmark_fails(tiny, tmp_path):
    (tmp_path / "old.json").write_text("former")
    for name in ("old.json", "new.json"):
        assert tools.main(["bench", "--config", str(tiny), "--batch", "3", "--json", str(tmp_path / name)]) == 2
    assert (tmp_path / "old.json").read_text() == "former"
    assert not (tmp_path / "new.json").exists()


def test_a_folder_for_saving_that_cannot_be_made(tiny, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    command = ["bench", "--what", "saving", "--config", str(tiny), "--output", str(tmp_path / "file/runs")]
    assert tools.main([*command, "--rounds", "1"]) == 2
    assert "cannot be written to (Not a directory); name another folder" in capsys.readouterr().err
    command[-1] = str(tmp_path / "runs")
    assert tools.main([*command, "--rounds", "1"]) == 0
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize("wrong", [{"batches": [4, 3]}, {"sizes": [16, 9]}])
def test_a_later_batch_or_size_is_checked_before_anything_is_timed(tiny, monkeypatch, wrong):
    monkeypatch.setattr(step_speed, "take_turns", None)
    monkeypatch.setattr(step_speed, "matmul_rate", None)
    with pytest.raises(UserError, match=r"odd|9"):
        benchmark_step(load_config(tiny), **{"batches": [4], "rounds": 1, "device": CPU} | wrong)


def test_a_setting_that_does_not_fit_leaves_the_others(tiny, tmp_path, capsys, monkeypatch):
    build = step_speed.timed_steps

    def small_memory(config, cases, batch, device, num_classes, whole_graph):
        if batch == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return build(config, cases, batch, device, num_classes, whole_graph)

    monkeypatch.setattr(step_speed, "timed_steps", small_memory)
    output = tmp_path / "step.json"
    command = ["bench", "--config", str(tiny), "--batch", "2,4,6", "--rounds", "1", "--json", str(output)]
    assert tools.main(command) == 0
    lines = [[cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines()]
    assert [line[1:6] for line in lines if "out of memory" in line] == [["4", "full", "16", "16", "out of memory"]]
    result = json.loads(output.read_text())
    assert [stage["batch"] for stage in result["stages"]] == [2, 2, 2, 4, 6, 6, 6]
    missing = result["stages"][3]
    assert [missing[name] for name in ("step", "utilization", "peak_bytes")] == [None] * 3
    assert [schedule["batch"] for schedule in result["schedules"]] == [2, 6]


@pytest.mark.parametrize("baseline", [None, 9])
def test_the_speed_up_of_the_whole_schedule(tiny, baseline):
    sections = [growing(baseline_epochs=baseline), SPARSE, "epochs=5"]
    config = load_config(tiny, sections)
    result = benchmark_step(config, [2, 4], 3, CPU)
    assert [schedule.batch for schedule in result.schedules] == [2, 4]
    ratios = {(speed.image_size, speed.cost.stage): speed.step.speedup for speed in result.stages if speed.batch == 4}
    cut = stretches(plan_epochs(config))
    assert [(part.plan.image_size, part.stage, part.epochs) for part in cut] == [(8, 1, 1), (8, 2, 1), (16, 2, 3)]
    expected = (baseline or 5) / (1 / ratios[8, 1] + 1 / ratios[8, 2] + 3 / ratios[16, 2])
    whole = result.schedules[1]
    assert whole.baseline_epochs == (baseline or 5)
    assert whole.measured == pytest.approx(expected)
    assert whole.by_flops == pytest.approx(plan_costs(config, 1000).speedup)
    assert f"whole schedule, batch 4: {whole.measured:.3f}x measured, {whole.by_flops:.3f}x" in result.as_table()


@pytest.mark.slow
def test_the_speed_up_of_the_whole_schedule_is_of_the_configurations_own_size(tiny):
    config = load_config(tiny)  # its last stage is dense
    result = benchmark_step(config, [2], 1, CPU, sizes=[8, 16])
    (whole,) = result.schedules
    full, first, second = (1 / speed.step.speedup for speed in result.stages[3:])
    assert whole.measured == pytest.approx(3 * full / (first + second + full))
    assert whole.by_flops == pytest.approx(plan_costs(config, 1000).speedup)
    assert benchmark_step(config, [2], 1, CPU, sizes=[8]).schedules == ()
    assert benchmark_step(load_config(tiny, ["expansion=null"]), [2], 1, CPU).schedules == ()


def test_from_end_to_end_the_plain_run_comes_first(tiny):
    sections = [growing(), SPARSE, "epochs=4", "train.global_batch=64", "train.max_micro_batch=64"]
    result = benchmark_end_to_end(load_config(tiny, [*sections, "data.workers=0"]), 2, CPU)
    plain, *parts = result.parts
    assert (plain.stage, plain.image_size, plain.tokens_kept, plain.epochs) == (None, 16, 16, 4)
    timed = [(part.stage, part.image_size, part.tokens_kept, part.epochs) for part in parts]
    assert timed == [(1, 8, 2, 1), (2, 8, 3, 1), (2, 16, 12, 2)]
    seconds = sum(part.epochs / part.images_per_second for part in parts)
    assert result.schedule_speedup == pytest.approx(4 / plain.images_per_second / seconds)
    lines = result.as_table().splitlines()
    assert "over plain" in lines[1]
    assert lines[-1] == f"whole schedule: {result.schedule_speedup:.3f}x, over 4 plain epochs"


def test_a_part_that_trains_as_the_plain_run_is_timed_once(tiny, monkeypatch):
    timed = []
    speed = end_to_end._speed
    monkeypatch.setattr(end_to_end, "_speed", lambda *given: timed.append(given[1].stage) or speed(*given))
    sections = ["train.global_batch=64", "train.max_micro_batch=64", "data.workers=0"]
    parts = benchmark_end_to_end(load_config(tiny, sections), 1, CPU).parts
    assert timed == [0, 1, 2]
    assert [(part.stage, part.epochs) for part in parts] == [(None, 3), (1, 1), (2, 1), (3, 1)]
    assert parts[0].images_per_second == parts[3].images_per_second


def test_from_end_to_end_fewer_blocks_are_timed(tiny, monkeypatch):
    timed = []
    speed = end_to_end._speed
    monkeypatch.setattr(end_to_end, "_speed", lambda *given: timed.append(given[1].segment) or speed(*given))
    grown = "method={kind: depth_growth, depths: [1, 2], from_epochs: [0, 1]}"
    sections = ["expansion=null", grown, "train.global_batch=64", "train.max_micro_batch=64", "data.workers=0"]
    benchmark_end_to_end(load_config(tiny, sections), 1, CPU)
    assert timed == [0, 0, 1]  # the plain run, and both segments


def test_from_end_to_end_unreadable_images_are_passed_over_as_in_the_run(tiny, photographs):
    (photographs / "train/cat/3.jpg").write_bytes(b"broken")
    settings = on_folder(photographs, "expansion=null", "data.check_sample=0")
    with pytest.raises(UserError, match="cannot be read as an image"):
        benchmark_end_to_end(load_config(tiny, settings), 4, CPU)
    skipping = [*settings, "data.on_error=skip"]
    assert benchmark_end_to_end(load_config(tiny, skipping), 4, CPU).parts[0].images_per_second > 0
    with pytest.raises(RunFailed, match=r"data\.max_skipped allows 0"):
        benchmark_end_to_end(load_config(tiny, [*skipping, "data.max_skipped=0"]), 4, CPU)


def test_the_loader_refuses_to_pass_images_over(tiny, photographs):
    with pytest.raises(UserError, match=r"data\.on_error = skip: timm's loader cannot pass images over"):
        benchmark_loader(load_config(tiny, on_folder(photographs, "data.on_error=skip")), 1, CPU)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_is_timed_with_what_it_leaves_to_the_device(tiny, photographs, monkeypatch, workers):
    finished = []
    build = loader_speed.build_finish
    monkeypatch.setattr(
        loader_speed,
        "build_finish",
        lambda config: lambda shown: finished.append(build(config)(shown).shape) or torch.empty(0),
    )
    settings = on_folder(
        photographs, "augment.on_device=true", "augment.crop=random_resized", "augment.interpolation=bicubic"
    )
    config = load_config(tiny, [*settings, f"data.workers={workers}"])
    result = benchmark_loader(config, 2, CPU)
    names = ["ours", "ours, finished on the device", "timm's, float32", "timm's, bytes"]
    assert list(result.one_process) == names
    assert list(result.with_workers) == (names if workers else [])
    assert len(finished) >= 4
    assert set(finished) == {(4, 3, 16, 16)}
    assert "| ours, finished on the device |" in result.as_table()


def test_the_operations_share_of_the_full_step(tiny, monkeypatch):
    def given(pieces, rounds, device):
        for piece in pieces:
            piece()
        if len(pieces) == 1:  # the step
            return [[10.0, 20.0, 40.0]]
        return [[1.0] * 3, [3.0] * 3, [2.0] * 3, [4.0] * 3]  # own and literal, by stage

    monkeypatch.setattr(expansion_speed, "take_turns", given)
    result = benchmark_expansion(load_config(tiny), 2, 3, CPU, num_classes=10)
    assert result.step.milliseconds == 20
    assert [(stage.own.milliseconds, stage.own.speedup) for stage in result.stages] == [(1, 3), (2, 2)]
    assert [stage.share_of_step for stage in result.stages] == [0.05, 0.1]
    assert "full-token training step: 20.0 ms" in result.as_table()
    assert "10.00 % |" in result.as_table()
    with pytest.raises(UserError, match="odd"):
        benchmark_expansion(load_config(tiny), 3, 1, CPU)


@pytest.mark.parametrize("given", ["x", "8,", "1.5", "0", "-1"])
def test_a_batch_that_is_no_number_says_what_is_one(tiny, capsys, given):
    with pytest.raises(SystemExit) as ended:
        tools.main(["bench", "--config", str(tiny), f"--batch={given}"])
    assert ended.value.code == 2
    assert f"argument --batch: {given!r} must be whole numbers from 1 up, with commas between: 8,32" in (
        capsys.readouterr().err
    )


RIVALS = {
    "tome": "{kind: token_merging, r: 3}",
    "grown": "{kind: depth_growth, depths: [1, 2], from_epochs: [0, 1], copy: double}",
    "sparse": "{kind: structured_sparsity, heads_kept: 0.5, units_kept: 0.5}",
}


def beside(tiny, tmp_path, **changes):
    """Files of runs with the compared methods."""
    found = []
    for name, method in RIVALS.items():
        found.append(tmp_path / f"{name}.yaml")
        lines = [f"extends: {tiny.name}", "expansion: null", f"method: {method}", *changes.get(name, ())]
        found[-1].write_text("\n".join(lines))
    return found


def test_methods_beside_each_other(tiny, tmp_path, capsys, monkeypatch):
    turns = []
    real = method_speed.take_turns
    monkeypatch.setattr(method_speed, "take_turns", lambda pieces, *given: turns.append(pieces) or real(pieces, *given))
    output = tmp_path / "methods.json"
    command = ["bench", "--config", tiny, "--batch", 2, "--rounds", 2, "--json", output, "--beside"]
    assert tools.main([*map(str, [*command, *beside(tiny, tmp_path)])]) == 0
    assert [len(pieces) for pieces in turns] == [6]  # plain, two of ToE, one of each other method; all in one go
    printed = capsys.readouterr().out
    result = json.loads(output.read_text())
    runs = {run["name"]: run for run in result["runs"]}
    stages = {name: [(step["stage"], step["epochs"]) for step in run["steps"]] for name, run in runs.items()}
    assert stages == {"tiny": [(1, 1), (2, 1), (3, 1)], "tome": [(1, 3)], "grown": [(1, 1), (2, 2)], "sparse": [(1, 3)]}
    for name, run in runs.items():
        planned = plan_costs(load_config(tmp_path / f"{name}.yaml"), 1000)
        assert run["by_flops"] == pytest.approx(planned.speedup)
        assert run["measured"] == pytest.approx(
            3 / sum(step["epochs"] / step["step"]["speedup"] for step in run["steps"])
        )
        assert f"| {run['method']} | {run['measured']:.3f}x | {run['by_flops']:.3f}x |" in " ".join(printed.split())
    assert runs["grown"]["steps"][1]["step"] == result["plain"] == runs["tiny"]["steps"][2]["step"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("model: {drop_path: 0.1}", r"sparse has model\.drop_path=0\.1 and tiny has 0\.2"),
        ("optim: {name: sgd}", r"optim\.name=sgd and tiny has adamw"),
        (growing(), "sparse has a curriculum"),
    ],
)
def test_steps_of_another_recipe_are_not_compared(tiny, tmp_path, monkeypatch, change, words):
    monkeypatch.setattr(method_speed, "take_turns", None)
    files = [tiny, *beside(tiny, tmp_path, sparse=[change.replace("curriculum=", "curriculum: ")])]
    with pytest.raises(UserError, match=words):
        benchmark_methods({path.stem: load_config(path) for path in files}, 2, 1, CPU)
