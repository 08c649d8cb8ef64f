"""What counts as a class and as an image: the same for every command that lists an image folder."""

import errno
import os
import shutil

import pytest

from toe_train.cli.tools import main as tools
from toe_train.data import (
    FolderImages,
    Packing,
    check_datasets,
    examine,
    open_datasets,
    pack_images,
    require_healthy,
)
from toe_train.errors import UserError

LEFT = "that a system or a program left there"
FOLDERS_LEFT = ("@eaDir", "__MACOSX", "lost+found", ".ipynb_checkpoints", "$RECYCLE.BIN", "#recycle", "__pycache__")
FILES_LEFT = ("._cat_0.JPEG", ".DS_Store", "Thumbs.db", "desktop.ini", ".hidden.png")


def listed(root):
    images = FolderImages(root)
    return [(os.path.relpath(images.describe(i), root), int(images._labels[i])) for i in range(len(images))]


@pytest.mark.parametrize("place", [".", "cat", "cat/deeper"])
@pytest.mark.parametrize("name", FOLDERS_LEFT)
def test_folders_that_a_system_leaves_are_neither_classes_nor_hold_images(image_root, name, place):
    train = image_root / "train"
    before = listed(train)
    (train / place / name / "x").mkdir(parents=True)
    for inner in ("thumb.JPEG", "x/thumb.png"):
        shutil.copy(train / "cat/cat_0.JPEG", train / place / name / inner)
    train_images, _ = open_datasets("image_folder", image_root)
    assert (train_images.classes, listed(train)) == (["bird", "cat", "dog"], before)
    told = f"{train}: passed over 1 file or folder {LEFT}: {os.path.normpath(os.path.join(place, name))}"
    assert train_images.notes() == [told]
    for sample in (64, None):
        found = examine("image_folder", image_root, sample)
        assert (found.faults, found.notes, found.count("train")) == ([], [told], 12)


@pytest.mark.parametrize("place", [".", "cat"])
@pytest.mark.parametrize("name", FILES_LEFT)
def test_files_that_a_system_leaves_are_no_images(image_root, name, place):
    before = listed(image_root / "val")
    shutil.copy(image_root / "val/cat/cat_0.JPEG", image_root / "val" / place / name)
    assert listed(image_root / "val") == before
    (note,) = examine("image_folder", image_root).notes
    assert note.endswith(
        f"passed over 1 file or folder that a system or a program left there: {os.path.normpath(f'{place}/{name}')}"
    )


def test_a_root_in_a_hidden_folder_is_the_users(image_root, tmp_path):
    (tmp_path / ".cache").mkdir()
    moved = image_root.rename(tmp_path / ".cache/@eaDir")
    assert len(listed(moved / "train")) == 12
    assert check_datasets("image_folder", moved) == []


def test_files_that_are_no_images_are_told_with_their_number(image_root):
    for number in range(7):
        (image_root / "train/dog" / f"{number}.txt").write_text("note")
    (image_root / "val" / "stray.JPEG").write_bytes(b"")
    assert check_datasets("image_folder", image_root, sample=None) == []
    inside, outside = open_datasets("image_folder", image_root)[0].notes() + FolderImages(image_root / "val").notes()
    assert inside.startswith(f"{image_root / 'train'}: passed over 7 files whose suffix is no image's (known are .jpg ")
    assert inside.endswith("): dog/0.txt, dog/1.txt, dog/2.txt, dog/3.txt, dog/4.txt, ... (7 in all)")
    assert outside == f"{image_root / 'val'}: passed over 1 file outside the class folders: stray.JPEG"


def test_a_class_of_nothing_but_what_is_passed_over_says_so(image_root):
    for path in (image_root / "train/cat").iterdir():
        path.rename(path.with_name(f"._{path.name}"))
    (fault,) = check_datasets("image_folder", image_root)
    assert f"hold no images: cat (passed over: 4 files and folders {LEFT}: cat/._cat_0.JPEG, " in fault
    with pytest.raises(UserError, match=r"classes cat\. .*passed over: 4 files and folders that a system"):
        open_datasets("image_folder", image_root)


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("cat/again", "cat"),
        ("cat/up", "."),
        ("cat/far_up", ".."),
        ("cat/other", "dog"),
        ("cat/twin", "cat/real"),
        ("again", "."),
        ("copy", "cat"),
    ],
)
def test_a_link_to_a_folder_that_is_listed_anyway_is_not_followed(image_root, link, target):
    train = image_root / "train"
    (train / "cat/real").mkdir()
    shutil.copy(train / "cat/cat_0.JPEG", train / "cat/real/more.JPEG")
    before = listed(train)
    (train / link).symlink_to((train / target).resolve())
    assert listed(train) == before
    told = f"{train}: passed over 1 link to a folder that is listed anyway: {link}"
    assert FolderImages(train).notes() == examine("image_folder", image_root).notes == [told]


def test_links_that_lead_to_each_other_end(image_root):
    train = image_root / "train"
    for one, other in (("a", "b"), ("b", "a")):
        (train / "cat" / one).mkdir()
        (train / "cat" / one / "to").symlink_to(train / "cat" / other)
    (train / "dog/self.png").symlink_to(train / "dog/self.png")
    assert len(listed(train)) == 13  # the link to itself is a file that cannot be read
    (fault,) = check_datasets("image_folder", image_root)
    assert str(train / "dog/self.png") in fault


def test_a_pipe_is_no_image(image_root):
    os.mkfifo(image_root / "train/cat/pipe.png")
    found = examine("image_folder", image_root)
    assert (found.faults, found.count("train")) == ([], 12)
    assert found.notes == [f"{image_root / 'train'}: passed over 1 pipe, socket or device: cat/pipe.png"]


def test_links_to_folders_elsewhere_are_followed(image_root, tmp_path):
    (image_root / "train/dog").rename(tmp_path / "dogs")
    (image_root / "train/dog").symlink_to(tmp_path / "dogs")
    (image_root / "train/wolf").symlink_to(tmp_path / "dogs")
    (tmp_path / "cats").mkdir()
    shutil.copy(image_root / "train/cat/cat_0.JPEG", tmp_path / "cats/x.JPEG")
    (image_root / "train/cat/more").symlink_to(tmp_path / "cats")
    images = FolderImages(image_root / "train")
    assert images.classes == ["bird", "cat", "dog", "wolf"]
    assert images.counts() == [4, 5, 4, 4]
    assert images.notes() == [
        f"{image_root / 'train'}: classes dog, wolf are links to one folder, and have the same images"
    ]


def test_a_folder_that_cannot_be_listed_is_named(image_root, monkeypatch):
    locked = str(image_root / "train/cat/deeper")
    os.mkdir(locked)
    scandir = os.scandir

    def listing(folder):
        if folder == locked:
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", listing)
    assert check_datasets("image_folder", image_root) == [
        f"{locked} cannot be listed (Permission denied): give this user the right to read it"
    ]


@pytest.mark.parametrize("inner", ["images", "images/all"])
def test_a_single_class_is_refused_with_the_likely_cause(image_root, inner):
    for split in ("train", "val"):
        (image_root / split).rename(image_root / "moved")
        (image_root / split / inner).parent.mkdir(parents=True)
        (image_root / "moved").rename(image_root / split / inner)
    (fault,) = check_datasets("image_folder", image_root)
    train = image_root / "train"
    assert fault == (
        f"{train} holds a single class, images, and there is nothing to learn from one: its images lie in folders of "
        f"{train / inner}, which look like the classes (bird, cat, dog); move these to {train}, in train and in val"
    )
    for refuse in (open_datasets, require_healthy):
        with pytest.raises(UserError) as raised:
            refuse("image_folder", image_root)
        assert str(raised.value) == fault


def test_a_single_class_without_folders_within_is_refused(image_root):
    for split in ("train", "val"):
        for name in ("bird", "dog"):
            shutil.rmtree(image_root / split / name)
    (fault,) = check_datasets("image_folder", image_root)
    assert "holds a single class, cat, and there is nothing to learn from one: put the images of each class" in fault
    for split in ("train", "val"):
        shutil.copytree(image_root / split / "cat", image_root / split / ".dog")
    (fault,) = check_datasets("image_folder", image_root)
    assert f"a single class, cat (passed over: 1 file or folder {LEFT}: .dog), and there" in fault


def test_a_packed_copy_holds_what_a_run_would_read(image_root, tmp_path):
    train = image_root / "train"
    for name in FOLDERS_LEFT:
        (train / "cat" / name).mkdir()
        shutil.copy(train / "cat/cat_0.JPEG", train / "cat" / name / "thumb.JPEG")
    for name in FILES_LEFT:
        shutil.copy(train / "cat/cat_0.JPEG", train / "cat" / name)
    (train / "cat/again").symlink_to(train / "cat")
    (train / "cat/other").symlink_to(train / "dog")
    (tmp_path / "cats").mkdir()
    shutil.copy(train / "cat/cat_0.JPEG", tmp_path / "cats/x.JPEG")
    (train / "cat/more").symlink_to(tmp_path / "cats")
    (image_root / "test").symlink_to(image_root / "val")
    packed = pack_images(image_root, tmp_path / "packed", Packing(16, 95), workers=1)
    copies = [path.removesuffix(".jpg") for path, _ in listed(tmp_path / "packed/train")]
    assert copies == [path for path, _ in listed(train)]
    assert packed.written == 13 + 6
    link = f"{image_root}: passed over 1 link to a folder that is listed anyway: test"
    assert packed.notes == [link, *FolderImages(train).notes()]
    assert pack_images(image_root, tmp_path / "packed", Packing(16, 95), workers=1).strays == []


def test_a_split_that_is_a_link_to_the_other_is_packed(image_root, tmp_path):
    shutil.rmtree(image_root / "val")
    (image_root / "val").symlink_to(image_root / "train")
    packed = pack_images(image_root, tmp_path / "packed", Packing(16, 95), workers=1)
    assert (packed.written, packed.notes) == (24, [])


def test_images_outside_class_folders_are_packed(image_root, tmp_path):
    for path in list((image_root / "val").glob("*/*")):
        path.rename(image_root / "val" / path.name)
    (image_root / "val/LICENSE").write_text("mine")
    packed = pack_images(image_root / "val", tmp_path / "packed", Packing(16, 95), workers=1)
    known = "1 file whose suffix is no image's (known are .jpg .jpeg .png .ppm .bmp .pgm .tif .tiff .webp): LICENSE"
    assert (packed.written, packed.notes) == (6, [f"{image_root / 'val'}: passed over {known}"])


def test_images_of_kinds_that_are_not_read_are_counted_with_the_way_to_convert(image_root, capsys):
    for number, name in enumerate(("a.heic", "b.HEIC", "c.avif", "d.gif", "e.jfif")):
        (image_root / "train" / ("cat" if number % 2 else "dog") / name).write_bytes(b"")
    (image_root / "train" / "cat" / "notes.txt").write_text("")
    renamed, converted, other = FolderImages(image_root / "train").notes()
    assert "passed over 1 JPEG whose suffix is not read, to be renamed to .jpg: dog/e.jfif" in renamed
    assert "passed over 4 images of kinds that are not read, to be converted (`magick mogrify -format jpg" in converted
    assert "a.heic" in converted
    assert "notes.txt" in other
    assert tools(["doctor", str(image_root)]) == 0
    assert converted in capsys.readouterr().out


def test_a_class_of_such_images_alone_says_so(image_root):
    for path in (image_root / "train" / "cat").iterdir():
        path.rename(path.with_suffix(".heic"))
    (fault, *_) = check_datasets("image_folder", image_root)
    assert "hold no images" in fault
    assert "4 images of kinds that are not read, to be converted" in fault
