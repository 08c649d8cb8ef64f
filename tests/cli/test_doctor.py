"""`toe-tools doctor`: what is there, what is passed over, what is broken, and whether a run would work."""

import os
import shutil
import subprocess

import pytest
from forms import lists

from toe_train.cli import tools, train

TABLE = """\
| class | train | val | pixels |
|------:|------:|----:|-------:|
|  bird |     4 |   2 |  40x30 |
|   cat |     4 |   2 |  40x30 |
|   dog |     4 |   2 |  40x30 |
"""


@pytest.fixture
def doctor(capsys):
    """doctor(*arguments): exit code, output and error text."""

    def runner(*arguments):
        code = tools.main(["doctor", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return runner


@pytest.fixture
def of_run(tiny, image_root):
    shared = ["--config", str(tiny), "data.kind=image_folder", f"data.root={image_root}"]
    return [*shared, "epochs=1", "expansion=null", "train.global_batch=4", "augment.mix_group=4", "data.workers=0"]


def test_a_folder_alone_will_do(doctor, image_root):
    healthy = f"{TABLE}healthy: 12 train and 6 val images in 3 classes\n"
    assert doctor(image_root) == (0, healthy, "")


def test_a_folder_takes_the_place_of_a_runs(doctor, image_root, of_run):
    assert doctor("--config", of_run[1], image_root)[:2] == doctor(image_root)[:2]
    assert doctor(image_root, "--config", of_run[1])[:2] == doctor(image_root)[:2]
    named = image_root.rename(image_root.with_name("images=new"))
    assert doctor(named)[0] == 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "toe-tools doctor FOLDER, which holds train/ and val/, or --config FILE"),
        (["data.root=x"], "name it with --config FILE, or give a folder"),
        ([""], "the folder's name is empty"),
        (["a", "b"], "a and b are given: leave out all but one"),
    ],
)
def test_without_anything_to_look_at(doctor, given, words):
    code, _, error = doctor(*given)
    assert code == 2
    assert words in error
    assert error.count("\n") == 1


def test_what_is_passed_over_is_no_fault(doctor, image_root):
    (image_root / "train/dog/notes.doc").write_text("x")
    (image_root / "val/.DS_Store").write_text("x")
    code, out, _ = doctor(image_root)
    assert code == 0
    first, second, last = out.removeprefix(TABLE).splitlines()
    assert first.startswith(f"note: {image_root / 'train'}: passed over 1 file whose suffix is no image's (known are ")
    assert second.startswith(f"note: {image_root / 'val'}: passed over 1 file or folder that a system")
    assert last == "healthy: 12 train and 6 val images in 3 classes"


def test_images_of_several_sizes(doctor, image_root):
    from PIL import Image

    Image.new("RGB", (9, 80)).save(image_root / "val/cat/tall.png")
    Image.new("RGB", (70, 60)).save(image_root / "val/cat/large.png")
    assert "|   cat |     4 |   4 | 9x80 .. 70x60 |" in doctor(image_root)[1]


def break_two(root):
    broken = [root / "train/cat/cat_0.JPEG", root / "val/dog/dog_1.png"]
    for path in broken:
        path.write_text("not an image")
    return broken


def test_broken_images_are_listed_for_removal(doctor, image_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    broken = break_two(image_root)
    odd = os.path.join(os.fsencode(image_root), b"train/cat/caf\xe9 1.png")
    with open(odd, "wb") as file:
        file.write(b"no image")
    code, out, _ = doctor("images", "--remove-list", "gone.txt")
    assert code == 2
    assert "3 images of 13 train and 6 val images in 3 classes cannot be read:\n  images/train/cat/" in out
    assert "gone.txt: 3 images to remove" in out
    assert "ignored" not in out
    assert (tmp_path / "gone.txt").read_bytes().splitlines() == [odd, *map(os.fsencode, broken)]
    subprocess.run("xargs -d '\\n' rm -- < gone.txt", shell=True, check=True)
    assert doctor("images")[0] == 0


def test_a_list_does_not_write_over_a_file(doctor, image_root, tmp_path):
    before = (image_root / "train/cat/cat_0.JPEG").read_bytes()
    code, out, error = doctor(image_root, "--remove-list", image_root / "train/cat/cat_0.JPEG")
    assert (code, out) == (2, "")
    assert "is there already" in error
    assert (image_root / "train/cat/cat_0.JPEG").read_bytes() == before
    code, _, error = doctor(image_root, "--remove-list", tmp_path / "nowhere/list")
    assert code == 2
    assert "cannot be written" in error


def test_images_that_annotations_name_are_not_for_removal(doctor, yolos, tmp_path):
    (tmp_path / "coco/train2017/train_1.png").write_bytes(b"no image")
    code, out, error = doctor("--config", yolos, "--remove-list", tmp_path / "gone.txt")
    assert (code, out) == (2, "")
    assert "name each image: leave it out" in error
    assert not (tmp_path / "gone.txt").exists()


def test_images_that_lists_name_are_not_for_removal(doctor, image_root, tiny, tmp_path):
    given = lists(image_root, tmp_path / "lists")
    code, out, error = doctor("--config", tiny, *given, "--remove-list", tmp_path / "gone.txt")
    assert (code, out) == (2, "")
    assert "the lists of" in error
    assert "take what cannot be read out of these" in error
    assert not (tmp_path / "gone.txt").exists()


def test_it_ends_as_a_run_would(doctor, image_root, of_run, tmp_path):
    break_two(image_root)
    for more, code, words in [
        ([], 2, "2 images of 12 train and 6 val images in 3 classes cannot be read:\n"),
        (["data.on_error=skip"], 0, "a run passes over them (data.on_error=skip, data.max_skipped=100):\n"),
        (["data.on_error=skip", "data.max_skipped=1"], 2, "cannot be read:\n"),
    ]:
        got, out, _ = doctor(*of_run, *more)
        assert got == code
        assert words in out
        assert ("healthy: " in out) == (code == 0)
        assert (train.main([*of_run, *more, "--output", str(tmp_path / f"run-{len(more)}-{code}")]) == 0) == (code == 0)


def test_many_classes_are_listed_when_asked_for(doctor, image_root):
    for split in ("train", "val"):
        for number in range(40):
            shutil.copytree(image_root / split / "cat", image_root / split / f"x{number}")
    (image_root / "train/x1/x.png").write_bytes((image_root / "train/cat/cat_1.png").read_bytes())
    told = "43 classes of 4 to 5 train and 2 to 2 val images each; --classes lists them\n"
    assert doctor(image_root)[1].startswith(told)
    assert len(doctor(image_root, "--classes")[1].splitlines()) == 43 + 2 + 1


def test_data_sets_that_are_no_folders(doctor, tiny):
    code, out, _ = doctor("--config", tiny)
    assert code == 0
    assert "|     3 |   146 |  37 |      - |" in out
    assert out.endswith("healthy: 1433 train and 364 val images in 10 classes\n")
