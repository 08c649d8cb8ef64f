"""A run of three stages is the same to the last bit whatever form its images have, and goes on from one in another."""

import os
import signal

import numpy as np
import pytest
from forms import FORMS, flat_tar, folder, folders_of_tars, lists, shards, tar_of_tars
from PIL import Image
from support import trainer_of

from toe_train.cli.tools import main as tools
from toe_train.cli.train import main
from toe_train.recipes import load_config
from toe_train.runs.folder import RunFolder

GIVEN = ["train.global_batch=8", "augment.mix_group=8", "checkpoint.every_steps=1", "data.workers=0"]


class BrokenOff(BaseException):
    """The process dies."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes of 9 training and 3 validation images, and the folder that their other forms are made in."""
    top, noise = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 9), ("val", 3)):
        for name in ("n01", "n02", "n10"):
            (top / "images" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(top / "images" / split / name / f"{name}_{number}_{split}.JPEG")
    return top


@pytest.fixture(scope="module")
def overrides(photos):
    """overrides(form) -> those of the images in that form, made once."""
    made = {}

    def of(form):
        if form not in made:
            made[form] = form(photos / "images", photos / form.__name__)
        return [*made[form], *GIVEN]

    return of


def train(tiny, output, given):
    assert main(["--config", str(tiny), "--output", str(output), *given]) == 0
    return output


@pytest.fixture
def whole(tiny, tmp_path, overrides):
    """The run on the folder."""
    return train(tiny, tmp_path / "whole", overrides(folder))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_gives_the_same_run(whole, tiny, tmp_path, overrides, form, assert_same_run):
    assert_same_run(whole, train(tiny, tmp_path / form.__name__, overrides(form)))


def test_a_run_that_dies_within_epochs_goes_on_in_other_forms(
    whole, tiny, tmp_path, overrides, assert_same_run, capsys
):
    output = RunFolder(tmp_path / "moved")
    output.create()
    for stop, form in (((0, 2), folder), ((1, 1), tar_of_tars), ((1, 2), shards), ((2, 1), lists)):
        trainer = trainer_of(load_config(tiny, overrides(form)), output, "auto")
        save = trainer.keeper.checkpoints.save

        def dying(state, is_best, save=save, stop=stop):
            save(state, is_best)
            if (state["progress"]["epoch"], state["progress"]["step"]) == stop:
                raise BrokenOff

        trainer.keeper.checkpoints.save = dying
        with pytest.raises(BrokenOff):
            trainer.fit()
    capsys.readouterr()
    train(tiny, output.root, overrides(flat_tar))
    told = capsys.readouterr().out
    assert "continuing at epoch 3 of 3, after 1 of its steps" in told
    assert "data.kind: 'list' in the checkpoint, 'tar' now" in told
    assert_same_run(whole, output.root)
    assert main(["--config", str(tiny), "--output", str(output.root), *overrides(folders_of_tars)]) == 0  # it is done
    capsys.readouterr()
    assert tools(["eval", "--checkpoint", str(output.root)]) == 0
    evaluated = [capsys.readouterr().out.split("top-1")[1]]
    assert tools(["eval", "--checkpoint", str(output.root), *overrides(lists)[:4]]) == 0
    assert capsys.readouterr().out.split("top-1")[1] == evaluated[0]


def test_other_images_in_an_archive_are_refused_within_an_epoch(tiny, tmp_path, photos, overrides, capsys):
    output = train(tiny, tmp_path / "run", [*overrides(folder), "epochs=1"])
    Image.new("RGB", (20, 20)).save(photos / "images/train/n01/more.JPEG")
    try:
        given = [*flat_tar(photos / "images", tmp_path / "more"), *GIVEN]
    finally:
        (photos / "images/train/n01/more.JPEG").unlink()
    within = str(output / "checkpoints/previous.pt")
    assert main(["--config", str(tiny), "--output", str(output), *given, "--resume", within]) == 2
    assert "training images.digest: " in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_killed_go_on_from_an_archive(tiny, tmp_path, overrides, start, run, steps_done, assert_same_run):
    def arguments(output, form):
        return ["--config", tiny, "--output", tmp_path / output, *overrides(form), "data.workers=2"]

    assert run(*arguments("quiet", folder), processes=2).process.returncode == 0
    job = start(*arguments("killed", shards), processes=2)
    job.wait_until(lambda: (tmp_path / "killed/metrics.jsonl").exists() and steps_done(tmp_path / "killed") > 3)
    os.killpg(job.process.pid, signal.SIGKILL)
    job.clear()
    job = run(*arguments("killed", flat_tar), processes=2)
    assert job.process.returncode == 0, job.stderr
    assert_same_run(tmp_path / "quiet", tmp_path / "killed")


def test_label_files_are_made_of_archives_as_of_folders(photos, overrides, tmp_path):
    overrides(flat_tar)
    for output, images in (("folder", photos / "images/train"), ("tar", photos / "flat_tar/train.tar")):
        given = ["--images", images, "--output", tmp_path / output, "--teacher", "resnet10t", "--nproc", 1]
        given += ["--teacher-weights", "random", "--image-size", 64, "--workers", 0]
        assert tools(["labels", *map(str, given)]) == 0
    names = [
        [str(path.relative_to(tmp_path / top)) for path in sorted((tmp_path / top).rglob("*.pt"))]
        for top in ("folder", "tar")
    ]
    assert names[0] == names[1]
    assert len(names[0]) == 27


@pytest.mark.parametrize("by", ["folder", "archive", "configuration"])
def test_doctor_looks_at_archives(photos, overrides, tiny, by, capsys):
    overrides(flat_tar)
    given = {
        "folder": [str(photos / "flat_tar")],
        "archive": [overrides(FORMS[2])[1].removeprefix("data.root=")],
        "configuration": ["--config", str(tiny), *overrides(tar_of_tars)],
    }[by]
    assert tools(["doctor", *given]) == 0
    assert "healthy: 27 train and 9 val images in 3 classes" in capsys.readouterr().out
