"""What the loop and the step promise to every task and every method: a run that is broken off at the worst places for
it is the uninterrupted run, in one process and in two; and two processes train what one trains.
"""

from itertools import pairwise

import pytest
import torch
from support import KILLED, losses, train, trainer_of

from toe_train.recipes import load_config, plan_epochs
from toe_train.runs.checkpoints import read
from toe_train.runs.folder import RunFolder

SMALL = ["epochs=4", "train.max_micro_batch=128", "checkpoint.every_steps=2"]
PLAIN = [*SMALL, "expansion=null"]
METHODS = {
    "plain": PLAIN,
    "token_expansion": [*SMALL, "expansion.stage_epochs=[0, 1, 3]", "expansion.initialization=random"],
    "token_merging": [*PLAIN, "method={kind: token_merging, r: 3}"],
    "depth_growth": [*PLAIN, "method={kind: depth_growth, depths: [1, 2], from_epochs: [0, 2]}"],
    "structured_sparsity": [
        *PLAIN,
        "method={kind: structured_sparsity, heads_kept: 0.5, update_every: 3, update_until: 1, revive: small_weights}",
    ],
    "structured_sparsity as released": [
        *PLAIN,
        "method={kind: structured_sparsity, heads_kept: 0.5, update_every: 3, update_until: 1}",
    ],
}
# Ends of epochs, (e, 0), and places in the middle: stage switches, a growth, a mask's update.
WORST = [(1, 0), (1, 2), (2, 0), (2, 2), (3, 0)]


@pytest.mark.parametrize("method", list(METHODS))
def test_broken_off_at_its_worst_places_it_is_the_uninterrupted_run(method, tiny, tmp_path, assert_same_run):
    config = load_config(tiny, METHODS[method])
    train(config, tmp_path / "quiet")
    for place in [*WORST, None]:
        train(config, tmp_path / "broken", stop_at=place)
    assert_same_run(tmp_path / "quiet", tmp_path / "broken")
    train(config, tmp_path / "start", stop_at=(0, 2))
    last = read(tmp_path / "quiet/checkpoints/last.pt")
    if method == "structured_sparsity":
        assert last["method"]["steps"] == 20
        off = ~last["method"]["units"][0]
        assert 0 < int(off.sum()) < len(off)
        assert not last["model"]["blocks.0.mlp.fc2.weight"][:, off].any()
        assert last["model"]["blocks.0.mlp.fc2.weight"][:, ~off].all()
        first = read(tmp_path / "start/checkpoints/last.pt")
        assert not torch.equal(first["method"]["units"], last["method"]["units"])
    if method == "depth_growth":
        assert "blocks.1.norm1.weight" in last["model"]


def test_muon_too(tiny, tmp_path, assert_same_run):
    config = load_config(tiny, [*PLAIN, "epochs=2", "optim.name=muon", "optim.layer_decay=0.8"])
    train(config, tmp_path / "quiet")
    for place in [(1, 2), None]:
        train(config, tmp_path / "broken", stop_at=place)
    assert_same_run(tmp_path / "quiet", tmp_path / "broken")


def test_token_labelling_too(lvvit, tmp_path, assert_same_run):
    config = load_config(lvvit, ["checkpoint.every_steps=2"])
    train(config, tmp_path / "quiet")
    for place in [(1, 0), (1, 2), (2, 0), None]:
        train(config, tmp_path / "broken", stop_at=place)
    assert_same_run(tmp_path / "quiet", tmp_path / "broken")


def test_a_step_that_is_not_finite_moves_no_mask(tiny, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create()
    overrides = [*METHODS["structured_sparsity"], "epochs=1", "method.update_every=1", "train.max_skipped_steps=5"]
    trainer = trainer_of(load_config(tiny, overrides), folder)
    masks = [trainer.method.units.clone()]
    after = trainer.method.after_average

    def noting(good):
        after(good)
        masks.append(trainer.method.units.clone())

    trainer.method.after_average = noting
    loss, steps = trainer.step.task.loss, iter(range(100))
    trainer.step.task.loss = lambda output, targets: loss(output, targets) * (torch.nan if next(steps) < 4 else 1)
    trainer.fit()
    moved = [not torch.equal(before, now) for before, now in pairwise(masks)]
    assert not any(moved[:2])  # two micro-batches a step: the first two of five are left out
    assert any(moved[2:])


def test_the_averaged_model_is_between_the_two_hooks_of_a_step(tiny, tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "run")
    folder.create()
    trainer = trainer_of(load_config(tiny, ["epochs=1"]), folder)
    step, told = trainer.step, []
    places = [
        (step.optimizer, "step"),
        (step.method, "after_step"),
        (step.ema, "update"),
        (step.method, "after_average"),
    ]
    for owner, name in [*places, (step.optimizer, "zero_grad")]:
        real = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *given, real=real, name=name, **kwargs: told.append(name) or real(*given, **kwargs)
        )
    trainer.fit()
    order = ["step", "after_step", "update", "after_average", "zero_grad"]
    assert told[: told.index("zero_grad") + 1] == order
    assert told == order * (len(told) // 5)


def test_a_growth_is_a_segment_of_its_own(tiny, tmp_path):
    config = load_config(tiny, METHODS["depth_growth"])
    assert [plan.curriculum.segment for plan in plan_epochs(config)] == [0, 0, 1, 1]
    train(config, tmp_path / "run", stop_at=(2, 0))
    before = read(tmp_path / "run/checkpoints/last.pt")
    assert before["segment"] == 0
    assert "blocks.1.norm1.weight" not in before["model"]
    trainer = trainer_of(config, RunFolder(tmp_path / "run"))
    trainer.log.close()
    grown = trainer.state()
    assert grown["segment"] == 1  # and is not carried once more
    assert torch.equal(grown["model"]["blocks.1.mlp.fc1.weight"], before["ema"]["blocks.0.mlp.fc1.weight"])
    assert torch.equal(grown["ema"]["blocks.0.mlp.fc1.weight"], before["model"]["blocks.0.mlp.fc1.weight"])
    assert not grown["optimizer"]["state"]
    trainer.load_state({**before, **grown})
    assert torch.equal(trainer.model.blocks[1].mlp.fc1.weight, before["ema"]["blocks.0.mlp.fc1.weight"])
    optimizer = trainer.step.optimizer
    for value in trainer.model.parameters():
        value.grad = torch.ones_like(value)
    optimizer.step()
    assert optimizer.state
    trainer.load_state(before)  # a roll-back before the new segment's first checkpoint
    assert not optimizer.state


@pytest.mark.slow
@pytest.mark.parametrize("method", ["token_merging", "depth_growth", "structured_sparsity"])
def test_two_processes_train_what_one_trains(method, tiny, tmp_path, run):
    for name, processes in (("one", 1), ("two", 2)):
        done = run("--config", tiny, "--output", name, *METHODS[method], "epochs=3", processes=processes)
        assert done.end() == 0, done.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("token_expansion", (1, 0)),
        ("token_merging", (1, 2)),
        ("depth_growth", (2, 0)),
        ("depth_growth", (2, 2)),
        ("structured_sparsity", (2, 2)),
        ("labels", (1, 0)),
    ],
)
def test_broken_off_in_two_processes(kind, place, tiny, lvvit, tmp_path, run, assert_same_run):
    (tmp_path / "killed.py").write_text(KILLED)
    config = lvvit if kind == "labels" else tiny
    overrides = METHODS.get(kind, ["checkpoint.every_steps=2"])
    for name, place_now, code in (("quiet", (9, 9), 0), ("broken", place, 1), ("broken", (9, 9), 0)):
        done = run(*place_now, "--config", config, "--output", name, *overrides, module="killed", processes=2)
        assert done.process.returncode == code, done.stderr
    assert_same_run(tmp_path / "quiet", tmp_path / "broken")
