import copy
import gc
import pickle
import weakref

import pytest
import timm
import torch
import torch.distributed as dist
from torch import nn

from toe_train.expansion import METRICS, RESTORES, ExpansionSchedule, TokenExpansion, attach, kept_mask

SMALL = {"img_size": 32, "patch_size": 4, "depth": 3, "embed_dim": 24, "num_heads": 2, "num_classes": 5}
# name -> (number of prefix tokens, arguments); each has 64 patch tokens
WORKING = {
    "deit_tiny_patch16_224": (1, {}),
    "deit_tiny_distilled_patch16_224": (2, {}),
    "deit3_small_patch16_224": (1, {}),
    "vit_small_patch14_reg4_dinov2": (5, {}),
    "vit_base_patch16_224": (0, {"global_pool": "avg", "class_token": False}),
    "vit_base_patch16_siglip_gap_224": (0, {}),
}


def build(name="deit_tiny_patch16_224", **options):
    torch.manual_seed(0)
    model = timm.create_model(name, **{**SMALL, **WORKING[name][1], **options})
    for parameter in model.parameters():  # biases and layer scales away from their initial zeros and ones
        nn.init.normal_(parameter, std=0.2)
    return model


def expansion_for(prefix=1, stage=1, **options):
    schedule = ExpansionSchedule([1, 2, 3], [0.5, 0.75, 1.0], 0.25)
    expansion = TokenExpansion(schedule, num_prefix_tokens=prefix, **options)
    expansion.set_epoch(stage)
    return expansion


def images(batch=2):
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def step(model, x):
    """Output and gradients of one backward pass."""
    model.zero_grad()
    output = model(x)
    (sum(output) if isinstance(output, tuple) else output).square().sum().backward()
    return output, [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def counts_seen(model, x):
    """Number of tokens that each block gets in a forward pass."""
    seen = []
    hooks = [
        block.norm1.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1])) for block in model.blocks
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("name", WORKING)
def test_tokens_are_dropped_in_training_and_eval_is_that_of_the_plain_model(name):
    prefix = WORKING[name][0]
    model, plain = build(name), build(name)
    handle = attach(model, expansion_for(prefix))
    assert counts_seen(model.train(), images()) == [64 + prefix, 32 + prefix, 32 + prefix]
    handle.expansion.set_epoch(3)
    assert counts_seen(model, images()) == [64 + prefix] * 3
    handle.expansion.set_epoch(1)
    assert torch.equal(model.eval()(images()), plain.eval()(images()))
    assert list(model.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(model.state_dict(), strict=True)


@pytest.mark.parametrize("name", WORKING)
def test_every_parameter_gets_a_gradient(name):
    model = build(name)
    attach(model, expansion_for(WORKING[name][0]))
    step(model.train(), images())
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(("after_block", "seen"), [(0, [33, 33, 33]), (1, [65, 33, 33]), (2, [65, 65, 33])])
def test_after_block_is_the_number_of_blocks_that_see_every_token(after_block, seen):
    model = build()
    attach(model, expansion_for(), after_block)
    assert counts_seen(model.train(), images()) == seen


def test_the_forward_pass_is_that_of_blocks_with_the_expansion_between():
    model, plain = build().train(), build().train()
    expansion = expansion_for()
    attach(model, expansion, after_block=2)
    x = plain._pos_embed(plain.patch_embed(images()))
    x, kept = expansion_for()(plain.blocks[1](plain.blocks[0](x)))
    expected = plain.forward_head(plain.norm(plain.blocks[2](x)))
    assert torch.equal(model(images()), expected)
    assert torch.equal(expansion.kept, kept)


def test_remove_gives_the_plain_model_back():
    model, plain = build().train(), build().train()
    expansion = expansion_for()
    handle = attach(model, expansion)
    assert handle.expansion is model.token_expansion is expansion
    assert not torch.equal(model(images()), plain(images()))
    handle.remove()
    handle.remove()
    assert torch.equal(model(images()), plain(images()))
    assert not hasattr(model, "token_expansion")
    assert not model.blocks[1]._forward_pre_hooks
    second = attach(model, expansion)
    handle.remove()  # an old handle leaves a new attachment alone
    assert model.token_expansion is expansion
    assert counts_seen(model, images()) == [65, 33, 33]
    second.remove()


@pytest.mark.parametrize("initialization", ["spatial", "random"])
@pytest.mark.parametrize("after_block", [0, 1])
def test_gradient_checkpointing_changes_no_gradient(initialization, after_block):
    results = []
    for checkpointing in (False, True):
        model = build().train()
        expansion = expansion_for(initialization=initialization)
        attach(model, expansion, after_block)
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(7)
        results.append(step(model, images()))
        assert expansion.kept.shape == (2, 32)
    (output, gradients), (other_output, other_gradients) = results
    torch.testing.assert_close(other_output, output)
    assert len(gradients) == len(other_gradients) > 0
    for gradient, other in zip(gradients, other_gradients, strict=True):
        torch.testing.assert_close(other, gradient)


def test_a_deep_copy_has_its_own_expansion():
    model = build().train()
    attach(model, expansion_for())
    model(images())
    ema = copy.deepcopy(model).eval()
    assert ema.token_expansion is not model.token_expansion
    assert counts_seen(ema, images()) == [65, 65, 65]
    assert counts_seen(model, images()) == [65, 33, 33]
    ema.train()
    ema.token_expansion.set_epoch(2)
    assert counts_seen(ema, images()) == [65, 49, 49]
    assert counts_seen(model, images()) == [65, 33, 33]


@pytest.mark.parametrize(
    ("backend", "stages"),
    [
        ("aot_eager", (1,)),
        pytest.param("aot_eager", (1, 2, 3), marks=pytest.mark.slow),
        pytest.param("inductor", (1,), marks=pytest.mark.slow),
    ],
)
def test_compiled_model_equals_eager(backend, stages):
    torch.compiler.reset()
    model = build().train()
    expansion = expansion_for()
    attach(model, expansion)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for stage in stages:
        expansion.set_epoch(stage)
        output, gradients = step(compiled, images())
        expected, expected_gradients = step(model, images())
        torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(gradients, expected_gradients, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(compiled.eval()(images()), model.eval()(images()), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("static_graph", [False, True])
def test_ddp(tmp_path, static_graph):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model, alone = build().train(), build().train()
        attach(model, expansion_for())
        attach(alone, expansion_for())
        wrapped = nn.parallel.DistributedDataParallel(model, static_graph=static_graph)
        for stage in (1, 2):
            model.token_expansion.set_epoch(stage)
            alone.token_expansion.set_epoch(stage)
            output, gradients = step(wrapped, images())
            expected, expected_gradients = step(alone, images())
            assert torch.equal(output, expected)
            torch.testing.assert_close(gradients, expected_gradients)
        with pytest.raises(ValueError, match=r"DistributedDataParallel .*inside the wrapper"):
            attach(wrapped, expansion_for())
    finally:
        dist.destroy_process_group()


def test_attaching_leaves_no_trace_of_the_probe():
    model = build("deit3_small_patch16_224", drop_path_rate=0.5).train()
    model.blocks[2].eval()
    flags = {name: module.training for name, module in model.named_modules()}
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random_state = torch.random.get_rng_state()
    attach(model, expansion_for()).remove()
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_in_other_dtypes(dtype):
    model = build().to(dtype).train()
    attach(model, expansion_for())
    assert model(images().to(dtype)).dtype == dtype


def test_models_on_the_meta_device():
    model = timm.create_model("deit_tiny_patch16_224", **SMALL).train().to("meta")
    attach(model, expansion_for())
    assert counts_seen(model, images().to("meta")) == [65, 33, 33]


class Plain(nn.Module):
    """A minimal transformer made of the given blocks, to attach to."""

    def __init__(self, *blocks, width=8):
        super().__init__()
        self.embed_dim = width
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class Dense(Plain):
    """A model with an output for every patch position."""

    dense_output = True

    def __init__(self, *blocks, width=8):
        super().__init__(*blocks, width=width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        return self.norm(super().forward(x))


def dense_model():
    torch.manual_seed(0)
    return Dense(nn.Linear(8, 8), nn.Linear(8, 8)).train()


@pytest.mark.parametrize("restore", RESTORES)
@pytest.mark.parametrize("prefix", [0, 2])
def test_the_last_norm_gives_out_the_full_grid(restore, prefix):
    model = dense_model()
    expansion = expansion_for(prefix)
    attach(model, expansion, restore=restore)
    x = torch.randn(2, prefix + 16, 8)
    for stage, count in ((1, 8), (2, 12), (1, 8)):
        expansion.set_epoch(stage)
        y = model(x)
        tokens, kept = copy.deepcopy(expansion)(model.blocks[0](x))
        tokens = model.norm.forward(model.blocks[1].forward(tokens))  # without the hooks
        assert torch.equal(y[:, :prefix], tokens[:, :prefix])
        mask = kept_mask(kept, 16)
        assert (mask.sum(dim=1) == count).all()
        for image in range(2):
            assert torch.equal(y[image, prefix + kept[image]], tokens[image, prefix:])
            expected = torch.zeros(16 - count, 8)
            if restore == "copy":
                expected = tokens[image, prefix + expansion.owner[image, ~mask[image]]]
            assert torch.equal(y[image, prefix:][~mask[image]], expected)
    for stage, training in ((3, True), (0, True), (1, False)):
        expansion.set_epoch(stage)
        model.train(training)
        assert torch.equal(model(x), model.norm.forward(model.blocks[1].forward(model.blocks[0](x))))


class Wrapper(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("restore", RESTORES)
def test_the_grid_is_restored_inside_a_wrapper_too(restore):
    model, bare = Wrapper(dense_model()), dense_model()
    attach(model, expansion_for(0), restore=restore, blocks="net.blocks")
    attach(bare, expansion_for(0), restore=restore)
    x = torch.randn(2, 16, 8)
    assert model(x).shape == x.shape
    assert torch.equal(model(x), bare(x))


@pytest.mark.slow
@pytest.mark.parametrize("restore", ["zero", "copy"])
def test_compiled_dense_outputs_equal_eager(restore):
    torch.compiler.reset()
    model = dense_model()
    expansion = expansion_for(0)
    attach(model, expansion, restore=restore)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for stage, num_tokens in ((1, 16), (3, 16), (1, 36)):
        expansion.set_epoch(stage)
        x = torch.randn(2, num_tokens, 8)
        y = compiled(x)
        assert y.shape == x.shape
        torch.testing.assert_close(y, model(x))


def test_owners_are_remembered_while_attached_to_copy_them():
    model = dense_model()
    x = torch.randn(2, 16, 8)
    for restore, remembered in (("zero", False), ("copy", True), ("ignore", False)):
        expansion = expansion_for(0)
        handle = attach(model, expansion, restore=restore)
        model(x)
        assert (expansion.owner is not None) == remembered
        handle.remove()
        assert not expansion.remember_owner


def test_remove_takes_the_hook_off_the_norm():
    model, plain = dense_model(), dense_model()
    handle = attach(model, expansion_for(0), restore="copy")
    handle.remove()
    x = torch.randn(2, 16, 8)
    assert torch.equal(model(x), plain(x))
    assert not model.norm._forward_hooks


def test_restore_that_cannot_be():
    with pytest.raises(ValueError, match=r"restore='zeros' is not one of zero, .*nearest is 'zero'"):
        attach(dense_model(), expansion_for(0), restore="zeros")
    with pytest.raises(ValueError, match=r"restore='copy' is for models with an output for every patch.*VisionTransf"):
        attach(build(), expansion_for(), restore="copy")
    with pytest.raises(ValueError, match=r"this expansion has merging=False; use restore='zero' or 'ignore'"):
        attach(dense_model(), expansion_for(0, merging=False), restore="copy")
    model = dense_model()
    del model.norm
    with pytest.raises(ValueError, match=r"Dense has dense outputs and no module `norm`"):
        attach(model, expansion_for(0))
    assert not model.blocks[1]._forward_pre_hooks


class NormBlock(nn.Module):
    """A block with batch normalisation over all tokens: independent of their order in eval mode only."""

    def __init__(self, width=8):
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return x + self.drop(self.norm(x.transpose(1, 2)).transpose(1, 2))


class Faint(nn.Module):
    """Mixes neighbours with a tiny layer scale, which a comparison of outputs alone would miss."""

    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x):
        return x + self.scale * x.roll(1, dims=1)


class Pooling(nn.Module):
    def forward(self, x):
        return x[:, ::2]


class PairedTokens(nn.Module):
    def forward(self, x):
        return (x, x)


class ByPosition(nn.Module):
    def __init__(self, num_tokens):
        super().__init__()
        self.table = nn.Parameter(torch.randn(num_tokens, 8))

    def forward(self, x):
        return x + self.table


def test_batch_norm_blocks_are_probed_in_eval_mode():
    model = Plain(NormBlock(), NormBlock()).train()
    before = copy.deepcopy(model.state_dict())
    attach(model, expansion_for(0))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model(torch.randn(2, 16, 8)).shape == (2, 8, 8)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (Faint(1e-5), "depends on the order"),
        (Faint(1.0), "depends on the order"),
        (Pooling(), r"became \(2, 3, 8\)"),
        (PairedTokens(), "became tuple"),
        (ByPosition(6), "block 1 .*cannot run on a subset"),
        (nn.Conv1d(8, 8, 3, padding=1), "cannot run on a subset"),
        (nn.Bilinear(8, 8, 8), "cannot run on a subset"),  # needs a second argument
    ],
)
def test_blocks_that_need_every_token_are_refused(block, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        attach(Plain(nn.Identity(), block), expansion_for(1))
    assert "use a plain vision transformer" in str(caught.value)


def test_blocks_before_the_expansion_may_be_anything():
    attach(Plain(Faint(1.0), nn.Linear(8, 8)), expansion_for(1), after_block=1)


def test_refusing_leaves_the_model_as_it_was():
    model = Plain(nn.Identity(), nn.Dropout(), Faint(1.0)).train()
    with pytest.raises(ValueError, match="depends on the order"):
        attach(model, expansion_for(1))
    assert all(module.training for module in model.modules())
    assert not hasattr(model, "token_expansion")
    assert not model.blocks[1]._forward_pre_hooks


@pytest.mark.parametrize("name", ["forward_intermediates", "get_intermediate_layers"])
def test_feature_maps_are_refused_while_tokens_are_dropped(name):
    model, plain, x = build().train(), build().train(), images()
    handle = attach(model, expansion_for())
    for copied in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(ValueError, match=rf"{name} gives feature maps, .* stage 1 .*model.eval\(\)"):
            getattr(copied, name)(x)
        # A copy answers for its own module, whatever the first one does.
        copied.token_expansion.set_epoch(3)
        torch.testing.assert_close(getattr(copied, name)(x), getattr(plain, name)(x))
        copied.token_expansion.set_epoch(1)
        torch.testing.assert_close(getattr(copied.eval(), name)(x), getattr(plain.eval(), name)(x))
        copied.train()
    handle.remove()
    torch.testing.assert_close(getattr(model, name)(x), getattr(plain, name)(x))


def test_an_attached_model_is_freed_without_a_garbage_collection():
    model = build()
    attach(model, expansion_for())
    gone = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_an_attention_mask_is_that_of_the_kept_tokens():
    model, plain = build().train(), build().train()
    mask = torch.rand(2, 1, 65, 65, generator=torch.Generator().manual_seed(3)) < 0.7
    mask |= torch.eye(65, dtype=torch.bool)
    expansion = expansion_for()
    attach(model, expansion)
    features = model.forward_features(images(), attn_mask=mask)
    x = plain._pos_embed(plain.patch_embed(images()))
    x, kept = expansion_for()(plain.blocks[0](x, attn_mask=mask))
    rows = torch.cat([torch.zeros(2, 1, dtype=torch.int64), kept + 1], dim=1)
    among = torch.stack([mask[image][:, rows[image]][:, :, rows[image]] for image in range(2)])
    for block in plain.blocks[1:]:
        x = block(x, attn_mask=among)
    assert torch.equal(features, plain.norm(x))
    expansion.set_epoch(3)
    assert torch.equal(
        model.forward_features(images(), attn_mask=mask), plain.forward_features(images(), attn_mask=mask)
    )


def test_attending_in_the_order_of_the_tokens_is_refused_while_they_are_dropped():
    model, plain = build().train(), build().train()
    expansion = expansion_for()
    attach(model, expansion)
    with pytest.raises(ValueError, match=r"Block is given `is_causal`, .*full set of tokens"):
        model.forward_features(images(), is_causal=True)
    expansion.set_epoch(3)
    assert torch.equal(
        model.forward_features(images(), is_causal=True), plain.forward_features(images(), is_causal=True)
    )


@pytest.mark.parametrize("how", [{"initialization": "random"}, {"expansion": "uniform"}, {"merging": False}, {}])
@pytest.mark.parametrize("metric", METRICS)
def test_a_batch_of_no_images(metric, how):
    """A process's share of an uneven last batch may be one."""
    model = build().train()
    attach(model, expansion_for(metric=metric, **how))
    output, gradients = step(model, images(0))
    assert output.shape == (0, 5)
    assert gradients
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("restore", RESTORES)
def test_a_batch_of_no_images_with_dense_outputs(restore):
    model = dense_model()
    attach(model, expansion_for(0), restore=restore)
    assert model(torch.randn(0, 16, 8)).shape == (0, 16, 8)


def test_prefix_tokens_are_those_of_the_model_inside_a_wrapper():
    model = build("vit_small_patch14_reg4_dinov2")
    model.num_prefix_tokens = 4  # its parameters say 5
    with pytest.raises(ValueError, match="has 4 prefix tokens"):
        attach(Wrapper(model), expansion_for(5))


def test_a_sequence_that_would_run_the_expansion_is_refused():
    with pytest.raises(ValueError, match=r"Sequential runs all modules that it holds.*attach to the model inside"):
        attach(nn.Sequential(build(), nn.Flatten()), expansion_for())


def test_other_refusals():
    model = build()
    with pytest.raises(ValueError, match=r"has 1 prefix tokens, .* made for 2: use .*num_prefix_tokens=1"):
        attach(model, expansion_for(2))
    for after_block, nearest in ((3, 2), (-1, 0)):
        with pytest.raises(
            ValueError, match=f"after_block={after_block} must be from 0 .* to 2 .*nearest is {nearest}"
        ):
            attach(model, expansion_for(), after_block)
    attach(model, expansion_for())
    with pytest.raises(ValueError, match="already: call remove"):
        attach(model, expansion_for())
    with pytest.raises(ValueError, match="no integer `embed_dim`"):
        attach(Plain(nn.Identity(), nn.Identity(), width=None), expansion_for())


def test_a_compiled_model_is_refused():
    model = build()
    with pytest.raises(ValueError, match="attach to the model first, then compile"):
        attach(torch.compile(model), expansion_for())
    attach(model, expansion_for()).remove()
    model.compile()
    with pytest.raises(ValueError, match="attach to the model first, then compile"):
        attach(model, expansion_for())


@pytest.mark.parametrize("count", [1.5, "1", None, -1])
def test_a_number_of_prefix_tokens_is_a_whole_number(count):
    with pytest.raises(ValueError, match="must be a whole number, 0 or more"):
        expansion_for(count)
