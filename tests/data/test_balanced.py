import numpy as np
import pytest
import torch

from toe_train.data import BalancedOrder, BatchLayout, TrainBatchSampler

LABELS = np.repeat([0, 1, 3], [40, 5, 15])  # none of class 2


@pytest.fixture
def order():
    return BalancedOrder(len(LABELS), 12, seed=0, labels=LABELS)


def test_each_class_has_its_turn_in_every_round(order):
    shown = LABELS[order.epoch(0)]
    assert shown.shape == (60,)
    assert all(set(turn) == {0, 1, 3} for turn in shown.reshape(-1, 3).tolist())
    firsts = shown.reshape(-1, 3)[:, 0].tolist()
    assert len(set(firsts)) == 3  # the turns are shuffled, or an image's place would tell its class


def test_a_class_shows_all_its_images_before_one_comes_again(order):
    counts = np.bincount(order.epoch(0), minlength=len(LABELS))
    assert set(counts[:40]) == {0, 1}  # 20 of 40 images
    assert set(counts[40:45]) == {4}
    assert set(counts[45:]) == {1, 2}  # 20 places of 15 images
    first, second = (set(order.epoch(epoch)[LABELS[order.epoch(epoch)] == 0].tolist()) for epoch in (0, 1))
    assert first != second


def test_it_is_a_function_of_seed_epoch_and_attempt(order):
    again = BalancedOrder(len(LABELS), 12, seed=0, labels=LABELS)
    assert torch.equal(order.epoch(3), again.epoch(3))
    others = [order.epoch(4), order.epoch(3, attempt=1), BalancedOrder(len(LABELS), 12, 1, labels=LABELS).epoch(3)]
    assert not any(torch.equal(order.epoch(3), other) for other in others)


def test_repeats_show_an_image_several_times_in_a_row():
    order = BalancedOrder(len(LABELS), 12, seed=0, repeats=3, labels=LABELS)
    shown = order.epoch(0).view(-1, 3)
    assert torch.equal(shown[:, 0], shown[:, 2])
    assert set(np.bincount(LABELS[shown[:18, 0]])) == {0, 6}


def test_from_a_step_on_and_for_any_number_of_processes_it_is_the_same(order):
    whole = order.epoch(2).view(-1, 12)
    for step, world in ((0, 1), (3, 2)):
        seen = []
        for rank in range(world):
            sampler = TrainBatchSampler(order, BatchLayout(12, 12, world, 1, mixed=False), rank)
            sampler.set_epoch(2, step)
            seen.append([sorted((key.position, key.index) for key in batch) for batch in sampler])
        for place, parts in enumerate(zip(*seen, strict=True)):
            indices = [index for _, index in sorted(pair for part in parts for pair in part)]
            assert indices == whole[step + place].tolist()
