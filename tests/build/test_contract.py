"""What the loop and the step promise to every task and every method: a run that is broken off at the worst places for
it is the uninterrupted run, in one process and in two; and two processes train what one trains.
"""

import doubles
import pytest
import torch
from support import trainer_of

from toe_train.recipes import load_config, plan_epochs
from toe_train.runs.checkpoints import read
from toe_train.runs.folder import RunFolder
from toe_train.runs.log import read_metrics

SMALL = ["epochs=4", "train.max_micro_batch=128", "checkpoint.every_steps=2"]
PLAIN = [*SMALL, "expansion=null"]
EXPANDING = [*SMALL, "expansion.stage_epochs=[0, 1, 3]", "expansion.initialization=random"]
# Ends of epochs, (e, 0), and places in the middle: stage switches, a growth, a mask's update.
WORST = [(1, 0), (1, 2), (2, 0), (2, 2), (3, 0)]


class Killed(BaseException):
    """The process ends here."""


def train(config, root, stop_at=None):
    """Trains to the end, stage after stage; or up to the save at a place (epoch, step), after which it is killed."""
    folder = RunFolder(root)
    folder.create()
    while True:
        trainer = trainer_of(config, folder)
        save = trainer.keeper.checkpoints.save

        def dying(state, is_best, save=save):
            save(state, is_best)
            if (state["progress"]["epoch"], state["progress"]["step"]) == stop_at:
                raise Killed

        trainer.keeper.checkpoints.save = dying
        try:
            trainer.fit()
        except Killed:
            return
        finally:
            trainer.log.close()
        if trainer.progress.epoch == config.epochs:
            break
    assert stop_at is None, f"nothing was saved at {stop_at}"


def masked(state):
    """How many of the head's weights are held at zero."""
    return int((state["model"]["head.weight"][state["method"]["mask"] == 0] == 0).sum())


@pytest.fixture
def method(request, monkeypatch):
    if request.param in doubles.KINDS:
        doubles.put_in(request.param, monkeypatch)
    return request.param


@pytest.mark.parametrize("method", ["plain", "token_expansion", *doubles.KINDS], indirect=True)
def test_broken_off_at_its_worst_places_it_is_the_uninterrupted_run(method, tiny, tmp_path, assert_same_run):
    config = load_config(tiny, EXPANDING if method == "token_expansion" else PLAIN)
    train(config, tmp_path / "quiet")
    for place in [*WORST, None]:
        train(config, tmp_path / "broken", stop_at=place)
    assert_same_run(tmp_path / "quiet", tmp_path / "broken")
    last = read(tmp_path / "quiet/checkpoints/last.pt")
    if method == "masking":
        assert last["method"]["steps"] == 20
        assert 0 < masked(last) < last["model"]["head.weight"].numel()
        assert not torch.equal(last["method"]["mask"], torch.ones_like(last["method"]["mask"]))
    if method == "growing":
        assert "blocks.1.norm1.weight" in last["model"]


def test_token_labelling_too(lvvit, tmp_path, assert_same_run):
    config = load_config(lvvit, ["checkpoint.every_steps=2"])
    train(config, tmp_path / "quiet")
    for place in [(1, 0), (1, 2), (2, 0), None]:
        train(config, tmp_path / "broken", stop_at=place)
    assert_same_run(tmp_path / "quiet", tmp_path / "broken")


@pytest.mark.parametrize("method", ["masking"], indirect=True)
def test_a_step_that_is_not_finite_moves_no_mask(method, tiny, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create()
    trainer = trainer_of(load_config(tiny, [*PLAIN, "epochs=1", "train.max_skipped_steps=5"]), folder)
    loss, steps = trainer.step.task.loss, iter(range(100))
    trainer.step.task.loss = lambda output, targets: loss(output, targets) * (torch.nan if next(steps) < 4 else 1)
    trainer.fit()
    assert trainer.method.steps == 3  # two micro-batches a step: the first two of five are left out
    assert int((trainer.step.ema.module.head.weight == 0).sum()) == 0  # the mask came after the last average


@pytest.mark.parametrize("method", ["growing"], indirect=True)
def test_a_growth_is_a_segment_of_its_own(method, tiny, tmp_path):
    config = load_config(tiny, PLAIN)
    assert [plan.curriculum.segment for plan in plan_epochs(config)] == [0, 0, 1, 1]
    train(config, tmp_path / "run", stop_at=(2, 0))
    before = read(tmp_path / "run/checkpoints/last.pt")
    assert before["segment"] == 0
    assert "blocks.1.norm1.weight" not in before["model"]
    trainer = trainer_of(config, RunFolder(tmp_path / "run"))
    trainer.log.close()
    grown = trainer.state()
    assert grown["segment"] == 1  # and is not carried once more
    assert torch.equal(grown["model"]["blocks.1.mlp.fc1.weight"], before["model"]["blocks.0.mlp.fc1.weight"])
    trainer.load_state({**before, **grown})
    assert torch.equal(trainer.model.blocks[1].mlp.fc1.weight, before["model"]["blocks.0.mlp.fc1.weight"])


def losses(root):
    return [line["train_loss"] for line in read_metrics(root / "metrics.jsonl", "step")]


@pytest.mark.parametrize("kind", list(doubles.KINDS))
def test_two_processes_train_what_one_trains(kind, tiny, tmp_path, run):
    for name, processes in (("one", 1), ("two", 2)):
        given = [kind, "--config", tiny, "--output", name, *PLAIN, "epochs=3"]
        done = run(*given, module="doubles", processes=processes)
        assert done.end() == 0, done.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)


KILLED = """
import os, sys
import pytest
from toe_train.cli.train import main
from toe_train.runs.checkpoints import Checkpoints
import doubles

kind, epoch, step = sys.argv[1], *map(int, sys.argv[2:4])
del sys.argv[1:4]
if kind in doubles.KINDS:
    doubles.put_in(kind, pytest.MonkeyPatch())
save = Checkpoints.save

def dying(self, state, is_best):
    save(self, state, is_best)
    if (state["progress"]["epoch"], state["progress"]["step"]) == (epoch, step):
        os._exit(9)

Checkpoints.save = dying
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "place"),
    [("token_expansion", (1, 0)), ("growing", (2, 0)), ("growing", (2, 2)), ("masking", (2, 2)), ("labels", (1, 0))],
)
def test_broken_off_in_two_processes(kind, place, tiny, lvvit, tmp_path, run, assert_same_run):
    (tmp_path / "killed.py").write_text(KILLED)
    config = lvvit if kind == "labels" else tiny
    overrides = {"labels": ["checkpoint.every_steps=2"], "token_expansion": EXPANDING}.get(kind, PLAIN)
    for name, place_now, code in (("quiet", (9, 9), 0), ("broken", place, 1), ("broken", (9, 9), 0)):
        done = run(kind, *place_now, "--config", config, "--output", name, *overrides, module="killed", processes=2)
        assert done.process.returncode == code, done.stderr
    assert_same_run(tmp_path / "quiet", tmp_path / "broken")
