import copy
import json

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from toe_train.expansion import EXPANSIONS, INITIALIZATIONS, METRICS, ExpansionSchedule, TokenExpansion
from toe_train.expansion.selection import normalise, similarity


def make(rates=(0.5, 0.75, 1.0), initial=0.25, repeats=2, stage=1, **options):
    schedule = ExpansionSchedule(list(range(1, len(rates) + 1)), list(rates), initial, repeats)
    expansion = TokenExpansion(schedule, **options)
    expansion.set_epoch(stage)
    return expansion


def test_golden_vectors_of_the_released_code(golden):
    cases = json.loads(str(golden["meta"]))
    assert cases
    for number, case in enumerate(cases):
        x, y, grad, kept = (torch.from_numpy(golden[f"{number:02d}_{name}"]) for name in ("x", "y", "grad", "kept"))
        expansion = make(case["rates"], case["r0"], case["k"], case["stage"])
        x.requires_grad_()
        output, positions = expansion(x)
        assert torch.equal(positions, kept)
        assert positions.shape[1] == case["kept_tokens"]
        torch.testing.assert_close(output, y, atol=1e-5, rtol=0)
        (output * torch.linspace(0.5, 1.5, output.numel()).view_as(output)).sum().backward()
        torch.testing.assert_close(x.grad, grad, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("metric", METRICS)
def test_values_and_gradients_agree_with_the_literal_reference(reference, tokens, prefix, stage, metric):
    x = tokens(3, 36, 8, prefix, dtype=torch.float64).requires_grad_()
    expansion = make((0.4, 0.7, 1.0), 0.2, stage=stage, num_prefix_tokens=prefix, metric=metric)
    y, kept = expansion(x)
    expected, positions = reference.expand_batch(x, prefix, (0.4, 0.7, 1.0), 0.2, 2, stage, metric)
    assert torch.equal(kept, positions)
    torch.testing.assert_close(y, expected)
    weights = torch.linspace(0.5, 1.5, y.numel(), dtype=torch.float64).view_as(y)
    (gradient,) = torch.autograd.grad((y * weights).sum(), x)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), x)
    torch.testing.assert_close(gradient, expected_gradient)
    assert torch.equal(y[:, :prefix], x[:, :prefix])


def test_dense_stages_and_eval_return_the_very_input(tokens):
    x = tokens()
    for stage, training in [(0, True), (3, True), (1, False)]:
        y, kept = make(stage=stage).train(training)(x)
        assert y is x
        assert kept is None


def test_a_fresh_module_is_in_the_stage_of_epoch_0():
    assert TokenExpansion(ExpansionSchedule([0, 1], [0.5, 1.0], 0.25)).stage == 1
    assert TokenExpansion(ExpansionSchedule([5, 9], [0.5, 1.0], 0.25)).stage == 0


def test_kept_is_remembered_and_forgotten(tokens):
    expansion = make()
    _, kept = expansion(tokens())
    assert expansion.kept is kept
    expansion.eval()(tokens())
    assert expansion.kept is None


@pytest.mark.parametrize("expansion", EXPANSIONS)
def test_owners_are_remembered_when_asked(tokens, expansion):
    module = make(expansion=expansion)
    x = tokens()
    y, kept = module(x)
    assert module.owner is None
    assert module.num_tokens == 16
    module.remember_owner = True
    module(x)
    for image in range(2):  # a token is the mean of those that it owns
        assert module.owner[image, kept[image]].tolist() == list(range(kept.shape[1]))
        for slot in range(kept.shape[1]):
            expected = x[image, 1:][module.owner[image] == slot].mean(0)
            torch.testing.assert_close(y[image, 1 + slot], expected)
    module.eval()(x)
    assert module.owner is None


def test_it_has_no_tensors_and_copies(tokens):
    expansion = make()
    expansion(tokens().requires_grad_())
    assert not expansion.state_dict()
    assert not list(expansion.parameters())
    assert not list(expansion.buffers())
    other = copy.deepcopy(expansion)
    other.set_epoch(3)
    assert (expansion.stage, other.stage) == (1, 3)


def test_zero_tokens_give_no_nan(tokens):
    x = tokens(2, 16, 8)
    x[0, 3:9] = 0
    x[1] = 0
    for metric in METRICS:
        x = x.detach().requires_grad_()
        y, kept = make(metric=metric)(x)
        y.square().sum().backward()
        assert torch.isfinite(y).all()
        assert torch.isfinite(x.grad).all()
        assert all(len(set(row)) == 8 for row in kept.tolist())


def test_identical_tokens_are_taken_by_position():
    x = torch.ones(2, 17, 4)
    y, kept = make()(x)
    # Seeds 0 4 8 12; all others are equally far, so the first of them are added, in both rounds.
    assert kept.tolist() == [[0, 4, 8, 12, 1, 2, 3, 5]] * 2
    torch.testing.assert_close(y, torch.ones(2, 9, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_neither_the_selection_nor_the_values(tokens, dtype):
    x = tokens(4, 49, 16)
    x[:, 1:] = 1 + 0.01 * x[:, 1:]  # cosines just below 1, which half precision cannot tell apart
    expected, kept = make()(x)
    with torch.autocast("cpu", dtype=dtype):
        y, autocast_kept = make()(x)
    assert torch.equal(autocast_kept, kept)
    assert torch.equal(y, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_tokens_are_selected_in_float32(tokens, dtype):
    x = tokens(4, 49, 16, dtype=dtype)
    y, kept = make()(x)
    assert y.dtype == dtype
    assert torch.equal(kept, make()(x.float())[1])


def test_without_merging_tokens_are_kept_as_they_are(tokens):
    x = tokens(2, 16, 8, prefix=2).requires_grad_()
    y, kept = make(merging=False, num_prefix_tokens=2)(x)
    assert torch.equal(kept, make(num_prefix_tokens=2)(x)[1])
    for image in range(2):
        assert torch.equal(y[image], x[image, [0, 1, *(kept[image] + 2).tolist()]])
    y.sum().backward()
    assert x.grad.sum() == y.numel()


@pytest.mark.parametrize("merging", [True, False])
def test_uniform_fills_the_budget_evenly_without_scoring(tokens, merging):
    x = tokens(2, 16, 8)
    expansion = make(expansion="uniform", merging=merging, stage=2)
    y, kept = expansion(x)
    assert kept.tolist() == [[16 * i // 12 for i in range(12)]] * 2
    assert y.shape == (2, 13, 8)
    assert torch.equal(kept, expansion(tokens(2, 16, 8, seed=1))[1])


def test_uniform_with_random_initialisation_fills_the_budget_at_random(tokens):
    expansion = make(expansion="uniform", initialization="random")
    expansion.noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(0))
    _, kept = expansion(tokens(2, 16, 8))
    assert kept.tolist() == [sorted(row.argsort()[:8].tolist()) for row in expansion.noise]


@pytest.mark.parametrize("initialization", ["spatial", "even"])
def test_none_keeps_the_seeds_only_and_still_merges_everything(tokens, initialization):
    x = tokens(2, 16, 8, dtype=torch.float64).requires_grad_()
    expansion = make(expansion="none", initialization=initialization)
    y, kept = expansion(x)
    assert kept.tolist() == [[0, 4, 8, 12]] * 2
    assert expansion.num_kept(16) == 4
    y[:, 1:].sum().backward()
    assert (x.grad[:, 1:] > 0).all()


@pytest.mark.parametrize("expansion", EXPANSIONS)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_num_kept_is_what_forward_keeps(tokens, expansion, stage):
    module = make((0.4, 0.7, 1.0), 0.2, stage=stage, expansion=expansion)
    assert module(tokens(1, 36))[0].shape[1] == 1 + module.num_kept(36)


def test_even_initialisation_covers_the_tail(tokens):
    spatial, even = (
        make((0.4, 1.0), 0.2, initialization=kind)(tokens(1, 49))[1][0, :9] for kind in ("spatial", "even")
    )
    assert spatial.max() == 32
    assert even.max() == 43


def test_random_seeds_are_a_function_of_the_noise_row(tokens):
    x = tokens(4, 16, 8)
    noise = torch.rand(4, 16, generator=torch.Generator().manual_seed(3))
    whole, half = make(initialization="random"), make(initialization="random")
    whole.noise, half.noise = noise, noise[2:]
    assert torch.equal(whole(x)[0][2:], half(x[2:])[0])


def test_random_seeds_without_noise_come_from_the_global_generator(tokens):
    expansion = make(initialization="random")
    torch.manual_seed(0)
    first = expansion(tokens())[1]
    second = expansion(tokens())[1]
    torch.manual_seed(0)
    assert torch.equal(expansion(tokens())[1], first)
    assert not torch.equal(first, second)


def test_noise_of_the_wrong_shape(tokens):
    expansion = make(initialization="random")
    expansion.noise = torch.rand(3, 16)
    with pytest.raises(ValueError, match=r"noise of shape \(3, 16\) .* 2 images of 16 patch tokens.*torch.rand\(2, 16"):
        expansion(tokens(2, 16))
    expansion.noise = torch.rand(2, 16, device="meta")
    with pytest.raises(ValueError, match=r"on meta does not fit .* on cpu"):
        expansion(tokens(2, 16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "cos"}, "metric='cos' is not one of cosine, .*nearest is 'cosine'"),
        ({"metric": "euclid"}, "nearest is 'euclidean'"),
        ({"initialization": "rand"}, "initialization='rand' .*nearest is 'random'"),
        ({"expansion": "Uniform"}, "expansion='Uniform' .*nearest is 'uniform'"),
        ({"num_prefix_tokens": -1}, "num_prefix_tokens=-1 must be a whole number, 0 or more"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize("shape", [(2, 16), (2, 4, 4, 8), (2, 1, 8)])
def test_bad_input_shapes(shape):
    with pytest.raises(ValueError, match=r"expected \(batch, 1 prefix \+ patch tokens, width\)"):
        make()(torch.zeros(shape))


def test_too_few_tokens_for_a_seed(tokens):
    with pytest.raises(ValueError, match="leaves no seed among 3 patch tokens"):
        make()(tokens(1, 3))


def test_repr_shows_the_options():
    text = repr(make(metric="manhattan", merging=False, stage=2))
    for part in ("keep_rates=(0.5, 0.75, 1.0)", "metric='manhattan'", "merging=False", "stage=2", "'spatial'"):
        assert part in text


def test_shapes_on_the_meta_device():
    y, kept = make()(torch.zeros(2, 17, 8, device="meta"))
    assert y.shape == (2, 9, 8)
    assert kept.shape == (2, 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("initialization", INITIALIZATIONS)
@pytest.mark.parametrize("merging", [True, False])
def test_the_host_never_waits_for_the_device(tokens, initialization, merging):
    expansion = make(initialization=initialization, merging=merging)
    x = tokens(2, 36, 8).cuda().requires_grad_()
    expansion(x)[0].sum().backward()  # the libraries start
    torch.cuda.set_sync_debug_mode("error")
    try:
        expansion(x)[0].sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check_compiled(backend, tokens, **options):
    torch.compiler.reset()
    expansion = make(**options)
    expansion.noise = torch.rand(3, 36, generator=torch.Generator().manual_seed(5))
    compiled = torch.compile(expansion, backend=backend, fullgraph=True)
    x = tokens(3, 36, 8)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    (y, kept), (expected, positions) = compiled(inputs[0]), expansion(inputs[1])
    assert torch.equal(kept, positions)
    torch.testing.assert_close(y, expected)
    for result in (y, expected):
        (result * torch.linspace(0.5, 1.5, y.numel()).view_as(y)).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)


@pytest.mark.parametrize("metric", METRICS)
def test_traced_equals_eager_for_each_metric(tokens, metric):
    check_compiled("aot_eager", tokens, metric=metric, stage=2)


@pytest.mark.parametrize("initialization", INITIALIZATIONS)
@pytest.mark.parametrize("expansion", EXPANSIONS)
@pytest.mark.parametrize("merging", [True, False])
def test_traced_equals_eager_for_each_option(tokens, initialization, expansion, merging):
    check_compiled("aot_eager", tokens, initialization=initialization, expansion=expansion, merging=merging)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"stage": 1},
        {"stage": 2, "rates": (0.4, 0.7, 1.0), "initial": 0.2},
        {"initialization": "random"},
        {"metric": "manhattan"},
        {"merging": False},
        {"rates": (0.06, 1.0), "initial": 0.03},  # a single seed, rounds of 0 and 1 tokens
    ],
)
def test_compiled_equals_eager(tokens, options):
    check_compiled("inductor", tokens, **options)


@pytest.mark.slow
@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_compiled_keeps_the_same_tokens_at_full_size(tokens, mean):
    """In the same order but for tokens that are equally far up to rounding: compiled, squares are summed otherwise."""
    torch.compiler.reset()
    expansion = make(stage=2)
    x = tokens(16, 196, 192) + mean * tokens(1, 0, 192, seed=1)
    kept, compiled = expansion(x)[1], torch.compile(expansion, fullgraph=True)(x)[1]
    assert torch.equal(compiled.sort(dim=1).values, kept.sort(dim=1).values)
    assert (compiled == kept).float().mean() >= 0.999
    exact = normalise(x[:, 1:].double())
    begin = expansion.schedule.num_seeds(196)
    for count in expansion.schedule.rounds(2, 196):
        before = exact.take_along_dim(kept[:, :begin, None], dim=1)
        nearest = similarity(exact, before).amax(2)  # (B, N)
        scores = [nearest.gather(1, picks[:, begin : begin + count]) for picks in (compiled, kept)]
        torch.testing.assert_close(*scores, rtol=0, atol=1e-6)
        begin += count


@pytest.mark.parametrize(
    ("dtype", "merging", "backward"),
    [
        (torch.float32, True, "IndexAddBackward0"),
        (torch.bfloat16, True, "SplitWithSizesBackward0"),
        (torch.float32, False, "GatherBackward0"),
    ],
)
def test_the_backward_takes_prefix_and_patches_apart_once_at_most(tokens, dtype, merging, backward):
    """Two slices would fill a gradient of the input's size each."""
    y, _ = make(merging=merging)(tokens().to(dtype).requires_grad_())
    names, nodes = set(), [y.grad_fn]
    while nodes:
        node = nodes.pop()
        names.add(node.name())
        nodes += [following for following, _ in node.next_functions if following]
    assert backward in names
    assert "SliceBackward0" not in names


def test_compilation_happens_once_a_stage(tokens):
    torch.compiler.reset()
    counter = CompileCounter()
    expansion = make()
    compiled = torch.compile(expansion, backend=counter, fullgraph=True)
    for visit in range(2):
        for stage in (1, 2):
            expansion.set_epoch(stage)
            for seed in range(3):
                x = tokens(2, 16, 8, seed=seed)
                assert torch.equal(compiled(x)[1], expansion(x)[1])
            if visit == 0:
                assert counter.frame_count == stage
    assert counter.frame_count == 2


def test_compiled_module_follows_the_image_size(tokens):
    torch.compiler.reset()
    expansion = make((0.6, 0.8, 1.0), 0.3)
    compiled = torch.compile(expansion, backend="aot_eager", fullgraph=True)
    for num_tokens in (100, 144, 196, 64):
        x = tokens(2, num_tokens, 8)
        y, kept = compiled(x)
        assert torch.equal(kept, expansion(x)[1])
        assert y.shape[1] == 1 + expansion.num_kept(num_tokens)
