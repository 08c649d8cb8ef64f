"""Names that are no text in any encoding: file systems allow them, and no command ends in a traceback."""

import json
import os
import subprocess
import sys

import pytest

from toe_train.cli import tools, train
from toe_train.recipes import load_config

ODD = os.fsdecode(b"caf\xe9")


@pytest.fixture
def odd(image_root):
    """The images, where a class, an image and a file beside them have such names."""
    for split in ("train", "val"):
        (image_root / split / "cat").rename(image_root / split / ODD)
    (image_root / "train/dog/dog_0.JPEG").rename(image_root / "train/dog" / f"{ODD}.JPEG")
    (image_root / "train/dog" / f"{ODD}.txt").write_text("x")
    return image_root


@pytest.fixture
def of_run(tiny, odd, tmp_path):
    shared = ["--config", str(tiny), "data.kind=image_folder", f"data.root={odd}", "epochs=1", "expansion=null"]
    return [*shared, "train.global_batch=4", "augment.mix_group=4", "data.workers=0"]


def test_the_doctor_shows_their_bytes_on_a_console_of_utf8_alone(odd, tmp_path):
    moved = odd.rename(tmp_path / ODD)
    (moved / "val" / ODD / "x.png").write_text("no image")
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict", "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "toe_train.cli.tools", "doctor", str(moved)]
    done = subprocess.run(command, env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (2, b"")
    out = done.stdout.decode("utf-8")
    assert r"| 'caf\xe9' |     4 |   3 |" in out
    assert r": 'dog/caf\xe9.txt'" in out
    assert r"caf\xe9/val/caf\xe9/x.png cannot be read as an image" in out


def test_a_run_of_them_trains_goes_on_and_is_evaluated(of_run, odd, tmp_path, capsys):
    run = tmp_path / "run"
    broken = odd / "train" / ODD / "x.png"
    broken.write_text("no image")
    given = [*of_run, "--output", str(run), "data.on_error=skip"]
    assert train.main(given) == 0
    (listed,) = {json.loads(line)["image"] for line in (run / "skipped_images.jsonl").read_text().splitlines()}
    assert os.fsencode(listed) == os.fsencode(broken)
    assert train.main([*given, "epochs=2"]) == 0
    assert r"passed over 1 file whose suffix" in capsys.readouterr().out
    last = str(run / "checkpoints/last.pt")
    assert tools.main(["eval", "--config", str(run / "config.yaml"), "--checkpoint", last]) == 0
    (odd / "train" / ODD).rename(odd / "train/cat")
    (odd / "val" / ODD).rename(odd / "val/cat")
    assert train.main([*given, "epochs=3"]) == 2
    assert r"missing now: 'caf\xe9'; unknown to it: cat" in capsys.readouterr().err


def test_classes_that_differ_are_named(odd, of_run, capsys):
    (odd / "val" / ODD).rename(odd / "val/caf\u00e9")
    assert train.main([*of_run, "--dry-run"]) == 2
    assert "only in train (1): 'caf\\xe9'; only in val (1): caf\u00e9: rename" in capsys.readouterr().err


def test_pack_and_labels_keep_them(odd, tmp_path):
    packed = tmp_path / ODD
    assert tools.main(["pack", "--images", str(odd), "--output", str(packed), "--workers", "1"]) == 0
    assert (packed / "train" / ODD / "cat_0.JPEG").is_file()
    given = ["labels", "--images", str(packed / "train"), "--output", str(packed / "labels"), "--image-size", "64"]
    given += ["--teacher", "resnet10t", "--teacher-weights", "random", "--workers", "0", "--nproc", "1"]
    assert tools.main(given) == tools.main(given) == 0  # made, and found again
    assert len(list((packed / "labels" / ODD).iterdir())) == 4
    assert (packed / "labels/dog" / f"{ODD}.pt").is_file()
    assert ODD in json.loads((packed / "labels/labels.json").read_text())["classes"]


@pytest.mark.parametrize("place", ["root", "output"])
def test_paths_that_a_configuration_cannot_hold_are_named(of_run, odd, place, tmp_path, capsys):
    moved = odd.rename(tmp_path / ODD)
    (tmp_path / "link").symlink_to(moved)
    given = [f"data.root={moved}"]
    if place == "output":
        given = [f"data.root={tmp_path / 'link'}", "--output", str(moved / "run")]
    assert train.main([*of_run, *given]) == 2
    error = capsys.readouterr().err
    assert r"caf\xe9" in error
    assert ("give a link to it (ln -s)" if place == "root" else "choose another with --output DIR") in error
    assert error.count("\n") == 1


def test_the_saved_configuration_of_a_file_with_such_a_name_is_read_again(of_run, tiny, tmp_path):
    """Its header tells the command, which may hold more than a line too."""
    moved = tiny.rename(tmp_path / f"{ODD}.yaml")
    given = ["--config", str(moved), *of_run[2:], "--output", str(tmp_path / "run")]
    given.append("augment.crop_scale=[0.5,\n1.0]")
    assert train.main(given) == 0
    assert load_config(tmp_path / "run/config.yaml").augment.crop_scale == (0.5, 1.0)


def test_view_shows_them(of_run, odd, tmp_path, capsys):
    checkpoint = str(tmp_path / "run/checkpoints/last.pt")
    assert train.main([*of_run, "--output", str(tmp_path / "run")]) == 0
    images = [odd / "train/dog" / f"{ODD}.JPEG", odd / "train/dog/$^$.png"]
    (odd / "train/dog/dog_1.png").rename(images[1])  # which is no formula either
    given = ["view", "--checkpoint", checkpoint, "--images", *map(str, images), "--output", str(tmp_path / "kept.png")]
    assert tools.main([*given, "--features", str(tmp_path / "map.png"), "--blocks", "1"]) == 0
    assert r"'caf\xe9.JPEG'" in capsys.readouterr().out
