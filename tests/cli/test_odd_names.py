"""Names that are no text in any encoding: file systems allow them, and no command ends in a traceback."""

import os
import subprocess
import sys

import pytest

ODD = os.fsdecode(b"caf\xe9")


@pytest.fixture
def strict(tmp_path):
    """strict(module, *arguments): exit code and output of a command whose console takes UTF-8 alone."""

    def runner(module, *arguments):
        environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict", "PYTHONUTF8": "1"}
        command = [sys.executable, "-m", module, *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
        assert b"Traceback" not in done.stderr
        return done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8")

    return runner


@pytest.fixture
def odd_root(image_root):
    """The images, where a class, an image, a file beside them and the folder above have such names."""
    for split in ("train", "val"):
        (image_root / split / "cat").rename(image_root / split / ODD)
    (image_root / "train/dog/dog_0.JPEG").rename(image_root / "train/dog" / f"{ODD}.JPEG")
    (image_root / "train/dog" / f"{ODD}.txt").write_text("x")
    return image_root.rename(image_root.with_name(ODD))


def test_the_doctor_shows_their_bytes(strict, odd_root):
    (odd_root / "val" / ODD / "x.png").write_text("no image")
    code, out, _ = strict("toe_train.cli.tools", "doctor", odd_root)
    assert code == 2
    assert r"| 'caf\xe9' |     4 |   3 |" in out
    assert r": 'dog/caf\xe9.txt'" in out
    assert r"caf\xe9/val/caf\xe9/x.png cannot be read as an image" in out
