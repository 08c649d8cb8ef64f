"""Models by name, and drop path whose draws are given."""

import pytest
import timm
import torch
from timm.layers import DropPath

from toe_train.errors import UserError
from toe_train.models import create_model, give_drop_path


# Parameters of timm's DeiT at 224 and 1000 classes; 152 entries in each state_dict.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("deit_tiny_patch16_224", 5_717_416),
        ("deit_small_patch16_224", 22_050_664),
        ("deit_base_patch16_224", 86_567_656),
    ],
)
def test_parameter_counts_of_deit(name, parameters):
    model = create_model(name, 1000, 0.1, 224)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert len(model.state_dict()) == 152


def test_deit_starts_as_published():
    """Linear weights and positions truncated normal of deviation .02, zero biases, block rates linear from 0."""
    torch.manual_seed(0)
    model = create_model("deit_tiny_patch16_224", 1000, 0.1, 224)
    for weight in (model.blocks[3].attn.qkv.weight, model.blocks[7].mlp.fc1.weight, model.pos_embed):
        assert weight.std().item() == pytest.approx(0.02, rel=0.03)
        assert weight.abs().max() < 0.12  # six deviations
    assert not model.blocks[3].mlp.fc1.bias.any()
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.1 * index / 11 for index in range(12)])
    assert model.blocks[0].norm1.eps == model.norm.eps == 1e-6


def test_a_name_and_a_width_are_enough():
    model = create_model("lvvit_t", num_classes=10)
    assert model.patch_embed.img_size == (224, 224)
    assert not any(isinstance(module, DropPath) for module in model.modules())


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(UserError, match=r"'deit_tinny_patch16_224'.*did you mean deit_tiny_patch16_224"):
        create_model("deit_tinny_patch16_224", 10, 0.0, 224)


@pytest.mark.parametrize("wrong", [{"img_size": 224, "depht": 3}, {"img_size": 224, "num_heads": 5}])
def test_arguments_that_do_not_fit_are_refused(wrong):
    with pytest.raises(UserError, match=r"cannot be built with .* mend model.image_size or model.kwargs"):
        create_model("deit_tiny_patch16_224", 10, 0.0, **wrong)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return create_model("deit_tiny_patch16_224", 5, 0.5, 32, patch_size=8, embed_dim=16, depth=3, num_heads=2).train()


def test_given_draws_do_what_timm_does_with_its_own(model, monkeypatch):
    """timm keeps a branch where bernoulli(1 - p) is 1; the same uniform numbers must give the same output."""
    x = torch.randn(6, 3, 32, 32)
    uniform = torch.rand(4, 6)  # block 0 has rate 0, blocks 1 and 2 draw twice each
    rows = iter(uniform)

    def given(x, drop_prob=0.0, training=False, scale_by_keep=True):
        keep = (next(rows) >= drop_prob).to(x.dtype) / (1 - drop_prob)
        return x * keep.view(-1, 1, 1)

    monkeypatch.setattr("timm.layers.drop.drop_path", given)
    expected = model(x)
    assert next(rows, None) is None  # timm drew once per layer, in order
    draws = give_drop_path(model)
    assert draws.count == 4
    assert not any(isinstance(module, DropPath) for module in model.modules())
    draws.give(uniform)
    torch.testing.assert_close(model(x), expected)


def test_a_sample_depends_on_its_own_draws_only(model):
    draws = give_drop_path(model)
    x, uniform = torch.randn(6, 3, 32, 32), torch.rand(4, 6)
    draws.give(uniform)
    whole = model(x)
    draws.give(uniform[:, 2:5])
    torch.testing.assert_close(model(x[2:5]), whole[2:5])


def test_without_draws_samples_are_dropped_at_the_rate():
    layers = torch.nn.Sequential(DropPath(0.25))
    draws = give_drop_path(layers)
    assert [layer.uniform for layer in draws.layers] == [None]
    out = layers.train()(torch.ones(20_000, 2))
    assert (out == 0).float().mean() == pytest.approx(0.25, abs=0.02)
    assert out.mean() == pytest.approx(1.0, abs=0.03)
    assert torch.equal(layers.eval()(torch.ones(3, 2)), torch.ones(3, 2))


def test_the_state_dict_stays_timms(model):
    give_drop_path(model)
    plain = timm.create_model(
        "deit_tiny_patch16_224", num_classes=5, img_size=32, patch_size=8, embed_dim=16, depth=3, num_heads=2
    )
    plain.load_state_dict(model.state_dict(), strict=True)
