import pytest
import timm
import torch

from toe_train.models import create_model, give_dropout
from toe_train.models.dropout import GivenDropout, element_bits

SMALL = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


def layer_of(p, samples, seed=0):
    layer = GivenDropout(p).train()
    layer.uniform = torch.rand(samples, generator=torch.Generator().manual_seed(seed))
    return layer


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_elements_drop_at_the_rate_and_the_mean_stays(p):
    out = layer_of(p, 64)(torch.ones(64, 50, 32))
    kept = (out != 0).double()
    assert kept.mean() == pytest.approx(1 - p, abs=4 * (p * (1 - p) / kept.numel()) ** 0.5)
    assert out.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)])
    for axes, others in (((1, 2), 64), ((0,), 1600)):  # by sample, by element: as independent draws spread
        deviation = kept.mean(axes).std().item()
        assert deviation == pytest.approx((p * (1 - p) * others / kept.numel()) ** 0.5, rel=0.25)


def test_samples_neighbours_and_layers_are_not_alike():
    kept = (layer_of(0.5, 32)(torch.ones(32, 4096)) != 0).double() - 0.5
    assert (kept @ kept.T / 1024 - torch.eye(32)).abs().max() < 5 / 64  # five deviations of independent rows
    for lag in (1, 2, 3, 16, 64, 768):
        assert (kept[:, lag:] * kept[:, :-lag]).mean().abs() * 4 < 5 / kept.numel() ** 0.5
    assert not torch.equal(kept, (layer_of(0.5, 32, seed=1)(torch.ones(32, 4096)) != 0).double() - 0.5)


def test_all_bits_of_all_keys_are_even():
    bits = element_bits(torch.arange(256, dtype=torch.int32), 1024)
    for place in range(32):
        assert ((bits >> place) & 1).double().mean() == pytest.approx(0.5, abs=5e-3)


def test_a_sample_depends_on_its_own_draw_only():
    layer, x = layer_of(0.3, 6), torch.randn(6, 5, 4)
    whole = layer(x)
    layer.uniform = layer.uniform[2:5]
    assert torch.equal(layer(x[2:5]), whole[2:5])
    assert torch.equal(layer.eval()(x), x)


def test_the_backward_pass_goes_where_the_forward_went_in_the_given_type():
    layer, x = layer_of(0.5, 4), torch.randn(4, 8, dtype=torch.bfloat16, requires_grad=True)
    out = layer(x)
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert torch.equal(x.grad != 0, out != 0)


def test_every_dropout_of_a_model_but_attentions_is_given():
    rates = {"pos_drop_rate": 0.1, "proj_drop_rate": 0.2, "drop_rate": 0.3, "attn_drop_rate": 0.4}
    model = create_model("deit_tiny_patch16_224", 5, 0.0, 32, **SMALL, **rates).train()
    draws = give_dropout(model)
    assert draws.count == 1 + 2 * 3 + 1  # positions; attention's projection and the perceptron's two; the head
    left = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Dropout) and part.p]
    assert left == ["blocks.0.attn.attn_drop", "blocks.1.attn.attn_drop"]
    plain = timm.create_model("deit_tiny_patch16_224", num_classes=5, img_size=32, **SMALL)
    plain.load_state_dict(model.state_dict(), strict=True)


@pytest.mark.slow
def test_compiled_it_drops_the_same():
    layer, x = layer_of(0.3, 6), torch.randn(6, 5, 4)
    assert torch.equal(torch.compile(layer, fullgraph=True, dynamic=False)(x), layer(x))
