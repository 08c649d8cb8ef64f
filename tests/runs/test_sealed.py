"""Killed at any call that touches the disk, a save leaves a complete checkpoint behind."""

import builtins
import os
from pathlib import Path

import pytest
import torch

from toe_train.errors import RunFailed
from toe_train.runs import sealed
from toe_train.runs.checkpoints import FORMAT, Checkpoints, read


def state(epoch):
    return {
        "format": FORMAT,
        "progress": {"epoch": epoch},
        "model": {"weight": torch.full((300,), float(epoch)), "bias": torch.arange(5)},
        **dict.fromkeys(("ema", "optimizer", "scaler", "config", "classes", "images", "versions")),
    }


def test_what_was_written_is_read(tmp_path):
    sealed.write(tmp_path / "x.pt", state(3))
    found = sealed.read(tmp_path / "x.pt")
    assert found["progress"] == {"epoch": 3}
    assert torch.equal(found["model"]["weight"], torch.full((300,), 3.0))


def test_torch_opens_it_as_it_is(tmp_path):
    sealed.write(tmp_path / "x.pt", state(3))
    found = torch.load(tmp_path / "x.pt", weights_only=True)
    assert torch.equal(found["model"]["bias"], torch.arange(5))
    assert torch.load(tmp_path / "x.pt", weights_only=True, mmap=True)["progress"] == {"epoch": 3}


def test_every_flipped_bit_and_every_cut_is_found(tmp_path):
    path = tmp_path / "x.pt"
    sealed.write(path, state(1))
    whole = path.read_bytes()
    for place in [*range(0, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(sealed.Damaged):
            sealed.verify(path)
        path.write_bytes(whole[:place])
        with pytest.raises(sealed.Damaged):
            sealed.verify(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(sealed.Damaged):
        sealed.verify(path)


class Killed(BaseException):
    """As SIGKILL ends a process: nothing after it runs, no clean-up either."""


class Disk:
    """Counts the calls that touch the disk; from call `last` on nothing reaches it, and the first such call kills.

    A killed write leaves half of its bytes, as a full buffer cache may.
    """

    def __init__(self, monkeypatch, last):
        self.calls, self.last = 0, last
        for module, name in (
            *((os, name) for name in ("replace", "link", "fsync", "open", "unlink")),
            (Path, "unlink"),
            (Path, "write_bytes"),
            (Path, "mkdir"),
        ):
            monkeypatch.setattr(module, name, self.counting(getattr(module, name)))
        opener = builtins.open
        monkeypatch.setattr(builtins, "open", lambda *given, **named: self.watched(opener(*given, **named)))

    def touch(self):
        self.calls += 1
        return self.calls <= self.last

    def counting(self, call):
        def counted(*given, **named):
            if not self.touch():
                raise Killed
            return call(*given, **named)

        return counted

    def watched(self, file):
        if "b" in file.mode and file.writable():
            return Watched(file, self)
        return file


class Watched:
    """A file whose writes reach the disk at once, and half of the one that kills."""

    def __init__(self, file, disk):
        self.file, self.disk = file, disk

    def write(self, data):
        data = bytes(data)
        if not self.disk.touch():
            if self.disk.calls == self.disk.last + 1:
                self.file.write(data[: len(data) // 2])
                self.file.flush()
            raise Killed
        self.file.write(data)
        self.file.flush()
        return len(data)

    def __enter__(self):
        return self

    def __exit__(self, *reason):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


def saved_within(calls, checkpoints, is_best):
    """Whether a third save that is killed at the call after so many got through."""
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, calls)
        try:
            checkpoints.save(state(3), is_best)
        except Killed:
            return False
    return True


@pytest.mark.parametrize("is_best", [False, True])
def test_killed_at_every_call_of_a_save(tmp_path, is_best):
    """Two checkpoints stand; the third is killed at its first call, then at its second, ... until one gets through."""
    last, killed = 0, 0
    while True:
        folder = tmp_path / str(last)
        checkpoints = Checkpoints(folder)
        checkpoints.save(state(1), is_best=True)
        checkpoints.save(state(2), is_best=False)
        finished = saved_within(last, checkpoints, is_best)
        after = Checkpoints(folder)
        after.heal()
        found = after.find("auto")[1]["progress"]["epoch"]
        best = read(after.best)["progress"]["epoch"]
        if finished:
            assert (found, best) == (3, 3 if is_best else 1)
            break
        killed += 1
        assert found in (2, 3), f"killed at call {last + 1}"
        assert best in ((1, 3) if is_best else (1,)), f"killed at call {last + 1}"
        assert not list(folder.glob(".*.tmp"))
        after.save(state(4), is_best=False)  # and the next save works
        assert after.find("auto")[1]["progress"]["epoch"] == 4
        last += 1
    print(f"killed at {killed} calls")
    assert killed > 20


def test_killed_at_every_call_of_a_save_after_the_last_was_damaged(tmp_path):
    """The save gives the damaged file the other name too: then the new one is whole under its temporary name alone."""
    last, from_temporary = 0, 0
    while True:
        folder = tmp_path / str(last)
        checkpoints = Checkpoints(folder)
        checkpoints.save(state(1), is_best=False)
        checkpoints.save(state(2), is_best=False)
        checkpoints.last.write_bytes(checkpoints.last.read_bytes()[:-1])
        finished = saved_within(last, checkpoints, is_best=False)
        from_temporary += "whole when its save was broken off" in "\n".join(checkpoints.heal())
        found = checkpoints.find("auto")[1]["progress"]["epoch"]
        if finished:
            assert found == 3
            break
        assert found in (1, 3), f"killed at call {last + 1}"
        assert not list(folder.glob(".*.tmp"))
        last += 1
    assert from_temporary >= 1


def test_a_failing_save_is_loud_and_harms_nothing(tmp_path):
    """Every call refused in turn, as a full or read-only disk does: the user is told, and last.pt stays readable."""
    refused, last = 0, 0
    while True:
        checkpoints = Checkpoints(tmp_path / str(last))
        checkpoints.save(state(1), is_best=True)
        with pytest.MonkeyPatch.context() as patch:
            failing = OneFailing(patch, last)
            failure = None
            try:
                checkpoints.save(state(2), is_best=False)
            except RunFailed as error:
                failure = str(error)
        assert failure is None or "No space left on device" in failure
        assert checkpoints.find("auto")[1]["progress"]["epoch"] in (1, 2)
        if failing.calls <= last:
            assert failure is None
            break
        refused += failure is not None
        last += 1
    assert refused >= 4


class OneFailing:
    """Refuses one call of those that a full disk refuses."""

    def __init__(self, monkeypatch, last):
        self.calls = 0

        def counting(call):
            def counted(*given, **named):
                self.calls += 1
                if self.calls == last + 1:
                    raise OSError(28, "No space left on device")
                return call(*given, **named)

            return counted

        for module, name in ((os, "replace"), (os, "link"), (os, "fsync"), (Path, "write_bytes"), (torch, "save")):
            monkeypatch.setattr(module, name, counting(getattr(module, name)))


class Full:
    """A file on a disk with room for 2000 bytes."""

    def __init__(self, file):
        self.file, self.left = file, 2000

    def write(self, data):
        self.left -= len(data)
        if self.left < 0:
            raise OSError(28, "No space left on device")
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_what_a_full_disk_says_is_raised_and_not_what_torch_makes_of_it(tmp_path, monkeypatch):
    """torch raises a RuntimeError of its own where the disk fails in the middle of its archive."""
    sealed.write(tmp_path / "a.pt", {"old": torch.zeros(1)})
    monkeypatch.setattr(sealed, "_SummingFile", lambda file, real=sealed._SummingFile: real(Full(file)))
    with pytest.raises(OSError, match="No space left"):
        sealed.write(tmp_path / "a.pt", {"new": torch.zeros(5000), "more": torch.zeros(5000)})
    assert sealed.read(tmp_path / "a.pt").keys() == {"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_link_that_is_said_to_be_there_already_is_taken(tmp_path, monkeypatch):
    """NFS, whose answer to the first request was lost, refuses the second one for what the first has made."""
    link = os.link

    def twice(source, target):
        link(source, target)
        link(source, target)

    sealed.write(tmp_path / "new.pt", {"new": torch.zeros(1)})
    monkeypatch.setattr(os, "link", twice)
    sealed.replace_by_link(tmp_path / "new.pt", tmp_path / "best.pt")
    assert (tmp_path / "best.pt").samefile(tmp_path / "new.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "new.pt"]
