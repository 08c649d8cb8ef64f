"""What is passed over among a user's images is said once, in the same words, by every command that lists them."""

import shutil

import pytest

from toe_train.cli import tools, train

LEFT = "passed over 1 file or folder that a system or a program left there: cat/@eaDir"


@pytest.fixture
def with_thumbnails(image_root):
    (image_root / "train/cat/@eaDir").mkdir()
    shutil.copy(image_root / "train/cat/cat_0.JPEG", image_root / "train/cat/@eaDir/thumb.JPEG")
    return image_root


@pytest.fixture
def arguments(tiny, with_thumbnails):
    """Those of a run of a single epoch on the images."""
    shared = ["--config", str(tiny), "data.kind=image_folder", f"data.root={with_thumbnails}"]
    return [*shared, "epochs=1", "expansion=null", "train.global_batch=4", "augment.mix_group=4", "data.workers=0"]


def test_a_run_says_it_once(arguments, tmp_path, capsys):
    assert train.main([*arguments, "--output", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.count(f"note: {tmp_path / 'images/train'}: {LEFT}\n") == 1


def test_a_dry_run_says_it_once(arguments, tmp_path, capsys):
    assert train.main([*arguments, "--dry-run"]) == 0
    assert capsys.readouterr().out.count(LEFT) == 1


def test_labels_says_it_and_makes_none_for_it(with_thumbnails, tmp_path, capsys):
    given = ["labels", "--images", str(with_thumbnails / "train"), "--output", str(tmp_path / "labels")]
    given += ["--teacher", "resnet10t", "--teacher-weights", "random", "--image-size", "64", "--workers", "0"]
    assert tools.main([*given, "--nproc", "1"]) == 0
    out = capsys.readouterr().out
    assert out.count(LEFT) == 1
    assert "12 label files made" in out


def test_labels_of_a_single_class_are_refused(image_root, tmp_path, capsys):
    given = ["labels", "--images", str(image_root / "moved"), "--output", str(tmp_path / "labels")]
    (image_root / "moved").mkdir()
    (image_root / "train").rename(image_root / "moved/train")
    assert tools.main([*given, "--teacher", "resnet10t", "--teacher-weights", "random", "--nproc", "1"]) == 2
    assert "which look like the classes (bird, cat, dog); move these to" in capsys.readouterr().err


def test_pack_says_it(with_thumbnails, tmp_path, capsys):
    given = ["pack", "--images", str(with_thumbnails), "--output", str(tmp_path / "packed"), "--workers", "1"]
    assert tools.main(given) == 0
    out = capsys.readouterr().out
    assert out.count(LEFT) == 1
    assert "18 images written" in out
