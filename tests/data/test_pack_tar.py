"""A smaller copy as archives: from folders, archives, lists and parquet files; broken off, it is continued."""

import json
import os
import sys

import pytest
from forms import flat_tar, folders_of_tars, lists, tar_of_tars
from PIL import Image

from toe_train.cli.tools import main as tools
from toe_train.data import open_datasets, pack_tar


def pack(source, output, *more, short_side=24):
    given = ["--images", source, "--output", output, "--to", "tar", "--short-side", short_side, "--workers", 1, *more]
    return tools(["pack", *map(str, given)])


def test_a_folder_becomes_archives(image_root, tmp_path, capsys):
    assert pack(image_root, tmp_path / "out") == 0
    out = tmp_path / "out"
    assert (
        f"{out}: 18 images written, 0 were there; use it with data.kind=tar data.root={out}" in capsys.readouterr().out
    )
    expected, found = open_datasets("image_folder", image_root)[0], open_datasets("tar", out)[0]
    assert found.classes == expected.classes
    assert [found.label(i) for i in range(12)] == [expected.label(i) for i in range(12)]
    assert {found[i][0].size for i in range(12)} == {(32, 24)}
    names = [found.describe(i).removeprefix(f"{out}/train/00000.tar/") for i in range(4)]
    assert names == [f"bird/bird_{i}" for i in ("0.JPEG", "1.png.jpg", "2.JPEG", "3.JPEG")]


def test_small_jpegs_stay_as_they_are_and_so_does_the_digest(image_root, tmp_path):
    for path in image_root.rglob("*.png"):
        path.unlink()
    assert pack(image_root, tmp_path / "out", short_side=64) == 0
    both = open_datasets("image_folder", image_root), open_datasets("tar", tmp_path / "out")
    for expected, found in zip(*both, strict=True):
        assert found.digest() == expected.digest()
        assert [found.read(i) for i in range(len(found))] == [expected.read(i) for i in range(len(expected))]


@pytest.mark.parametrize("form", [flat_tar, tar_of_tars, folders_of_tars, lists], ids=lambda form: form.__name__)
def test_other_forms_become_the_same_archives(image_root, tmp_path, form):
    given = dict(one.removeprefix("data.").split("=", 1) for one in form(image_root, tmp_path / "source"))
    more = [
        text
        for key in ("train_list", "val_list")
        if key in given
        for text in (f"--{key.replace('_', '-')}", given[key])
    ]
    assert pack(image_root, tmp_path / "of folder") == 0
    assert pack(given["root"], tmp_path / "of other", "--from", given["kind"], *more) == 0
    one, other = (open_datasets("tar", tmp_path / name)[0] for name in ("of folder", "of other"))
    assert one.digest() == other.digest()
    assert [one.read(i) for i in range(12)] == [other.read(i) for i in range(12)]


def test_the_same_command_continues(image_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pack_tar, "OF_AN_ARCHIVE", 5)
    out = tmp_path / "out"
    assert pack(image_root, out) == 0
    whole = {path.name: path.read_bytes() for path in (out / "train").iterdir()}
    assert sorted(whole) == ["00000.tar", "00001.tar", "00002.tar"]
    (out / "train/00000.tar").unlink()
    (out / "train/00001.tar").write_bytes(whole["00001.tar"][:3000])
    (out / "train/.00001.tar.1.tmp").write_bytes(b"half")
    changed = image_root / "val/dog/dog_0.JPEG"
    os.utime(changed, (1_700_000_000, 1_700_000_000))
    (out / "train/more.tar").write_bytes(b"")
    capsys.readouterr()
    assert pack(image_root, out) == 0
    told = capsys.readouterr().out
    assert "15 images written, 3 were there" in told  # five of each archive
    assert f"1 in the copy without an original; remove them:\n  {out}/train/more.tar" in told
    (out / "train/more.tar").unlink()
    assert {path.name: path.read_bytes() for path in (out / "train").iterdir()} == whole


def test_what_cannot_be_read_is_left_out_and_told(image_root, tmp_path, capsys):
    (image_root / "train/cat/cat_0.JPEG").write_bytes(b"no image")
    assert pack(image_root, tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert "17 images written, 0 were there" in told
    assert "1 left out:" in told
    assert "cat_0.JPEG cannot be read as an image" in told
    assert len(open_datasets("tar", tmp_path / "out")[0]) == 11


def test_what_does_not_fit_is_refused(image_root, tmp_path, capsys):
    assert pack(image_root, tmp_path / "out") == 0
    folder = ["pack", "--images", str(image_root), "--output", str(tmp_path / "out"), "--short-side", "24"]
    assert tools(folder) == 2
    assert "was packed with --to tar: use it to continue" in capsys.readouterr().err
    assert pack(image_root, tmp_path / "out", short_side=16) == 2
    assert "was packed with --short-side 24" in capsys.readouterr().err
    assert pack(image_root, image_root / "out") == 2
    assert "must lie apart" in capsys.readouterr().err
    assert tools([*folder, "--from", "tar"]) == 2
    assert "--from tar is packed as archives: add --to tar" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--val-list", "val.csv"], "--val-list is of --from list and tar, and this is image_folder; leave it out"),
        (["--label-key", "name"], "--label-key is of --from tar and parquet, and this is image_folder"),
        (["--from", "parquet", "--train-list", "a.csv"], "--train-list is of --from list and tar, and this is parquet"),
        (["--from", "list", "--train-list", "a.csv", "--label-key", "name"], "--label-key is of --from tar and"),
        (["--from", "list"], "--from list needs --train-list or --val-list"),
    ],
)
def test_an_option_that_is_not_read_is_refused(image_root, tmp_path, capsys, given, words):
    assert pack(image_root, tmp_path / "out", *given) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_archive_that_does_not_read_as_written_is_no_copy(image_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pack_tar, "_members", lambda path: {})
    assert pack(image_root, tmp_path / "out") == 3
    assert "does not read as it was written" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("0*.tar"))


def parquet_files(image_root, output, names):
    arrow, parquet = map(pytest.importorskip, ("pyarrow", "pyarrow.parquet"))

    output.mkdir()
    features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for split, word in (("train", "train"), ("val", "validation")):
        source = open_datasets("image_folder", image_root)[split == "val"]
        rows = [
            {"image": {"bytes": source.read(i), "path": os.path.basename(source.describe(i))}, "label": source.label(i)}
            for i in range(len(source))
        ]
        table = arrow.Table.from_pylist(rows).replace_schema_metadata(metadata)
        half = len(rows) // 2
        for number, part in enumerate((table[:half], table[half:])):
            parquet.write_table(part, output / f"{word}-{number:05}-of-00002.parquet", row_group_size=2)


def test_parquet_files_become_archives(image_root, tmp_path, capsys):
    parquet_files(image_root, tmp_path / "hub", ["tench, Tinca", "a/b", "cat"])
    for path in image_root.rglob("*.png"):
        path.unlink()
    assert pack(tmp_path / "hub", tmp_path / "out", "--from", "parquet", short_side=64) == 0
    train, val = open_datasets("tar", tmp_path / "out")
    assert train.classes == ["0_tench, Tinca", "1_a_b", "2_cat"]
    assert (train.counts(), val.counts()) == ([4, 4, 4], [2, 2, 2])
    originals = [path.read_bytes() for path in sorted((image_root / "train").rglob("*.JPEG"))]
    assert [train.read(i) for i in range(12) if not train.describe(i).endswith("png.jpg")] == originals
    capsys.readouterr()
    assert pack(tmp_path / "hub", tmp_path / "out", "--from", "parquet", short_side=64) == 0
    assert "0 images written, 18 were there" in capsys.readouterr().out


def test_parquet_files_of_one_name_in_two_folders_become_two_archives(image_root, tmp_path, capsys):
    parquet_files(image_root, tmp_path / "hub", ["a", "b", "c"])
    for folder, number in (("one", 0), ("two", 1)):
        (tmp_path / "hub" / folder).mkdir()
        file = tmp_path / f"hub/train-{number:05}-of-00002.parquet"
        file.rename(tmp_path / "hub" / folder / "train.parquet")
    assert pack(tmp_path / "hub", tmp_path / "out", "--from", "parquet", short_side=64) == 0
    train, _ = open_datasets("tar", tmp_path / "out")
    assert train.counts() == [4, 4, 4]
    assert sorted(path.name for path in (tmp_path / "out/train").iterdir()) == ["one_train.tar", "two_train.tar"]


def test_parquet_files_that_do_not_fit(image_root, tmp_path, capsys):
    parquet_files(image_root, tmp_path / "hub", ["a", "b", "c"])
    assert pack(tmp_path / "hub", tmp_path / "out", "--from", "parquet", "--label-key", "fine_label") == 2
    assert "has no column 'fine_label' (it has image, label)" in capsys.readouterr().err
    (tmp_path / "hub/train-00000-of-00002.parquet").write_bytes(b"PAR1")
    assert pack(tmp_path / "hub", tmp_path / "out", "--from", "parquet") == 2
    assert "train-00000-of-00002.parquet cannot be read as parquet" in capsys.readouterr().err


def test_without_pyarrow_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert pack(tmp_path, tmp_path / "out", "--from", "parquet") == 2
    told = capsys.readouterr().err
    assert "--from parquet needs pyarrow, which is not installed: pip install 'toe-train[parquet]'" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(("one", "two"), [("church/in", "church/out"), (".22 rifle", "air gun")])
def test_a_class_that_would_be_read_back_as_another_is_refused(tmp_path, capsys, one, two):
    (tmp_path / "a").mkdir()
    for name in ("in", "out"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"a/{name}.jpg")
    (tmp_path / "list.csv").write_text(f"path,label\na/in.jpg,{one}\na/out.jpg,{two}\n")
    lists = ["--from", "list", "--train-list", str(tmp_path / "list.csv"), "--val-list", str(tmp_path / "list.csv")]
    assert tools(["pack", "--images", str(tmp_path), *lists, "--to", "tar", "--output", str(tmp_path / "packed")]) == 2
    assert f"class '{one}' cannot be written" in capsys.readouterr().err
