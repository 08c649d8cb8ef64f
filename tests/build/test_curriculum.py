"""EfficientTrain's curriculum in seconds on the digits: five stages, with those of ToE across them."""

import pytest
import torch
import yaml
from support import trainer_of

from toe_train.build import step as build_step
from toe_train.build.inputs import build_eval_transform
from toe_train.build.model import build_model
from toe_train.build.step import build_optimizer
from toe_train.cli.tools import main as tools
from toe_train.cli.train import main
from toe_train.data import EvalSet, low_frequency_crop, normalized, open_datasets
from toe_train.models import resize_positions
from toe_train.recipes import load_config
from toe_train.runs import sealed
from toe_train.runs.checkpoints import Checkpoints, read
from toe_train.runs.folder import RunFolder
from toe_train.runs.log import read_metrics
from toe_train.runs.processes import Processes
from toe_train.tasks.classification import BatchMixing
from toe_train.training.resolution import fit_moments, fit_positions

HERE = Processes(0, 1, torch.device("cpu"))
STAGES = {
    "epochs": 6,
    "model": {"image_size": 16, "kwargs": {"patch_size": 2, "embed_dim": 24, "depth": 2, "num_heads": 2}},
    "curriculum": {
        "stage_epochs": [0, 1, 2, 3, 5],
        "image_sizes": [8, 8, 12, 12, 16],
        "rand_augments": [f"rand-m{level}-mstd0.5-inc1" for level in (1, 3, 5, 7, 9)],
        "micro_batches": [128, 128, 64, 64, 64],
    },
    "expansion": {"stage_epochs": [0, 2, 4], "keep_rates": [0.6, 0.8, 1.0], "initial_keep_rate": 0.3},
    "schedule": {"unit": "step", "warmup_epochs": 1, "warmup_lr": 0.0},
    "optim": {"clip_grad": 5.0},
    "train": {"global_batch": 256, "ema_decay": 0.9},
}
EQUAL = {  # of 4, 1 and 1 epochs
    **STAGES,
    "curriculum": {
        "budget_epochs": 3,
        "downsampling": "lanczos",
        "image_sizes": [8, 12, 16],
        "rand_augments": [f"rand-m{level}-mstd0.5-inc1" for level in (0, 1, 2)],
        "micro_batches": [128, 128, 64],
    },
}


@pytest.fixture
def config(tiny, tmp_path):
    """EfficientTrain."""
    path = tmp_path / "curriculum.yaml"
    path.write_text(yaml.safe_dump({"extends": str(tiny), **STAGES}))
    return path


@pytest.fixture
def equal(tiny, tmp_path):
    """EfficientTrain++."""
    path = tmp_path / "equal.yaml"
    path.write_text(yaml.safe_dump({"extends": str(tiny), **EQUAL}))
    return path


def outcome(folder):
    steps = [(line["lr"], line["train_loss"]) for line in read_metrics(folder / "metrics.jsonl", "step")]
    state = read(folder / "checkpoints/last.pt")
    moments = {
        f"{index}.{name}": value
        for index, held in state["optimizer"]["state"].items()
        for name, value in held.items()
        if torch.is_tensor(value)
    }
    return steps, {**state["model"], **{f"ema.{name}": value for name, value in state["ema"].items()}, **moments}


def test_the_joint_timeline_is_trained(config, tmp_path, capsys):
    assert main(["--config", str(config), "--output", str(tmp_path / "run")]) == 0
    epochs = read_metrics(tmp_path / "run/metrics.jsonl", "epoch")
    keys = ("image_size", "tokens", "tokens_kept", "stage")
    assert [tuple(epoch[key] for key in keys) for epoch in epochs] == [
        (8, 16, 8, 1),
        (8, 16, 8, 1),
        (12, 36, 27, 2),
        (12, 36, 27, 2),
        (12, 36, 36, 3),
        (16, 64, 64, 3),
    ]
    told = capsys.readouterr().out
    assert (
        "from epoch 3 on: 12 pixels, rand-m5-mstd0.5-inc1\nglobal batch 256 = 1 process x 4 accumulation x 64" in told
    )
    assert all(epoch["val_top1_full"] is not None for epoch in epochs)
    assert epochs[-1]["val_top1_full"] == epochs[-1]["val_top1"]
    assert len({epoch["lr"] for epoch in epochs}) == 6
    rates = [line["lr"] for line in read_metrics(tmp_path / "run/metrics.jsonl", "step")]
    assert len(set(rates)) == len(rates) - 1  # the warm-up's last is the cosine's first
    given = ["--config", str(tmp_path / "run/config.yaml"), "--checkpoint"]
    assert tools(["eval", *given, str(tmp_path / "run/checkpoints/last.pt")]) == 0
    assert f"top-1 {epochs[-1]['val_top1']:.3f} %" in capsys.readouterr().out
    assert read(tmp_path / "run/checkpoints/previous.pt")["model"]["pos_embed"].shape == (1, 37, 24)
    assert tools(["eval", *given, str(tmp_path / "run/checkpoints/previous.pt")]) == 0
    assert f"top-1 {epochs[-2]['val_top1_full']:.3f} %" in capsys.readouterr().out


def test_stages_of_equal_compute_are_trained(equal, tmp_path, capsys):
    """Images made smaller by the loader, in training and in the evaluation beside the one at full size."""
    assert main(["--config", str(equal), "--output", str(tmp_path / "run")]) == 0
    epochs = read_metrics(tmp_path / "run/metrics.jsonl", "epoch")
    assert [epoch["image_size"] for epoch in epochs] == [8, 8, 8, 8, 12, 16]
    assert [epoch["stage"] for epoch in epochs] == [1, 1, 2, 2, 3, 3]
    assert epochs[-1]["val_top1_full"] == epochs[-1]["val_top1"]
    checkpoint = tmp_path / "run/checkpoints/previous.pt"  # after epoch 5, of 12 pixels
    assert tools(["eval", "--config", str(equal), "--checkpoint", str(checkpoint)]) == 0
    assert f"top-1 {epochs[4]['val_top1_full']:.3f} %" in capsys.readouterr().out
    model = build_model(load_config(equal, []), 10, 12).model.eval()
    model.load_state_dict(read(checkpoint)["model"])
    _, images = open_datasets("digits", None)
    seen = EvalSet(images, build_eval_transform(load_config(equal, []), 12))
    with torch.no_grad():
        found = model(torch.stack([image for image, _ in seen])).argmax(1)
    right = (found == torch.tensor([label for _, label in seen])).float().mean()
    assert epochs[4]["val_top1"] == pytest.approx(100 * right.item(), abs=1e-4)


@pytest.mark.slow
def test_two_processes_train_the_same(config, tmp_path, start):
    assert main(["--config", str(config), "--output", str(tmp_path / "one")]) == 0
    job = start("--config", config, "--output", "two", processes=2)
    assert job.end(timeout=200) == 0, job.stderr
    one, two = (outcome(tmp_path / name)[0] for name in ("one", "two"))
    assert [lr for lr, _ in two] == [lr for lr, _ in one]
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("config", [(2, 0), (3, 2)]),
        ("equal", [(4, 0), (5, 2)]),
        pytest.param("config", [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0)], marks=pytest.mark.slow),
        pytest.param("config", [(epoch, step) for epoch in range(6) for step in (1, 3)], marks=pytest.mark.slow),
        pytest.param("equal", [(epoch, step) for epoch in range(6) for step in (1, 4)], marks=pytest.mark.slow),
    ],
)
def test_broken_off_anywhere_it_is_the_uninterrupted_run(request, tmp_path, monkeypatch, name, places):
    """At boundaries of either kind of stage, and within epochs."""
    arguments = ["--config", str(request.getfixturevalue(name)), "checkpoint.every_steps=1", "--output"]
    assert main([*arguments, str(tmp_path / "whole")]) == 0
    save, left = Checkpoints.save, list(places)

    def dying(self, state, is_best):
        save(self, state, is_best)
        if left and (state["progress"]["epoch"], state["progress"]["step"]) == left[0]:
            left.pop(0)
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", dying)
    codes = [main([*arguments, str(tmp_path / "broken")]) for _ in [*places, None]]
    assert codes == [*[130] * len(places), 0]
    whole, broken = outcome(tmp_path / "whole"), outcome(tmp_path / "broken")
    assert broken[0] == whole[0]
    assert broken[1].keys() == whole[1].keys()
    assert [name for name in whole[1] if not torch.equal(whole[1][name], broken[1][name])] == []


def test_a_roll_back_from_a_stage_into_the_one_before(config, tmp_path, monkeypatch, capsys):
    """The only checkpoint at hand is of smaller images; the run goes back to them, and on again."""
    mix, left = BatchMixing.__call__, [(2, step) for step in range(3)]

    def mixing(self, images, labels, epoch, step, rank, micro):
        images, targets = mix(self, images, labels, epoch, step, rank, micro)
        if micro == 0 and (epoch, step) in left:
            left.remove((epoch, step))
            if not left:  # as if the newest one were damaged
                (tmp_path / "run/checkpoints/last.pt").write_bytes(b"broken")
            images = images * torch.nan
        return images, targets

    monkeypatch.setattr(BatchMixing, "__call__", mixing)
    arguments = ["--config", str(config), "--output", str(tmp_path / "run"), "train.max_skipped_steps=2"]
    assert main([*arguments, "checkpoint.every_epochs=1"]) == 0
    assert "back to after step 0 of epoch 2, and on in another order" in capsys.readouterr().out
    assert read(tmp_path / "run/checkpoints/last.pt")["progress"]["rollbacks"] == 1
    epochs = read_metrics(tmp_path / "run/metrics.jsonl", "epoch")
    assert [epoch["image_size"] for epoch in epochs] == [8, 8, 12, 12, 12, 16]


def test_what_the_model_sees(config, tmp_path):
    """Low frequencies before mixing; evaluation cropped likewise, and at full size."""
    folder = RunFolder(tmp_path / "run")
    folder.create()
    now = load_config(config, [])
    trainer = trainer_of(now, folder, "never")
    seen = []
    trainer.model.patch_embed.register_forward_hook(lambda module, given, output: seen.append(given[0].shape[-1]))
    given, mixing = [], trainer.step.task.mix
    trainer.step.task.mix = lambda images, *others: given.append(images.clone()) or mixing(images, *others)
    trainer.train_epoch(trainer.cadence.plans[0])
    assert set(seen) == {8}
    trainer.validate(trainer.cadence.plans[0])
    assert set(seen) == {8}
    # In training, before mixing.
    trainer.inputs.sampler.set_epoch(0)
    pixels, _ = next(iter(trainer.inputs.train.loader))
    assert torch.equal(given[0], low_frequency_crop(normalized(pixels, now.augment.mean, now.augment.std), 8))
    # In the evaluation.
    _, images = open_datasets("digits", None)
    shown = torch.stack([image for image, _ in EvalSet(images, build_eval_transform(now))])
    with torch.no_grad():
        found = trainer.model.eval()(low_frequency_crop(shown, 8)).argmax(1)
    right = (found == torch.tensor([label for _, label in EvalSet(images, build_eval_transform(now))])).float().mean()
    assert trainer.validate(trainer.cadence.plans[0])["val_top1"] == pytest.approx(100 * right.item(), abs=1e-4)
    whole = trainer.evaluation.sizes.at_full_size(trainer.model)[1]
    assert whole.model.patch_embed.img_size == (16, 16)
    assert whole.model.pos_embed.is_meta
    assert whole.weights["pos_embed"].shape == (1, 65, 24)
    trainer.log.close()


def test_a_model_with_buffers_outside_its_state_is_evaluated_at_full_size(config, tmp_path):
    """Rotary positions are such; nothing but positions and images changes in size."""
    model = "model={name: vit_small_patch16_rope_224, kwargs: {patch_size: 4, embed_dim: 32, depth: 1, num_heads: 1}}"
    given = [model, "model.image_size=16", "expansion=null", "epochs=1", "schedule.warmup_epochs=0"]
    assert main(["--config", str(config), "--output", str(tmp_path / "run"), *given]) == 0
    (epoch,) = read_metrics(tmp_path / "run/metrics.jsonl", "epoch")
    assert epoch["val_top1_full"] is not None


@pytest.mark.parametrize("name", ["rand_augments", "model"])
def test_what_a_later_stage_is_refused_for_is_said_at_once(config, tmp_path, capsys, name):
    given = {
        "rand_augments": ["curriculum.rand_augments=[rand-m1,rand-m1,rand-m1,rand-m1,rand-mm9]"],
        "model": ["model.name=beit_base_patch16_224", "expansion=null"],
    }[name]
    assert main(["--config", str(config), "--output", str(tmp_path / "run"), *given]) == 2
    words = {"rand_augments": "'mm9' is not understood", "model": "relative_position_bias_table depends on the image's"}
    assert words[name] in capsys.readouterr().err
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_the_hand_over_keeps_averages_moments_and_scaler(config, tmp_path, monkeypatch):
    kept, save = {}, Checkpoints.save

    def keeping(self, state, is_best):
        save(self, state, is_best)
        kept.setdefault((state["progress"]["epoch"], state["progress"]["step"]), read(self.last))

    monkeypatch.setattr(Checkpoints, "save", keeping)
    assert main(["--config", str(config), "--output", str(tmp_path / "run"), "epochs=3"]) == 0
    state = kept[2, 0]  # the last of 8 pixels; the next epoch's are of 12
    state["config"] = load_config(config, ["epochs=3"]).model_dump(mode="json")
    state["scaler"] = {**torch.amp.GradScaler("cpu", init_scale=1024.0).state_dict(), "_growth_tracker": 3}
    monkeypatch.setattr(build_step, "scaler_on", lambda device, precision: torch.amp.GradScaler("cpu"))  # fp16's
    folder = RunFolder(tmp_path / "next")
    folder.create()
    sealed.write(tmp_path / "two.pt", state)
    trainer = trainer_of(load_config(config, ["epochs=3"]), folder, str(tmp_path / "two.pt"))
    trainer.log.close()
    step = trainer.step
    assert step.sides == (12, 12)
    assert step.scaler.state_dict()["_growth_tracker"] == 3
    for name, value in fit_positions(state["ema"], step.model).items():
        assert torch.equal(step.ema.module.state_dict()[name], value), name
    moments = fit_moments(state["optimizer"], step.model, step.optimizer)["state"]
    now = step.optimizer.state_dict()["state"]
    assert now.keys() == moments.keys() == state["optimizer"]["state"].keys()
    for index, held in moments.items():
        assert all(torch.equal(now[index][name], value) for name, value in held.items()), index


def test_time_left_counts_the_larger_images_to_come(config, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create()
    trainer = trainer_of(load_config(config, []), folder, "never")
    trainer.log.close()
    assert [trainer._work(plan) for plan in trainer.cadence.plans] == [8, 8, 27, 27, 36, 64]


def test_positions_and_their_moments_are_resized_bilinearly(config):
    small, large = (build_model(load_config(config, []), 10, size).model for size in (8, 16))
    before, after = (build_optimizer(load_config(config, []), model) for model in (small, large))
    for parameter in small.parameters():
        parameter.grad = torch.randn_like(parameter)
    before.step()
    moments = before.state[small.pos_embed]
    large.load_state_dict(fit_positions(small.state_dict(), large))
    after.load_state_dict(fit_moments(before.state_dict(), large, after))
    for value, resized in [
        (small.pos_embed, large.pos_embed),
        *((moments[name], after.state[large.pos_embed][name]) for name in ("exp_avg", "exp_avg_sq")),
    ]:
        assert torch.equal(resized[:, :1], value[:, :1])
        grid = value[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
        expected = torch.nn.functional.interpolate(grid, size=(8, 8), mode="bilinear", align_corners=False)
        assert torch.equal(resized[:, 1:].unflatten(1, (8, 8)).permute(0, 3, 1, 2), expected)
    assert after.state[large.head.weight]["exp_avg"].equal(before.state[small.head.weight]["exp_avg"])
    positions = torch.randn(1, 1 + 16, 3)
    assert resize_positions(positions, 17, 1).equal(positions)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("curriculum.image_sizes=[8, 8, 12, 12, 14]", "must be model.image_size, 16"),
        ("curriculum.rand_augments=[rand-m1]", "rand_augments has 1 entries and image_sizes 5"),
        ("curriculum.stage_epochs=[0, 1]", "stage_epochs has 2 entries and image_sizes 5"),
        ("curriculum.stage_epochs=null", "(or stage_shares) and budget_epochs, and null for the other"),
        ("curriculum.budget_epochs=3", "(or stage_shares) and budget_epochs, and null for the other"),
        ("curriculum.stage_epochs=[1, 2, 3, 4, 5]", "must begin with 0"),
        ("curriculum.image_sizes=[9, 9, 12, 12, 16]", "must be even, and 9 is not; use 10"),
        ("curriculum.image_sizes=[12, 8, 12, 12, 16]", "must not fall"),
        (
            "curriculum.image_sizes=[6, 10, 14, 14, 16]",
            "curriculum.image_sizes = 6 is not a multiple of the patch size 4",
        ),
    ],
)
def test_wrong_curricula_are_refused(config, tmp_path, capsys, override, message):
    patches = ["model.kwargs.patch_size=4"] if "multiple" in message else []
    _refused(config, tmp_path, capsys, [override, *patches], message)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["epochs=7"], "epochs: 7 must be those of the curriculum's stages; curriculum.budget_epochs=3 needs epochs=6"),
        (["schedule.unit=epoch"], "curriculum.budget_epochs: its stages have schedules of their own, by step"),
        (["schedule.warmup_epochs=3"], "schedule.warmup_epochs: 3 of curriculum.budget_epochs=3 leave none"),
        (
            ["curriculum.image_sizes=[16, 16, 16]", "curriculum.budget_epochs=2"],
            "curriculum.budget_epochs=2 leaves none for stage 1, of 16 pixels",
        ),
    ],
)
def test_wrong_stages_of_equal_compute_are_refused(equal, tmp_path, capsys, overrides, message):
    _refused(equal, tmp_path, capsys, overrides, message)


def _refused(config, tmp_path, capsys, overrides, message):
    code = main(["--config", str(config), "--output", str(tmp_path / "run"), "--dry-run", *overrides])
    assert code == 2
    assert message in capsys.readouterr().err


def test_a_run_that_ends_before_its_last_stages_is_told(tiny, tmp_path, capsys):
    stages = (
        "{stage_epochs: [0, 4], image_sizes: [8, 16], rand_augments: [rand-m1, rand-m2], micro_batches: [256, 256]}"
    )
    given = ["--config", str(tiny), "--output", str(tmp_path / "run"), "--dry-run", "expansion.stage_epochs=[0,1,5]"]
    assert main([*given, f"curriculum={stages}", "epochs=4"]) == 0
    out = capsys.readouterr().out
    assert "note: expansion.stage_epochs=[0, 1, 5]: the last stage begins at epoch 6, after the end of the run" in out
    assert "note: curriculum.stage_epochs=[0, 4]: the last stage begins at epoch 5" in out
    assert main([*given, f"curriculum={stages}", "epochs=6"]) == 0
    assert "after the end of the run" not in capsys.readouterr().out
