"""Splitting a folder of photos: shares, seeds, equal images, what is left out, and what is refused."""

import csv
import json
import os
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

from toe_train.cli.tools import main as tools
from toe_train.cli.train import main as train
from toe_train.data import Labelling, Splitting, open_datasets, split_images
from toe_train.data.split import choose_val
from toe_train.errors import UserError


@pytest.fixture
def photos(tmp_path):
    """Ten cats and five dogs, dirty."""
    root, noise = tmp_path / "photos", np.random.default_rng(0)
    for name, count in (("cat", 10), ("dog", 5)):
        (root / name / "trip").mkdir(parents=True)
        for number in range(count):
            pixels = noise.integers(0, 256, (8, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / ("trip" if number % 2 else ".") / f"{number}.png")
    (root / "cat/broken.jpg").write_bytes(b"\xff\xd8 no more")
    (root / "cat/notes.txt").touch()
    (root / ".DS_Store").touch()
    (root / "drafts").mkdir()
    return root


def sides(output):
    """Paths of each side, by class."""
    return {
        (side, name): sorted(str(path.relative_to(output / side)) for path in (output / side / name).rglob("*.*"))
        for side in ("train", "val")
        for name in ("cat", "dog")
    }


def test_each_class_gets_its_share_and_nothing_is_lost(photos, tmp_path):
    output = tmp_path / "out"
    found = split_images(photos, output, Splitting(0.2))
    assert found.counts == {"cat": (8, 2), "dog": (4, 1)}
    assert found.is_new
    by_side = sides(output)
    assert {key: len(paths) for key, paths in by_side.items()} == {
        ("train", "cat"): 8,
        ("val", "cat"): 2,
        ("train", "dog"): 4,
        ("val", "dog"): 1,
    }
    everything = sorted(path for paths in by_side.values() for path in paths)
    assert everything == sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
    for path in by_side["val", "cat"]:
        assert (output / "val" / path).samefile(photos / path)
    assert [fault.split(" cannot")[0] for fault in found.faults] == [str(photos / "cat/broken.jpg")]
    assert any("left out drafts" in note for note in found.notes)
    assert any("notes.txt" in note for note in found.notes)


def test_the_same_call_changes_nothing_and_another_is_refused(photos, tmp_path):
    output = tmp_path / "out"
    split_images(photos, output, Splitting(0.2))
    before = sides(output)
    assert not split_images(photos, output, Splitting(0.2)).is_new
    assert sides(output) == before
    for splitting, words in ((Splitting(0.4), "another val"), (Splitting(0.2, seed=1), "another seed")):
        with pytest.raises(UserError, match=words):
            split_images(photos, output, splitting)
    gone = output / "val" / before["val", "dog"][0]
    gone.unlink()
    with pytest.raises(UserError, match=r"1 of its files are gone"):
        split_images(photos, output, Splitting(0.2))
    os.link(photos / before["val", "dog"][0], gone)
    Image.new("RGB", (5, 5)).save(photos / "cat/new.png")
    with pytest.raises(UserError, match="of other images: they have changed since"):
        split_images(photos, output, Splitting(0.2))
    (tmp_path / "else").mkdir()
    (tmp_path / "else/file").touch()
    with pytest.raises(UserError, match="is not empty: name a new folder"):
        split_images(photos, tmp_path / "else", Splitting(0.2))


def test_a_seed_and_not_a_name_decides(photos, tmp_path):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    split_images(photos, first, Splitting(0.4))
    moved = tmp_path / "moved"
    shutil.copytree(photos, moved)
    for path in list(moved.rglob("*.png")):
        path.rename(path.with_name(f"renamed-{path.name}"))
    split_images(moved, second, Splitting(0.4, form="copies"))
    assert {key: [path.replace("renamed-", "") for path in paths] for key, paths in sides(second).items()} == sides(
        first
    )
    assert os.stat(second / "val" / sides(second)["val", "cat"][0]).st_nlink == 1
    split_images(photos, third, Splitting(0.4, seed=1))
    assert sides(third) != sides(first)


@pytest.mark.parametrize("seed", range(5))
def test_equal_images_stay_together(photos, tmp_path, seed):
    for number in range(3):  # the same pixels in another file
        Image.open(photos / "cat/0.png").save(photos / f"cat/copy-{number}.bmp")
    shutil.copy(photos / "cat/0.png", photos / "dog/cat.png")
    found = split_images(photos, tmp_path / "out", Splitting(0.4, seed))
    where = [side for (side, _), paths in sides(tmp_path / "out").items() for path in paths if "copy" in path]
    assert len(where) == 3
    assert len(set(where)) == 1
    assert (tmp_path / "out" / where[0] / "cat/0.png").exists()
    assert (tmp_path / "out" / where[0] / "dog/cat.png").exists()
    assert found.counts["cat"][1] in (4, 5)
    assert any("are of several classes" in note for note in found.notes)


def test_every_class_is_on_both_sides():
    pairs = {f"{name}{number}": [name] * size for name, size in (("a", 3), ("b", 1)) for number in range(2)}
    for seed in range(10):
        val = choose_val(pairs, 0.01, seed)
        assert {name: sum(digest.startswith(name) for digest in val) for name in "ab"} == {"a": 1, "b": 1}
    with pytest.raises(UserError, match="too few of a: add images"):
        choose_val({"x": ["a", "a"], "y": ["b"], "z": ["b"]}, 0.5, 0)


def test_a_list(photos, tmp_path, capsys):
    assert tools(["split", str(photos), "--output", str(tmp_path / "out"), "--form", "list"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["images.csv", "split.json"]
    with (tmp_path / "out/images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 15
    assert {row["split"] for row in rows} == {"train", "val"}
    assert all(os.path.isfile(row["path"]) and f"/{row['label']}/" in row["path"] for row in rows)
    assert json.loads((tmp_path / "out/split.json").read_text())["form"] == "list"
    split_images(photos, tmp_path / "links", Splitting(0.2))
    named = Labelling(tmp_path / "out/images.csv", tmp_path / "out/images.csv")
    by_list, by_links = (
        open_datasets("list", photos, labelling=named),
        open_datasets("image_folder", tmp_path / "links"),
    )
    assert [one.digest() for one in by_list] == [one.digest() for one in by_links]
    out = capsys.readouterr().out
    assert "1 left out:" in out
    lists = " ".join(f"data.{split}_list={tmp_path}/out/images.csv" for split in ("train", "val"))
    assert (
        f"12 train and 3 val images in 2 classes; train on it with data.kind=list data.root={photos} {lists}\n" in out
    )


@pytest.mark.slow
def test_a_list_trains_as_links_do(photos, tiny, tmp_path, capsys, assert_same_run):
    given = ["train.global_batch=4", "augment.mix_group=4", "data.workers=0", "data.check_sample=1"]
    for form in ("links", "list"):
        assert tools(["split", str(photos), "--output", str(tmp_path / form), "--form", form]) == 0
        use = shlex.split(capsys.readouterr().out.rsplit("; train on it with ", 1)[1])
        kind = [] if form == "list" else ["data.kind=image_folder"]
        assert train(["--config", str(tiny), "--output", str(tmp_path / f"as {form}"), *kind, *use, *given]) == 0
    assert_same_run(tmp_path / "as links", tmp_path / "as list")


def test_what_is_refused(photos, tmp_path, capsys):
    flat, single = tmp_path / "flat", tmp_path / "single"
    flat.mkdir()
    shutil.copy(photos / "cat/0.png", flat)
    shutil.copytree(photos / "cat", single / "cat")
    mixed = tmp_path / "mixed"
    shutil.copytree(photos, mixed)
    (mixed / "dog").rename(mixed / "7")
    spaced = tmp_path / "spaced"
    shutil.copytree(photos, spaced)
    (spaced / "dog").rename(spaced / "dog ")
    done = tmp_path / "done"
    (done / "train").mkdir(parents=True)
    (done / "val").mkdir()
    for given, words in [
        ([tmp_path / "none"], "is not a folder"),
        ([flat], "is flat: images such as 0.png"),
        ([single], "holds a single class, cat"),
        ([done], "holds train/ and val/ already"),
        ([photos, "--val", "1"], "--val 1.0 must be a share of the images above 0 and below 1"),
        ([photos, "--output", photos / "out"], "must lie apart"),
        ([mixed, "--form", "list"], "labels are numbers and names (7 and cat): give all as one or the other; rename"),
        ([spaced, "--form", "list"], "a list cannot hold 'dog ', with spaces at an end or no text; rename it, or give"),
    ]:
        assert tools(["split", "--output", str(tmp_path / "out"), *map(str, given)]) == 2
        err = capsys.readouterr().err
        assert words in err
        assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_another_disk_is_told(photos, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(UserError, match=r"cannot be linked.*\(Invalid cross-device link\).*--form copies"):
        split_images(photos, tmp_path / "out", Splitting(0.2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]
