import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from toe_train.cli.tools import main as tools
from toe_train.data import Packing, open_datasets, pack_images
from toe_train.errors import UserError


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


def write_later(path, write):
    """Change a file so that its time differs by seconds."""
    before = path.stat().st_mtime_ns
    write(path)
    os.utime(path, ns=(before, before + 5 * 10**9))


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


def test_a_copy_that_lost_half_its_bytes_is_made_anew(source, tmp_path):
    output = tmp_path / "packed"
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(source / "train/cat/large.png")
    pack_images(source, output, Packing(32, 95), workers=1)
    whole, cut = contents(output), output / "train/cat/large.png.jpg"
    packed_at = cut.stat().st_mtime_ns
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    os.utime(cut, ns=(packed_at, packed_at))
    assert Image.open(cut).size == (43, 32)  # its header is whole
    packed = pack_images(source, output, Packing(32, 95), workers=1)
    assert (packed.written, packed.found) == (1, 12)
    assert contents(output) == whole


def test_an_original_that_was_changed_is_packed_anew(source, tmp_path):
    output = tmp_path / "packed"
    pack_images(source, output, Packing(32, 95), workers=1)
    write_later(source / "train/cat/wide.JPEG", lambda path: picture((90, 60), seed=20).save(path))
    write_later(source / "train/dog/wide.JPEG", lambda path: path.write_bytes(b"broken"))
    packed = pack_images(source, output, Packing(32, 95), workers=1)
    assert (packed.written, packed.found, len(packed.faults)) == (1, 10, 1)
    assert np.asarray(Image.open(output / "train/cat/wide.JPEG"))[..., 2].mean() == pytest.approx(180, abs=4)
    assert not (output / "train/dog/wide.JPEG").exists()  # rather than what the original was
    packed = pack_images(source, output, Packing(32, 95), workers=1)
    assert (packed.written, packed.found, len(packed.faults)) == (0, 11, 1)


@pytest.mark.parametrize("step", [100, 1000, 10**9])
def test_file_systems_that_keep_coarser_times_are_known(source, tmp_path, step):
    output = tmp_path / "packed"
    pack_images(source, output, Packing(32, 95), workers=1)
    for path in output.rglob("*.*"):
        if path.is_file():
            kept = path.stat().st_mtime_ns // step * step
            os.utime(path, ns=(kept, kept))
    assert pack_images(source, output, Packing(32, 95), workers=1).found == 12


def test_another_source_is_refused(source, tmp_path):
    output, other = tmp_path / "packed", tmp_path / "other"
    pack_images(source, output, Packing(32, 95), workers=1)
    whole = contents(output)
    shutil.copytree(source, other)
    with pytest.raises(UserError, match=f"was packed from {source}, and --images is {other}: name another"):
        pack_images(other, output, Packing(32, 95), workers=1)
    assert contents(output) == whole
    (tmp_path / "link").symlink_to(source)
    assert pack_images(tmp_path / "link", output, Packing(32, 95), workers=1).found == 12
    for record in ('{"short_side": 32, "quality": 95}', "[]", "torn"):
        (output / "pack.json").write_text(record)
        with pytest.raises(UserError, match="does not say what was packed and how"):
            pack_images(source, output, Packing(32, 95), workers=1)


def test_copies_whose_originals_are_gone_are_named(source, tmp_path, capsys):
    command = ["pack", "--images", str(source), "--output", str(tmp_path / "packed"), "--short-side", "32"]
    assert tools([*command, "--workers", "1"]) == 0
    (source / "train/cat/tall.png").unlink()
    (source / "val/dog/wide.JPEG").rename(source / "val/dog/renamed.jpg")
    capsys.readouterr()
    assert tools([*command, "--workers", "1"]) == 0  # it did its work
    out = capsys.readouterr().out
    assert "1 images written, 10 were there" in out
    assert "2 in the copy without an original; remove them:" in out
    for name in ("train/cat/tall.png.jpg", "val/dog/wide.JPEG"):
        assert f"  {tmp_path / 'packed' / name}\n" in out
        (tmp_path / "packed" / name).unlink()
    assert tools([*command, "--workers", "1"]) == 0


def test_an_image_longer_than_a_jpeg_is_left_out_and_the_others_packed(source, tmp_path):
    for width in (65_500, 65_501):
        Image.new("RGB", (width, 2)).save(source / f"train/cat/{width}.png")
    packed = pack_images(source, tmp_path / "packed", Packing(32, 95), workers=1)
    assert packed.written == 13
    assert packed.faults == [
        f"{source / 'train/cat/65501.png'}: 65501x2 is more than a JPEG holds (65500 a side); cut it"
    ]


def test_a_link_to_nothing_is_left_out_and_the_others_packed(source, tmp_path):
    (source / "train/cat/lost.png").symlink_to(tmp_path / "nothing")
    packed = pack_images(source, tmp_path / "packed", Packing(32, 95), workers=1)
    assert packed.written == 12
    assert packed.faults == [
        f"{source / 'train/cat/lost.png'} cannot be read (No such file or directory): replace or remove it"
    ]


@pytest.mark.slow
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
    assert tools([*command, "--workers", "1"]) == 0  # it did its work
    out = capsys.readouterr().out
    assert "11 images written, 0 were there" in out
    assert "1 left out:" in out
    assert str(source / "train/cat/wide.JPEG") in out
    assert json.loads((tmp_path / "packed/pack.json").read_text()) == {
        "source": str(source),
        "short_side": 32,
        "quality": 95,
    }


def test_a_copy_without_an_image_is_no_success(source, tmp_path, capsys):
    for path in source.rglob("*.*"):
        path.write_bytes(b"broken")
    command = ["pack", "--images", str(source), "--output", str(tmp_path / "packed"), "--workers", "1"]
    assert tools(command) == 2
    assert "12 left out:" in capsys.readouterr().out


def test_what_cannot_be_packed(source, tmp_path):
    packing = Packing(32, 95)
    (tmp_path / "empty").mkdir()
    for arguments, words in [
        ((tmp_path / "missing", tmp_path / "out", packing, 1), "is not a folder"),
        ((tmp_path / "empty", tmp_path / "out", packing, 1), "holds no images"),
        ((source, source / "packed", packing, 1), "must lie apart"),
        ((source, tmp_path, packing, 1), "must lie apart"),
        ((source, tmp_path / "out", Packing(0, 95), 1), "--short-side 0 must be from 1 to 65500; the nearest is 1"),
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
    with pytest.raises(UserError, match="name another path, or put this one right"):
        pack_images(source, output, Packing(32, 95), workers=1)
