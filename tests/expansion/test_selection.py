import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toe_train.expansion import METRICS, ExpansionSchedule, kept_mask, restore
from toe_train.expansion.selection import expand, gather, initialise, merge, normalise, similarity

PROFILE = settings.get_profile("expansion")
CPU = torch.device("cpu")


def select(patches, initial=0.25, rate=0.5, repeats=2, metric="cosine"):
    """Kept positions and owners of (B, N, D) patch tokens in the first stage."""
    schedule = ExpansionSchedule([0, 1], [rate, 1.0], initial, repeats)
    batch, num_tokens, _ = patches.shape
    seeds = initialise("spatial", batch, num_tokens, schedule.num_seeds(num_tokens), schedule.seed_stride, CPU)
    return expand(patches, seeds, schedule.rounds(1, num_tokens), metric)


def between_all(patches, metric="cosine"):
    """Nearness (B, N, N) of every two of (B, N, D) patch tokens."""
    tokens = normalise(patches)
    return similarity(tokens, tokens, metric)


@st.composite
def problems(draw):
    """(patches in float64, schedule, stage): all kinds of sizes and rates."""
    num_tokens = draw(st.integers(4, 40))
    rates = draw(st.lists(st.integers(2, 20), min_size=1, max_size=3, unique=True).map(sorted))
    rates = [rate / 20 for rate in rates]
    initial = draw(st.sampled_from([r for r in (0.05, 0.1, 0.2, 0.25, 0.3, 0.45, 0.6) if r < rates[0]]))
    schedule = ExpansionSchedule(list(range(len(rates))), rates, initial, draw(st.integers(1, 4)))
    stages = [s for s in range(1, len(rates) + 1) if not schedule.is_dense(s)]
    if int(num_tokens * initial) < 1 or not stages:
        num_tokens, schedule, stages = 12, ExpansionSchedule([0, 1], [0.5, 1.0], 0.25, 2), [1]
    shape = draw(st.integers(1, 4)), num_tokens, draw(st.integers(2, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    patches = torch.randn(shape, generator=generator, dtype=torch.float64)
    return patches, schedule, draw(st.sampled_from(stages))


def run(patches, schedule, stage, metric="cosine"):
    batch, num_tokens, _ = patches.shape
    seeds = initialise("spatial", batch, num_tokens, schedule.num_seeds(num_tokens), schedule.seed_stride, CPU)
    kept, owner = expand(patches, seeds, schedule.rounds(stage, num_tokens), metric)
    return seeds, kept, owner


@settings(PROFILE)
@given(problems())
def test_kept_tokens_are_unique_counted_and_begin_with_the_seeds(problem):
    patches, schedule, stage = problem
    seeds, kept, owner = run(*problem)
    batch, num_tokens, _ = patches.shape
    assert kept.shape == (batch, schedule.num_kept(stage, num_tokens))
    assert kept.dtype == torch.int64
    assert torch.equal(kept[:, : seeds.shape[1]], seeds)
    assert all(len(set(row)) == len(row) and set(row) <= set(range(num_tokens)) for row in kept.tolist())
    assert torch.equal(owner.gather(1, kept), torch.arange(kept.shape[1]).expand_as(kept))  # kept ones own themselves


@settings(PROFILE)
@given(problems())
def test_the_literal_version_of_the_benchmark_does_the_same(reference, problem):
    patches, schedule, stage = problem
    seeds, kept, owner = run(*problem)
    tokens, positions = reference.expand_literally(
        patches, 0, seeds[0].tolist(), schedule.rounds(stage, patches.shape[1])
    )
    assert torch.equal(positions, kept)
    assert torch.allclose(tokens, merge(patches, kept, owner))


@settings(PROFILE)
@given(problems())
def test_every_token_is_merged_exactly_once_and_the_mean_survives(problem):
    patches, _, _ = problem
    _, kept, owner = run(*problem)
    patches.requires_grad_()
    merged = merge(patches, kept, owner)
    sizes = torch.stack([torch.bincount(row, minlength=kept.shape[1]) for row in owner])
    assert torch.equal(sizes.sum(1), torch.full((patches.shape[0],), patches.shape[1]))
    assert (sizes >= 1).all()
    total = (merged * sizes[:, :, None]).sum(1)
    torch.testing.assert_close(total, patches.sum(1))
    # The weight of every token in the unweighted total is 1: nobody is left out, nobody counts twice.
    (weights,) = torch.autograd.grad(total.sum(), patches)
    torch.testing.assert_close(weights, torch.ones_like(patches))


@settings(PROFILE)
@given(problems())
def test_both_ways_of_merging_agree(problem):
    """Added up, as on a CPU, and by a product, as on a GPU and in a compiled graph; behind prefix tokens; gradients."""
    patches, _, _ = problem
    _, kept, owner = run(*problem)
    for prefix in (0, 1, 2):
        x = torch.cat(
            [torch.rand(len(patches), prefix, patches.shape[2], dtype=patches.dtype), patches], dim=1
        ).requires_grad_()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            product = merge(x, kept, owner, prefix)
        added = merge(x, kept, owner, prefix)
        assert "IndexAdd" in str(added.grad_fn.next_functions[0][0].next_functions)
        assert torch.equal(added[:, :prefix], x[:, :prefix])
        torch.testing.assert_close(added, product)
        pull = torch.rand_like(product)
        torch.testing.assert_close(*(torch.autograd.grad((y * pull).sum(), x)[0] for y in (added, product)))


@settings(PROFILE)
@given(problems(), st.sampled_from(METRICS))
def test_agrees_with_the_literal_reference_in_float64(reference, problem, metric):
    patches, schedule, stage = problem
    _, kept, owner = run(patches, schedule, stage, metric)
    expected, positions = reference.expand_batch(
        patches, 0, schedule.keep_rates, schedule.initial_keep_rate, schedule.repeats, stage, metric
    )
    assert torch.equal(kept, positions)
    torch.testing.assert_close(merge(patches, kept, owner), expected)


@settings(PROFILE)
@given(problems(), st.randoms(use_true_random=False))
def test_permuting_the_batch_permutes_the_result(problem, random):
    patches, schedule, stage = problem
    order = list(range(patches.shape[0]))
    random.shuffle(order)
    _, kept, owner = run(patches, schedule, stage)
    _, other_kept, other_owner = run(patches[order], schedule, stage)
    assert torch.equal(other_kept, kept[order])
    assert torch.equal(other_owner, owner[order])


@settings(PROFILE)
@given(problems())
def test_every_dropped_token_belongs_to_its_nearest_kept_token(problem):
    patches, _, _ = problem
    _, kept, owner = run(*problem)
    nearness = between_all(patches)
    for image in range(patches.shape[0]):
        columns = nearness[image][:, kept[image]]  # (N, K)
        torch.testing.assert_close(columns.gather(1, owner[image, :, None])[:, 0], columns.amax(1))


@settings(PROFILE)
@given(problems())
def test_restore_undoes_gather(problem):
    patches, _, _ = problem
    _, kept, _ = run(*problem)
    grid = restore(gather(patches, kept), kept, patches.shape[1])
    mask = kept_mask(kept, patches.shape[1])
    assert mask.sum() == kept.numel()
    assert torch.equal(grid[mask], patches[mask])
    assert (grid[~mask] == 0).all()


def test_restore_by_hand():
    tokens = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]], requires_grad=True)
    grid = restore(tokens, torch.tensor([[2, 0], [1, 3]]), 4)
    assert grid.squeeze(2).tolist() == [[2, 0, 1, 0], [0, 3, 0, 4]]
    (grid * torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1)).sum().backward()
    assert tokens.grad.squeeze(2).tolist() == [[3, 1], [2, 4]]
    assert kept_mask(torch.tensor([[2, 0], [1, 3]]), 4).long().tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_restore_compiled(count):
    """With one kept token too: a gather behind a compiled scatter of one was silently wrong (pytorch issue 191571)."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, count, 4, generator=generator)
    kept = torch.rand(3, 5, generator=generator).argsort(1)[:, :count]
    weights = torch.rand(3, 5, 4, generator=generator)

    def there_and_back(tokens, kept):
        grid = restore(tokens, kept, 5)
        return grid, gather(grid, kept), kept_mask(kept, 5)

    torch.compiler.reset()
    compiled = torch.compile(there_and_back, fullgraph=True)
    results = []
    for version in (there_and_back, compiled):
        given = tokens.clone().requires_grad_()
        grid, back, mask = version(given, kept)
        ((grid * weights).sum() + back.square().sum()).backward()
        results.append((grid, back, mask, given.grad))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    assert torch.equal(results[1][1], tokens)


def test_expand_and_merge_by_hand():
    angles = torch.tensor([0.0, 10.0, 85.0, 170.0, 95.0, 4.0]).deg2rad()
    patches = torch.stack([angles.cos(), angles.sin()], dim=1)[None] * torch.tensor([1.0, 2, 3, 4, 5, 6]).view(1, 6, 1)
    kept, owner = expand(patches, torch.tensor([[0]]), [1, 1])
    assert kept.tolist() == [[0, 3, 2]]  # 170 degrees is farthest from 0; then 85 is farther from both than 95
    assert owner.tolist() == [[0, 0, 2, 1, 2, 0]]
    merged = merge(patches, kept, owner)
    expected = torch.stack([patches[0, [0, 1, 5]].mean(0), patches[0, 3], patches[0, [2, 4]].mean(0)])
    torch.testing.assert_close(merged[0], expected)


def test_one_round_picks_several_tokens_at_once():
    patches = torch.eye(6)[None]
    patches[0, 3] = patches[0, 0] + 0.1 * patches[0, 3]
    kept, _ = expand(patches, torch.tensor([[0]]), [4])
    assert kept.tolist() == [[0, 1, 2, 4, 5]]  # ties by lowest position, and 3 is close to the seed


def test_ties_go_to_the_lowest_position_and_to_the_token_kept_first():
    patches = torch.tensor([1.0, 0.0]).expand(1, 5, 2)
    kept, owner = expand(patches, torch.tensor([[2]]), [1, 1])
    assert kept.tolist() == [[2, 0, 1]]
    assert owner.tolist() == [[1, 2, 0, 0, 0]]


@pytest.mark.parametrize("metric", METRICS)
def test_similarity_is_high_for_near_tokens_except_in_the_released_metrics(metric):
    patches = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [-1.0, 0.2]]])
    nearness = between_all(patches, metric)[0]
    assert bool(nearness[0, 1] > nearness[0, 2]) is not metric.endswith("_released")


@pytest.mark.parametrize("metric", METRICS)
def test_whatever_the_metric_a_kept_token_owns_itself_and_is_not_picked_again(metric):
    """In the released metrics a token is the farthest from itself, so that its own nearness says the opposite."""
    patches = torch.randn(3, 12, 4, generator=torch.Generator().manual_seed(0))
    kept, owner = expand(patches, torch.tensor([[0, 6]]).expand(3, 2), [3, 4, 3], metric)
    assert kept.sort(1).values.tolist() == [list(range(12))] * 3
    assert torch.equal(owner.gather(1, kept), torch.arange(12).expand(3, 12))


def test_similarity_to_some_tokens_is_that_part_of_the_similarity_to_all():
    tokens = normalise(torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    for metric in METRICS:
        whole = similarity(tokens, tokens, metric)
        torch.testing.assert_close(similarity(tokens, tokens[:, 2:5], metric), whole[:, :, 2:5])


def test_similarity_values():
    patches = torch.tensor([[[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]])
    pairs = [between_all(patches, metric)[0, (0, 0, 1), (1, 2, 2)].tolist() for metric in METRICS]
    root = 2**0.5
    expected = [[0, -1, 0], [-root, -2, -root], [-2, -2, -2], [root, 2, root], [2, 2, 2]]
    torch.testing.assert_close(torch.tensor(pairs), torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
@pytest.mark.parametrize("metric", METRICS)
def test_similarity_is_computed_in_float32_at_least(dtype, expected, metric):
    patches = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    nearness = between_all(patches, metric)
    assert nearness.dtype == expected
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(between_all(patches, metric), nearness)


def test_similarity_carries_no_gradient():
    patches = torch.randn(1, 4, 3, requires_grad=True)
    assert not normalise(patches).requires_grad
    assert not similarity(patches, patches).requires_grad


def test_corrected_euclidean_selects_the_cosine_tokens_and_the_released_one_does_not():
    patches = torch.randn(4, 49, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cosine, cosine_owner = select(patches)
    euclidean, euclidean_owner = select(patches, metric="euclidean")
    released, _ = select(patches, metric="euclidean_released")
    assert torch.equal(cosine, euclidean)
    assert torch.equal(cosine_owner, euclidean_owner)
    assert not torch.equal(cosine, released)


def test_spatial_seeds_leave_the_tail_of_the_image():
    seeds = initialise("spatial", 2, 196, 39, 4, CPU)
    assert seeds.tolist() == [list(range(0, 153, 4))] * 2


@pytest.mark.parametrize(("num_tokens", "count"), [(196, 39), (196, 58), (49, 48), (7, 7), (10, 1)])
def test_even_seeds_cover_the_whole_image(num_tokens, count):
    (seeds,) = initialise("even", 1, num_tokens, count, 0, CPU).tolist()
    gaps = [b - a for a, b in zip(seeds, [*seeds[1:], num_tokens], strict=True)]
    assert seeds[0] == 0
    assert len(seeds) == count
    assert set(gaps) <= {num_tokens // count, -(-num_tokens // count)}


def test_random_seeds_are_the_smallest_numbers_in_raster_order():
    noise = torch.tensor([[0.9, 0.2, 0.5, 0.1], [0.3, 0.8, 0.7, 0.3]])
    assert initialise("random", 2, 4, 2, 0, CPU, noise).tolist() == [[1, 3], [0, 3]]


def test_merge_of_a_single_token():
    patches = torch.arange(6.0).view(1, 3, 2)
    kept, owner = expand(patches, torch.tensor([[1]]), [])
    assert merge(patches, kept, owner).tolist() == [[[2.0, 3.0]]]


def test_merge_stays_in_the_dtype_of_its_input():
    patches = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))
    kept, owner = select(patches)
    expected = merge(patches, kept, owner)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(merge(patches, kept, owner), expected)
    half = merge(patches.bfloat16(), kept, owner)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=2e-2, rtol=2e-2)


def test_unknown_names_get_the_nearest_legal_one():
    with pytest.raises(ValueError, match=r"metric='cosin' is not one of .*nearest is 'cosine'"):
        expand(torch.randn(1, 2, 2), torch.tensor([[0]]), [], "cosin")
    with pytest.raises(ValueError, match=r"initialization='evenly' .*nearest is 'even'"):
        initialise("evenly", 1, 4, 2, 2, CPU)
