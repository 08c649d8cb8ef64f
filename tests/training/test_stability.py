"""Numbers that are not finite: steps left out, the run taken back, an end with a report. Injected into the images."""

import itertools
import json
import math
import re

import pytest
import support
import torch

from toe_train.errors import RunFailed
from toe_train.recipes import load_config
from toe_train.runs.checkpoints import read
from toe_train.runs.folder import RunFolder
from toe_train.runs.log import read_metrics
from toe_train.runs.processes import Processes
from toe_train.tasks.classification import BatchMixing
from toe_train.training.guard import Counts, StepGuard, not_finite
from toe_train.training.step import TrainStep

HERE = Processes(0, 1, torch.device("cpu"))
LIMITS = ["train.max_skipped_steps=2", "train.max_rollbacks=2"]


@pytest.fixture
def poison(monkeypatch):
    """poison(places, times, micro): images of these (epoch, step) become NaN, in the first so many passes over each."""
    mix = BatchMixing.__call__

    def begin(places, times=math.inf, micro=None):
        passes = {}

        def mixing(self, images, labels, epoch, step, rank, part):
            images, targets = mix(self, images, labels, epoch, step, rank, part)
            if (epoch, step) in places and micro in (None, part):
                passes[epoch, step] = passes.get((epoch, step), 0) + 1
                if passes[epoch, step] <= times:
                    images = images * math.nan
            return images, targets

        monkeypatch.setattr(BatchMixing, "__call__", mixing)

    return begin


def trainer_of(tiny, root, *overrides):
    folder = RunFolder(root)
    folder.create()
    return support.trainer_of(load_config(tiny, [*LIMITS, *overrides]), folder, "auto"), folder


def finite(path):
    return not not_finite(read(path)["model"]) and not not_finite(read(path)["ema"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("clip", ["null", "1.0"])
def test_a_step_that_is_not_finite_changes_no_weight(tiny, tmp_path, poison, monkeypatch, precision, clip):
    trainer, folder = trainer_of(
        tiny, tmp_path / "run", "epochs=1", f"train.precision={precision}", f"optim.clip_grad={clip}"
    )
    weights = []
    take = TrainStep.__call__

    def step(self, *arguments):
        losses = take(self, *arguments)
        weights.append([parameter.detach().clone() for parameter in trainer.model.parameters()])
        return losses

    monkeypatch.setattr(TrainStep, "__call__", step)
    poison({(0, 1), (0, 2)})
    trainer.fit()
    changed = [any(not torch.equal(a, b) for a, b in zip(*pair, strict=True)) for pair in itertools.pairwise(weights)]
    assert changed == [False, False, True, True]
    steps = [record["train_loss"] for record in read_metrics(folder.metrics, "step")]
    assert [loss is None for loss in steps] == [False, True, True, False, False]
    epoch = read_metrics(folder.metrics, "epoch")[0]
    assert epoch["skipped_steps"] == 2
    assert epoch["train_loss"] == pytest.approx(sum(loss for loss in steps if loss is not None) / 3)
    assert finite(folder.checkpoints / "last.pt")


def test_a_bad_step_leaves_a_batch_norm_alone(tiny, tmp_path, poison):
    """Its statistics are of the forward pass, which comes before the gradients are known."""
    small = "model.kwargs={patch_size: 4, embed_dim: 24, depth: 3, num_heads: 2, dense: false, stem_width: 8}"
    trainer, folder = trainer_of(tiny, tmp_path / "run", "epochs=1", "model.name=lvvit_t", "model.drop_path=0", small)
    poison({(0, 1), (0, 3)})
    trainer.fit()
    assert read_metrics(folder.metrics, "epoch")[0]["skipped_steps"] == 2
    assert trainer.progress.rollbacks == 0
    assert finite(folder.checkpoints / "last.pt")
    state = read(folder.checkpoints / "last.pt")
    assert {int(value) for name, value in state["model"].items() if name.endswith("num_batches_tracked")} == {3}


def test_a_beginning_that_is_not_finite_is_told(tiny, tmp_path):
    trainer, _ = trainer_of(tiny, tmp_path / "run")
    trainer.model.head.bias.data[3] = math.nan
    with pytest.raises(RunFailed, match=r"head.bias for one, before the first step"):
        trainer.fit()


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_more_steps_than_allowed_take_the_run_back_and_on_in_another_order(
    tiny, tmp_path, poison, monkeypatch, capsys, workers
):
    trainer, folder = trainer_of(
        tiny, tmp_path / "run", "epochs=2", "checkpoint.every_steps=1", f"data.workers={workers}"
    )
    orders = []
    epoch_of = type(trainer.inputs.sampler._order).epoch

    def epoch(self, *place):
        indices = epoch_of(self, *place)
        orders.append((place, indices[:4].tolist()))
        return indices

    monkeypatch.setattr(type(trainer.inputs.sampler._order), "epoch", epoch)
    poison({(1, 1), (1, 2), (1, 3)}, times=1)
    trainer.fit()
    told = capsys.readouterr().out
    assert (
        "from step 2 of epoch 2 on: back to after step 1 of epoch 2, and on in another order (roll-back 1 of 2)" in told
    )
    passes = [place for place, _ in orders if place[0] == 1]
    assert (passes[0], passes[-1]) == ((1, 0), (1, 1))
    assert orders[1][1] != orders[-1][1]
    assert read(folder.checkpoints / "last.pt")["progress"]["rollbacks"] == 1
    assert [(record["epoch"], record["step"]) for record in read_metrics(folder.metrics, "step")] == [
        (epoch, step) for epoch in range(2) for step in range(5)
    ]
    (report,) = (json.loads(line) for line in folder.not_finite.read_text().splitlines())
    assert (report["epoch"], report["step"]) == (1, 1)
    assert set(report["largest_gradients"].values()) == {"nan"}
    assert all(norm > 0 for norm in report["largest_gradients_of_last_finite_step"].values())
    assert len(report["samples"]) == 256


def test_a_run_that_cannot_go_on_ends_with_a_report(tiny, tmp_path, poison):
    """Only the second micro-batch of the step is bad: its 128 images are named, not the other's."""
    trainer, folder = trainer_of(tiny, tmp_path / "run", "train.max_micro_batch=128")
    poison({(1, step) for step in range(5)}, micro=1)
    with pytest.raises(RunFailed) as failure:
        trainer.fit()
    text = str(failure.value)
    assert "of more than 2 steps in a row are not finite, from step 1 of epoch 2 on, after 2 roll-backs" in text
    assert re.search("largest gradients of that step: .* nan", text)
    assert "its images (128, those whose loss is not finite, by micro-batch): image " in text
    assert "of digits (train)" in text
    assert f"the last healthy checkpoint is {folder.checkpoints / 'last.pt'}" in text
    reports = [json.loads(line) for line in folder.not_finite.read_text().splitlines()]
    assert [report["rollbacks_before"] for report in reports] == [0, 1, 2]
    named = trainer.recovery.limits.order.epoch(1, 2)[trainer.layout.rows(0, 1)]
    assert reports[2]["samples"] == [trainer.recovery.limits.describe(int(index)) for index in named]
    state = read(folder.checkpoints / "last.pt")
    assert (state["progress"]["epoch"], state["progress"]["step"]) == (1, 0)
    assert finite(folder.checkpoints / "last.pt")


def test_weights_that_blow_up_are_never_saved(tiny, tmp_path):
    """Each step's gradients are finite when it is taken; the weights after it are not."""
    trainer, folder = trainer_of(tiny, tmp_path / "run", "checkpoint.every_steps=1")
    average = trainer.step.ema.update

    def blow_up(model, *step):
        model.head.bias.data[3] = math.inf
        average(model, *step)

    trainer.step.ema.update = blow_up
    with pytest.raises(
        RunFailed, match=r"of the weights and moments are not finite after step 1 of epoch 1.* after 2 roll-backs"
    ):
        trainer.fit()
    assert read(folder.checkpoints / "last.pt")["progress"]["step"] == 0
    assert finite(folder.checkpoints / "last.pt")
    report = json.loads(folder.not_finite.read_text().splitlines()[0])
    assert (report["step"], report["samples"]) == (None, [])  # no gradient tells of it
    assert report["samples_are"] == "not known, nor is the step"
    assert "from which step on is not known; they were finite after step 0 of epoch 1" in report["reason"]


@pytest.mark.parametrize(("blown", "step"), [(2, 1), (3, None)])
def test_weights_that_blow_up_are_laid_to_a_bad_step_since_the_last_save_only(tiny, tmp_path, poison, blown, step):
    """The second step is left out. Nothing is saved after it but after the third, which clears it."""
    trainer, folder = trainer_of(tiny, tmp_path / "run", "checkpoint.every_steps=1", "train.max_rollbacks=0")
    average, numbers = trainer.step.ema.update, itertools.count()

    def blow_up(model, *step):
        if next(numbers) == blown:
            model.head.bias.data[3] = math.inf
        average(model, *step)

    trainer.step.ema.update = blow_up
    poison({(0, 1)})
    with pytest.raises(RunFailed, match=f"not finite after step {blown + 1} of epoch 1") as failure:
        trainer.fit()
    (report,) = (json.loads(line) for line in folder.not_finite.read_text().splitlines())
    assert (report["step"], len(report["samples"])) == (step, 0 if step is None else 256)
    told = str(failure.value)
    assert ("its images (256, " in told) == ("step 2 of epoch 1 was left out before" in told) == (step is not None)
    assert ("they were finite after step 3 of epoch 1" in told) == (step is None)


def test_before_the_first_checkpoint_there_is_the_beginning(tiny, tmp_path, poison):
    trainer, folder = trainer_of(tiny, tmp_path / "run", "epochs=1")
    poison({(0, 0), (0, 1), (0, 2)}, times=1)
    trainer.fit()
    assert read(folder.checkpoints / "last.pt")["progress"]["rollbacks"] == 1


def test_nothing_is_saved_in_a_row_of_bad_steps(tiny, tmp_path, poison, capsys):
    """What the steps before it made of the weights may be its cause, finite as they are."""
    trainer, _ = trainer_of(tiny, tmp_path / "run", "epochs=2", "checkpoint.every_steps=1")
    places = []
    save = trainer.keeper.checkpoints.save
    trainer.keeper.checkpoints.save = lambda state, is_best: (
        places.append((state["progress"]["epoch"], state["progress"]["step"])) or save(state, is_best)
    )
    poison({(0, 1), (0, 2), (0, 4)})
    trainer.fit()
    assert places == [(0, 0), (0, 1), (0, 4), *[(1, step) for step in range(1, 5)], (2, 0)]
    assert "no checkpoint after epoch 1: its last 1 steps are not finite" in capsys.readouterr().out


def guard_of(*steps, rows=8):
    """A guard of one weight that has seen steps with these gradients."""
    model = torch.nn.Linear(1, 2, bias=False)
    guard = StepGuard(model, 1, rows, torch.device("cpu"))
    for step, gradient in enumerate(steps):
        model.weight.grad = torch.full_like(model.weight, gradient)
        guard.note(0, step, torch.tensor([gradient]))
    return guard


def test_the_guard_counts_rows_of_bad_steps():
    guard = guard_of(1.0, math.nan, math.inf, 1.0, -math.inf, math.nan, math.nan, 2.0, math.nan)
    assert guard.counts() == Counts(running=1, longest=3, total=6)
    assert guard.first_of_longest() == (0, 4)
    assert guard.before(0, 4) == (0, 3)
    assert guard.largest_gradients(0, 3) == [("weight", pytest.approx(math.sqrt(2)))]
    assert guard.micro_batches_not_finite(0, 4) == [0]
    assert guard.micro_batches_not_finite(0, 3) == []
    assert guard.largest_gradients(0, 0) == []  # forgotten: eight rows


def test_large_gradients_are_left_out_only_where_an_element_is_not_finite():
    """The square of 1e30 is beyond float32; the loss scaler looks at elements."""
    guard = guard_of(1e30, math.inf)
    assert guard.counts() == Counts(running=1, longest=1, total=1)


def test_moments_that_are_not_finite_are_never_saved(tiny, tmp_path):
    """AdamW squares gradients that are finite, and the square is not."""
    trainer, folder = trainer_of(tiny, tmp_path / "run", "train.max_rollbacks=0")
    loss = trainer.step.task.loss
    trainer.step.task.loss = lambda output, targets: 1e25 * loss(output, targets)
    with pytest.raises(
        RunFailed, match="of the weights and moments are not finite after step 5 of epoch 1, exp_avg_sq"
    ):
        trainer.fit()
    assert read(folder.checkpoints / "last.pt")["progress"]["step"] == 0


def test_a_run_whose_last_step_is_bad_is_saved(tiny, tmp_path, poison):
    trainer, folder = trainer_of(tiny, tmp_path / "run", "epochs=1")
    poison({(0, 4)})
    trainer.fit()
    assert read(folder.checkpoints / "last.pt")["progress"]["epoch"] == 1


def test_roll_backs_are_counted_over_restarts(tiny, tmp_path, poison):
    """A run that dies right after going back has gone back all the same."""
    trainer, folder = trainer_of(tiny, tmp_path / "run")
    poison({(1, 0), (1, 1), (1, 2)})
    trainer.log.rewind = None  # dies of it
    with pytest.raises(TypeError):
        trainer.fit()
    assert read(folder.checkpoints / "last.pt")["progress"]["rollbacks"] == 1


def test_in_fp16_a_scale_that_came_down_stays_so_through_a_roll_back(tiny, tmp_path):
    """Gradients beyond the format, finite losses: a GPU's scaler, here on the CPU, halves in each bad step."""
    trainer, _ = trainer_of(tiny, tmp_path / "run", "epochs=1", "train.max_rollbacks=1")
    trainer.step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    head = trainer.step.model.head.weight

    def overflow(gradient):
        return gradient * math.inf if trainer.step.scaler.get_scale() > 2.0**13 else gradient

    head.register_hook(overflow)
    trainer.fit()
    assert trainer.progress.rollbacks == 1
    assert trainer.step.scaler.get_scale() == 2.0**13
