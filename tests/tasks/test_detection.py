"""Matching, loss and post-processing of detection against the released code's figures, and their corners."""

import json
import sys

import numpy as np
import pytest
import torch
from golden_figures import GOLDEN, figures, near
from torchvision.ops import generalized_box_iou

from toe_train.errors import UserError
from toe_train.tasks import detection
from toe_train.tasks.average_precision import coco_statistics, rows_of
from toe_train.tasks.boxes import corners, paired_giou

TERMS = ("loss_ce", "loss_bbox", "loss_giou", "total")


def case_of(stored, case):
    """Outputs that take a gradient, and targets."""
    counts = stored[f"{case}target_counts"].tolist()
    labels, boxes = (stored[f"{case}target_{name}"].split(counts) for name in ("labels", "boxes"))
    targets = [{"labels": label, "boxes": box} for label, box in zip(labels, boxes, strict=True)]
    return stored[f"{case}logits"].requires_grad_(), stored[f"{case}boxes"].requires_grad_(), targets


def assert_is_the_released_one(stored, case):
    logits, boxes, targets = case_of(stored, case)
    pairs = detection.match(logits, boxes, targets)
    assert [len(queries) for queries, _ in pairs] == stored[f"{case}match_counts"].tolist()
    assert torch.equal(torch.cat([queries for queries, _ in pairs]), stored[f"{case}match_query"])
    assert torch.equal(torch.cat([objects for _, objects in pairs]), stored[f"{case}match_target"])
    found = detection.losses(logits, boxes, targets)
    assert set(found) == set(TERMS)
    for term in TERMS:
        near(found[term], stored[f"{case}{term}"], 1e-5)
    found["total"].backward()
    near(logits.grad, stored[f"{case}grad_logits"], 1e-5)
    near(boxes.grad, stored[f"{case}grad_boxes"], 1e-5)


def test_more_objects_than_queries_as_released():
    assert_is_the_released_one(figures("yolos_loss.npz"), "crowded_")


@pytest.mark.parametrize("case", ["", "empty_"])
def test_the_released_loss(larger_set, case):
    assert_is_the_released_one(larger_set("yolos_loss.npz"), case)


def _in_a_process(rank, place, path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    stored = {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(path).items() if key != "meta"}
    assert_is_the_released_one(stored, f"dist_rank{rank}_")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_objects_count_over_all_processes_and_queries_over_this_one(larger_set, tmp_path):
    stored = larger_set("yolos_loss.npz")
    path = tmp_path / "cases.npz"
    np.savez(path, **{name: value.numpy() for name, value in stored.items()})
    torch.multiprocessing.spawn(_in_a_process, (str(tmp_path / "store"), str(path)), nprocs=2)


def test_all_is_float32_under_autocast():
    logits, boxes, targets = case_of(figures("yolos_loss.npz"), "crowded_")
    plain = detection.losses(logits, boxes, targets)
    halved = [{**target, "boxes": target["boxes"].double()} for target in targets]
    rough = logits.detach().bfloat16(), boxes.detach().bfloat16()  # as a model gives them under autocast
    sizes = torch.tensor([[10.0, 20.0], [10.0, 20.0]], dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert {term: value.item() for term, value in detection.losses(logits, boxes, halved).items()} == {
            term: value.item() for term, value in plain.items()
        }
        of_rough = detection.losses(*rough, targets)
        found = detection.postprocess(*rough, sizes)
    exact = [part.float() for part in rough]
    assert of_rough == detection.losses(*exact, targets)
    assert torch.equal(found[0]["boxes"], detection.postprocess(*exact, sizes)[0]["boxes"])
    assert found[0]["scores"].dtype == found[0]["boxes"].dtype == torch.float32


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1])
def test_an_image_that_is_not_finite_is_named(value, which):
    logits, boxes, targets = case_of(figures("yolos_loss.npz"), "crowded_")
    given = [logits.detach(), boxes.detach()]
    given[which][1, 2, 3] = value
    for function in (detection.match, detection.losses):
        with pytest.raises(ValueError, match=r"image 1 of the batch \(from 0\) are not finite") as caught:
            function(*given, targets)
        assert caught.value.images == [1]


def test_one_without_objects_tells_too():
    boxes = torch.rand(2, 3, 4)
    boxes[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="image 0 "):
        detection.match(torch.zeros(2, 3, 5), boxes, [NO_OBJECTS, NO_OBJECTS])


def test_a_box_without_width_is_matched():
    """A crop may leave a sliver that float32 takes the width from."""
    target = {"labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.0, 0.2]])}
    boxes = torch.tensor([[[0.5, 0.5, 0.1, 0.2], [0.1, 0.1, 0.1, 0.1]]])
    found = detection.losses(torch.zeros(1, 2, 3), boxes, [target])
    assert detection.match(torch.zeros(1, 2, 3), boxes, [target])[0][0].tolist() == [0]
    assert all(torch.isfinite(value) for value in found.values())


@pytest.mark.parametrize("size", [[0.0, 0.0], [0.0, 0.3], [1e-30, 1e-30]])
def test_boxes_without_area_are_matched_and_have_a_gradient(size):
    """Pairs, and those of a query with another's object."""
    centres = torch.tensor([[0.2, 0.2], [0.5, 0.5], [0.9, 0.9]])
    boxes = torch.cat([centres, torch.tensor([size, size, [0.1, 0.1]])], 1)[None].requires_grad_()
    target = {"labels": torch.tensor([1, 0]), "boxes": boxes.detach()[0, [1, 0]]}
    logits = torch.zeros(1, 3, 3)
    ((queries, objects),) = detection.match(logits, boxes, [target])
    assert (queries.tolist(), objects.tolist()) == ([0, 1], [1, 0])
    found = detection.losses(logits, boxes, [target])
    assert found["loss_giou"] == 2
    found["total"].backward()
    assert boxes.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1e20, 3e38])
def test_finite_is_finite_however_large(scale):
    boxes = torch.full((1, 2, 4), scale)
    target = {"labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.1, 0.2]])}
    logits = torch.full((1, 2, 3), scale)
    assert detection.match(logits, boxes, [target])[0][1].tolist() == [0]


def test_giou_is_torchvisions_of_pairs():
    one, other = (corners(torch.rand(5, 4) * 0.4 + 0.1) for _ in range(2))
    assert torch.equal(paired_giou(one[:, None], other), generalized_box_iou(one, other))
    near(paired_giou(one[:1], one[:1]), torch.ones(1), 1e-6)
    apart = paired_giou(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[2.0, 0.0, 3.0, 1.0]]))
    near(apart, torch.tensor([-1 / 3]), 1e-6)
    assert paired_giou(one, other).shape == (5,)


def test_the_released_postprocessing_and_cocos_numbers():
    stored = figures_without_text("yolos_postprocess.npz")
    (own,) = detection.postprocess(stored["logits"], stored["boxes"], stored["target_sizes_h_w"][:1])
    # The softmax's last bits are the kind of CPU's; the rest has no rounding of its own.
    torch.testing.assert_close(own["scores"], stored["scores"][0], rtol=1e-6, atol=0)
    assert torch.equal(own["labels"], stored["labels"][0])
    assert torch.equal(own["boxes"], stored["boxes_x0_y0_x1_y1"][0])
    with np.load(GOLDEN / "yolos_postprocess.npz") as file:
        truth = json.loads(str(file["ground_truth"]))
    ids = [image["id"] for image in truth["images"]]
    names = ("scores", "labels", "boxes_x0_y0_x1_y1")
    rows = [
        rows_of(identity, {"scores": scores, "labels": labels, "boxes": boxes})
        for identity, scores, labels, boxes in zip(ids, *(stored[name] for name in names), strict=True)
    ]
    expected = stored["coco_stats"].numpy()
    assert np.array_equal(coco_statistics(truth, np.concatenate(rows), ids), expected)
    assert 0 < expected[0] < 1
    shuffled = np.concatenate([rows[place] for place in (3, 0, 5, 1, 2, 4)])
    assert np.array_equal(coco_statistics(truth, shuffled, ids[::-1]), expected)


def test_nothing_found_is_an_average_precision_of_0():
    truth = {
        "images": [{"id": 3, "width": 9, "height": 9}],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 3, "category_id": 7, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0}],
    }
    assert coco_statistics(truth, np.zeros((0, 7)), [3])[0] == 0


NO_OBJECTS = {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("scipy.optimize", lambda: detection.match(torch.zeros(1, 1, 2), torch.ones(1, 1, 4), [NO_OBJECTS])),
        ("pycocotools.mask", lambda: coco_statistics({}, np.zeros((0, 7)), [])),
    ],
)
def test_a_missing_package_is_one_line(package, call, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"is not installed: python -m pip install 'toe-train\[detection\]'"):
        call()


def figures_without_text(name):
    with np.load(GOLDEN / name) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files if file[key].dtype.kind != "U"}
