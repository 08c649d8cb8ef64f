"""`toe-tools clean` removes what a run no longer needs, and nothing else."""

import os
import subprocess
import sys

import pytest

from toe_train.runs import sealed
from toe_train.runs.checkpoints import Checkpoints, keep
from toe_train.runs.folder import RunFolder
from toe_train.runs.leftovers import bytes_freed, find


@pytest.fixture
def folder(tmp_path):
    """A run folder with a checkpoint of each kind, kept ones, and what a killed write left."""
    folder = RunFolder(tmp_path / "run")
    folder.create()
    checkpoints = Checkpoints(folder.checkpoints)
    folder.metrics.write_text('{"kind": "start"}\n')
    for number in range(3):
        checkpoints.save({"number": number}, is_best=number == 1)
    keep(checkpoints, folder.metrics)
    for number in (3, 4):  # the one that was the newest has no other name any more
        checkpoints.save({"number": number}, is_best=False)
    for name in ("checkpoints/.last.pt.77.tmp", ".metrics.jsonl.tmp"):
        (folder.root / name).write_bytes(b"half of it")
    (folder.root / "notes.tmp").write_text("of a person")
    return folder


def names(root):
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


REGULAR = {".lock", "metrics.jsonl", "notes.tmp"} | {f"checkpoints/{name}.pt" for name in ("last", "previous", "best")}


def test_kept_and_temporary_files_go_and_checkpoints_stay(folder, said):
    before = names(folder.root)
    freed = sum(path.stat().st_size for path in folder.root.rglob(".*.tmp"))
    unique = {path.stat().st_ino for path in folder.checkpoints.glob("*.pt")}
    gone = {path.stat().st_ino: path.stat().st_size for path in folder.root.rglob("*.kept-1")}
    freed += sum(size for inode, size in gone.items() if inode not in unique | {folder.metrics.stat().st_ino})
    assert freed > 1000
    code, out, _ = said("clean", folder.root, "--dry-run")
    assert code == 0
    assert f"{folder.root}: {freed / 1000:.1f} kB would be freed; nothing is removed" in out
    assert names(folder.root) - {".lock"} == before
    code, out, _ = said("clean", folder.root)
    assert code == 0
    assert f"{folder.root}: {freed / 1000:.1f} kB freed\n" in out
    assert "last.pt.kept-1: kept when the run wrote over it" in out
    assert ".last.pt.77.tmp: of a write that was broken off" in out
    assert names(folder.root) == REGULAR
    assert sealed.read(folder.checkpoints / "last.pt") == {"number": 4}
    assert said("clean", folder.root)[1] == f"{folder.root}: nothing to remove\n"


def test_what_was_set_aside_goes_only_when_asked(folder, said):
    (folder.checkpoints / "last.pt.damaged-1").write_bytes(b"1" * 2_345_678)
    old = RunFolder(folder.root.with_name("run.old-1"))
    old.create()
    (old.root / "metrics.jsonl").write_text("{}")
    other = folder.root.with_name("run.old-2")  # no run of ours
    other.mkdir()
    code, out, _ = said("clean", folder.root)
    assert code == 0
    assert f"set aside and left: {folder.checkpoints / 'last.pt.damaged-1'}, {old.root}; --set-aside removes" in out
    assert old.root.is_dir()
    code, out, _ = said("clean", folder.root, "--set-aside")
    assert code == 0
    assert "   2.3 MB  " in out
    assert names(folder.root) == REGULAR
    assert not old.root.exists()
    assert other.is_dir()


def test_a_link_goes_and_what_is_behind_it_stays(folder, said, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/x").write_text("x")
    (folder.checkpoints / "a.pt.kept-1").symlink_to(tmp_path / "elsewhere")
    assert said("clean", folder.root)[0] == 0
    assert names(folder.root) == REGULAR
    assert (tmp_path / "elsewhere/x").exists()


def test_what_may_be_the_only_whole_checkpoint_stays(folder, said):
    for path in folder.checkpoints.glob("*.pt"):
        path.unlink()
        path.write_bytes(b"damaged")
    before = names(folder.root)
    code, out, _ = said("clean", folder.root, "--set-aside")
    assert code == 0
    assert names(folder.root) - {".lock"} == before
    assert sealed.read(folder.checkpoints / "last.pt.kept-1") == {"number": 2}
    assert out.startswith(f"{folder.root}: nothing to remove\n  left: ")
    kept = folder.checkpoints / "last.pt.kept-1"
    assert f"  left: {kept}: no checkpoint of the run is whole, and one of these may be\n" in out


def test_a_temporary_file_stays_where_nobody_can_tell_whether_a_run_is_under_way(folder):
    folder.has_locks = False
    going = {one.path.name for one in find(folder) if not one.stays}
    assert going == {f"{name}.kept-1" for name in ("last.pt", "previous.pt", "best.pt", "metrics.jsonl")}
    assert {one.path.name for one in find(folder) if one.stays} == {".last.pt.77.tmp", ".metrics.jsonl.tmp"}


@pytest.mark.parametrize("name", ["other", "run.old-1"])
def test_a_folder_in_which_a_process_trains_is_refused_before_anything_is_removed(folder, said, tmp_path, name):
    other = RunFolder(tmp_path / name)
    other.create()
    other.metrics.touch()
    before = names(folder.root)
    script = (
        "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); print(); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(other.root / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        holder.stdout.readline()
        named = [other.root] if name == "other" else ["--set-aside"]
        code, out, err = said("clean", folder.root, *named)
    finally:
        holder.communicate(b"")
    assert (code, out) == (2, "")
    assert err == f"error: a process trains in {other.root}; wait for its end, or end it, and try again\n"
    assert names(folder.root) - {".lock"} == before


def test_what_is_no_run_is_refused(said, tmp_path):
    code, _, err = said("clean", tmp_path)
    assert code == 2
    assert f"{tmp_path} is no run folder" in err
    (tmp_path / "a_run/checkpoints").mkdir(parents=True)
    assert f"name those in it: {tmp_path / 'a_run'}\n" in said("clean", tmp_path)[2]


def test_kept_files_are_second_names_and_copies_where_there_are_no_links(tmp_path, monkeypatch):
    for has_links in (True, False):
        folder = RunFolder(tmp_path / str(has_links))
        folder.create()
        checkpoints = Checkpoints(folder.checkpoints)
        checkpoints.save({"number": 0}, is_best=True)
        if not has_links:
            monkeypatch.setattr(os, "link", lambda *given: (_ for _ in ()).throw(OSError(1, "not permitted")))
        keep(checkpoints, folder.metrics)
        kept = checkpoints.last.with_name("last.pt.kept-1")
        assert kept.samefile(checkpoints.last) == has_links
        assert kept.read_bytes() == checkpoints.last.read_bytes()
        folder.lock()
        copies = 0 if has_links else 2 * kept.stat().st_size
        assert bytes_freed(find(folder)) == copies
