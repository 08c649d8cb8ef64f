"""Muon for the matrices of blocks, AdamW for the rest, as one optimiser."""

import copy

import pytest
import torch

from toe_train.errors import UserError
from toe_train.models import create_model
from toe_train.training import muon
from toe_train.training.optim import create_optimizer, load_optimizer, set_lr

SMALL = {"embed_dim": 16, "depth": 2, "num_heads": 2}
RATES = ("muon", 1e-2, 0.05, (0.9, 0.99), 1e-8, 0.95)


def model_of():
    torch.manual_seed(0)
    return create_model("deit_tiny_patch16_224", 7, 0.0, 32, **SMALL)


def matrices_of(model):
    return {name: p for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2}


def backward(model, number):
    model(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(number))).square().sum().backward()


def test_each_parameter_is_stepped_as_by_its_own_optimiser():
    ours, plain = model_of(), model_of()
    optimizer = create_optimizer(ours, *RATES)
    matrices = matrices_of(plain)
    assert len(matrices) == 8
    others = {name: p for name, p in plain.named_parameters() if name not in matrices}
    spared = [p for name, p in others.items() if p.ndim == 1 or name in ("pos_embed", "cls_token")]
    decayed = [others["patch_embed.proj.weight"], others["head.weight"]]
    expected = [
        muon.muon_class()(
            list(matrices.values()), 1e-2, 0.05, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(spared, 1e-2, (0.9, 0.99), weight_decay=0.0),
        torch.optim.AdamW(decayed, 1e-2, (0.9, 0.99), weight_decay=0.05),
    ]
    assert len(spared) + len(decayed) == len(others)
    for number in range(3):
        for model, steps in ((ours, [optimizer]), (plain, expected)):
            backward(model, number)
            for one in steps:
                one.step()
                one.zero_grad()
    for name, value in plain.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_a_loaded_state_goes_on_exactly(layer_decay):
    model = model_of()
    optimizer = create_optimizer(model, *RATES, layer_decay=layer_decay)
    backward(model, 0)
    optimizer.step()
    again = copy.deepcopy(model)
    resumed = create_optimizer(again, *RATES, layer_decay=layer_decay)
    load_optimizer(resumed, copy.deepcopy(optimizer.state_dict()))
    for one, steps in ((model, optimizer), (again, resumed)):
        set_lr(steps, 5e-3)  # reaches both parts, after loading too
        one.zero_grad()
        backward(one, 1)
        steps.step()
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
    still = {name: value.clone() for name, value in again.named_parameters()}
    set_lr(resumed, 0.0)
    resumed.step()
    assert all(torch.equal(value, still[name]) for name, value in again.named_parameters())


def test_layer_decay_reaches_the_matrices():
    model = model_of()
    optimizer = create_optimizer(model, *RATES, layer_decay=0.5)
    set_lr(optimizer, 0.8)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert len(rates) == len(named)
    found = [rates[id(named[f"blocks.{block}.mlp.fc1.{kind}"])] for block in (0, 1) for kind in ("weight", "bias")]
    assert found == pytest.approx([0.2, 0.2, 0.4, 0.4])


def test_a_step_that_is_not_finite_is_left_out():
    model = model_of()
    optimizer = create_optimizer(model, *RATES)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    scaler.scale(torch.zeros(()))
    for bad in (True, False):
        before = {name: value.clone() for name, value in model.named_parameters()}
        model.zero_grad()
        backward(model, 0)
        if bad:
            model.blocks[1].mlp.fc1.weight.grad[0, 0] = torch.inf
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update(1.0)
        moved = [name for name, value in model.named_parameters() if not torch.equal(value, before[name])]
        assert moved == ([] if bad else list(before))
        assert bool(optimizer.state) is not bad


@pytest.mark.parametrize("place", muon.PLACES)
def test_timms_serves_where_torch_has_none(place, monkeypatch):
    monkeypatch.setattr(muon, "PLACES", (place,))
    model = model_of()
    optimizer = create_optimizer(model, *RATES)
    before = {name: value.clone() for name, value in matrices_of(model).items()}
    backward(model, 0)
    optimizer.step()
    for name, value in matrices_of(model).items():  # near 0.2 in the mean square, as AdamW's first step is near 1
        change = (value.detach() - before[name] * (1 - 1e-2 * 0.05)).square().mean().sqrt() / 1e-2
        assert 0.05 < float(change) < 0.3, name


def test_neither_has_it(monkeypatch):
    monkeypatch.setattr(muon, "PLACES", ("torch.utils", "timm.utils"))
    with pytest.raises(UserError, match=r"optim.name = muon: neither torch .* nor timm .* has Muon; install torch 2.9"):
        create_optimizer(model_of(), *RATES)
    monkeypatch.undo()
    with pytest.raises(UserError, match="Linear has no list of blocks with matrices"):
        create_optimizer(torch.nn.Linear(2, 2), *RATES)
