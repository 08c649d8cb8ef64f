"""What belongs to the tokens is gathered as a loop over images would do it."""

import pytest
import torch

from toe_train.expansion.positions import KeptPositions, gather_images_positions, gather_mask, gather_positions

B, N, P, S, H, D = 3, 6, 2, 1, 4, 5
ALL = P + N + S
KEPT = torch.stack([torch.randperm(N, generator=torch.Generator().manual_seed(seed))[:4] for seed in range(B)])
ROWS = torch.cat([torch.tensor([[0, 1]] * B), KEPT + P, torch.tensor([[ALL - 1]] * B)], dim=1)


def positions(dtype=torch.float32):
    return KeptPositions(KEPT, N, P, S, dtype)


@pytest.mark.parametrize("shape", [(N, D), (H, N, D), (1, 1, N, D), (1, H, N, D), (B, H, N, D), (B, 1, N, D)])
def test_rotary_positions(shape):
    table = torch.randn(shape)
    gathered = gather_positions(table, KEPT)
    whole = table[(None,) * (4 - table.ndim)].expand(B, -1, N, D)
    assert gathered.shape == (B, whole.shape[1], 4, D)
    for image in range(B):
        assert torch.equal(gathered[image], whole[image][:, KEPT[image]])


@pytest.mark.parametrize("shape", [(1, N, D), (B, N, D)])
def test_positions_of_each_image(shape):
    table = torch.randn(shape)
    gathered = gather_images_positions(table, KEPT)
    for image in range(B):
        assert torch.equal(gathered[image], table.expand(B, N, D)[image][KEPT[image]])


@pytest.mark.parametrize("shape", [(ALL, ALL), (1, 1, ALL, ALL), (B, 1, 1, ALL), (B, H, ALL, ALL), (1, H, 1, ALL)])
def test_masks(shape):
    mask = torch.randn(shape)
    gathered = gather_mask(mask, ROWS)
    whole = mask[(None,) * (4 - mask.ndim)].expand(B, -1, -1, -1)
    for image in range(B):
        queries = whole[image] if whole.shape[2] == 1 else whole[image][:, ROWS[image]]
        assert torch.equal(gathered[image], queries[:, :, ROWS[image]])


def test_rows_for_all_tokens_or_for_patches():
    table = torch.randn(ALL, D)
    assert torch.equal(positions().of("rope", table)[1, 0], table[ROWS[1]])
    assert torch.equal(positions().of("rope", table[P : P + N])[1, 0], table[KEPT[1] + P])
    added = torch.randn(1, ALL, D)
    assert torch.equal(positions().of("positions", added)[1], added[0, ROWS[1]])
    cosine, sine = positions().of("position_embeddings", (table, -table))
    assert torch.equal(cosine, -sine)


def test_gathered_once_and_in_the_compute_type():
    given, table = positions(torch.bfloat16), torch.randn(N, D)
    first = given.of("rope", table)
    assert first.dtype == torch.bfloat16
    assert given.of("rope", table) is first
    assert given.of("rope", table.clone()) is not first
    learnt = torch.randn(N, D, requires_grad=True)
    assert given.of("rope", learnt) is not given.of("rope", learnt)  # recomputing must do what forward did
    mask = torch.zeros(ALL, ALL)
    assert given.of("attn_mask", mask).dtype == torch.float32
    assert positions(torch.float64).of("rope", table).dtype == torch.float32
