import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from timm.data.distributed_sampler import RepeatAugSampler

from toe_train.data import (
    BatchLayout,
    GlobalOrder,
    SampleKey,
    TrainBatchSampler,
    derive_seed,
    evaluation_indices,
    split_batch,
)
from toe_train.errors import UserError


def test_order_is_a_shuffle_per_epoch():
    order = GlobalOrder(num_samples=103, global_batch=10, seed=0)
    first, again, second = order.epoch(0), order.epoch(0), order.epoch(1)
    assert order.steps_per_epoch == 10
    assert first.shape == (100,)
    assert first.dtype == torch.int64
    assert len(set(first.tolist())) == 100
    assert set(first.tolist()) < set(range(103))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, GlobalOrder(103, 10, seed=1).epoch(0))


def test_imagenet_epochs_have_deits_length():
    # 1251 steps: DeiT's logs at 4 x 256 on 1,281,167 images, with repeated augmentation and without.
    assert GlobalOrder(1281167, 1024, seed=0, repeats=3).steps_per_epoch == 1251
    assert GlobalOrder(1281167, 1024, seed=0).steps_per_epoch == 1251


def test_a_small_data_set_is_not_rounded_away():
    assert GlobalOrder(100, 64, seed=3, repeats=3).steps_per_epoch == 1


@pytest.mark.parametrize("num_samples", [1000, 512, 259])
def test_repeated_augmentation_is_timms(num_samples):
    order = GlobalOrder(num_samples, global_batch=64, seed=3, repeats=3)
    # timm's sampler seeds its permutation with the epoch's number: hand it our seed as one.
    timm = [RepeatAugSampler(range(num_samples), num_replicas=4, rank=rank) for rank in range(4)]
    for sampler in timm:
        sampler.set_epoch(derive_seed(3, "order", 5))
    ranks = [torch.tensor(list(sampler)) for sampler in timm]
    steps = order.epoch(5).view(-1, 64)
    layout = BatchLayout(64, group_size=16, world_size=4)
    for step, indices in enumerate(steps):
        dealt = [rank[step * 16 : (step + 1) * 16] for rank in ranks]
        assert indices.sort().values.equal(torch.cat(dealt).sort().values)
        for rank in range(4):  # with groups of DeiT's batch size each group is a DeiT process's batch, in its order
            assert indices[group_positions(layout, rank)].equal(dealt[rank])
    assert len(steps) == len(ranks[0]) // 16


def group_positions(layout, wanted):
    """The positions of one mixing group, wherever its pairs were dealt to: the first of each pair, then the others."""
    first, second = [], []
    for rank in range(layout.world_size):
        rows = layout.rows(rank, 0)
        for group, start, stop in layout.segments(rank, 0):
            if group == wanted:
                middle = (start + stop) // 2
                first.append(rows[start:middle])
                second.append(rows[middle:stop])
    return torch.cat([*first, *reversed(second)])


@pytest.mark.parametrize(("world_size", "accumulation"), [(4, 1), (1, 4), (8, 1), (2, 1)])
def test_the_views_of_an_image_are_together(world_size, accumulation):
    order = GlobalOrder(5000, 1024, seed=0, repeats=3)
    layout = BatchLayout(1024, 256, world_size, accumulation)
    sampler = TrainBatchSampler(order, layout, rank=world_size - 1)
    for batch in sampler:
        # Three views each, but for the images that the borders of the batch's two runs of positions cut.
        assert len({key.index for key in batch}) <= layout.micro_batch / 3 + 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((31, 32, 0), ["global batch 32", "31 images", "at most 31"]),
        ((300, 257, 0, 3), ["257", "300 images", "256 after rounding", "at most 256"]),
        ((10, 0, 0), ["global batch 0", "at least 1"]),
        ((10, 2, 0, 0), ["repeats 0", "at least 1"]),
    ],
)
def test_orders_that_cannot_be(arguments, words):
    with pytest.raises(UserError) as fault:
        GlobalOrder(*arguments)
    for word in words:
        assert word in str(fault.value)


def pairs_of(layout):
    """Every pair of positions that timm's `flip(0)` mixes in any segment, with its group, in order of the runs."""
    found = []
    for rank in range(layout.world_size):
        for micro in range(layout.accumulation):
            rows = layout.rows(rank, micro)
            segments = layout.segments(rank, micro)
            assert [segment.start for segment in segments] == [0, *(segment.stop for segment in segments[:-1])]
            assert segments[-1].stop == len(rows) == layout.micro_batch
            for group, start, stop in segments:
                part = rows[start:stop]
                half = len(part) // 2
                found += zip([group] * half, part[:half].tolist(), part.flip(0)[:half].tolist(), strict=True)
    return found


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 6), st.integers(1, 12), st.integers(1, 6), st.integers(1, 6), st.booleans())
def test_every_split_has_the_same_pairs(num_groups, half_group, world_size, accumulation, one_group):
    group_size = 2 * half_group
    global_batch = group_size * num_groups
    assume(global_batch % (2 * world_size * accumulation) == 0)
    if one_group:
        group_size = 2 * global_batch
    whole = BatchLayout(global_batch, group_size)
    split = BatchLayout(global_batch, group_size, world_size, accumulation)
    assert sorted(pairs_of(split)) == sorted(pairs_of(whole))
    rows = [split.rows(rank, micro) for rank in range(world_size) for micro in range(accumulation)]
    assert torch.cat(rows).sort().values.equal(torch.arange(global_batch))


@pytest.mark.parametrize("group_size", [4, 8, 100])
def test_pairs_are_the_flip_of_round_robin_groups(group_size):
    count = 2 if group_size == 4 else 1
    expected = []
    for group in range(count):
        members = torch.arange(8)[group::count]
        expected += [(group, *pair) for pair in zip(members.tolist(), members.flip(0).tolist(), strict=True)]
    expected = [(group, first, second) for group, first, second in expected if first < second]
    assert pairs_of(BatchLayout(8, group_size)) == expected


def test_a_micro_batch_holds_pairs_of_all_groups():
    layout = BatchLayout(global_batch=24, group_size=8, world_size=2, accumulation=3)
    assert [tuple(layout.segments(0, micro)) for micro in range(3)] == [
        ((0, 0, 2), (1, 2, 4)),
        ((0, 0, 2), (2, 2, 4)),
        ((1, 0, 2), (2, 2, 4)),
    ]
    assert layout.rows(0, 1).tolist() == [3, 18, 2, 23]
    assert BatchLayout(24, 12, 2).rows(0, 0).tolist() == [0, 2, 4, 18, 20, 22, 1, 3, 5, 19, 21, 23]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((1000, 256, 1, 1), ["global batch 1000", "256", "nearest legal values: 768 and 1024"]),
        ((1024, 256, 3, 1), ["multiple of 6", "nearest legal values: 768 and 1536"]),
        ((255, 256, 1, 1), ["255", "254 and 256"]),
        ((1024, 255, 1, 1), ["mixing group size 255 is odd", "254 and 256"]),
        ((1024, 1, 1, 1), ["mixing group size 1 is odd", "nearest legal values: 2"]),
        ((2, 256, 2, 1), ["multiple of 4", "nearest legal values: 4"]),
        ((0, 256, 1, 1), ["global batch 0", "at least 1"]),
    ],
)
def test_layouts_that_cannot_be(arguments, words):
    with pytest.raises(UserError) as fault:
        BatchLayout(*arguments)
    for word in words:
        assert word in str(fault.value)


@pytest.mark.parametrize(
    ("arguments", "accumulation"),
    [
        ((1024, 4, 256), 1),
        ((1024, 1, 256), 4),
        ((1024, 1, 300), 4),
        ((1024, 8, 48), 4),
        ((96, 1, 40), 3),
        ((8, 4, 2), 1),
    ],
)
def test_fewest_accumulation_steps(arguments, accumulation):
    assert split_batch(*arguments) == accumulation


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 8), st.integers(2, 64))
def test_split_batch_is_legal_and_smallest(pairs, world_size, max_micro_batch):
    batch = 2 * pairs * world_size

    def legal(steps):
        return batch % (2 * world_size * steps) == 0 and batch // (world_size * steps) <= max_micro_batch

    assert split_batch(batch, world_size, max_micro_batch) == next(steps for steps in range(1, batch) if legal(steps))


@pytest.mark.parametrize(("batch", "world_size", "largest", "steps"), [(3, 1, 256, 1), (9, 3, 2, 3), (15, 1, 4, 5)])
def test_where_nothing_is_mixed_a_batch_may_be_odd(batch, world_size, largest, steps):
    accumulation = split_batch(batch, world_size, largest, mixed=False)
    assert accumulation == steps
    layout = BatchLayout(batch, 4, world_size, accumulation, mixed=False)
    rows = [layout.rows(rank, micro) for rank in range(world_size) for micro in range(accumulation)]
    assert {len(part) for part in rows} == {layout.micro_batch}
    assert sorted(torch.cat(rows).tolist()) == list(range(batch))


@pytest.mark.parametrize("group_size", [8, 16])
def test_where_nothing_is_mixed_a_batch_of_pairs_is_dealt_as_before(group_size):
    mixed, plain = (BatchLayout(16, group_size, 2, 2, mixed) for mixed in (True, False))
    assert all(torch.equal(mixed.rows(r, m), plain.rows(r, m)) for r in range(2) for m in range(2))


def test_where_nothing_is_mixed_a_batch_is_still_for_all_processes():
    with pytest.raises(UserError, match=r"global batch 9 .* 2 processes: it must be a multiple of 2; .* 8 and 10$"):
        split_batch(9, 2, 256, mixed=False)


def test_batches_that_do_not_split():
    with pytest.raises(UserError, match=r"global batch 1024 cannot be split over 3 processes.*1020 and 1026"):
        split_batch(1024, 3, 256)
    with pytest.raises(UserError, match=r"largest micro-batch 1.*at least 2"):
        split_batch(1024, 4, 1)


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_samplers_deal_every_position_once(world_size, accumulation):
    order = GlobalOrder(70, global_batch=16, seed=0, repeats=3)
    layout = BatchLayout(16, 8, world_size, accumulation)
    indices = order.epoch(2).tolist()
    samplers = [TrainBatchSampler(order, layout, rank) for rank in range(world_size)]
    seen = []
    for sampler in samplers:
        sampler.set_epoch(2)
        batches = list(sampler)
        assert len(batches) == len(sampler) == 4 * accumulation
        for number, batch in enumerate(batches):
            assert len(batch) == layout.micro_batch
            assert {key.position // 16 for key in batch} == {number // accumulation}
        seen += [key for batch in batches for key in batch]
    assert sorted(seen, key=lambda key: key.position) == [SampleKey(index, 2, i) for i, index in enumerate(indices)]


def test_a_sampler_takes_up_an_epoch_anywhere():
    sampler = TrainBatchSampler(GlobalOrder(70, 16, seed=0), BatchLayout(16, 16, 1, accumulation=2), rank=0)
    sampler.set_epoch(1)
    whole = list(sampler)
    for start in range(5):
        sampler.set_epoch(1, start_step=start)
        assert len(sampler) == 8 - 2 * start
        assert list(sampler) == whole[2 * start :]
    sampler.set_epoch(2)
    assert list(sampler) != whole


@pytest.mark.parametrize(("num_samples", "world_size"), [(10, 1), (10, 3), (2, 4), (0, 2)])
def test_evaluation_shards_are_exact(num_samples, world_size):
    shards = [list(evaluation_indices(num_samples, rank, world_size)) for rank in range(world_size)]
    assert sorted(index for shard in shards for index in shard) == list(range(num_samples))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
