"""What the loop and the step promise to every task and every method: a run that is broken off at the worst place for
it is the uninterrupted run, in one process; and two processes train what one trains.
"""

import doubles
import pytest
import torch
import yaml
from support import trainer_of

from toe_train.recipes import load_config, plan_epochs
from toe_train.runs.checkpoints import read
from toe_train.runs.folder import RunFolder

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
            return


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


@pytest.mark.parametrize("method", ["growing"], indirect=True)
def test_a_growth_is_a_segment_of_its_own(method, tiny, tmp_path):
    config = load_config(tiny, PLAIN)
    assert [plan.curriculum.segment for plan in plan_epochs(config)] == [0, 0, 1, 1]
    train(config, tmp_path / "run", stop_at=(2, 0))
    before = read(tmp_path / "run/checkpoints/last.pt")
    assert before["segment"] == 0
    folder = RunFolder(tmp_path / "run")
    trainer = trainer_of(config, folder)
    trainer.log.close()
    assert torch.equal(trainer.model.head.weight, before["model"]["head.weight"] / 2)
    again = trainer.state()
    assert again["segment"] == 1  # and would not be carried once more
    trainer.load_state({**before, **again})
    assert torch.equal(trainer.model.head.weight, before["model"]["head.weight"] / 2)


@pytest.mark.parametrize("kind", list(doubles.KINDS))
def test_two_processes_train_what_one_trains(kind, tiny, tmp_path, run):
    arguments = [kind, "--config", tiny, "--output"]
    overrides = [*PLAIN, "epochs=3"]
    one = run(*arguments, tmp_path / "one", *overrides, module="doubles")
    two = run(*arguments, tmp_path / "two", *overrides, module="doubles", processes=2)
    assert one.end() == 0, one.stderr
    assert two.end() == 0, two.stderr
    states = [read(tmp_path / name / "checkpoints/last.pt") for name in ("one", "two")]
    assert states[0]["method"].keys() == states[1]["method"].keys()
    for name, value in states[0]["model"].items():
        torch.testing.assert_close(value, states[1]["model"][name], rtol=2e-3, atol=2e-4)
    assert yaml.safe_load((tmp_path / "two/config.yaml").read_text())["epochs"] == 3
