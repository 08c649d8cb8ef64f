"""LV-ViT with token labels from end to end on a few generated images: made, trained in all stages, evaluated."""

import json

import pytest
import support
import torch

from toe_train.cli.tools import main as tools
from toe_train.cli.train import main
from toe_train.models import draw_box
from toe_train.recipes import load_config
from toe_train.runs.checkpoints import read
from toe_train.runs.folder import RunFolder
from toe_train.runs.log import read_metrics
from toe_train.runs.processes import Processes

HERE = Processes(0, 1, torch.device("cpu"))


def trainer_of(config, root, *overrides):
    folder = RunFolder(root)
    folder.create()
    return support.trainer_of(load_config(config, overrides), folder, "auto")


def losses(folder):
    return [record["train_loss"] for record in read_metrics(folder / "metrics.jsonl", "step")]


def test_all_stages_in_one_process_and_in_two(lvvit, tmp_path, start):
    """Batch norm sees a micro-batch, so the two are alike as long as they cut the global batch into the same ones."""
    assert main(["--config", str(lvvit), "--output", str(tmp_path / "one")]) == 0
    job = start("--config", lvvit, "--output", "two", processes=2)
    assert job.end(timeout=200) == 0, job.stderr
    epochs = read_metrics(tmp_path / "one/metrics.jsonl", "epoch")
    assert [(epoch["stage"], epoch["tokens_kept"]) for epoch in epochs] == [(1, 24), (2, 43), (3, 64)]
    assert all(epoch["val_images"] == 12 for epoch in epochs)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    checkpoint = ["--checkpoint", str(tmp_path / "one/checkpoints/last.pt"), "--weights", "ema"]
    assert tools(["eval", "--config", str(tmp_path / "one/config.yaml"), *checkpoint]) == 0


def test_resumed_within_an_epoch_it_is_the_uninterrupted_run_bit_for_bit(lvvit, tmp_path):
    every = "checkpoint.every_steps=2"
    trainer_of(lvvit, tmp_path / "whole", every).fit()
    broken = trainer_of(lvvit, tmp_path / "broken", every)
    save = broken.keeper.checkpoints.save

    def dying(state, is_best):
        save(state, is_best)
        if (state["progress"]["epoch"], state["progress"]["step"]) == (1, 2):
            raise KeyboardInterrupt

    broken.keeper.checkpoints.save = dying
    with pytest.raises(KeyboardInterrupt):
        broken.fit()
    trainer_of(lvvit, tmp_path / "broken", every).fit()
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    whole, resumed = (read(tmp_path / name / "checkpoints/last.pt") for name in ("whole", "broken"))
    for part in ("model", "ema"):
        assert all(torch.equal(value, resumed[part][name]) for name, value in whole[part].items())


@pytest.mark.parametrize("restore", ["zero", "copy", "ignore"])
def test_what_stands_at_dropped_positions_reaches_the_loss(lvvit, tmp_path, restore):
    trainer = trainer_of(lvvit, tmp_path / "run", f"expansion.restore={restore}", "epochs=2")
    seen = []
    loss = trainer.step.task._criterion
    loss.register_forward_hook(
        lambda loss, given, value: seen.append((trainer.method.expansion.kept, given, loss.counted(), value.item()))
    )
    trainer.fit()
    kept, (output, targets), counted, value = seen[0]
    assert kept.shape == (8, 24)
    dense = -(targets[1] * output[1].log_softmax(2)).sum(2)  # (8, 64)
    cls = -(targets[0] * output[0].log_softmax(1)).sum(1).mean()
    if restore == "ignore":
        assert counted.sum(1).float().mean() == 24  # MixToken moves them between the two images of a pair
        assert value == pytest.approx((cls + dense[counted].mean()).item(), rel=1e-5)
    else:
        assert counted is None
        assert value == pytest.approx((cls + dense.mean()).item(), rel=1e-5)
    rows = output[1].flatten(0, 1)
    alike = len(rows.unique(dim=0))  # zeros all give the bias; a copy gives what its owner gives
    assert alike <= 8 * 24 + (restore != "copy")


@pytest.mark.slow
def test_compiled_training_has_the_same_statistics(lvvit, tmp_path, graphs):
    """Nothing that is tried beforehand reaches the batch norm's statistics or the boxes."""
    runs = []
    for compiled in ("false", "true"):
        trainer = trainer_of(lvvit, tmp_path / compiled, f"train.compile={compiled}")
        trainer.fit()
        runs.append(trainer.model.state_dict())
    assert graphs
    for name, value in runs[0].items():
        torch.testing.assert_close(runs[1][name], value, atol=1e-5, rtol=1e-4)


def test_boxes_are_a_function_of_the_place_in_the_run(lvvit, tmp_path):
    trainer = trainer_of(lvvit, tmp_path / "run", "epochs=1", "schedule.cooldown_epochs=0")
    boxes = []
    trainer.model.register_forward_hook(
        lambda model, given, output: boxes.append(model.last_mix.boxes.clone()) if model.training else None
    )
    trainer.fit()
    assert len(boxes) == 6
    assert len({tuple(row) for box in boxes for row in box.tolist()}) > 3
    layout = trainer.step.layout
    places = torch.cat([layout.rows(0, micro) for micro in range(layout.accumulation)])  # in the global batch
    for step in range(3):
        of_step = torch.cat(boxes[2 * step : 2 * step + 2])  # (16, 4)
        for group in range(layout.num_groups):
            assert len(of_step[places % layout.num_groups == group].unique(dim=0)) == 1
    assert draw_box((8, 8)).shape == (4,)


def test_pictures_show_image_labels_kept_tokens_and_restored_grid(lvvit, tmp_path):
    trainer = trainer_of(lvvit, tmp_path / "run")
    shown = support.pictures_of(trainer, 0)["kept_tokens"]
    assert shown.shape == (3, 4 * 224 + 3 * 6, 4 * 224)
    rows = torch.stack([row[:, :224, ::7] for row in shown.split(224 + 6, dim=1)])[:, :, ::7]
    image, labels, kept, restored = rows.split(32, dim=3)
    assert image.shape == labels.shape == kept.shape == restored.shape == (4, 3, 32, 32)

    def patches(panel):
        return panel.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3)  # (8, 8, 8, 48)

    for panel in (labels, restored):
        cells = patches(panel).unflatten(3, (3, 16))
        assert torch.equal(cells.amin(4), cells.amax(4))  # one colour for each patch
    filled = patches(restored).amax(3) > 0
    assert filled.flatten(1).sum(1).tolist() == [24] * 4
    full = (patches(kept) == patches(image)).all(3)
    assert torch.equal(full | (patches(image).amax(3) == 0), filled | (patches(image).amax(3) == 0))
    assert len(patches(labels).flatten(0, 2).unique(dim=0)) > 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["token_labels=null"], "has an output for each patch, which token_labels train, and the run has none"),
        (["model.kwargs.dense=false"], "has no output for each patch, which token_labels train; use lvvit_t"),
        (["token_labels.geometry=center_crop"], "center_crop"),
        (["model.kwargs.dense=false", "token_labels=null", "expansion.restore=copy"], "set token_labels.root"),
    ],
)
def test_what_does_not_go_together_is_refused(lvvit, tmp_path, capsys, overrides, message):
    for dry in ([], ["--dry-run"]):
        assert main(["--config", str(lvvit), "--output", str(tmp_path / "run"), *dry, *overrides]) == 2
        assert message in capsys.readouterr().err


def test_without_labels_the_class_head_trains_alone(lvvit, tmp_path):
    given = [
        "token_labels=null",
        "model.kwargs.dense=false",
        "expansion=null",
        "epochs=1",
        "schedule.cooldown_epochs=0",
    ]
    assert main(["--config", str(lvvit), "--output", str(tmp_path / "run"), *given]) == 0


def test_a_missing_label_file_is_named(lvvit, labelled, tmp_path, capsys):
    moved = labelled / "labels/eel/eel_3.pt"
    moved.rename(tmp_path / "elsewhere.pt")
    try:
        assert main(["--config", str(lvvit), "--output", str(tmp_path / "run")]) == 2
        assert "1 of 48 training images that were looked at have no label file" in capsys.readouterr().err
        assert tools(["doctor", "--config", str(lvvit)]) == 2
        assert "eel/eel_3.pt" in capsys.readouterr().out
    finally:
        (tmp_path / "elsewhere.pt").rename(moved)
    assert json.loads((labelled / "labels/labels.json").read_text())["teacher"] == "resnet10t"
