"""Each family of models: tokens may come in any order, if their positions come with them."""

import copy
import functools

import pytest
import torch

from toe_train.analysis.families import DEPTH, NUM_TOKENS, PIXELS, SERVED, Reordered, answer, build
from toe_train.expansion import ExpansionSchedule, TokenExpansion, attach
from toe_train.expansion.positions import KeptPositions

SCHEDULE = ExpansionSchedule([1, 2, 3], [0.5, 0.75, 1.0], 0.25)
FAMILIES = pytest.mark.parametrize("family", SERVED, ids=lambda family: family.id.replace(" ", "-"))


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(1))


def expansion_for(family, stage=1):
    expansion = TokenExpansion(SCHEDULE, family.num_prefix_tokens)
    expansion.set_epoch(stage)
    return expansion


def step(model, images):
    """Answer and gradients of one backward pass."""
    model.zero_grad()
    output = answer(model, images)
    output.square().sum().backward()
    return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def counts_seen(model, family, images):
    """Number of tokens that each block computes with."""
    seen = []
    hooks = [
        next(module for module in block.modules() if isinstance(module, torch.nn.LayerNorm)).register_forward_pre_hook(
            lambda _, args: seen.append(args[0].shape[1])
        )
        for block in model.get_submodule(family.blocks)
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    return seen


@FAMILIES
def test_all_tokens_in_another_order_of_each_image_give_the_same(family, images, monkeypatch):
    model = build(family)
    reordered = Reordered(SCHEDULE, family.num_prefix_tokens)
    reordered.set_epoch(1)
    model.train()
    dense = answer(model, images)
    attach(model, reordered)
    error = (answer(model, images) - dense).abs().max() / dense.abs().max()
    assert error < 1e-5
    monkeypatch.setattr(KeptPositions, "of", lambda self, name, value: value)
    error = (answer(model, images) - dense).abs().max() / dense.abs().max()
    assert error > 1e-3 if family.rotary else error < 1e-5


@FAMILIES
def test_tokens_are_dropped_in_training_only(family, images):
    model, plain = build(family), build(family)
    expected = answer(plain.eval(), images)
    used = set(step(plain.train(), images)[1])
    handle = attach(model, expansion_for(family))
    prefix = family.num_prefix_tokens
    for stage, count in ((1, 8), (2, 12), (3, NUM_TOKENS), (1, 8)):
        handle.expansion.set_epoch(stage)
        assert counts_seen(model.train(), family, images) == [prefix + NUM_TOKENS, *[prefix + count] * (DEPTH - 1)]
    assert set(step(model, images)[1]) == used
    assert torch.equal(answer(model.eval(), images), expected)
    assert list(model.state_dict()) == list(plain.state_dict())
    handle.remove()
    assert torch.equal(answer(model.train(), images), answer(plain, images))
    assert not any(module._forward_pre_hooks for module in model.modules())


def checkpointed(model, reentrant=False):
    """The model with gradient checkpointing, as its library does it, or block by block."""
    if hasattr(model, "gradient_checkpointing_enable"):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    elif hasattr(model, "set_grad_checkpointing"):
        model.set_grad_checkpointing()
    else:
        for block in model.encoder.layers:
            block.forward = functools.partial(torch.utils.checkpoint.checkpoint, block.forward, use_reentrant=reentrant)
    return model


@FAMILIES
def test_gradient_checkpointing_changes_nothing(family, images):
    """Two forward passes before a backward pass, as of two views of an image, keep other tokens each."""
    results = []
    for wrap in (lambda model: model, checkpointed):
        model = wrap(build(family)).train()
        handle = attach(model, expansion_for(family))
        model.zero_grad()
        views = images, images.flip(3) * 2
        outputs = [answer(model, view) for view in views]
        handle.expansion.set_epoch(1)
        sum(output.square().sum() for output in outputs).backward()
        results.append((outputs, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


@FAMILIES
def test_a_deep_copy_has_its_own(family, images):
    model = build(family).train()
    attach(model, expansion_for(family))
    answer(model, images)
    twin = copy.deepcopy(model)
    twin.token_expansion.set_epoch(2)
    prefix = family.num_prefix_tokens
    assert counts_seen(twin, family, images)[-1] == prefix + 12
    assert counts_seen(model, family, images)[-1] == prefix + 8


def compiled_equals_eager(family, images, backend, stages):
    torch.compiler.reset()
    model = build(family).train()
    expansion = expansion_for(family)
    attach(model, expansion)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for stage in stages:
        expansion.set_epoch(stage)
        output, gradients = step(compiled, images)
        expected, expected_gradients = step(model, images)
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
        assert gradients.keys() == {f"_orig_mod.{name}" for name in expected_gradients}
    torch.testing.assert_close(answer(compiled.eval(), images), answer(model.eval(), images), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@FAMILIES
def test_it_compiles_without_graph_breaks(family, images):
    compiled_equals_eager(family, images, "aot_eager", stages=(1, 3))


def test_positions_compile_without_graph_breaks(images):
    family = next(family for family in SERVED if family.id == "timm DINOv3")
    compiled_equals_eager(family, images, "eager", stages=(1,))
