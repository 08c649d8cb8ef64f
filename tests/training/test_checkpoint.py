"""Checkpoints: whole or not at all, readable without running code, refused where they do not belong."""

import os
import pickle

import pytest
import torch

from toe_train.errors import RunFailed, UserError
from toe_train.training.checkpoint import FORMAT, Checkpoints, read, require_same, write_atomically


def state(epoch):
    return {
        "format": FORMAT,
        "progress": {"epoch": epoch},
        "weights": torch.full((100,), float(epoch)),
        "config": {"model": {"name": "a", "image_size": 32, "kwargs": {"depth": 2}, "drop_path": 0.1}},
        "classes": ["cat", "dog"],
    }


def test_last_previous_and_best(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for epoch, is_best in ((1, True), (2, True), (3, False)):
        checkpoints.save(state(epoch), is_best)
    epochs = {path.name: read(path)["progress"]["epoch"] for path in checkpoints.folder.iterdir()}
    assert epochs == {"last.pt": 3, "previous.pt": 2, "best.pt": 2}


def test_what_resume_finds(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.find("auto") is None
    checkpoints.save(state(1), is_best=True)
    checkpoints.save(state(2), is_best=False)
    assert checkpoints.find("never") is None
    assert checkpoints.find("auto")[1]["progress"]["epoch"] == 2
    assert checkpoints.find(str(checkpoints.best))[1]["progress"]["epoch"] == 1


@pytest.mark.parametrize("when", ["save", "fsync", "replace"])
def test_a_crash_while_writing_leaves_the_former_file(tmp_path, monkeypatch, when):
    path = tmp_path / "last.pt"
    write_atomically(path, state(1))

    def crash(*args, **kwargs):
        raise OSError("no space left on device")

    module = torch if when == "save" else os
    monkeypatch.setattr(module, when, crash)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, state(2))
    monkeypatch.undo()
    assert read(path)["progress"]["epoch"] == 1
    assert os.listdir(tmp_path) == ["last.pt"]


def test_a_full_disk_ends_the_run_with_a_message(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1), is_best=True)
    good = checkpoints.last.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        RunFailed, match=r"cannot be written to .*No space left on device.*what was there before is whole"
    ):
        checkpoints.save(state(2), is_best=True)
    assert checkpoints.last.read_bytes() == checkpoints.best.read_bytes() == good


@pytest.mark.parametrize("size", [0, 10, 500, -100])
def test_a_truncated_file_is_named_with_the_way_out(tmp_path, size):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1), is_best=False)
    checkpoints.save(state(2), is_best=False)
    content = checkpoints.last.read_bytes()
    checkpoints.last.write_bytes(content[:size])
    with pytest.raises(UserError, match=r"last.pt cannot be read.*--resume .*previous.pt"):
        checkpoints.find("auto")


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    path = tmp_path / "bomb.pt"
    torch.save({"format": FORMAT, "x": Bomb()}, path)
    with pytest.raises(UserError, match="cannot be read"):
        read(path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="cannot be read"):
        read(path)
    assert not (tmp_path / "exploded").exists()


def test_plain_weights_are_not_a_checkpoint(tmp_path):
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UserError, match="not of toe-train's format"):
        read(tmp_path / "weights.pt")


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Checkpoints(tmp_path).find(str(tmp_path / "x.pt"))


def test_another_model_or_other_classes_are_refused(tmp_path):
    model, classes = {"name": "a", "image_size": 32, "kwargs": {"depth": 2}}, ["cat", "dog"]
    require_same(tmp_path, state(1), {"model": model, "epochs": 7}, classes)
    with pytest.raises(UserError, match=r"model.name: 'a' in the checkpoint, 'b' now"):
        require_same(tmp_path, state(1), {"model": {**model, "name": "b"}}, classes)
    require_same(tmp_path, state(1), {"model": {**model, "drop_path": 0.2}}, classes)  # the weights do not depend on it
    with pytest.raises(UserError, match=r"model.kwargs.depth: 2 in the checkpoint, 3 now"):
        require_same(tmp_path, state(1), {"model": {**model, "kwargs": {"depth": 3}}}, classes)
    with pytest.raises(UserError, match=r"missing now: dog; unknown to it: cow, pig"):
        require_same(tmp_path, state(1), {"model": model}, ["cat", "cow", "pig"])
    with pytest.raises(UserError, match="in another order"):
        require_same(tmp_path, state(1), {"model": model}, ["dog", "cat"])
