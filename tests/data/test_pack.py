import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from toe_train.cli.tools import main as tools
from toe_train.data import Packing, open_datasets, pack_images
from toe_train.errors import RunFailed, UserError


def picture(size, seed=0):
    """Smooth, so that JPEG and resizing change it little."""
    rows, columns = np.mgrid[0 : size[1], 0 : size[0]]
    red = 255 * columns / size[0]
    return Image.fromarray(np.stack([red, 255 * rows / size[1], red * 0 + 9 * seed], axis=2).astype(np.uint8))


@pytest.fixture
def source(tmp_path):
    """Large and small images of several kinds under train/ and val/, two classes."""
    root = tmp_path / "images"
    for split in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            folder = root / split / name
            folder.mkdir(parents=True)
            picture((90, 60), label).save(folder / "wide.JPEG")
            picture((40, 121), label).convert("L").save(folder / "tall.png")
            picture((20, 16), label).save(folder / "small.jpg", quality=50)
    return root


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_each_image_has_its_smaller_copy(source, tmp_path):
    output = tmp_path / "packed"
    packed = pack_images(source, output, Packing(32, 95), workers=2)
    assert (packed.written, packed.found, packed.faults) == (12, 0, [])
    train, _ = open_datasets("image_folder", output)
    assert train.classes == ["cat", "dog"]
    sizes = [train[index][0].size for index in range(3)]  # small.jpg, tall.png.jpg, wide.JPEG
    assert sizes == [(20, 16), (32, 97), (48, 32)]
    expected = np.asarray(picture((90, 60)).resize((48, 32), Image.Resampling.BICUBIC), dtype=float)
    assert np.abs(np.asarray(train[2][0], dtype=float) - expected).mean() < 2
    small = "train/cat/small.jpg"
    assert (output / small).read_bytes() == (source / small).read_bytes()


def test_the_same_command_continues_and_mends(source, tmp_path):
    output = tmp_path / "packed"
    pack_images(source, output, Packing(32, 95), workers=1)
    whole = contents(output)
    (output / "train/cat/wide.JPEG").unlink()
    (output / "val/dog/tall.png.jpg").write_bytes(b"")  # what a crashed file system may leave
    (output / "val/dog/.tall.png.jpg.123.tmp").write_bytes(b"torn")
    packed = pack_images(source, output, Packing(32, 95), workers=1)
    assert (packed.written, packed.found) == (2, 10)
    assert contents(output) == whole
    with pytest.raises(UserError, match="was packed with --short-side 32 --quality 95"):
        pack_images(source, output, Packing(33, 95), workers=1)
    assert contents(output) == whole


def test_killed_at_any_moment_it_leaves_whole_files_alone(tmp_path):
    source, output = tmp_path / "images", tmp_path / "packed"
    (source / "train/cat").mkdir(parents=True)
    for number in range(60):
        picture((600, 500), number % 20).save(source / f"train/cat/{number}.jpg")
    command = [sys.executable, "-m", "toe_train.cli.tools", "pack", "--images", str(source), "--output", str(output)]
    command += ["--short-side", "400", "--workers", "2"]
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    end = time.monotonic() + 60
    while len(list(output.rglob("*.jpg"))) < 5:
        assert time.monotonic() < end
        time.sleep(0.005)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    before = {name: content for name, content in contents(output).items() if name.endswith(".jpg")}
    packed = pack_images(source, output, Packing(400, 95), workers=2)
    assert packed.found == len(before)
    assert packed.written == 60 - len(before)
    after = contents(output)
    assert all(after[name] == content for name, content in before.items())
    assert len(after) == 61
    assert hashlib.sha256(after["train/cat/0.jpg"]).digest() == hashlib.sha256(after["train/cat/20.jpg"]).digest()


def test_unreadable_images_are_named_and_the_others_packed(source, tmp_path, capsys):
    (source / "train/cat/wide.JPEG").write_bytes(b"broken")
    command = ["pack", "--images", str(source), "--output", str(tmp_path / "packed"), "--short-side", "32"]
    assert tools([*command, "--workers", "1"]) == 2
    out = capsys.readouterr().out
    assert "11 images written, 0 were there" in out
    assert "1 could not be read and are left out:" in out
    assert str(source / "train/cat/wide.JPEG") in out
    assert json.loads((tmp_path / "packed/pack.json").read_text()) == {"short_side": 32, "quality": 95}


def test_what_cannot_be_packed(source, tmp_path):
    packing = Packing(32, 95)
    (tmp_path / "empty").mkdir()
    for arguments, words in [
        ((tmp_path / "missing", tmp_path / "out", packing, 1), "is not a folder"),
        ((tmp_path / "empty", tmp_path / "out", packing, 1), "holds no images"),
        ((source, source / "packed", packing, 1), "must lie apart"),
        ((source, tmp_path, packing, 1), "must lie apart"),
        ((source, tmp_path / "out", Packing(0, 95), 1), "--short-side 0 must be from 1 to 65535; the nearest is 1"),
        ((source, tmp_path / "out", Packing(32, 101), 1), "--quality 101"),
        ((source, tmp_path / "out", packing, 0), "--workers 0"),
    ]:
        with pytest.raises(UserError, match=words):
            pack_images(*arguments)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("mine")
    with pytest.raises(UserError, match="holds files that no packing made"):
        pack_images(source, tmp_path / "other", packing, 1)
    picture((9, 9)).save(source / "train/cat/tall.png.jpg")
    with pytest.raises(UserError, match=r"would both be packed as train/cat/tall\.png\.jpg"):
        pack_images(source, tmp_path / "out", packing, 1)


def test_a_folder_that_cannot_be_made_ends_it_with_a_message(source, tmp_path):
    output = tmp_path / "packed"
    pack_images(source, output, Packing(32, 95), workers=1)
    (output / "train/cat/wide.JPEG").unlink()
    (output / "train/cat").rename(output / "train/gone")
    (output / "train/cat").write_bytes(b"in the way")  # of the folder
    with pytest.raises(RunFailed, match="then the same command continues"):
        pack_images(source, output, Packing(32, 95), workers=1)
