"""toe-tools predict and toe_train.load: what a trained model says of images, and that an evaluation says the same."""

import csv
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from toe_train.analysis import mistakes
from toe_train.build.prediction import load
from toe_train.cli.train import main


@pytest.fixture(scope="module")
def image_root(tmp_path_factory):
    """Three classes of four training and two validation images."""
    root, noise = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for name in ("bird", "cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 256, (30, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{name}_{number}.JPEG")
    return root


@pytest.fixture(scope="module")
def trained(configs, tmp_path_factory, image_root):
    """A run with ToE on them."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    given = ["data.kind=image_folder", f"data.root={image_root}", "data.workers=0", "train.global_batch=4"]
    given += ["augment.mix_group=4", "epochs=3", "model.kwargs={patch_size: 4, embed_dim: 32, depth: 2, num_heads: 2}"]
    assert main(["--config", str(configs / "quickstart.yaml"), "--output", str(folder), *given]) == 0
    return folder


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize("weights", ["model", "ema"])
def test_it_says_what_an_evaluation_counts(trained, said, image_root, weights):
    code, out, err = said("predict", trained, image_root / "val", "--weights", weights)
    assert code == 0, err
    rows = rows_of(out)
    assert [row["image"] for row in rows] == sorted(map(str, (image_root / "val").rglob("*_*.*")))
    right = Counter(row["class_1"] == row["image"].split("/")[-2] for row in rows)
    _, told, _ = said("eval", "--checkpoint", trained, "--weights", weights)
    assert f"top-1 {100 * right[True] / len(rows):.3f} %" in told
    for row in rows:
        values = [float(row[f"probability_{rank}"]) for rank in (1, 2, 3)]
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1, abs=1e-5)
        assert {row[f"class_{rank}"] for rank in (1, 2, 3)} == {"bird", "cat", "dog"}


def test_an_evaluation_shows_where_the_model_is_wrong(trained, said, image_root, tmp_path, monkeypatch):
    code, out, err = said("eval", trained, "--output", tmp_path / "found")
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == [
        "classes.csv",
        "confusion.csv",
        "confusion.png",
        "worst.csv",
        "worst.png",
    ]
    rows = rows_of(said("predict", trained, image_root / "val")[1])
    pairs = Counter((row["image"].split("/")[-2], row["class_1"]) for row in rows)
    confusion = rows_of((tmp_path / "found/confusion.csv").read_text())
    assert {(row["true class"], name): int(row[name]) for row in confusion for name in ("bird", "cat", "dog")} == {
        (one, other): pairs[one, other] for one in ("bird", "cat", "dog") for other in ("bird", "cat", "dog")
    }
    for row in rows_of((tmp_path / "found/classes.csv").read_text()):
        name, right = row["class"], pairs[row["class"], row["class"]]
        taken = sum(count for (one, other), count in pairs.items() if other == name != one)
        assert (row["images"], row["correct"], row["others taken for it"]) == ("2", str(right), str(taken))
        assert float(row["accuracy"]) == 50 * right
        assert any(line.split()[1::2] == [name, "2", f"{50 * right:.2f}", str(taken)] for line in out.splitlines()), out
    monkeypatch.setattr(mistakes, "WHOLE", 2)  # of more classes the table would be as large as their number squared
    assert said("eval", trained, "--output", tmp_path / "long")[0] == 0
    assert not (tmp_path / "long/confusion.png").exists()
    cells = rows_of((tmp_path / "long/confusion.csv").read_text())
    assert {(row["true class"], row["taken for"]): int(row["images"]) for row in cells} == dict(pairs)
    probable = {row["image"]: {row[f"class_{k}"]: float(row[f"probability_{k}"]) for k in (1, 2, 3)} for row in rows}
    own = {image: values[image.split("/")[-2]] for image, values in probable.items()}
    worst = rows_of((tmp_path / "found/worst.csv").read_text())
    assert [row["image"] for row in worst] == sorted(own, key=own.__getitem__)
    assert [float(row["loss"]) for row in worst] == pytest.approx(
        [-np.log(own[row["image"]]) for row in worst], abs=1e-3
    )
    with Image.open(tmp_path / "found/worst.png") as sheet:
        assert min(sheet.size) > 200
    for given, words in (
        ([], "none is given"),
        ([trained, trained], "are given"),
        ([tmp_path / "no"], f"{tmp_path}/no: "),
    ):
        code, _, err = said("eval", *given)
        assert code == 2
        assert words in err
    code, _, err = said("eval", trained, "--output", tmp_path / "found")
    assert code == 2
    assert "is not empty: name a new folder" in err


def test_a_program_says_the_same(trained, said, image_root):
    model, classes, transform = load(trained)
    assert not model.training
    assert classes == ["bird", "cat", "dog"]
    paths = sorted((image_root / "val").rglob("*_*.*"))
    with torch.no_grad():
        found = model(torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])).softmax(1)
    rows = rows_of(said("predict", trained, image_root / "val")[1])
    assert [row["class_1"] for row in rows] == [classes[index] for index in found.argmax(1)]
    torch.testing.assert_close(
        torch.tensor([float(row["probability_1"]) for row in rows]), found.max(1).values, atol=2e-6, rtol=0
    )
    with pytest.raises(ValueError, match=r"^nothing-here: there is no such file"):
        load("nothing-here")


def test_forms_batches_and_lists_give_the_same(trained, said, image_root, tmp_path, monkeypatch):
    expected = rows_of(said("predict", trained, image_root / "val")[1])
    lines = tmp_path / "found.jsonl"
    code, out, err = said("predict", trained, image_root / "val", "--output", lines, "--batch", 1, "--top", 2)
    assert (code, out) == (0, "")
    assert f"{lines}: 6 images" in err
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [line["image"] for line in found] == [row["image"] for row in expected]
    assert [line["classes"] for line in found] == [[row["class_1"], row["class_2"]] for row in expected]
    for line, row in zip(found, expected, strict=True):
        assert line["probabilities"][0] == pytest.approx(float(row["probability_1"]), abs=2e-6)
    listed = "".join(f"{row['image']}\r\n" for row in expected).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed)))
    code, out, _ = said("predict", trained, "-", "--workers", 1, "--batch", 4, "--format", "jsonl")
    assert code == 0
    assert [json.loads(line)["classes"][:2] for line in out.splitlines()] == [line["classes"] for line in found]


def test_images_in_archives_are_read_where_they_are(trained, said, image_root, tmp_path):
    expected = rows_of(said("predict", trained, image_root / "val")[1])
    flat, outer = tmp_path / "val.tar", tmp_path / "classes.tar"
    with tarfile.open(flat, "w") as archive:
        archive.add(image_root / "val", ".")
    with tarfile.open(outer, "w") as archive:
        for name in ("bird", "cat", "dog"):
            with tarfile.open(tmp_path / f"{name}.tar", "w") as inner:
                inner.add(image_root / "val" / name, ".")
            archive.add(tmp_path / f"{name}.tar", f"{name}.tar")
    for path, suffix in ((flat, ""), (outer, ".tar")):
        code, out, err = said("predict", trained, path, "--workers", 1, "--batch", 4)
        assert code == 0, err
        names = [f"{path}/{row['image'].split('/')[-2]}{suffix}/{row['image'].split('/')[-1]}" for row in expected]
        assert rows_of(out) == [row | {"image": name} for row, name in zip(expected, names, strict=True)]
    flat.write_bytes(flat.read_bytes()[:1000])
    code, _, err = said("predict", trained, flat)
    assert code == 2
    assert f"{flat} ends at byte 1000" in err
    assert "Traceback" not in err


def test_what_cannot_be_read_is_named_and_the_rest_is_done(trained, said, image_root, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    (folder / "notes.txt").write_text("of the summer")
    (folder / ".DS_Store").touch()
    shutil.copy(image_root / "val/cat/cat_0.JPEG", folder / "no suffix")
    Image.fromarray(np.zeros((9, 7), np.uint8)).save(folder / "grey.png")
    code, out, err = said("predict", trained, folder, folder / "no suffix", tmp_path / "none.png")
    assert code == 0
    assert [row["image"] for row in rows_of(out)] == [str(folder / "grey.png"), str(folder / "no suffix")]
    assert "2 of 4 images left out:" in err
    assert f"{folder / 'broken.jpg'} cannot be read as an image" in err
    assert f"image {tmp_path / 'none.png'} does not exist" in err
    assert "notes.txt" in err
    code, out, err = said("predict", trained, folder / "broken.jpg")
    assert code == 2
    assert rows_of(out) == []


def test_a_name_that_is_no_text(trained, said, image_root, tmp_path):
    path = tmp_path.as_posix().encode() + b"/caf\xe9.JPEG"
    with open(path, "wb") as file:
        file.write((image_root / "val/cat/cat_0.JPEG").read_bytes())
    output = tmp_path / "found.csv"
    assert said("predict", trained, path.decode("utf-8", "surrogateescape"), "--output", output)[0] == 0
    assert output.read_bytes().splitlines()[1].startswith(path)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--top", "4"], "--top 4: the model knows 3 classes; use 3"),
        (["--top", "0"], "--top 0 must be at least 1"),
        (["--format", "csv", "--output", "a.jsonl"], "is a file of jsonl"),
        (["--output", "/nowhere/a.csv"], "cannot be written"),
        (["--output", "{run}/config.yaml"], "is there already"),
        (["--output", "a.xml"], "--output a.xml: its suffix is of no form that is written; use .csv or .jsonl"),
    ],
)
def test_options_that_cannot_be(trained, said, image_root, given, words):
    code, _, err = said("predict", trained, image_root, *(text.format(run=trained) for text in given))
    assert code == 2
    assert words in err


def test_weights_without_classes_number_them(trained, said, image_root, tmp_path, tiny):
    torch.save(torch.load(trained / "checkpoints/best.pt", weights_only=True)["model"], tmp_path / "plain.pth")
    code, out, err = said("predict", tmp_path / "plain.pth", image_root / "val", "--config", tiny)
    assert code == 0, err
    assert "they are numbered from 0" in err
    assert {row["class_1"] for row in rows_of(out)} <= {"0", "1", "2"}
    (tmp_path / "empty").mkdir()
    code, _, err = said("predict", trained, tmp_path / "empty")
    assert code == 2
    assert "there are no images" in err


def test_the_package_stays_light():
    code = "import sys, toe_train; sys.exit('torch' in sys.modules); toe_train.load"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    code = "import toe_train; assert callable(toe_train.load) and 'load' in toe_train.__all__"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
