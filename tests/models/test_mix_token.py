"""MixToken's boxes and swaps."""

import pytest
import torch

from toe_train.models import TokenMix, draw_box, no_mix, swap_in_boxes

# Images 0 and 1 swap rows 0 to 1 of column 2 in a 2 x 3 grid, image 2 is its own partner.
MIX = TokenMix(torch.tensor([[0, 2, 2, 3], [0, 2, 2, 3], [1, 0, 2, 2]]), torch.tensor([1, 0, 2]))
GRID = (2, 3)


def test_swap_by_hand():
    x = torch.tensor([[0, 1, 2, 3, 4, 5], [10, 11, 12, 13, 14, 15], [20, 21, 22, 23, 24, 25]])
    swapped = [[0, 1, 12, 3, 4, 15], [10, 11, 2, 13, 14, 5], [20, 21, 22, 23, 24, 25]]
    assert swap_in_boxes(x, MIX, GRID).tolist() == swapped
    assert swap_in_boxes(x == 12, MIX, GRID).nonzero().tolist() == [[0, 2]]


@pytest.mark.parametrize("shape", [(3, 6), (3, 6, 4), (3, 6, 2, 2)])
def test_swapping_twice_gives_the_same_again(shape):
    x = torch.randn(shape)
    assert not torch.equal(swap_in_boxes(x, MIX, GRID), x)
    assert torch.equal(swap_in_boxes(swap_in_boxes(x, MIX, GRID), MIX, GRID), x)
    assert torch.equal(swap_in_boxes(x, no_mix(3), GRID), x)


def test_gradients_go_where_the_cells_came_from():
    x = torch.zeros(3, 6, requires_grad=True)
    weights = torch.arange(18.0).view(3, 6)
    (swap_in_boxes(x, MIX, GRID) * weights).sum().backward()
    assert torch.equal(x.grad, swap_in_boxes(weights, MIX, GRID))


def test_boxes_are_drawn_as_the_source_says_and_cut_at_the_edges():
    grid, boxes = (14, 9), []
    for seed in range(300):
        box = draw_box(grid, torch.Generator().manual_seed(seed))
        assert torch.equal(box, draw_box(grid, torch.Generator().manual_seed(seed)))
        share, row, column = torch.rand(3, generator=torch.Generator().manual_seed(seed)).tolist()
        expected = [0, 0, 0, 0]
        for axis, (cells, centre) in enumerate(zip(grid, (int(14 * row), int(9 * column)), strict=True)):
            half = int(cells * share**0.5) // 2
            expected[axis], expected[axis + 2] = max(centre - half, 0), min(centre + half, cells)
        assert box.tolist() == expected
        boxes.append(tuple(expected))
    assert len(set(boxes)) > 150


def test_the_mean_share_is_what_the_rounding_and_cutting_leave():
    cells, expected = 14, 0.0
    for side in range(cells):
        probability = (side + 1) ** 2 / cells**2 - side**2 / cells**2  # that int(cells * sqrt(uniform)) is this side
        lengths = [min(centre + side // 2, cells) - max(centre - side // 2, 0) for centre in range(cells)]
        expected += probability * (sum(lengths) / cells / cells) ** 2
    torch.manual_seed(0)
    top, left, bottom, right = torch.stack([draw_box((cells, cells)) for _ in range(4000)]).double().T
    share = (bottom - top) * (right - left) / cells**2
    assert share.mean().item() == pytest.approx(expected, abs=0.012)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_host_never_waits_for_the_device():
    mix, x = TokenMix(*(part.cuda() for part in MIX)), torch.randn(3, 6, 4, device="cuda", requires_grad=True)
    swap_in_boxes(x, mix, GRID).sum().backward()  # the libraries start
    torch.cuda.set_sync_debug_mode("error")
    try:
        swap_in_boxes(x, mix, GRID).sum().backward()
        draw_box(GRID, device=x.device)
        no_mix(3, x.device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
