"""What an index was made of is looked at each time, and the index made again where it has changed."""

import os
import shutil
import time

import pytest
from forms import flat_tar

from toe_train.data import FolderImages, check_datasets, images_at, open_datasets
from toe_train.data.sources import listing, remembered, tar

LONG_AGO = 1_600_000_000


def settle(root):
    """Give folders and files a time long past."""
    for path in (root, *root.rglob("*")):
        os.utime(path, (LONG_AGO, LONG_AGO), follow_symlinks=False)


@pytest.fixture
def counted(monkeypatch, tmp_path):
    """Number of times that something was listed; all is worth keeping, in a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "WORTH_KEEPING", 0)
    calls = []
    for module in (listing, tar):
        made = module._index
        monkeypatch.setattr(module, "_index", lambda *given, made=made: calls.append(given) or made(*given))
    return calls


def paths(images):
    return [(images.describe(i), images.label(i)) for i in range(len(images))], images.digest(), images.notes()


def test_a_folder_is_listed_once_for_check_and_run(image_root, counted):
    (image_root / "train/notes.txt").write_bytes(b"")
    settle(image_root)
    assert check_datasets("image_folder", image_root) == []
    first = paths(open_datasets("image_folder", image_root)[0])
    assert len(counted) == 2  # train and val
    assert paths(open_datasets("image_folder", image_root)[0]) == first
    assert first[2] == [f"{image_root}/train: passed over 1 file outside the class folders: notes.txt"]
    assert len(counted) == 2
    open_datasets("image_folder", image_root, anew=True)
    assert len(counted) == 4


@pytest.mark.parametrize("change", ["image", "deep image", "class", "rename", "removal", "linked"])
def test_a_change_below_is_seen(image_root, counted, change, tmp_path):
    train = image_root / "train"
    (train / "cat/deep").mkdir()
    shutil.copy(train / "cat/cat_0.JPEG", train / "cat/deep/x.png")
    outside = tmp_path / "outside"
    shutil.copytree(train / "dog", outside)
    (train / "eel").symlink_to(outside)
    settle(image_root)
    settle(outside)
    before = paths(FolderImages(train))
    assert (paths(FolderImages(train)), len(counted)) == (before, 1)
    {
        "image": lambda: shutil.copy(train / "cat/cat_0.JPEG", train / "cat/new.png"),
        "deep image": lambda: shutil.copy(train / "cat/cat_0.JPEG", train / "cat/deep/new.png"),
        "class": lambda: shutil.copytree(train / "cat", train / "fox"),
        "rename": lambda: (train / "cat/cat_0.JPEG").rename(train / "cat/cat_9.JPEG"),
        "removal": lambda: (train / "cat/cat_0.JPEG").unlink(),
        "linked": lambda: (outside / "dog_0.JPEG").unlink(),
    }[change]()
    after = paths(FolderImages(train))
    assert after != before
    assert len(counted) == 2


def test_a_folder_that_has_just_changed_is_not_trusted(image_root, counted):
    """A file more within the clock's step would leave the folder's time as it is."""
    FolderImages(image_root / "train")
    os.utime(image_root / "train/cat", (time.time() + 60, time.time() + 60))  # of a server whose clock is ahead
    FolderImages(image_root / "train")
    assert len(counted) == 2


@pytest.mark.parametrize("change", ["time", "size", "gone"])
def test_an_archive_is_indexed_again_when_it_changes(image_root, tmp_path, counted, change):
    given = tmp_path / "tars"
    flat_tar(image_root, given)
    settle(given)
    first = paths(open_datasets("tar", given)[0])
    assert (paths(open_datasets("tar", given)[0]), len(counted)) == (first, 2)
    if change == "time":
        os.utime(given / "train.tar", (LONG_AGO + 1, LONG_AGO + 1))
    elif change == "size":
        with (given / "train.tar").open("ab") as file:
            file.write(bytes(512))
        os.utime(given / "train.tar", (LONG_AGO, LONG_AGO))
    else:
        (given / "train.tar").unlink()
        flat_tar(image_root, tmp_path / "again")
        shutil.copy(tmp_path / "again/train.tar", given)
    assert paths(open_datasets("tar", given)[0]) == first
    assert len(counted) == 3


@pytest.mark.parametrize("content", [b"", b"x", b"half"])
def test_a_damaged_cache_is_made_again(image_root, tmp_path, counted, content):
    settle(image_root)
    first = paths(FolderImages(image_root / "train"))
    (kept,) = (tmp_path / "cache").rglob("*.npz")
    kept.write_bytes(kept.read_bytes()[: len(kept.read_bytes()) // 2] if content == b"half" else content)
    assert paths(FolderImages(image_root / "train")) == first
    assert len(counted) == 2
    assert paths(FolderImages(image_root / "train")) == first
    assert len(counted) == 2


def test_a_cache_that_cannot_be_written_is_told_once_and_nothing_is_listed_twice(image_root, tmp_path, counted, capsys):
    settle(image_root)
    (tmp_path / "cache").write_bytes(b"a file")
    for _ in range(2):
        assert len(open_datasets("image_folder", image_root)[0]) == 12
    assert capsys.readouterr().out.count("note: the index of the images cannot be kept in") == 1
    assert len(counted) == 2
    shutil.copy(image_root / "train/cat/cat_0.JPEG", image_root / "train/cat/new.png")
    assert len(FolderImages(image_root / "train")) == 13


def test_what_is_listed_anew_counts_though_the_cache_keeps_what_was(image_root, counted, monkeypatch):
    settle(image_root)
    FolderImages(image_root / "train")
    shutil.copy(image_root / "train/cat/cat_0.JPEG", image_root / "train/cat/new.png")
    settle(image_root)  # so that no time tells it
    assert len(FolderImages(image_root / "train")) == 12

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(remembered.os, "fsync", full)
    assert len(FolderImages(image_root / "train", anew=True)) == 13
    assert len(FolderImages(image_root / "train")) == 13
    assert len(counted) == 2


def test_what_is_quick_is_not_kept(image_root, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settle(image_root)
    images_at(image_root / "train")
    assert not (tmp_path / "cache").exists()


def test_folders_are_listed_at_the_same_time(tmp_path, monkeypatch):
    for number in range(16):
        (tmp_path / f"{number:02}").mkdir()
        (tmp_path / f"{number:02}" / "x.png").touch()
    listed = listing._sorted_entries

    def slowly(folder):
        time.sleep(0.05)
        return listed(folder)

    monkeypatch.setattr(listing, "_sorted_entries", slowly)
    begin = time.perf_counter()
    assert len(FolderImages(tmp_path)) == 16
    assert time.perf_counter() - begin < 0.5  # one after the other: 0.85
