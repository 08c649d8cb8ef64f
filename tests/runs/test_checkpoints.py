"""Checkpoints: whole or not at all, readable without running code, refused where they do not belong."""

import os
import pickle

import pytest
import torch

from toe_train.build.resume import require_same
from toe_train.errors import RunFailed, UserError
from toe_train.runs import sealed
from toe_train.runs.checkpoints import FORMAT, Checkpoints, read


def state(epoch):
    return {
        "format": FORMAT,
        "progress": {"epoch": epoch},
        "weights": torch.full((100,), float(epoch)),
        "config": {"model": {"name": "a", "image_size": 32, "kwargs": {"depth": 2}, "drop_path": 0.1}},
        "classes": ["cat", "dog"],
        **dict.fromkeys(("model", "ema", "optimizer", "scaler", "images", "versions")),
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


def test_a_failing_save_leaves_two_states(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1), is_best=False)
    checkpoints.save(state(2), is_best=False)
    monkeypatch.setattr(torch, "save", lambda *given: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(RunFailed):
        checkpoints.save(state(3), is_best=True)
    assert [read(path)["progress"]["epoch"] for path in (checkpoints.previous, checkpoints.last)] == [1, 2]


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[:-1000]
    elif how == "emptied":
        content = content[:0]
    elif how == "one bit":
        content[len(content) // 2] ^= 1
    path.unlink()  # its other names keep the old content
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "emptied", "one bit"])
def test_a_damaged_file_is_set_aside_and_the_one_before_continues(tmp_path, how):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1), is_best=True)
    checkpoints.save(state(2), is_best=False)
    damage(checkpoints.last, how)
    told = checkpoints.heal()
    assert "last.pt is damaged" in told[0]
    assert "set aside as" in told[0]
    assert told[1].startswith("continuing from")
    assert checkpoints.find("auto")[1]["progress"]["epoch"] == 1
    assert (tmp_path / "last.pt.damaged-1").exists()
    assert checkpoints.heal() == []


def test_a_whole_temporary_is_taken_where_nothing_else_is_whole(tmp_path):
    """The last was damaged on the disk; the save after it, which gave it the other name too, was killed at its end."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1), is_best=False)
    whole = checkpoints.last.read_bytes()
    for path in (checkpoints.last, checkpoints.previous):
        path.write_bytes(whole[:-1])
    (tmp_path / ".last.pt.9.tmp").write_bytes(whole)
    (tmp_path / ".last.pt.8.tmp").write_bytes(whole[:-1])
    assert "whole when its save was broken off" in "\n".join(checkpoints.heal())
    assert checkpoints.last.read_bytes() == whole
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_damaged_best_is_set_aside_where_the_last_is_healthy(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1), is_best=True)
    checkpoints.save(state(2), is_best=False)
    content = bytearray(checkpoints.best.read_bytes())
    checkpoints.best.unlink()  # previous.pt is the same file
    checkpoints.best.write_bytes(content[:-1])
    (line,) = checkpoints.heal()
    assert "best.pt is damaged" in line
    assert (tmp_path / "best.pt.damaged-1").exists()
    assert read(checkpoints.last)["progress"]


def test_without_a_healthy_file_the_user_decides(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1), is_best=False)
    damage(checkpoints.last, "one bit")
    with pytest.raises(
        UserError, match=r"(?s)set aside as .*no healthy checkpoint is left; start anew with --resume never"
    ):
        checkpoints.heal()


def test_a_start_after_total_damage_does_not_train_anew_either(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1), is_best=False)
    damage(checkpoints.last, "one bit")
    for _ in range(2):
        with pytest.raises(UserError, match="no healthy checkpoint is left"):
            checkpoints.heal()


def test_a_named_checkpoint_that_is_damaged_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1), is_best=False)
    checkpoints.save(state(2), is_best=False)
    damage(checkpoints.last, "one bit")
    with pytest.raises(UserError, match=r"last.pt cannot be used: its content is not what was written.*previous.pt"):
        checkpoints.find(str(checkpoints.last))


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    path = tmp_path / "bomb.pt"
    sealed.write(path, {"format": FORMAT, "x": Bomb()})
    with pytest.raises(UserError, match="cannot be used"):
        read(path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="cannot be used"):
        read(path)
    assert not (tmp_path / "exploded").exists()


def test_plain_weights_are_not_a_checkpoint(tmp_path):
    sealed.write(tmp_path / "weights.pt", torch.nn.Linear(2, 2).state_dict())
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
    larger = {**model, "image_size": 64}
    with pytest.raises(UserError, match=r"model.image_size: 32 in the checkpoint, 64 now"):
        require_same(tmp_path, state(1), {"model": larger}, classes)
    detector = {**state(1), "config": {"model": model, "task": {"kind": "detection"}}}
    require_same(tmp_path, detector, {**detector["config"], "model": larger}, classes)  # for plans and benchmarks alone
    with pytest.raises(UserError, match=r"missing now: dog; unknown to it: cow, pig"):
        require_same(tmp_path, state(1), {"model": model}, ["cat", "cow", "pig"])
    with pytest.raises(UserError, match="in another order"):
        require_same(tmp_path, state(1), {"model": model}, ["dog", "cat"])
