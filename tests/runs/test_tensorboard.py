"""What TensorBoard is told: groups, counting from one, and one curve where a run goes on from an earlier place."""

import itertools
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from toe_train.runs.curves import groups_of
from toe_train.runs.tensorboard import TensorBoard

GROUPS = groups_of(["val_top1"], ["train_loss", "val_loss"])


def opened(folder, epoch=0, step=0):
    return TensorBoard(folder, epoch, step, GROUPS, "seed: 0\nmodel: {name: a}", {"optim.lr": 1e-3}, "val_top1")


def train(log, first, last, loss, from_step=0):
    """Epochs of four steps, `first` to `last`."""
    for epoch in range(first, last + 1):
        log.epoch_begins(epoch, 0, "8/8", 4)
        for step in range(from_step if epoch == first else 0, 4):
            log.step({"epoch": epoch, "step": step, "lr": 0.1, "train_loss": loss})
        numbers = {
            "train_loss": loss,
            "val_top1": 50,
            "tokens_kept": 8,
            "lr": 0.1,
            "skipped_steps": 0,
            "val_loss": None,
        }
        log.epoch({"epoch": epoch, **numbers})


def scalars(folder, tag):
    events = EventAccumulator(str(folder), {"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_numbers_stand_in_groups_and_count_from_one(tmp_path):
    log = opened(tmp_path)
    train(log, 0, 1, 2.0)
    log.picture("kept_tokens", torch.rand(3, 8, 8), 1)
    log.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = events.Tags()
    names = ["accuracy/val_top1", "loss/lr", "loss/train_loss", "speed/tokens_kept", "system/skipped_steps"]
    assert sorted(tags["scalars"]) == names
    assert scalars(tmp_path, "accuracy/val_top1") == [(1, 50), (2, 50)]
    assert scalars(tmp_path / "steps", "loss/train_loss") == [(number, 2.0) for number in range(1, 9)]
    assert [event.step for event in events.Images("kept_tokens")] == [2]
    assert b"model: {name: a}" in events.Tensors("configuration/text_summary")[0].tensor_proto.string_val[0]
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    info = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert info.hparams["optim.lr"].number_value == 1e-3


@pytest.mark.parametrize("again", ["resumed", "rolled back"])
def test_a_run_that_goes_on_from_an_earlier_place_has_one_curve(tmp_path, monkeypatch, again):
    clock = itertools.count(1_800_000_000)  # event files are read in the order of the seconds in their names
    monkeypatch.setattr(time, "time", lambda: next(clock))
    log = opened(tmp_path)
    train(log, 0, 2, 1.0)
    if again == "resumed":
        log.close()
        log = opened(tmp_path, 1, 2)
    else:
        log.rewind(1, 2)
    train(log, 1, 2, 3.0, from_step=2)
    log.close()
    assert scalars(tmp_path, "loss/train_loss") == [(1, 1.0), (2, 3.0), (3, 3.0)]
    expected = [(number, 1.0 if number <= 6 else 3.0) for number in range(1, 13)]
    assert scalars(tmp_path / "steps", "loss/train_loss") == expected
