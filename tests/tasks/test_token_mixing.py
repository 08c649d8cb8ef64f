from functools import partial

import pytest
import torch

from toe_train.data import BatchLayout, TokenTarget
from toe_train.models import draw_box
from toe_train.tasks.token_labelling import TokenMixing, token_targets

BATCH, GROUP, CLASSES, GRID = 24, 12, 7, (4, 6)
SPLITS = [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (3, 1), (3, 2), (1, 12)]


def global_batch():
    source = torch.Generator().manual_seed(0)
    ids = torch.rand(BATCH, CLASSES, 3, 5, generator=source).topk(2, dim=1).indices
    crop = torch.rand(BATCH, 4, generator=source) * 0.5
    labels = torch.randint(CLASSES, (BATCH,), generator=source)
    target = TokenTarget(torch.randn(BATCH, 2, 3, 5, generator=source).half(), ids.short(), crop, labels)
    return torch.randn(BATCH, 3, 8, 8, generator=source), target


def mix(world_size=1, accumulation=1, step=0, group_size=GROUP, seed=0):
    """Mix one global batch in pieces; boxes, partners (positions in the global batch) and targets at their places."""
    layout = BatchLayout(BATCH, group_size, world_size, accumulation)
    handed = []
    draw = partial(draw_box, GRID)
    mixing = TokenMixing(CLASSES, GRID, 0.1, "correct", seed, layout, draw, lambda *given: handed.append(given))
    images, target = global_batch()
    boxes, partners = torch.empty(BATCH, 4, dtype=torch.int64), torch.empty(BATCH, dtype=torch.int64)
    of_class, of_patches = torch.empty(BATCH, CLASSES), torch.empty(BATCH, 24, CLASSES)
    for rank in range(world_size):
        for micro in range(accumulation):
            rows = layout.rows(rank, micro)
            own = TokenTarget(*(field[rows] for field in target))
            same, (first, second) = mixing(images[rows], own, 3, step, rank, micro)
            assert torch.equal(same, images[rows])
            of_class[rows], of_patches[rows] = first, second
            (given,) = handed
            handed.clear()
            boxes[rows], partners[rows] = given[0], rows[given[1]]
    return boxes, partners, of_class, of_patches


@pytest.mark.parametrize(("world_size", "accumulation"), SPLITS[1:])
def test_boxes_pairs_and_targets_do_not_depend_on_the_split(world_size, accumulation):
    for step in range(3):
        for whole, split in zip(mix(step=step), mix(world_size, accumulation, step), strict=True):
            torch.testing.assert_close(split, whole, atol=1e-6, rtol=0)
            assert whole.is_floating_point() or torch.equal(split, whole)


def test_a_group_has_one_box_and_pairs_its_images_from_both_ends():
    boxes, partners, *_ = mix(2, 1)
    for group in range(2):
        members = torch.arange(group, BATCH, 2)
        assert torch.equal(partners[members], members.flip(0))
        assert len(boxes[members].unique(dim=0)) == 1
    assert torch.equal(partners[partners], torch.arange(BATCH))


def test_the_class_target_is_mixed_by_the_boxs_share_and_the_patches_are_not():
    _, target = global_batch()
    of_class, of_patches = token_targets(*target[:3], CLASSES, GRID, 0.1, "correct")
    shares = []
    for step in range(20):
        boxes, partners, mixed, patches = mix(step=step)
        top, left, bottom, right = boxes.T
        own = (1 - (bottom - top) * (right - left) / 24)[:, None]
        torch.testing.assert_close(mixed, own * of_class + (1 - own) * of_class[partners])
        assert torch.equal(patches, of_patches)
        shares += own.flatten().tolist()
    assert len(set(shares)) > 5


def test_steps_and_seeds_differ():
    boxes = [mix(step=step, seed=seed)[0][0].tolist() for step in range(5) for seed in range(2)]
    assert len({tuple(box) for box in boxes}) > 6


def test_the_global_generators_are_left_alone(global_states):
    before = global_states()
    mix()
    state = global_states()
    assert state == before
