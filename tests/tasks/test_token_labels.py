import pytest
import torch
from torch.utils.data import default_collate
from torchvision.ops import roi_align

from toe_train.data import TokenLabelFiles, TokenTarget, read_token_labels
from toe_train.errors import UserError
from toe_train.tasks.token_labelling import token_targets


def random_labels(batch, classes, candidates, rows, columns, seed=0):
    source = torch.Generator().manual_seed(seed)
    scores = torch.randn(batch, candidates, rows, columns, generator=source) * 3
    ids = torch.rand(batch, classes, rows, columns, generator=source).topk(candidates, dim=1).indices
    start, length = torch.rand(2, batch, 2, generator=source) / 2
    crop = torch.cat([start, (1 - start) * (1 - length)], dim=1)  # within the map
    return scores, ids, crop


def by_roi_align(scores, ids, crop, classes, grid):
    """The definition: dense maps of all classes, and RoIAlign of them."""
    batch, _, rows, columns = scores.shape
    dense = torch.zeros(batch, classes, rows, columns, dtype=torch.float64).scatter_(1, ids, scores.double())
    top, left, height, width = crop.double().T
    corners = [left * columns, top * rows, (left + width) * columns, (top + height) * rows]
    boxes = torch.stack([torch.arange(batch), *(corner - 0.5 for corner in corners)], dim=1)
    return roi_align(dense, boxes, grid).flatten(2).mT


def test_targets_are_the_released_codes(golden_labels):
    target = golden_labels["target_released_code"]
    of_class, of_patches = token_targets(
        golden_labels["scores"].half(),
        golden_labels["ids"].short(),
        golden_labels["crops_top_left_h_w"],
        num_classes=12,
        grid=(14, 14),
        smoothing=0.1,
        alignment="released",
    )
    # Files are float16, the golden scores float32.
    torch.testing.assert_close(of_class, target[..., 1], atol=1e-3, rtol=0)
    torch.testing.assert_close(of_patches, target[..., 2:].mT, atol=1e-3, rtol=0)
    exact = token_targets(
        golden_labels["scores"],
        golden_labels["ids"],
        golden_labels["crops_top_left_h_w"],
        num_classes=12,
        grid=(14, 14),
        smoothing=0.1,
        alignment="released",
    )
    torch.testing.assert_close(exact[0], target[..., 1], atol=1e-5, rtol=0)
    torch.testing.assert_close(exact[1], target[..., 2:].mT, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("batch", "classes", "candidates", "shape", "grid"),
    [
        (4, 12, 5, (18, 18), (14, 14)),
        (1, 3, 1, (1, 1), (2, 2)),
        (2, 30, 5, (7, 11), (3, 8)),
        (1, 5, 2, (24, 6), (6, 3)),
    ],
)
def test_targets_are_roi_align_of_the_dense_maps(batch, classes, candidates, shape, grid):
    scores, ids, crop = random_labels(batch, classes, candidates, *shape)
    of_class, of_patches = token_targets(scores, ids, crop, classes, grid, 0.1, "correct")
    assert of_class.shape == (batch, classes)
    assert of_patches.shape == (batch, grid[0] * grid[1], classes)
    for found, size in ((of_class[:, None], (1, 1)), (of_patches, grid)):
        expected = by_roi_align(scores, ids, crop, classes, size).softmax(2) * (0.9 + 0.1 / classes) + 0.1 / classes
        torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=0)
        torch.testing.assert_close(found.sum(-1), torch.full(found.shape[:-1], 1 + 0.1 / classes))


def quarters():
    """Class 0 top left, 1 top right, 2 bottom left, 3 bottom right, sure of it, on 18 x 18 cells."""
    ids = torch.zeros(1, 1, 18, 18, dtype=torch.int16)
    ids[..., 9:] += 1
    ids[..., 9:, :] += 2
    return torch.full((1, 1, 18, 18), 20.0).half(), ids


def test_a_crop_is_taken_where_the_image_was_cropped():
    scores, ids = quarters()
    crop = torch.tensor([[0.6, 0.05, 0.3, 0.3]])  # bottom left
    grid = (2, 2)
    correct = token_targets(scores, ids, crop, 4, grid, 0.0, "correct")
    released = token_targets(scores, ids, crop, 4, grid, 0.0, "released")
    assert correct[0].argmax(-1).tolist() == [2]
    assert correct[1].argmax(-1).tolist() == [[2, 2, 2, 2]]
    assert released[0].argmax(-1).tolist() == [1]  # the transposed place: top right
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    assert token_targets(scores, ids, whole, 4, grid, 0.0, "correct")[1].argmax(-1).tolist() == [[0, 1, 2, 3]]


def test_beyond_the_map_its_edge_goes_on():
    scores, ids = quarters()
    crop = torch.tensor([[-1.0, 1.2, 0.5, 1.0]])  # all of it above and to the right
    of_class, of_patches = token_targets(scores, ids, crop, 4, (3, 3), 0.0, "correct")
    for target in (of_class, of_patches):
        torch.testing.assert_close(target, torch.eye(4)[1].expand_as(target))


def save(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def labels_file(path, shape=(5, 18, 18), classes=1000):
    candidates, rows, columns = shape
    scores = torch.randn(shape)
    ids = torch.rand(classes, rows, columns).topk(candidates, dim=0).indices
    return save(path, torch.stack([scores, ids.float()]).half()), scores, ids


@pytest.mark.parametrize("shape", [(5, 18, 18), (1, 1, 1), (3, 7, 10)])
def test_reading(tmp_path, shape):
    path, scores, ids = labels_file(tmp_path / "x.pt", shape)
    found = read_token_labels(path, 1000)
    assert torch.equal(found.scores, scores.half())
    assert torch.equal(found.ids.long(), ids)
    assert (found.scores.dtype, found.ids.dtype) == (torch.float16, torch.int16)


GOOD = torch.zeros(2, 5, 3, 3).half()
BAD = {
    "not a tensor": ({"a": GOOD}, "it holds a dict, and must hold one tensor"),
    "dtype": (GOOD.float(), "it holds float32 [2, 5, 3, 3], and must hold float16 [2, candidate classes, rows"),
    "three planes": (torch.zeros(3, 5, 3, 3).half(), "it holds float16 [3, 5, 3, 3]"),
    "no candidates axis": (torch.zeros(2, 3, 3).half(), "it holds float16 [2, 3, 3]"),
    "empty": (torch.zeros(2, 5, 0, 3).half(), "it holds float16 [2, 5, 0, 3]"),
    "infinite": (torch.full_like(GOOD, float("inf")), "it holds scores that are not finite"),
    "id too large": (GOOD + torch.tensor([0.0, 10.0]).half().view(2, 1, 1, 1), "from 10 to 10, and they must be"),
    "id below": (GOOD + torch.tensor([0.0, -1.0]).half().view(2, 1, 1, 1), "from -1 to -1"),
    "id broken": (GOOD + torch.tensor([0.0, 0.5]).half().view(2, 1, 1, 1), "whole numbers from 0 to 9"),
    "id nan": (GOOD + torch.tensor([0.0, float("nan")]).half().view(2, 1, 1, 1), "it holds class ids from nan"),
}


@pytest.mark.parametrize("case", BAD)
def test_files_that_are_not_labels(tmp_path, case):
    content, words = BAD[case]
    path = save(tmp_path / "x.pt", content)
    with pytest.raises(UserError) as fault:
        read_token_labels(path, num_classes=10)
    assert str(fault.value).startswith(f"label file {path} cannot be used: ")
    assert words in str(fault.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"label file .*none\.pt is missing: make it with `toe-tools labels`"):
        read_token_labels(tmp_path / "none.pt", 10)
    path, *_ = labels_file(tmp_path / "x.pt")
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(UserError) as fault:
            read_token_labels(path, 1000)
        assert f"label file {path} cannot be used: it cannot be read: " in str(fault.value)
        assert "\n" not in str(fault.value)


def test_the_path_of_an_images_labels(tmp_path):
    files = TokenLabelFiles(tmp_path, ["n01440764", "n01443537"])
    image = "/data/imagenet/train/n01440764/n01440764_10026.JPEG"
    assert files.path(image, 0) == tmp_path / "n01440764" / "n01440764_10026.pt"
    assert files.path("train/n01443537/a.b.c.jpg", 1) == tmp_path / "n01443537" / "a.pt"


def test_all_maps_are_of_one_size(tmp_path):
    files = TokenLabelFiles(tmp_path, ["cat", "dog"])
    labels_file(tmp_path / "cat/a.pt", (1, 3, 4), 2)
    labels_file(tmp_path / "dog/b.pt", (1, 4, 3), 2)
    assert files.read("a.png", 0).ids.shape == (1, 3, 4)
    with pytest.raises(UserError, match=r"b\.pt holds labels of 4 x 3 cells with 1 classes each and .*a\.pt of 3 x 4"):
        files.read("b.png", 1)


def test_batches_keep_the_fields_and_move_together():
    target = TokenTarget(torch.zeros(5, 3, 3).half(), torch.ones(5, 3, 3).short(), torch.ones(4), torch.tensor(7))
    batch = default_collate([target, target])
    assert isinstance(batch, TokenTarget)
    assert [tuple(field.shape) for field in batch] == [(2, 5, 3, 3), (2, 5, 3, 3), (2, 4), (2,)]
    moved = batch.to(torch.device("meta"), non_blocking=True)
    assert isinstance(moved, TokenTarget)
    assert {field.device.type for field in moved} == {"meta"}
