"""The commands of README's "Your own photos" run as they are printed, on a folder with dirty files."""

import csv
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from toe_train.cli.tools import main as tools
from toe_train.cli.train import main as train
from toe_train.models import hub

README = (Path(__file__).parents[2] / "README.md").read_text()
COMMANDS = re.findall(r"^    (toe-.*)$", README.partition("## Your own photos")[2].partition("\n## ")[0], re.MULTILINE)


@pytest.fixture
def place(tmp_path, configs, monkeypatch):
    """A folder with photos and a configuration that is photos.yaml but for the size of the model and of the images."""
    noise = np.random.default_rng(0)
    for name, colour in (("cat", 200), ("dog", 60)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(25):
            pixels = noise.integers(0, 50, (24, 32, 3), dtype=np.uint8) + np.uint8(colour)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{name} {number}.jpg")
    (tmp_path / "photos/cat/broken.jpg").write_bytes((tmp_path / "photos/cat/cat 0.jpg").read_bytes()[:99])
    (tmp_path / "photos/dog/Thumbs.db").touch()
    (tmp_path / "photos/dog/film.mov").touch()
    (tmp_path / "photos/__MACOSX").mkdir()
    Image.open(tmp_path / "photos/dog/dog 1.jpg").save(tmp_path / "photos/dog/dog 1 (copy).png")
    (tmp_path / "new_photos").mkdir()
    (tmp_path / "new_photos/empty.jpg").touch()
    for name in ("cat", "dog"):
        Image.open(tmp_path / f"photos/{name}/{name} 2.jpg").save(tmp_path / f"new_photos/{name}.png")
    (tmp_path / "configs").mkdir()
    small = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    given = {"extends": str(configs / "photos.yaml"), "epochs": 6, "model": {"image_size": 32, "kwargs": small}}
    given |= {"data": {"workers": 0}, "optim": {"lr": 5e-3}}
    (tmp_path / "configs/photos.yaml").write_text(yaml.safe_dump(given))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def unreachable(*_, **__):
    raise OSError("no route to host")


def test_the_five_commands_run(place, monkeypatch, capsys):
    monkeypatch.setattr(hub.urllib.request, "urlopen", unreachable)
    monkeypatch.setattr(hub.huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    assert [command.split()[:2][-1] for command in COMMANDS] == ["split", "doctor", "--config", "eval", "predict"]
    told = []
    for command in COMMANDS:
        program, *given = shlex.split(command)
        code = {"toe-tools": tools, "toe-train": train}[program](given)
        out, err = capsys.readouterr()
        assert code == 0, (command, err)
        told.append(out + err)
    split, doctor, trained, evaluated, predicted = told
    assert "photos_split: 41 train and 10 val images in 2 classes" in split
    assert "broken.jpg cannot be read" in split
    assert "film.mov" in split
    assert "healthy: 41 train and 10 val images" in doctor
    assert "initial weights are new, drawn at random: model.initial_weights = timm_or_new: timm's weights of" in trained
    assert "no route to host" in trained
    assert "global batch 8 for 41 training images; peak learning rate 0.00125" in trained
    assert "top-1 100.000 %" in evaluated
    assert (place / "photos_report/worst.png").exists()
    assert "1 of 3 images left out" in predicted
    with (place / "answers.csv").open() as file:
        assert [(row["image"], row["class_1"]) for row in csv.DictReader(file)] == [
            ("new_photos/cat.png", "cat"),
            ("new_photos/dog.png", "dog"),
        ]
