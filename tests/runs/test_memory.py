"""Out of device memory: a smaller micro-batch, the same gradients. A CPU plays the device; its limit is injected."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from toe_train.build.step import fit_to_memory
from toe_train.cli.train import main
from toe_train.errors import RunFailed
from toe_train.models.yolos import Yolos
from toe_train.recipes import load_config
from toe_train.runs.log import read_metrics
from toe_train.runs.memory import largest_that_fits, remembered
from toe_train.runs.processes import Processes

HERE = Processes(0, 1, torch.device("cpu"))


def too_large(*arguments):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")


@pytest.fixture
def limit(monkeypatch):
    """limit(tokens): a forward pass over more tokens than this, over all images, runs out of memory in training."""
    blocks = VisionTransformer.forward_head

    def set_limit(tokens):
        def forward_head(self, x, *arguments, **options):
            return (
                too_large()
                if self.training and x.shape[0] * x.shape[1] > tokens
                else blocks(self, x, *arguments, **options)
            )

        monkeypatch.setattr(VisionTransformer, "forward_head", forward_head)

    return set_limit


def test_halves_until_it_fits():
    tried = []

    def attempt(micro_batch):
        tried.append(micro_batch)
        if micro_batch > 30:
            too_large()

    assert largest_that_fits(attempt, 100, HERE) == 25
    assert tried == [100, 50, 25]


def test_what_never_fits_is_said():
    with pytest.raises(RunFailed, match="does not hold a step of 2 images with all tokens; use a smaller model"):
        largest_that_fits(too_large, 4, HERE, 2)


def test_images_with_boxes_go_one_by_one_in_the_end(yolos, monkeypatch):
    """They are not mixed in pairs."""
    forward = Yolos.forward
    monkeypatch.setattr(Yolos, "forward", lambda self, x: forward(self, x) if len(x) == 1 else too_large())
    config = load_config(yolos, [])
    assert config.train.max_micro_batch == 2
    assert fit_to_memory(config, 4, HERE) == 1
    monkeypatch.setattr(Yolos, "forward", too_large)
    with pytest.raises(RunFailed, match="does not hold a step of 1 image with all tokens"):
        fit_to_memory(config, 4, HERE)


def test_the_stage_with_the_most_tokens_is_tried(tiny, limit):
    """256 images with 8 of 16 tokens (and the class token) fit, with all 16 only 128 do."""
    limit(256 * 9)
    assert fit_to_memory(load_config(tiny, []), 10, HERE) == 128


def test_what_fits_is_left_as_it_is(tiny):
    assert fit_to_memory(load_config(tiny, []), 10, HERE) == 256
    assert fit_to_memory(load_config(tiny, []), 10, HERE, 64) == 64


def test_a_note_that_cannot_be_read_counts_as_none(tmp_path):
    assert remembered(tmp_path / "none") is None
    (tmp_path / "empty").write_text("")
    assert remembered(tmp_path / "empty") is None


def test_running_out_in_the_evaluation_leaves_the_micro_batch_alone(tiny, tmp_path, monkeypatch, capsys):
    head = VisionTransformer.forward_head
    monkeypatch.setattr(
        VisionTransformer,
        "forward_head",
        lambda self, x, *rest: head(self, x, *rest) if self.training or len(x) <= 8 else too_large(),
    )
    assert main(["--config", str(tiny), "--output", str(tmp_path / "run")]) == 3
    assert "out of device memory in the evaluation (CUDA out of memory)" in capsys.readouterr().err
    assert not (tmp_path / "run/micro_batch").exists()


@pytest.mark.slow
def test_running_out_in_the_middle_of_a_run(tiny, tmp_path, limit, capsys):
    """The last stage does not fit: it goes on there with half the micro-batch, as a run that had it from the start."""
    arguments = ["--config", str(tiny), "--output"]
    assert main([*arguments, str(tmp_path / "whole"), "train.max_micro_batch=128"]) == 0
    limit(256 * 13)
    capsys.readouterr()
    assert main([*arguments, str(tmp_path / "run")]) == 0
    told = capsys.readouterr().out
    assert "out of device memory (CUDA out of memory)" in told
    assert "micro-batches of 128 images instead of 256" in told
    assert "the gradients stay the same, but for what is averaged within a micro-batch" in told
    assert "continuing at epoch 3 of 3" in told
    assert "global batch 256 = 1 process x 2 accumulation x 128 images" in told
    whole, halved = (
        [record["train_loss"] for record in read_metrics(tmp_path / name / "metrics.jsonl", "step")]
        for name in ("whole", "run")
    )
    assert len(halved) == 15
    assert halved == pytest.approx(whole, rel=1e-5)
