"""LV-ViT trained with Token Expansion: its outputs for every patch where tokens were dropped."""

import copy

import pytest
import torch
from torch import nn

from toe_train.expansion import RESTORES, ExpansionSchedule, TokenExpansion, attach, kept_mask
from toe_train.models import TokenMix, create_model, swap_in_boxes

GRID = (8, 8)
MIX = TokenMix(torch.tensor([[1, 2, 6, 7]] * 2), torch.tensor([1, 0]))


def build(restore=None, mix=None):
    """A small LV-ViT in training, with ToE at stage 1 and BatchNorm in eval mode so that its inputs tell it nothing."""
    torch.manual_seed(0)
    model = create_model("lvvit_s", 5, 0.0, 32, patch_size=4, embed_dim=24, depth=3, num_heads=2, stem_width=8).train()
    for parameter in model.parameters():  # biases away from their initial zeros
        nn.init.normal_(parameter, std=0.2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    model.mix_token = mix is not None
    model.given_mix = mix
    if restore is not None:
        expansion = TokenExpansion(ExpansionSchedule([0, 1, 2], [0.5, 0.75, 1.0], 0.25))
        expansion.set_epoch(0)
        attach(model, expansion, restore=restore)
    return model


def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def step(model):
    """Train outputs and gradients of one backward pass."""
    model.zero_grad()
    cls, aux, _ = model(images())
    (cls.square().sum() + aux.square().mean()).backward()
    return cls, aux, [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("mix", [None, MIX], ids=["plain", "mixed"])
@pytest.mark.parametrize("restore", RESTORES)
def test_what_stands_at_the_dropped_positions(restore, mix):
    model = build(restore, mix)
    seen = []
    model.blocks[2].register_forward_hook(lambda block, args, output: seen.append(output))
    cls, aux, _ = model(images())
    tokens = model.norm.forward(seen[0])  # (B, 1+K, D) of the kept ones
    expansion = model.token_expansion
    expected = model.aux_head.bias.expand(2, 64, 5)
    if restore == "copy":
        hosts = expansion.owner[:, :, None].expand(2, 64, 24)
        expected = model.aux_head(tokens[:, 1:].gather(1, hosts))
    mask = kept_mask(expansion.kept, 64)  # (B, N)
    assert (mask.sum(dim=1) == 32).all()
    if mix is not None:  # of the mixed image's positions; the outputs were given back to their own images
        expected, mask = (swap_in_boxes(part, model.last_mix, GRID) for part in (expected, mask))
    torch.testing.assert_close(aux[~mask], expected[~mask])
    assert not torch.isclose(aux[mask], model.aux_head.bias).all(dim=1).any()
    assert torch.equal(cls, model.head(tokens[:, 0]))


def test_ignoring_is_restoring_zeros():
    ignoring, zeros = step(build("ignore", MIX)), step(build("zero", MIX))
    torch.testing.assert_close(ignoring, zeros, rtol=0, atol=0)


@pytest.mark.parametrize("restore", RESTORES)
def test_gradients_flow(restore):
    model = build(restore, MIX)
    *_, gradients = step(model)
    assert all(gradient.isfinite().all() and gradient.abs().max() > 0 for gradient in gradients)
    # A dropped position's output teaches its host under "copy", and the head's bias alone under the other two.
    model.given_mix = TokenMix(torch.zeros(2, 4, dtype=torch.int64), torch.arange(2))
    model.zero_grad()
    _, aux, _ = model(images())
    aux[~kept_mask(model.token_expansion.kept, 64)].sum().backward()
    taught = {
        name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }
    if restore == "copy":
        assert taught >= {"aux_head.weight", "blocks.2.mlp.fc2.weight"}
    else:
        assert taught == {"aux_head.bias"}


@pytest.mark.parametrize("restore", RESTORES)
def test_evaluation_is_dense(restore):
    assert torch.equal(build(restore).eval()(images()), build().eval()(images()))
    dense = build(restore)
    dense.token_expansion.set_epoch(2)
    torch.testing.assert_close(step(dense), step(build()), rtol=0, atol=0)


@pytest.mark.parametrize("restore", RESTORES)
def test_remove_gives_the_plain_model_back(restore):
    plain = build(mix=MIX)
    model = build(mix=MIX)
    attach(model, TokenExpansion(ExpansionSchedule([0], [0.5], 0.25)), restore=restore).remove()
    torch.testing.assert_close(step(model), step(plain), rtol=0, atol=0)
    assert list(model.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("restore", RESTORES)
def test_gradient_checkpointing_changes_no_gradient(restore):
    model, checkpointed = build(restore, MIX), build(restore, MIX)
    checkpointed.set_grad_checkpointing()
    torch.testing.assert_close(step(checkpointed), step(model))
    assert checkpointed.token_expansion.kept.shape == (2, 32)


@pytest.mark.parametrize("restore", [pytest.param("zero", marks=pytest.mark.slow), "copy"])
def test_compiled_model_equals_eager(restore):
    torch.compiler.reset()
    model = build(restore, MIX)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for epoch in (0, 2):
        model.token_expansion.set_epoch(epoch)
        torch.testing.assert_close(step(compiled), step(model), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("restore", RESTORES)
def test_a_deep_copy_has_its_own_expansion(restore):
    model = build(restore, MIX)
    model(images())
    other = copy.deepcopy(model)
    other.token_expansion.set_epoch(1)
    other(images())
    assert other.token_expansion.kept.shape == (2, 48)
    assert model.token_expansion.kept.shape == (2, 32)
    torch.testing.assert_close(step(model), step(build(restore, MIX)), rtol=0, atol=0)


def test_ddp(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model = build("copy", MIX)
        wrapped = nn.parallel.DistributedDataParallel(model)
        torch.testing.assert_close(step(wrapped), step(build("copy", MIX)))
    finally:
        torch.distributed.destroy_process_group()
