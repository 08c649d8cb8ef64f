"""Archives give what the folder gives; what is damaged is refused by name and byte."""

import io
import os
import pickle
import shutil
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from forms import FORMS, add, flat_tar, folders_of_tars, shards, tar_of_tars

from toe_train.build.inputs import list_images
from toe_train.cli.tools import main as tools
from toe_train.data import TarImages, check_datasets, examine, images_at, open_datasets
from toe_train.data.sources.tar import open_tars
from toe_train.errors import UserError
from toe_train.recipes import load_config


def opened(given):
    return list_images(load_config("configs/deit_tiny.yaml", given))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_gives_what_the_folder_gives(image_root, tmp_path, form, configs, monkeypatch):
    monkeypatch.chdir(configs.parent)
    deeper = image_root / "train/cat/a-b"
    if form in (flat_tar, shards):
        deeper.mkdir()
        shutil.copy(image_root / "train/cat/cat_1.png", deeper / "z.png")
    expected = open_datasets("image_folder", image_root)
    found = opened(form(image_root, tmp_path / "other"))
    for one, other in zip(expected, found, strict=True):
        assert one.classes == other.classes
        assert one.digest() == other.digest()
        assert [one.read(i) for i in range(len(one))] == [other.read(i) for i in range(len(other))]
        assert one.counts() == other.counts()
        assert [one.label(i) for i in range(len(one))] == [other.label(i) for i in range(len(other))]
        assert np.array_equal(np.asarray(one[3][0]), np.asarray(other[3][0]))
        assert Path(other.describe(1)).name == Path(one.describe(1)).name
        other.require_here()
        assert pickle.loads(pickle.dumps(other))[0][1] == 0
        with pytest.raises(IndexError):
            other[len(other)]


@pytest.mark.parametrize("kind", ["tar", "list"])
def test_the_check_decodes_and_names_an_image(image_root, tmp_path, kind, configs, monkeypatch):
    monkeypatch.chdir(configs.parent)
    (image_root / "val/dog/dog_1.png").write_bytes(b"no image")
    form = FORMS[-1] if kind == "list" else flat_tar
    given = load_config("configs/deit_tiny.yaml", form(image_root, tmp_path / "other")).data
    from toe_train.build.inputs import labelling

    where = labelling(load_config("configs/deit_tiny.yaml", form(image_root, tmp_path / "again")))
    found = examine(kind, given.root, labelling=where)
    (fault,) = found.faults
    assert "dog_1.png cannot be read as an image" in fault.text
    assert fault.file.name == "dog_1.png"
    assert (found.count("train"), found.count("val")) == (12, 6)


def header(name, size=0, kind=tarfile.REGTYPE, form=tarfile.GNU_FORMAT, **more):
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    for key, value in more.items():
        setattr(member, key, value)
    return member.tobuf(form)


def padded(content):
    return content + bytes(-len(content) % 512)


END = bytes(1024)


def plain():
    return header("cat/a.png", 3) + padded(b"abc") + header("dog/b.png", 3) + padded(b"def") + END


def resummed(block):
    clean = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(clean) + block[156:]


DAMAGED = {
    "empty file": (b"", "ends at byte 0 without the two empty blocks"),
    "no end": (plain()[:-1024], "ends at byte 2048 without the two empty blocks"),
    "half an end": (plain()[:-512], "ends at byte 2560, after one of the two empty blocks"),
    "cut in a header": (plain()[:1300], "ends at byte 1300 without"),
    "cut in an image": (plain()[:514], "ends at byte 514, and cat/a.png (header at byte 0) would end at byte 515"),
    "a byte of a header changed": (plain()[:1030] + b"X" + plain()[1031:], "at byte 1024 there is no header"),
    "a shifted byte": (plain()[:600] + b"X" + plain()[600:], "at byte 1024 there is no header"),
    "a hole": (plain()[:1024] + bytes(1024) + END + b"\1" * 512, "at byte 3072 there is more behind"),
    "two in one": (plain() + plain(), "at byte 3072 there is more behind"),
    "no archive": (b"not a tar, but long enough " * 40, "at byte 0 there is no header"),
    "gzip": (b"\x1f\x8b" + bytes(1022), "is compressed (gzip)"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(1020), "is compressed (zstd)"),
    "xz": (b"\xfd7zXZ\0" + bytes(1018), "`unxz "),
    "a size that is no number": (
        resummed(header("cat/a.png", 3)[:124] + b"0000000zzzz\0" + header("cat/a.png", 3)[136:]) + END,
        "at byte 0 the size of a member is no number",
    ),
    "a size below zero": (
        resummed(header("cat/a.png")[:124] + b"\xff" * 12 + header("cat/a.png")[136:]) + END,
        "at byte 0 the size of a member is no number",
    ),
    "a size beyond the end": (header("cat/a.png", 2**40) + END, f"would end at byte {2**40 + 512}"),
    "an endless long name": (header("././@LongLink", 2**30, b"L") + END, "ends at byte 1536, and what follows"),
    "pax without a length": (
        header("x", 8, b"x") + padded(b"path=abc") + header("cat/a.png") + END,
        "at byte 512 there is no pax record",
    ),
    "pax beyond its end": (
        header("x", 9, b"x") + padded(b"99 path=a") + header("cat/a.png") + END,
        "at byte 512 there is no pax record",
    ),
    "old sparse": (header("cat/a.png", 0, b"S") + END, "at byte 0 cat/a.png is stored as a sparse file"),
    "pax sparse": (
        header("x", 22, b"x") + padded(b"22 GNU.sparse.major=1\n") + header("cat/a.png") + END,
        "at byte 1024 cat/a.png is stored as a sparse file",
    ),
    "a volume's rest": (header("cat/a.png", 0, b"M") + END, "at byte 0 cat/a.png continues another volume"),
    "a link to nothing": (
        header("cat/a.png", 0, tarfile.SYMTYPE, linkname="/data/a.png") + END,
        "cat/a.png is a link to /data/a.png, which the archive does not hold",
    ),
    "outside": (header("../a.png", 0) + END, "at byte 0 ../a.png lies outside"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_archive_is_refused_by_name_and_byte(image_root, tmp_path, name, capsys):
    content, told = DAMAGED[name]
    flat_tar(image_root, tmp_path / "tars")
    path = tmp_path / "tars" / "train.tar"
    path.write_bytes(content)
    (fault,) = check_datasets("tar", tmp_path / "tars")
    assert str(path) in fault
    assert told in fault
    with pytest.raises(UserError, match="train"):
        open_datasets("tar", tmp_path / "tars")
    assert tools(["doctor", str(tmp_path / "tars")]) == 2
    printed = capsys.readouterr()
    assert told in printed.out
    assert "Traceback" not in printed.out + printed.err


def test_a_whole_archive_is_taken(tmp_path):
    path = tmp_path / "train.tar"
    path.write_bytes(plain() + bytes(7168))  # tar fills its last record
    images = images_at(path)
    assert [images.read(i) for i in range(2)] == [b"abc", b"def"]


def test_an_archive_that_is_cut_after_it_was_indexed(tmp_path):
    path = tmp_path / "train.tar"
    path.write_bytes(plain())
    images = images_at(path)
    path.write_bytes(plain()[:1537])
    assert images.read(0) == b"abc"
    with pytest.raises(UserError, match=r"train\.tar ends at byte 1537"):
        images[1]
    with pytest.raises(UserError, match="as rank 0 read it, with 3072 bytes"):
        images.require_here()


LONG = "cat/" + "/".join(["d" * 60] * 3) + "/" + "n" * 120 + ".png"


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("name", [LONG, "cat/" + "d" * 90 + "/" + "n" * 90 + ".png", "cat/é\udcff.png"])
def test_long_and_odd_names(tmp_path, form, name):
    if form == tarfile.USTAR_FORMAT and name is LONG:
        pytest.skip("the format does not hold it")
    path = tmp_path / "train.tar"
    with tarfile.open(path, "w", format=form, errors="surrogateescape") as archive:
        add(archive, "dog/x.png", b"dog")
        add(archive, name, b"cat")
        add(archive, "cat/last.png", b"last")
    images = images_at(path)
    found = {images.describe(i): images.read(i) for i in range(3)}
    assert found == {f"{path}/{name}": b"cat", f"{path}/cat/last.png": b"last", f"{path}/dog/x.png": b"dog"}


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_images_behind_a_file_of_nine_gigabytes(tmp_path, form):
    """Its size stands in base 256, or in a pax record; the file has a hole in its place."""
    path, size = tmp_path / "train.tar", 9 * 2**30 + 1
    begin = header("film.bin", size, form=form)
    rest = header("cat/a.png", 3) + padded(b"abc") + header("dog/b.png", 3) + padded(b"def") + END
    with path.open("wb") as file:
        file.write(begin)
        file.seek(len(begin) + -(-size // 512) * 512)
        file.write(rest)
    images = images_at(path)
    assert [images.read(i) for i in range(2)] == [b"abc", b"def"]
    assert images.place(0).offset > 2**33


def test_links_and_what_comes_twice(tmp_path):
    path = tmp_path / "train.tar"
    with tarfile.open(path, "w") as archive:
        add(archive, "cat/a.png", b"old")
        add(archive, "cat/b.png", b"bee")
        for name, kind, target in (
            ("cat/hard.png", tarfile.LNKTYPE, "cat/b.png"),
            ("dog/soft.png", tarfile.SYMTYPE, "../cat/later.png"),
            ("cat/twice.png", tarfile.SYMTYPE, "../dog/soft.png"),
            ("dog/folder", tarfile.SYMTYPE, "../cat"),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            archive.addfile(link)
        add(archive, "cat/later.png", b"later")
        add(archive, "cat/a.png", b"new")
    images = images_at(path)
    found = {images.describe(i)[len(str(path)) + 1 :]: images.read(i) for i in range(len(images))}
    assert found == {
        "cat/a.png": b"new",
        "cat/b.png": b"bee",
        "cat/hard.png": b"bee",
        "cat/later.png": b"later",
        "cat/twice.png": b"later",
        "dog/soft.png": b"later",
    }
    assert [note.removeprefix(f"{path}: ") for note in images.notes()] == [
        "1 members are followed by others of the same names, which count",
        "passed over dog/folder, a link to a folder that is listed anyway",
    ]


def test_what_is_passed_over_is_that_of_a_folder(image_root, tmp_path):
    train = image_root / "train"
    (train / "@eaDir").mkdir()
    for name in ("@eaDir/x.png", "cat/._cat_0.JPEG", "cat/notes.txt", "loose.png", "dog/x.heic", ".DS_Store"):
        (train / name).write_bytes(b"x")
    os.mkfifo(train / "cat/pipe.png")
    flat_tar(image_root, tmp_path / "tars")
    with tarfile.open(tmp_path / "tars" / "train.tar", "w") as archive:
        archive.add(train, "train")
    expected, found = open_datasets("image_folder", image_root)[0], open_datasets("tar", tmp_path / "tars")[0]
    assert found.digest() == expected.digest()
    told = [[note.split(": ", 1)[1] for note in source.notes()] for source in (expected, found)]
    assert sorted(told[0]) == sorted(told[1])


@pytest.mark.parametrize(
    ("members", "listed"),
    [
        (["set/cat/1.png", "set/dog/2.png"], ["cat/1.png", "/data/set/dog/2.png"]),
        (["1.png", "2.png"], ["/data/val/1.png", "2.png"]),
        (["photos/1.png", "photos/2.png"], ["/data/images/1.png", "./2.png"]),
        (["a/rgb.png", "b/rgb.png"], ["x/a/rgb.png", "b/rgb.png"]),
    ],
)
def test_paths_of_a_list_end_as_those_of_the_archive(tmp_path, members, listed):
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        for name in members:
            add(archive, name, name.encode())
    (tmp_path / "list.csv").write_text(f"{listed[0]},cat\n{listed[1]},dog\n")
    found = open_tars(tmp_path, "train", tmp_path / "list.csv")
    assert [found.read(i).decode() for i in range(len(found))] == members


def test_a_list_takes_no_image_of_another_folder(tmp_path):
    """Of its file name there is one, in another class's folder. And two paths to an image are of one image."""
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        add(archive, "cat/1.png", b"")
        add(archive, "dog/2.png", b"")
    path = tmp_path / "list.csv"
    path.write_text("cat/1.png,cat\ncat/2.png,cat\n")
    with pytest.raises(UserError, match=r"1 images of the list are not in .*cat/2\.png; correct the list, whose paths"):
        open_tars(tmp_path, "train", path)
    path.write_text("cat/1.png,cat\ndog/2.png,dog\n/data/cat/1.png,dog\n")
    with pytest.raises(UserError, match=r"line 3: /data/cat/1\.png has the label dog, and cat in"):
        open_tars(tmp_path, "train", path)


def test_archives_of_a_split_that_are_not_read_are_told(image_root, tmp_path):
    flat_tar(image_root, tmp_path / "tars")
    before = [note for source in open_datasets("tar", tmp_path / "tars") for note in source.notes()]
    shutil.copy(tmp_path / "tars/train.tar", tmp_path / "tars/train-extra.tar")
    train, val = open_datasets("tar", tmp_path / "tars")
    assert [*train.notes(), *val.notes()] == [
        *before,
        f"{tmp_path}/tars/train.tar: passed over train-extra.tar beside it",
    ]


def test_samples_without_an_image_are_told(tmp_path):
    bare = [("2.npy", b""), ("2.cls", b"1"), ("3.cls", b"1"), ("info.json", b"{}")]
    shard(tmp_path / "train.tar", ("1.jpg", b""), ("1.cls", b"0"), *bare)
    (note,) = images_at(tmp_path / "train.tar").notes()
    assert note.endswith("train.tar: passed over 2 samples with a label and no image that can be read: 2, 3")


def test_a_class_without_images_is_told(image_root, tmp_path):
    flat_tar(image_root, tmp_path / "tars")
    with tarfile.open(tmp_path / "tars/train.tar", "a") as archive:
        member = tarfile.TarInfo("eel")
        member.type = tarfile.DIRTYPE
        archive.addfile(member)
    with pytest.raises(UserError, match=r"train\.tar cannot be used as archives of classes.*for the classes eel"):
        open_datasets("tar", tmp_path / "tars")


def test_archives_that_are_not_there_or_there_twice(image_root, tmp_path):
    flat_tar(image_root, tmp_path / "tars")
    (tmp_path / "tars/val.tar").rename(tmp_path / "tars/other.tar")
    with pytest.raises(
        UserError, match=r"has no archives for val \(it holds other\.tar, train\.tar\): data\.root must"
    ):
        open_datasets("tar", tmp_path / "tars")
    shutil.copy(tmp_path / "tars/train.tar", tmp_path / "tars/ILSVRC2012_img_train.tar")
    with pytest.raises(UserError, match=r"in several ways, train\.tar and ILSVRC2012_img_train\.tar: move all but one"):
        open_datasets("tar", tmp_path / "tars")
    with pytest.raises(UserError, match="is not a folder"):
        open_datasets("tar", tmp_path / "nowhere")
    folders_of_tars(image_root, tmp_path / "two")
    assert isinstance(images_at(tmp_path / "two/train"), TarImages)
    assert not isinstance(images_at(image_root / "train"), TarImages)


def test_flat_images_need_a_list(image_root, tmp_path):
    tar_of_tars(image_root, tmp_path / "tars")
    with pytest.raises(
        UserError, match=r"ILSVRC2012_img_val\.tar holds images that lie in no class folders .*val_list"
    ):
        open_datasets("tar", tmp_path / "tars")


def shard(path, *files):
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            add(archive, name, content)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ([("1.jpg", b""), ("2.jpg", b""), ("2.cls", b"0")], "train.tar/1: there is no label"),
        ([("1.jpg", b""), ("1.png", b""), ("1.cls", b"0")], "the sample 1 has several images (1.jpg, 1.png)"),
        ([("1.jpg", b""), ("1.cls", b"\xff")], "train.tar/1.cls: the label is no text"),
        ([("1.jpg", b""), ("1.cls", b"")], "train.tar/1.cls: the label is ''"),
        ([("1.jpg", b""), ("1.json", b'{"caption": "a cat"}')], "train.tar/1.json has no key 'label' (it has caption)"),
        ([("1.jpg", b""), ("1.json", b"{")], "is no JSON"),
        ([("1.jpg", b""), ("1.json", b'{"label": 1.5}')], "train.tar/1.json, label: the label is 1.5"),
        ([("1.jpg", b""), ("1.cls", b"0"), ("2.jpg", b""), ("2.cls", b"cat")], "labels are numbers and names (0 and"),
    ],
)
def test_shards_without_right_labels(tmp_path, files, told):
    shard(tmp_path / "train.tar", *files)
    with pytest.raises(UserError) as fault:
        images_at(tmp_path / "train.tar")
    assert told in str(fault.value)


def test_numbers_of_shards_count_as_numbers(tmp_path):
    (tmp_path / "train").mkdir()
    for number, labels in enumerate([(10, 2), (0, 2)]):  # each shard numbers its samples from 0
        files = [(f"{i}.{end}", text) for i, label in enumerate(labels) for end, text in _sample(label)]
        shard(tmp_path / f"train/{number}.tar", *files)
    images = images_at(tmp_path / "train")
    assert images.classes == ["0", "2", "10"]
    assert [(images.read(i), images.label(i)) for i in range(4)] == [(b"0", 0), (b"2", 1), (b"2", 1), (b"10", 2)]


def _sample(label):
    return ("left.txt", b"words"), ("jpg", b"%d" % label), ("cls", b"%d\n" % label)


def test_threads_and_processes_share_no_position(image_root, tmp_path):
    flat_tar(image_root, tmp_path / "tars")
    train, _ = open_datasets("tar", tmp_path / "tars")
    expected = [train.read(i) for i in range(12)]
    wrong = []

    def read():
        wrong.extend(i for _ in range(50) for i in range(12) if train.read(i) != expected[i])

    threads = [threading.Thread(target=read) for _ in range(4)]
    child = os.fork()
    if not child:
        read()
        os._exit(bool(wrong))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.waitpid(child, 0)[1] == 0
    assert not wrong


def test_an_archive_within_an_archive_is_named(tmp_path):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as inner:
        add(inner, "a.png", b"abc")
    with tarfile.open(tmp_path / "train.tar", "w") as outer:
        add(outer, "cat.tar", content.getvalue()[:1100])
    with pytest.raises(UserError, match=r"train\.tar/cat\.tar ends at byte 1612 without"):
        images_at(tmp_path / "train.tar")
