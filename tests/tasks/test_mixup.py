import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup, cutmix_bbox_and_lam, mixup_target

from toe_train.data import BatchLayout, derive_seed, seeded
from toe_train.tasks.classification import BatchMixing

BATCH, GROUP, CLASSES = 24, 12, 7
SPLITS = [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (3, 1), (3, 2), (1, 12)]


def global_batch():
    source = torch.Generator().manual_seed(0)
    return torch.randn(BATCH, 3, 16, 16, generator=source), torch.randint(CLASSES, (BATCH,), generator=source)


def mix(world_size, accumulation, step, group_size=GROUP, **values):
    """Mix one global batch in pieces and put the results back at their positions."""
    settings = {"mixup": 0.8, "cutmix": 1.0, "prob": 1.0, "switch_prob": 0.5, "smoothing": 0.1, "seed": 0} | values
    layout = BatchLayout(BATCH, group_size, world_size, accumulation)
    mixing = BatchMixing(CLASSES, layout=layout, **settings)
    images, labels = global_batch()
    mixed, targets = torch.full_like(images, float("nan")), torch.full((BATCH, CLASSES), float("nan"))
    for rank in range(world_size):
        for micro in range(accumulation):
            rows = layout.rows(rank, micro)
            mixed[rows], targets[rows] = mixing(images[rows], labels[rows], 3, step, rank, micro)
    return mixed, targets


@pytest.mark.parametrize(("world_size", "accumulation"), SPLITS[1:])
def test_results_do_not_depend_on_the_split(world_size, accumulation):
    for step in range(6):  # both Mixup and CutMix come up
        whole = mix(1, 1, step)
        split = mix(world_size, accumulation, step)
        assert torch.equal(split[0], whole[0])
        assert torch.equal(split[1], whole[1])


def test_whole_groups_are_timms_mixup():
    images, labels = global_batch()
    for step in range(6):
        mixed, targets = mix(2, 1, step)
        for group in range(2):
            reference = Mixup(0.8, 1.0, prob=1.0, switch_prob=0.5, label_smoothing=0.1, num_classes=CLASSES)
            with seeded(derive_seed(0, "mix", 3, step, group)):
                expected, expected_targets = reference(images[group::2].clone(), labels[group::2])
            assert torch.equal(mixed[group::2], expected)
            assert torch.equal(targets[group::2], expected_targets)


def test_mixup_and_cutmix_both_occur_and_steps_and_groups_differ():
    images, _ = global_batch()
    kinds, results = set(), []
    for step in range(12):
        mixed, _ = mix(1, 1, step)
        for group in range(2):
            same = (mixed[group::2] == images[group::2]).flatten(1).float().mean().item()
            kinds.add("mixup" if same < 0.01 else "cutmix")
            results.append((mixed[group::2] - images[group::2]).norm().item())
    assert kinds == {"mixup", "cutmix"}
    assert len(set(results)) > 20  # each group of each step drew for itself


def test_the_box_depends_on_height_and_width_only():
    boxes = []
    for shape in ((12, 3, 16, 20), (4, 3, 16, 20), (4, 1, 16, 20)):
        with seeded(7):
            boxes.append(cutmix_bbox_and_lam(shape, np.random.beta(1, 1)))
    assert boxes[0] == boxes[1] == boxes[2]


def test_without_mixing_labels_are_smoothed():
    images, labels = global_batch()
    mixed, targets = mix(2, 2, 0, mixup=0.0, cutmix=0.0)
    assert torch.equal(mixed, images)
    assert torch.equal(targets, mixup_target(labels, CLASSES, lam=1.0, smoothing=0.1))
    hit, miss = 1 - 0.1 + 0.1 / CLASSES, 0.1 / CLASSES
    expected = torch.nn.functional.one_hot(labels, CLASSES) * (hit - miss) + miss
    torch.testing.assert_close(targets, expected)


def test_mixing_is_in_place_and_leaves_the_global_generators_alone(global_states):
    images, labels = global_batch()
    mixing = BatchMixing(CLASSES, 0.8, 0.0, 1.0, 0.5, 0.1, seed=0, layout=BatchLayout(BATCH, GROUP))
    before, original = global_states(), images.clone()
    result, _ = mixing(images, labels, 0, 0, 0, 0)
    assert result.data_ptr() == images.data_ptr()
    assert not torch.equal(images, original)
    assert global_states() == before


@pytest.mark.parametrize("values", [{"prob": 0.0}, {"switch_prob": 1.0, "mixup": 0.0}, {"seed": 1}])
def test_settings_have_an_effect(values):
    assert not torch.equal(mix(1, 1, 0, **values)[0], mix(1, 1, 0)[0])
