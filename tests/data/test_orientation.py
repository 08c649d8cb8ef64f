"""EXIF orientation: ignored as DeiT ignores it, applied where a run says so, and counted."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from toe_train.cli.tools import main as tools
from toe_train.data import (
    LabelRecord,
    Packing,
    TokenLabelFiles,
    check_datasets,
    examine,
    load_rgb,
    open_datasets,
    pack_images,
)
from toe_train.data.sources.orientation import UPRIGHT, as_exif, orientation_of


def save(path, given, size=(24, 16)):
    """A picture whose corners differ, with an orientation."""
    columns, rows = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    pixels = np.stack([10 * columns, 15 * rows, 0 * rows], axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(path, **({} if given is None else {"exif": as_exif(given)}))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("given", [None, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_applied_or_ignored(tmp_path, given, suffix):
    path = tmp_path / f"a.{suffix}"
    save(path, given)
    with Image.open(path) as image:
        stored, upright = np.asarray(image), np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(load_rgb(path), stored)
    assert np.array_equal(load_rgb(path, "apply"), upright)
    assert orientation_of(path) == (given if given in range(2, 9) else UPRIGHT)


def test_a_tiff_is_turned_by_pillow_and_not_twice(tmp_path):
    save(tmp_path / "a.tif", 6)
    assert load_rgb(tmp_path / "a.tif").size == load_rgb(tmp_path / "a.tif", "apply").size == (16, 24)
    assert orientation_of(tmp_path / "a.tif") == UPRIGHT


def test_a_damaged_block_has_none(tmp_path):
    save(tmp_path / "a.jpg", None)
    image = Image.open(tmp_path / "a.jpg")
    image.save(tmp_path / "a.jpg", exif=as_exif(6).tobytes()[:-8])
    assert load_rgb(tmp_path / "a.jpg", "apply").size == (24, 16)
    (tmp_path / "b.jpg").write_bytes(b"no image")
    assert orientation_of(tmp_path / "b.jpg") == UPRIGHT


def test_a_data_set_follows_and_doctor_counts(image_root, capsys):
    for name in ("cat", "dog"):
        save(image_root / "train" / name / f"{name}_0.JPEG", 6)
    stored, _ = open_datasets("image_folder", image_root)
    upright, val = open_datasets("image_folder", image_root, exif_orientation="apply")
    turned = [index for index in range(len(stored)) if stored[index][0].size != upright[index][0].size]
    assert [stored.describe(index).rpartition("/")[2] for index in turned] == ["cat_0.JPEG", "dog_0.JPEG"]
    assert val.exif_orientation == "apply"
    (note,) = examine("image_folder", image_root).notes
    assert note.startswith("2 images have an EXIF orientation")
    assert "data.exif_orientation=apply" in note
    assert tools(["doctor", str(image_root)]) == 0
    assert note in capsys.readouterr().out


def test_a_packed_copy_is_turned_as_its_original_is(image_root, tmp_path):
    save(image_root / "train/cat/cat_0.JPEG", 6, (60, 30))
    save(image_root / "train/cat/cat_1.png", 3, (60, 30))
    save(image_root / "train/cat/cat_2.JPEG", 8, (20, 10))  # copied
    packing = Packing(16, 95)
    assert pack_images(image_root, tmp_path / "packed", packing, workers=1).faults == []
    for name, sizes in {"cat_0.JPEG": ((32, 16), (16, 32)), "cat_2.JPEG": ((20, 10), (10, 20))}.items():
        copy = tmp_path / "packed/train/cat" / name
        assert (load_rgb(copy).size, load_rgb(copy, "apply").size) == sizes
    assert orientation_of(tmp_path / "packed/train/cat/cat_1.png.jpg") == 3
    # A copy of an earlier version, which lost it, is made anew.
    Image.open(tmp_path / "packed/train/cat/cat_0.JPEG").convert("RGB").save(tmp_path / "lost.jpg")
    shutil.copystat(tmp_path / "packed/train/cat/cat_0.JPEG", tmp_path / "lost.jpg")
    shutil.move(tmp_path / "lost.jpg", tmp_path / "packed/train/cat/cat_0.JPEG")
    assert pack_images(image_root, tmp_path / "packed", packing, workers=1).written == 1
    assert orientation_of(tmp_path / "packed/train/cat/cat_0.JPEG") == 6


@pytest.mark.parametrize("sample", [64, None])
def test_labels_of_another_orientation_are_refused(image_root, tmp_path, sample):
    labels = tmp_path / "labels"
    images, _ = open_datasets("image_folder", image_root)
    for path, label in ((images.describe(index), images[index][1]) for index in range(len(images))):
        file = TokenLabelFiles(labels, images.classes).path(path, label)
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(torch.zeros(2, 2, 3, 3, dtype=torch.float16), file)

    def faults(exif_orientation):
        return check_datasets("image_folder", image_root, sample, label_root=labels, exif_orientation=exif_orientation)

    assert faults("apply") == faults("ignore") == []  # published ones say nothing
    LabelRecord("t", "random", 32, "full", images.classes, "apply").write(labels)
    assert faults("apply") == []
    (fault,) = faults("ignore")
    assert fault.endswith("set data.exif_orientation=apply")


def test_doctor_holds_labels_and_sizes_against_the_orientation_of_the_run(image_root, tmp_path, configs, capsys):
    save(image_root / "train/cat/cat_0.JPEG", 6, (60, 20))
    (tmp_path / "labels").mkdir()
    LabelRecord("t", "random", 32, "full", ["bird", "cat", "dog"], "ignore").write(tmp_path / "labels")
    run = ["doctor", "--config", str(configs / "lvvit_t.yaml"), f"data.root={image_root}"]
    assert tools([*run, f"token_labels.root={tmp_path / 'labels'}", "data.exif_orientation=apply"]) == 2
    said = capsys.readouterr().out
    assert "set data.exif_orientation=ignore" in said
    assert "1 images have an EXIF orientation; the run turns them upright" in said
    assert "20x60" in said
    assert "60x20" not in said
