"""The real DeiT-T run of Table 2 for one epoch, on 1000 real ImageNet images, in one process and in two."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from forms import flat_tar, folder, lists, shards, tar_of_tars

from toe_train.cli.train import main
from toe_train.runs.log import read_metrics

DATA = Path(os.environ.get("TOE_DATA") or Path(__file__).resolve().parents[2].parent / "shared" / "data")
ARCHIVE = DATA / "imagenet1k_sample.tar"


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    if not ARCHIVE.is_file():
        pytest.skip(f"{ARCHIVE} is not there; set TOE_DATA to the folder that holds it")
    root = tmp_path_factory.mktemp("imagenet")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(root, filter="data")
    return root / "imagenet1k_sample"


@pytest.mark.slow
def test_one_epoch_of_the_paper_s_run_in_one_process_and_in_two(sample, configs, tmp_path):
    """Losses agree to 1e-5, relative (measured: 3e-7); every image is evaluated once."""
    first = ["epochs=1", "expansion.stage_shares=null", "expansion.stage_epochs=[0, 1, 2]"]
    first.append("allow=[last_stage_not_reached, peak_not_reached]")
    overrides = [*first, f"data.root={sample}", "data.workers=1", "train.global_batch=32", "augment.mix_group=32"]
    arguments = ["--config", str(configs / "deit_tiny_toe_r05.yaml"), *overrides, "train.log_every=1"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    losses = []
    for count in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        output = tmp_path / str(count)
        done = subprocess.run(
            [*command, "-m", "toe_train", *arguments, "--output", str(output)],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        losses.append([record["train_loss"] for record in read_metrics(output / "metrics.jsonl", "step")])
        (epoch,) = read_metrics(output / "metrics.jsonl", "epoch")
        assert (epoch["stage"], epoch["tokens_kept"], epoch["val_images"]) == (1, 98, 1000)
    assert len(losses[0]) == 24  # 1000 // 256 * 256 positions of repeated augmentation, in batches of 32
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.slow
def test_three_stages_are_the_same_run_in_every_form(sample, tiny, tmp_path, assert_same_run):
    """1000 photographs as a folder, in archives, and by lists: every loss, score and weight to the last bit."""
    given = ["model.image_size=32", "data.check_sample=0", "data.workers=1", "evaluate.every_epochs=3"]
    given += ["train.global_batch=64", "augment.mix_group=64", "augment.repeats=1"]
    for form in (folder, tar_of_tars, flat_tar, shards, lists):
        images = form(sample, tmp_path / f"images as {form.__name__}")
        arguments = ["--config", str(tiny), "--output", str(tmp_path / form.__name__), *images, *given]
        assert main(arguments) == 0
        assert_same_run(tmp_path / "folder", tmp_path / form.__name__)
        assert [line["stage"] for line in read_metrics(tmp_path / form.__name__ / "metrics.jsonl", "epoch")] == [
            1,
            2,
            3,
        ]
