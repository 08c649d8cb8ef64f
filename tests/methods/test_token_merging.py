"""ToMe against the released code's figures, and what it must keep of the model that it is attached to."""

import copy

import numpy as np
import pytest
import timm
import torch
from golden_figures import by_rule, figures, meta, near
from timm.models.vision_transformer import VisionTransformer
from torch._dynamo.testing import CompileCounter

from toe_train import ExpansionSchedule, TokenExpansion
from toe_train import attach as expand
from toe_train.methods import token_merging
from toe_train.methods.token_merging import TokenMergingMethod, attach, counts, merge
from toe_train.models import create_model

MATCHING, MODELS = (list(enumerate(meta("tome.npz")[kind])) for kind in ("matching", "models"))


@pytest.mark.parametrize(("number", "case"), MATCHING)
def test_the_matching_of_the_released_code(number, case):
    stored = {key[3:]: value for key, value in figures("tome.npz").items() if key.startswith(f"{number:02d}_")}
    x = stored["x"].requires_grad_()
    size = stored["size_in"].view(*x.shape[:2], 1) if case["sizes_given"] else None
    y, size, row = merge(x, stored["metric"], size, case["r"], int(case["class_token"]))
    near(y, stored["y"], 1e-5)
    near(size, stored["size"].view_as(size), 1e-5)
    assert torch.equal(row, stored["row_of_token"].long())
    assert x.shape[1] - y.shape[1] == case["removed"]
    (y * torch.linspace(0.5, 1.5, y.numel()).view_as(y)).sum().backward()
    near(x.grad, stored["grad"], 1e-5)


def released(case):
    model = VisionTransformer(
        img_size=case["img"],
        patch_size=case["patch"],
        embed_dim=case["dim"],
        depth=case["depth"],
        num_heads=case["heads"],
        num_classes=case["classes"],
    )
    model.load_state_dict(by_rule(model.state_dict(), case["weights"]))
    images = np.random.RandomState(case["input"]).standard_normal((2, 3, case["img"], case["img"]))
    return model, torch.from_numpy(images.astype(np.float32))


@pytest.mark.parametrize(("number", "case"), MODELS)
def test_whole_models_of_the_released_code(number, case):
    stored = {key[3:]: value for key, value in figures("tome.npz").items() if key.startswith(f"m{number}_")}
    model, images = released(case)
    keys = list(model.state_dict())
    handle = attach(model, r=case["r"])
    assert list(model.state_dict()) == keys
    near(model.eval()(images), stored["eval_logits"], 1e-5)
    near(handle.sizes, stored["sizes"].view_as(handle.sizes), 0)
    assert torch.equal(handle.rows, stored["row_of_token"].long())
    logits = model.train()(images)
    near(logits, stored["train_logits"], 1e-5)
    (logits * torch.linspace(0.5, 1.5, logits.numel()).view_as(logits)).sum().backward()
    norms = torch.stack([value.grad.norm() for _, value in sorted(model.named_parameters())])
    torch.testing.assert_close(norms, stored["grad_norms"], atol=1e-5, rtol=1e-4)
    handle.remove()
    near(model.eval()(images), stored["plain_logits"], 1e-5)
    attach(model, r=case["r"], proportional_attention=False)
    near(model(images), stored["eval_logits_no_prop_attn"], 1e-5)


def test_every_token_is_in_one_row_and_the_sizes_add_up():
    torch.manual_seed(0)
    for tokens, prefix, r in ((14, 0, 3), (13, 1, 4), (17, 2, 9), (18, 5, 5), (3, 1, 8), (6, 5, 2)):
        x = torch.randn(2, tokens, 4)
        y, size, row = merge(x, torch.randn(2, tokens, 3), None, r, prefix)
        expected = torch.zeros_like(y).scatter_add(1, row.unsqueeze(2).expand(-1, -1, 4), x) / size
        torch.testing.assert_close(y, expected)
        assert torch.equal(
            size.squeeze(2), torch.stack([torch.bincount(part, minlength=y.shape[1]) for part in row]).float()
        )
        assert torch.equal(y[:, :prefix], x[:, :prefix])  # where they were, and alone
        assert torch.equal(row[:, :prefix], torch.arange(prefix).expand(2, -1))
        assert (size[:, :prefix] == 1).all()


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("deit_tiny_distilled_patch16_224", {}),
        ("vit_tiny_patch16_224", {"reg_tokens": 4}),
    ],
)
def test_prefix_tokens_are_never_merged_in_any_block(name, given):
    torch.manual_seed(0)
    model = timm.create_model(name, **TINY, patch_size=4, **given).eval()
    handle = attach(model, r=6)
    model(torch.randn(2, 3, 32, 32))
    prefix = model.num_prefix_tokens
    assert prefix > 1
    assert torch.equal(handle.rows[:, :prefix], torch.arange(prefix).expand(2, -1))
    assert (handle.sizes[:, :prefix] == 1).all()
    assert handle.sizes.sum() == 2 * (64 + prefix)


def test_tokens_metric_and_sizes_must_fit():
    x = torch.randn(2, 9, 4)
    for metric, size in ((x[:, 1:], None), (x, torch.ones(2, 9)), (x, torch.ones(2, 8, 1))):
        with pytest.raises(ValueError, match="must be of the same tokens"):
            merge(x, metric, size, 2)
    halves = merge(x, x, torch.ones(2, 9, 1, dtype=torch.bfloat16), 2)
    assert all(torch.equal(one, other) for one, other in zip(halves, merge(x, x, None, 2), strict=True))


def test_a_batch_may_be_empty_and_a_handle_tells_nothing_before():
    model = timm.create_model("deit_tiny_patch16_224", **TINY).eval()
    handle = attach(model, r=1)
    for name in ("sizes", "rows"):
        with pytest.raises(ValueError, match="call it with images first"):
            getattr(handle, name)
    assert model(torch.empty(0, 3, 32, 32)).shape == (0, 5)


@pytest.mark.parametrize(
    ("r", "inflection", "expected"),
    [(8, 0.0, [8] * 5), (8, -1.0, [16, 12, 8, 4, 0]), (8, 0.5, [4, 6, 8, 10, 12]), ([3, 1], 0.0, [3, 1, 0, 0, 0])],
)
def test_schedules_of_r(r, inflection, expected):
    assert counts(r, 5, inflection) == expected


@pytest.mark.parametrize(
    ("r", "inflection", "reason"),
    [
        (-1, 0.0, "negative"),
        ([1] * 6, 0.0, "has 5"),
        ([1], 0.5, "leave it at 0"),
        (8, 2.0, "from -1 to 1"),
        *((given, 0.0, "must be a whole number, or a list") for given in (2.5, "8", None, [2.5])),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(r, inflection, reason):
    with pytest.raises(ValueError, match=reason):
        counts(r, 5, inflection)


TINY = {"img_size": 32, "embed_dim": 48, "depth": 4, "num_heads": 3, "num_classes": 5}
KINDS = {
    "deit": ("deit_tiny_patch16_224", {**TINY, "patch_size": 4}),
    "distilled": ("deit_tiny_distilled_patch16_224", {**TINY, "patch_size": 4}),
    "layer scale": ("vit_small_patch14_reg4_dinov2", {**TINY, "patch_size": 4, "global_pool": "token"}),
}


def model_of(kind, seed=0):
    name, options = KINDS[kind]
    torch.manual_seed(seed)
    model = timm.create_model(name, **options)
    with torch.no_grad():
        for part, value in model.named_parameters():
            if part.endswith("gamma"):  # a layer scale of 1e-5 would hide what the blocks do
                value.fill_(0.5)
    return model


@pytest.mark.parametrize("kind", ["deit", "distilled", "layer scale"])
def test_without_merging_it_is_the_plain_model(kind):
    model, images = model_of(kind).eval(), torch.randn(2, 3, 32, 32)
    plain = model(images)
    handle = attach(model, r=0)
    torch.testing.assert_close(model(images), plain)
    handle.remove()
    attach(model, r=8)
    assert (model(images) - plain).abs().max() > 1e-5


def test_checkpointing_and_a_copy_and_a_graph_of_each_block_give_the_same():
    torch.manual_seed(1)
    model, images = model_of("deit"), torch.randn(2, 3, 32, 32)
    attach(model, r=8)
    expected = model(images)
    expected.sum().backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters()}
    twin = copy.deepcopy(model)
    assert twin.blocks[0].after is twin.blocks[1].before is not model.blocks[1].before
    model.zero_grad()
    model.set_grad_checkpointing()
    output = model(images)
    output.sum().backward()
    torch.testing.assert_close(output, expected)
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.grad, gradients[name])
    counter = CompileCounter()
    for block in twin.blocks:
        block.compile(backend=counter, dynamic=False, fullgraph=True)
    torch.testing.assert_close(twin(images), expected)
    frames = counter.frame_count
    twin(images)
    assert counter.frame_count == frames == 4


def test_similarity_is_in_float32_under_autocast():
    x, metric = torch.randn(1, 33, 8), torch.randn(1, 33, 8)
    expected = merge(x, metric, None, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = merge(x, metric, None, 8)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_double_precision_stays():
    x, metric = torch.randn(1, 33, 8, dtype=torch.float64), torch.randn(1, 33, 8, dtype=torch.float64)
    y, size, row = merge(x, metric, None, 8)
    means = torch.zeros_like(y).index_add_(1, row[0], x) / size
    torch.testing.assert_close(y, means, rtol=1e-13, atol=1e-13)
    assert not torch.equal(y, merge(x.float(), metric.float(), None, 8)[0].double())


def test_lvvit_answers_for_every_patch():
    torch.manual_seed(0)
    options = {"patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2}
    model = create_model("lvvit_t", num_classes=5, img_size=32, **options)
    model.mix_token = False
    images = torch.randn(2, 3, 32, 32)
    plain = model.train()(images)
    handle = attach(model, r=0)
    for output, expected in zip(model(images), plain, strict=True):
        torch.testing.assert_close(output, expected)
    handle.remove()
    handle = attach(model, r=8)
    _, aux, _ = model(images)
    assert aux.shape == (2, 64, 5)
    row = handle.rows[:, 1:]
    first = (row == row[:, :1]).nonzero()
    assert len(first) >= 2
    for image, patch in first.tolist():
        assert torch.equal(aux[image, patch], aux[image, 0])  # of one merged token


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("swin_tiny_patch4_window7_224", {}, "no plain list `blocks`"),
        ("beit_base_patch16_224", {}, r"is a beit\.Block"),
        ("vit_small_patch16_224", {"global_pool": "avg", "class_token": False}, "averages its tokens"),
        ("eva02_tiny_patch14_224", {}, r"is a eva\.EvaBlock"),
    ],
)
def test_other_models_are_refused_by_the_reason(name, options, reason):
    with torch.device("meta"):
        model = timm.create_model(name, **options)
    with pytest.raises(ValueError, match=reason):
        attach(model)


def test_attaching_twice_is_refused():
    model = model_of("deit")
    attach(model)
    with pytest.raises(ValueError, match=r"call remove\(\)"):
        attach(model)


def test_a_model_drops_or_merges_tokens_and_not_both():
    expansion = TokenExpansion(ExpansionSchedule([0, 1], [0.5, 1.0], initial_keep_rate=0.25), num_prefix_tokens=1)
    model = model_of("deit")
    dropping = expand(model, expansion)
    with pytest.raises(ValueError, match=r"drops tokens by a token expansion: .* remove\(\)"):
        attach(model)
    dropping.remove()
    attach(model)
    with pytest.raises(ValueError, match=r"MergingBlock.* cannot run on a subset"):
        expand(model, expansion)


@pytest.mark.parametrize("name", ["forward_intermediates", "get_intermediate_layers"])
def test_feature_maps_are_refused_while_tokens_are_merged(name):
    model, images = model_of("deit").eval(), torch.randn(2, 3, 32, 32)
    expected = getattr(model, name)(images)
    handle = attach(model)
    for refusing in (model, copy.deepcopy(model)):
        with pytest.raises(ValueError, match=rf"{name} gives feature maps, and merged tokens .*remove\(\)"):
            getattr(refusing, name)(images)
    handle.merging.on = False
    torch.testing.assert_close(getattr(model, name)(images), expected)
    handle.remove()
    torch.testing.assert_close(getattr(model, name)(images), expected)


def test_the_method_says_how_many_tokens_are_left_and_that_evaluation_merges():
    model = timm.create_model("deit_tiny_patch16_224")
    method = TokenMergingMethod(8)
    method.prepare(model)
    assert (method.tokens_kept(196, 1), method.tokens_kept(196, 0)) == (100, 196)
    assert "not the plain one's" in method.note
    assert getattr(model, token_merging.NAME) is not None


@pytest.mark.parametrize(("r", "told"), [(3, None), (1000, "2 of 2 blocks"), ([1, 9], "1 of 2 blocks")])
def test_what_r_asks_for_and_cannot_get_is_said(r, told):
    """16 patch tokens: at most half of what is left goes in a block."""
    model = timm.create_model("deit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2)
    method = TokenMergingMethod(r)
    method.prepare(model)
    assert ("lose half of their tokens" in method.note) == (told is not None)
    assert (told or "") in method.note
