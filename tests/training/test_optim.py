"""Learning rates of the published runs, and which parameters decay."""

import pytest
import torch

from toe_train.build.step import build_schedule
from toe_train.models import create_model
from toe_train.recipes import load_config
from toe_train.training.optim import create_optimizer, set_lr


@pytest.fixture
def schedule(configs):
    def of(*overrides):
        config = load_config(configs / "deit_tiny.yaml", overrides)
        return build_schedule(config, torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=config.peak_lr), 312)

    return of


# f of DeiT's scheduler at 1024 images (computed with timm 0.9.2's CosineLRScheduler and DeiT's arguments).
PUBLISHED = {1: 2.008e-4, 4: 8.002e-4, 5: 9.9932e-4, 99: 7.5698e-4, 150: 5.05e-4, 199: 2.62e-4, 298: 1.0109e-5}


def test_released_stepping_trains_an_epoch_at_the_rate_of_the_one_before(schedule):
    released = schedule()
    assert released.lr(0) == released.lr(1) == 1e-6
    for epoch, rate in PUBLISHED.items():
        assert released.lr(epoch + 1) == pytest.approx(rate, rel=6e-5)


def test_plain_stepping_trains_an_epoch_at_its_own_rate(schedule):
    plain = schedule("schedule.stepping=plain")
    assert plain.lr(0) == 1e-6
    for epoch, rate in PUBLISHED.items():
        assert plain.lr(epoch) == pytest.approx(rate, rel=6e-5)


def test_by_step_the_published_means_of_efficienttrain(configs):
    """4096 images a step, 312 steps an epoch; the means that a log prints (docs/fidelity.md, "EfficientTrain")."""
    config = load_config(configs / "deit_tiny_et_baseline.yaml")
    schedule = build_schedule(config, None, 1_281_167 // config.train.global_batch)
    assert schedule.mean(99) == pytest.approx(0.00325593952824367, rel=1e-14)
    assert schedule.mean(100) == pytest.approx(0.00323840009237758, rel=1e-14)
    assert schedule.lr(0, 0) == 0
    assert schedule.lr(19, 311) == schedule.lr(20, 0) == 4e-3  # both ends of the warm-up, then the cosine's beginning
    assert 1e-6 < schedule.lr(299, 311) < 1.01e-6


def test_efficienttrain_plus_plus_goes_on_where_the_stage_before_left_its_schedule(configs):
    """Its script's ten launches: schedule, first and last epoch of each (docs/fidelity.md, "EfficientTrain++")."""
    schedule = build_schedule(load_config(configs / "deit_tiny_etpp.yaml"), None, 312)
    launches = [(1088, 217, 0, 108), (1088, 217, 108, 217)]
    launches += [(392, 78, begin, end) for begin, end in ((78, 117), (117, 156), (156, 196), (196, 235))]
    launches += [(272, 54, 163, 190), (272, 54, 190, 217), (200, 40, 159, 180), (200, 40, 180, 200)]
    given = []
    for total, warmup, begin, end in launches:
        after = torch.arange(312 * (total - warmup), dtype=torch.float64) / (312 * (total - warmup))
        cosine = 1e-6 + 0.5 * (4e-3 - 1e-6) * (1 + torch.cos(torch.pi * after))
        rising = torch.linspace(0, 4e-3, 312 * warmup, dtype=torch.float64)
        given.append(torch.cat([rising, cosine])[312 * begin : 312 * end])
    own = [schedule.lr(epoch, step) for epoch in range(469) for step in range(312)]
    assert own == pytest.approx(torch.cat(given).tolist(), rel=1e-9, abs=1e-15)
    assert own[312 * 217] == own[312 * 217 - 1] == 4e-3


def test_the_rate_reaches_every_group():
    optimizer = create_optimizer(torch.nn.Linear(2, 2), "adamw", 0.1, 0.05, (0.9, 0.999), 1e-8, 0.7)
    set_lr(optimizer, 0.3)
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.3]


def test_no_decay_on_vectors_positions_and_tokens():
    model = create_model("deit_tiny_distilled_patch16_224", 7, 0.0, 32, embed_dim=16, depth=2, num_heads=2)
    optimizer = create_optimizer(model, "adamw", 1e-3, 0.05, (0.9, 0.999), 1e-8, 0.9)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, spared = set(), set()
    for group in optimizer.param_groups:
        (decayed if group["weight_decay"] else spared).update(names[id(p)] for p in group["params"])
        assert group["weight_decay"] in (0.0, 0.05)
    assert decayed | spared == set(names.values())
    assert all(name.endswith("weight") for name in decayed)
    assert {"pos_embed", "cls_token", "dist_token", "norm.weight", "blocks.0.norm1.weight"} <= spared
    assert {"blocks.0.attn.qkv.weight", "patch_embed.proj.weight", "head.weight"} <= decayed


def test_sgd_takes_its_momentum():
    optimizer = create_optimizer(torch.nn.Linear(2, 2), "sgd", 0.1, 0.0, (0.9, 0.999), 1e-8, 0.7)
    assert isinstance(optimizer, torch.optim.SGD)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.7}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("left_out", [0, 1, 2])
def test_sgd_begins_after_steps_that_are_left_out_as_without_them(fused, left_out):
    """The kernel of a GPU, here on the CPU, is called for those too and has to begin with a momentum of 0."""
    weights, plain = (torch.nn.Linear(3, 2, bias=False) for _ in range(2))
    plain.load_state_dict(weights.state_dict())
    ours = create_optimizer(weights, "sgd", 0.1, 0.05, (0.9, 0.999), 1e-8, 0.7)
    expected = torch.optim.SGD(plain.parameters(), 0.1, 0.7, weight_decay=0.05, nesterov=True)
    for group in ours.param_groups:
        group["fused"] = fused
    ours._step_supports_amp_scaling = fused
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    scaler.scale(torch.zeros(()))
    for number in range(left_out + 3):
        gradient = torch.full((2, 3), float(number + 1))
        weights.weight.grad = gradient if number >= left_out else gradient * torch.inf
        scaler.step(ours)
        scaler.update(1.0)
        if number >= left_out:
            plain.weight.grad = gradient
            expected.step()
        torch.testing.assert_close(weights.weight, plain.weight)


def test_the_cooldown_stays_at_the_least_rate(schedule):
    """300 epochs of cosine, 10 after it, plain stepping, 1.6e-3 whatever the batch (docs/fidelity.md, "LV-ViT")."""
    plain = schedule(
        "epochs=310",
        "schedule.cooldown_epochs=10",
        "schedule.stepping=plain",
        "optim.lr=1.6e-3",
        "optim.lr_base_batch=null",
    )
    assert plain.lr(5) == pytest.approx(1.5989e-3, rel=1e-4)
    assert plain.lr(150) == pytest.approx(8.05e-4, rel=1e-4)
    assert [plain.lr(epoch) for epoch in range(300, 310)] == [1e-5] * 10


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "lvvit_t"])
def test_layer_decay_gives_each_layer_its_share_of_the_rate(name):
    """Embedding 0, block i layer i + 1, head the last: 0.5 to the number of layers above (BEiT's rule)."""
    small = {"embed_dim": 24, "depth": 3, "num_heads": 2}
    model = create_model(name, 7, 0.0, 32, **small)
    optimizer = create_optimizer(model, "adamw", 1e-3, 0.05, (0.9, 0.999), 1e-8, 0.9, layer_decay=0.5)
    set_lr(optimizer, 0.8)
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    named = dict(model.named_parameters())
    expected = {"pos_embed": 0.05, "cls_token": 0.05, "blocks.0.attn.qkv.weight": 0.1, "blocks.1.norm1.bias": 0.2}
    expected |= {"blocks.2.mlp.fc1.weight": 0.4, "norm.weight": 0.4, "head.weight": 0.8, "head.bias": 0.8}
    assert {key: rates[id(named[key])] for key in expected} == pytest.approx(expected)
    for block, rate in enumerate((0.1, 0.2, 0.4)):
        own = {rates[id(parameter)] for parameter in model.blocks[block].parameters()}
        assert list(own) == [pytest.approx(rate)]
    assert len(rates) == len(named)
    decay = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    assert decay[id(named["pos_embed"])] == decay[id(named["norm.weight"])] == 0
    assert decay[id(named["blocks.0.attn.qkv.weight"])] == 0.05
