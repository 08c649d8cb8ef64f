"""The commands of docs/data-and-speed.md run as they are printed, on small data in the places that they name."""

import contextlib
import io
import re
import runpy
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from forms import flat_tar
from PIL import Image

from toe_train.cli.tools import main as tools
from toe_train.cli.train import main as train

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs/data-and-speed.md").read_text()
COMMANDS = re.findall(r"^    ((?:toe-|python ).*)$", PAGE, re.MULTILINE)


@pytest.fixture
def place(image_root, tiny, tmp_path, monkeypatch):
    """What the commands name: /data is a folder of the test's, and deit_tiny.yaml a run of seconds."""
    data = tmp_path / "data"
    data.mkdir()
    image_root.rename(data / "imagenet")
    (data / "photos").symlink_to(data / "imagenet")
    flat_tar(data / "imagenet", data / "tars")
    images = sorted((data / "imagenet").glob("*/*/*"))
    rows = [f"{path},{path.parent.name},{path.parents[1].name}\n" for path in images]
    (data / "photos.csv").write_text("path,label,split\n" + "".join(rows))
    (tmp_path / "configs").mkdir()
    small = {"extends": str(tiny), "epochs": 1, "train": {"global_batch": 4, "log_every": 1}}
    small |= {"augment": {"mix_group": 4}, "data": {"kind": "image_folder", "workers": 0}}
    (tmp_path / "configs/deit_tiny.yaml").write_text(yaml.safe_dump(small))
    monkeypatch.chdir(tmp_path)
    return data


def hub(folder):
    """Make parquet files of Hugging Face's hub."""
    from pyarrow import Table, parquet

    folder.mkdir()
    for split in ("train", "validation"):
        rows = []
        for label in range(2):
            file = io.BytesIO()
            Image.new("RGB", (9, 9)).save(file, "JPEG")
            rows.append({"image": {"bytes": file.getvalue(), "path": None}, "label": label})
        parquet.write_table(Table.from_pylist(rows), folder / f"{split}-00000-of-00001.parquet")


def carried_out(command, place):
    """Return the exit code and what was printed."""
    program, *given = (text.replace("/data/", f"{place}/") for text in shlex.split(command, comments=True))
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        if program == "python":
            sys.argv = [*given, "2000"]
            runpy.run_path(str(REPOSITORY / given[0]), run_name="__main__")
            return 0, ""
        if program == "toe-train":
            given += ["--output", f"run {len(list(place.parent.glob('run *')))}"]
        if given[0] == "bench":
            given[-1] = "1"  # of --rounds
        return {"toe-tools": tools, "toe-train": train}[program](given), told.getvalue()


@pytest.mark.slow
def test_every_command_of_the_page_runs(place, monkeypatch):
    """Those of parquet files where pyarrow is installed."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    has_arrow = find_spec("pyarrow") is not None
    if has_arrow:
        hub(place / "hub")
    assert [command.split()[1] for command in COMMANDS] == [
        *["--config"] * 3,
        *["pack"] * 4,
        "scripts/made_up_images.py",
        *["bench"] * 3,
    ]
    for command in COMMANDS:
        if "parquet" in command and not has_arrow:
            continue
        code, out = carried_out(command, place)
        assert code == 0, (command, out)
        if command.startswith("toe-tools pack"):
            assert f"{4 if 'parquet' in command else 18} images written" in out
        elif "made_up" in command and "bench" in command:
            assert "3000 images" in out
