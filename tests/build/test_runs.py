"""Whole runs of seconds on the digits: what is trained does not depend on how it is carried out."""

import math
import re

import pytest
import timm
import torch
from support import pictures_of, trainer_of

from toe_train.cli.train import main
from toe_train.recipes import load_config
from toe_train.runs.checkpoints import read
from toe_train.runs.clock import EpochClock
from toe_train.runs.folder import RunFolder
from toe_train.runs.log import read_metrics
from toe_train.runs.processes import Processes
from toe_train.training.records import counted

HERE = Processes(0, 1, torch.device("cpu"))
TIMES = re.compile("seconds|share|images_per_second|memory|hours")


@pytest.fixture
def run(tiny, tmp_path, monkeypatch):
    """Trains the tiny run into a folder of this name; returns its metrics of one kind without times, and its folder."""
    monkeypatch.chdir(tmp_path)

    def runner(name, *arguments, kind="step"):
        assert main(["--config", str(tiny), "--output", name, *arguments]) == 0
        records = read_metrics(RunFolder(tmp_path / name).metrics, kind)
        return [{k: v for k, v in record.items() if not TIMES.search(k)} for record in records], tmp_path / name

    return runner


@pytest.fixture
def trainer_in(tiny, tmp_path):
    """Builds the tiny run's trainer in a folder of this name, to be looked into."""
    opened = []

    def builder(name, *overrides, resume="never"):
        folder = RunFolder(tmp_path / name)
        folder.create()
        opened.append(trainer_of(load_config(tiny, overrides), folder, resume))
        return opened[-1]

    yield builder
    for trainer in opened:
        trainer.log.close()


def tensors(path):
    """All tensors of a checkpoint, by their place in it."""

    def walk(value, place):
        if isinstance(value, torch.Tensor):
            yield place, value
        elif isinstance(value, (dict, list)):
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                yield from walk(inner, f"{place}.{key}")

    return dict(walk(read(path), ""))


def assert_same_checkpoint(first, second):
    one, other = tensors(first / "checkpoints/last.pt"), tensors(second / "checkpoints/last.pt")
    assert one.keys() == other.keys()
    assert len(one) > 100
    differing = [place for place in one if not torch.equal(one[place], other[place])]
    assert differing == []


def losses(records):
    return [record["train_loss"] for record in records]


def test_a_run_leaves_the_promised_folder(run, tiny, tmp_path):
    epochs, folder = run("first", kind="epoch")
    assert [(e["epoch"], e["stage"], e["tokens_kept"]) for e in epochs] == [(0, 1, 8), (1, 2, 12), (2, 3, 16)]
    full = read_metrics(folder / "metrics.jsonl", "epoch")[-1]
    promised = "epoch stage tokens_kept lr train_loss val_top1 val_top5 ema_top1 images_per_second train_seconds"
    promised += " data_wait_seconds peak_memory_bytes gpu_hours"
    assert set(promised.split()) <= set(full)
    assert 0 < full["gpu_hours"] < full["gpu_hours_with_loading"]
    assert full["peak_memory_bytes"] > 1e7
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"last.pt", "previous.pt", "best.pt"}
    assert list((folder / "tensorboard").glob("events*"))
    text = (folder / "config.yaml").read_text()
    assert "# command: toe-train --config" in text
    assert f"torch {torch.__version__}" in text
    assert load_config(folder / "config.yaml") == load_config(tiny)
    start = read_metrics(folder / "metrics.jsonl", "start")[0]
    assert (start["first_epoch"], start["world_size"]) == (0, 1)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(run):
    first, one = run("one")
    second, two = run("two")
    assert losses(first) == losses(second)
    assert len(first) == 15
    assert_same_checkpoint(one, two)
    other, _ = run("three", "seed=1", "epochs=1")
    assert losses(other)[0] != losses(first)[0]


def test_loader_workers_change_nothing(run):
    assert losses(run("none")[0]) == losses(run("two", "data.workers=2")[0])


# The order in which a batch's gradients are summed differs; everything drawn is the same.
def test_accumulation_changes_rounding_only(run):
    whole, _ = run("whole", "augment.mix_group=256")
    for micro in (128, 64):
        parts, _ = run(f"parts{micro}", "augment.mix_group=256", f"train.max_micro_batch={micro}")
        assert losses(parts) == pytest.approx(losses(whole), rel=2e-4)


@pytest.mark.slow
def test_random_initialisation_is_given_by_place_too(run):
    random = "expansion.initialization=random"
    whole, _ = run("whole", random)
    parts, _ = run("parts", random, "train.max_micro_batch=64")
    spatial, _ = run("spatial", "epochs=1")
    assert losses(parts) == pytest.approx(losses(whole), rel=2e-4)
    assert losses(whole)[0] != losses(spatial)[0]


@pytest.mark.parametrize("stop", [1, 2])
def test_a_resumed_run_equals_the_uninterrupted_one(run, trainer_in, stop):
    """Stopped after an epoch, across a change of stage: weights, averages, moments and metrics, bit for bit."""
    steps, whole = run("whole")
    trainer = trainer_in("broken")
    trainer.cadence.plans = trainer.cadence.plans[:stop]  # the process ends here; the schedule is that of the whole run
    trainer.fit()
    resumed, broken = run("broken")
    assert resumed == steps
    assert_same_checkpoint(whole, broken)


def test_resuming_drops_the_lines_of_a_broken_off_epoch(run, tmp_path):
    _, folder = run("run", "epochs=2")
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join([*lines, '{"kind": "step", "epoch": 2, "step": 0, "train_loss": 9}', '{"kind": "st']))
    steps, _ = run("run", "epochs=3")
    assert [record["epoch"] for record in steps] == [0] * 5 + [1] * 5 + [2] * 5
    assert 9 not in losses(steps)


def test_a_finished_run_is_not_trained_again(run, capsys):
    first, folder = run("run")
    before = (folder / "checkpoints/last.pt").stat().st_mtime_ns
    again, _ = run("run")
    assert again == first
    assert (folder / "checkpoints/last.pt").stat().st_mtime_ns == before
    assert "are done: nothing to train" in capsys.readouterr().out


def test_starting_anew_sets_the_earlier_run_aside(run, tmp_path):
    run("run", "epochs=1")
    run("run", "epochs=1", "--resume", "never")
    run("run", "epochs=1", "--resume", "never")
    assert (tmp_path / "run.old-1/checkpoints/last.pt").exists()
    assert (tmp_path / "run.old-2/checkpoints/last.pt").exists()


def test_the_trained_weights_load_into_plain_timm(run):
    _, folder = run("run", "epochs=1")
    state = read(folder / "checkpoints/best.pt")
    kwargs = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10}
    plain = timm.create_model("deit_tiny_patch16_224", **kwargs)
    plain.load_state_dict(state["model"], strict=True)
    plain.load_state_dict(state["ema"], strict=True)
    assert state["classes"] == [str(digit) for digit in range(10)]


def test_the_average_moves_by_its_decay(run):
    _, slow = run("slow", "epochs=1", "train.ema_decay=0.5")
    _, fast = run("fast", "epochs=1", "train.ema_decay=0.000001")
    slow, fast = read(slow / "checkpoints/last.pt"), read(fast / "checkpoints/last.pt")
    for name, weight in fast["model"].items():
        torch.testing.assert_close(fast["ema"][name], weight, atol=1e-6, rtol=1e-5)
        assert torch.equal(slow["model"][name], weight)  # the average has no say in the training
    assert not torch.allclose(slow["ema"]["head.weight"], slow["model"]["head.weight"], atol=1e-6)


def test_images_made_on_the_device(run, capsys):
    """From the same draws, in loader processes too; what only the host can do is refused."""
    crop = "augment.crop=random_resized"
    host, _ = run("host", crop, "epochs=1")
    device, _ = run("device", crop, "epochs=1", "augment.on_device=true")
    assert losses(device) == pytest.approx(losses(host), rel=1e-3)
    assert losses(device) != losses(host)
    assert losses(run("workers", crop, "epochs=1", "augment.on_device=true", "data.workers=2")[0]) == losses(device)
    capsys.readouterr()
    with pytest.raises(AssertionError):
        run("padded", "augment.crop=padded", "augment.on_device=true")
    assert "augment.on_device knows crop=random_resized" in capsys.readouterr().err


def test_bf16_rounds_and_trains(run):
    bf16, _ = run("bf16", "train.precision=bf16", "epochs=1")
    full, _ = run("fp32", "epochs=1")
    assert losses(bf16) == pytest.approx(losses(full), rel=0.02)
    assert losses(bf16) != losses(full)


@pytest.mark.slow
def test_compiled_training_equals_eager(run, capsys):
    eager, _ = run("eager")
    compiled, _ = run("compiled", "train.compile=true")
    assert "compiled the step in" in capsys.readouterr().out
    assert losses(compiled) == pytest.approx(losses(eager), rel=1e-3)


def test_clipping_bounds_the_gradient(trainer_in):
    moved = {}
    for clip in ("null", "0.01"):
        trainer = trainer_in(clip, f"optim.clip_grad={clip}", "optim.name=sgd")
        before = trainer.model.head.weight.detach().clone()
        trainer.cadence.plans = trainer.cadence.plans[:1]
        trainer.fit()
        moved[clip] = (trainer.model.head.weight - before).norm().item()
    assert moved["0.01"] < moved["null"] / 5


@pytest.mark.slow
def test_exit_code_of_a_failed_run(tiny, tmp_path, capsys):
    code = main(
        [
            "--config",
            str(tiny),
            "--output",
            str(tmp_path / "run"),
            "optim.lr=1e30",
            "optim.name=sgd",
            "schedule.warmup_epochs=0",
        ]
    )
    assert code == 3
    text = capsys.readouterr().err
    assert re.match(r"run failed: .* not finite.* after 3 roll-backs", text)
    assert (tmp_path / "run/not_finite.jsonl").exists()
    assert "lower optim.lr" in text


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@cuda
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_a_step_on_a_gpu_does_not_wait_for_it(tiny, tmp_path, precision):
    here = Processes(0, 1, torch.device("cuda", 0))
    folder = RunFolder(tmp_path / "run")
    folder.create()
    trainer = trainer_of(load_config(tiny, [f"train.precision={precision}"]), folder, "never")
    clock, batches = EpochClock(here.device), iter(trainer.inputs.train)
    trainer.step(batches, clock, 0, 0)
    window = torch.zeros(2, device=here.device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        window += counted(trainer.step(batches, clock, 0, 1))
    finally:
        torch.cuda.set_sync_debug_mode("default")
        trainer.log.close()


@cuda
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_a_run_on_a_gpu_trains_what_the_cpu_trains(run, precision):
    losses_there = losses(run("gpu", f"train.precision={precision}", "--nproc", "1")[0])
    assert losses_there == sorted(losses_there, reverse=True) or losses_there[-1] < losses_there[0]
    assert all(math.isfinite(loss) for loss in losses_there)


def test_pictures_of_kept_tokens(trainer_in):
    trainer = trainer_in("run")
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert pictures_of(trainer, 2) == {}  # all tokens are kept
    shown = pictures_of(trainer, 0)["kept_tokens"]
    side = 16 * 14  # of an image of 16 pixels, enlarged
    assert shown.shape == (3, 2 * side + 6, 2 * side + 6)
    assert 0 <= shown.min() <= shown.max() <= 1
    cells = torch.stack([part[:, :side, :side] for row in shown.split(side + 6, 1) for part in row.split(side + 6, 2)])
    patches = cells.view(4, 3, 4, side // 4, 4, side // 4).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    pixels = patches[..., ::14, ::14].repeat_interleave(14, 3).repeat_interleave(14, 4)
    kept = (patches == pixels).flatten(2).all(2)  # hatches break the pixels of the others
    assert kept.sum(1).tolist() == [8] * 4
    assert all(torch.equal(weights[name], value) for name, value in trainer.model.state_dict().items())
