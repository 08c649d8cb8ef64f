"""NetworkExpansion and StackBERT against the released codes' figures, and growth of what they never met."""

import numpy as np
import pytest
import timm
import torch
from golden_figures import by_rule, cases, figures, near
from timm.models.vision_transformer import VisionTransformer

from toe_train.build.step import build_schedule
from toe_train.methods.depth_growth import DepthGrowthMethod, copies_of_the_first, grow, sources
from toe_train.models import create_model, give_drop_path
from toe_train.recipes import load_config

GROWTHS = [
    pytest.param(number, case, step, id=f"{case['fn']}-{'-'.join(map(str, case['depths']))}-{step}")
    for number, case in cases("network_expansion.npz")
    for step in range(len(case["steps"]))
]


def model_of(case, depth):
    return VisionTransformer(
        img_size=case["img"],
        patch_size=case["patch"],
        embed_dim=case["dim"],
        depth=depth,
        num_heads=case["heads"],
        mlp_ratio=case["mlp_ratio"],
        num_classes=case["classes"],
    )


@pytest.mark.parametrize(("number", "case", "step"), GROWTHS)
def test_growth_of_the_released_codes(number, case, step):
    how = "double" if case["fn"] == "quadruple" else case["fn"]
    told = case["steps"][step]
    names = [f"{'ema' if averaged else 'raw'}{source}" for source, averaged in sources(told["old"], told["new"], how)]
    assert names == told["block_source"]
    small = model_of(case, told["old"]).state_dict()
    raw, averaged = (by_rule(small, 20_000 * step + offset) for offset in (0, 10_000))
    grown = model_of(case, told["new"]).eval()
    grown.load_state_dict(grow(raw, averaged, told["new"], how), strict=True)
    images = np.random.RandomState(7).standard_normal((2, 3, case["img"], case["img"])).astype(np.float32)
    near(grown(torch.from_numpy(images)), figures("network_expansion.npz")[f"{number:02d}_{step}_logits"], 2e-5)
    if "drop_path_acts" in told:
        off = copies_of_the_first(case["depths"][: step + 2], how)
        assert [index not in off for index in range(told["new"])] == told["drop_path_acts"]


@pytest.mark.parametrize(
    ("depth", "grown", "how", "nearest"),
    [(6, 13, "insert", 12), (6, 6, "stack", 7), (3, 7, "double", 6), (3, 3, "double", 6), (6, 4, "insert", 7)],
)
def test_a_growth_that_cannot_be_names_the_nearest(depth, grown, how, nearest):
    with pytest.raises(ValueError, match=f"the nearest is {nearest}$"):
        sources(depth, grown, how)


def test_what_is_not_a_way_to_grow_and_what_has_no_blocks_is_refused():
    with pytest.raises(ValueError, match="insert, stack or double"):
        sources(6, 12, "copy")
    with pytest.raises(ValueError, match=r"no blocks\.0"):
        grow({"head.weight": torch.zeros(2)}, None, 2)


def test_the_grown_weights_share_no_memory_and_raw_ones_serve_where_there_are_no_averages():
    state = by_rule(timm.create_model("deit_tiny_patch16_224", img_size=32, embed_dim=12, depth=2).state_dict())
    grown = grow(state, None, 4)
    blocks = [name for name in grown if name.endswith("qkv.weight")]
    assert len({grown[name].data_ptr() for name in blocks} | {state["blocks.0.attn.qkv.weight"].data_ptr()}) == 5
    assert torch.equal(grown["blocks.1.attn.qkv.weight"], state["blocks.0.attn.qkv.weight"])


def test_averages_of_another_model_are_refused():
    state = model_of({"img": 8, "patch": 4, "dim": 8, "heads": 2, "mlp_ratio": 2, "classes": 3}, 2).state_dict()
    wider = {name: torch.cat([value, value]) for name, value in state.items()}
    for averaged in ({}, wider):
        with pytest.raises(ValueError, match=r"it has no blocks\.1\..*, or of another shape"):
            grow(state, averaged, 3)


def test_lvvit_grows_with_its_stem_and_both_heads_raw():
    options = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "num_heads": 2, "num_classes": 5}
    small, large = (create_model("lvvit_t", depth=depth, **options) for depth in (2, 4))
    raw, averaged = by_rule(small.state_dict()), by_rule(small.state_dict(), 10_000)
    grown = grow(raw, averaged, 4)
    large.load_state_dict(grown, strict=True)
    for name, value in grown.items():
        if not name.startswith("blocks."):
            assert torch.equal(value, raw[name]), name
    assert torch.equal(grown["blocks.3.mlp.fc1.weight"], averaged["blocks.1.mlp.fc1.weight"])


def test_the_rate_goes_on_over_a_growth_as_if_nothing_had_been(configs):
    config = load_config(configs / "deit_tiny_networkexpansion_6_12.yaml")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.peak_lr)
    schedule = build_schedule(config, optimizer, 1251)
    rates = torch.tensor([schedule.lr(epoch, 0) for epoch in range(300)], dtype=torch.float64)
    torch.testing.assert_close(rates, figures("network_expansion.npz")["lr_300_grown_at_150"], atol=1e-12, rtol=1e-9)


def method(source="ema", drop_path="spread", how="insert"):
    return DepthGrowthMethod([2, 4, 8], how, source, drop_path)


def test_a_checkpoint_is_carried_one_growth_at_a_time():
    small = timm.create_model("deit_tiny_patch16_224", img_size=32, embed_dim=12, depth=2)
    state = {
        "model": by_rule(small.state_dict()),
        "ema": by_rule(small.state_dict(), 10_000),
        "optimizer": {"state": 1},
        "scaler": {"scale": 4.0},
        "method": {},
    }
    carried = method().carry(state, 0, 1)
    assert carried["optimizer"] is None
    assert carried["scaler"] == {"scale": 4.0}
    assert all(torch.equal(value, carried["ema"][name]) for name, value in carried["model"].items())
    averaged = state["ema"]["blocks.0.attn.qkv.weight"]
    assert torch.equal(carried["model"]["blocks.1.attn.qkv.weight"], averaged)
    raw = method(source="raw").carry(state, 0, 1)["model"]
    assert torch.equal(raw["blocks.1.attn.qkv.weight"], state["model"]["blocks.0.attn.qkv.weight"])
    for former, segment in ((0, 2), (2, 1), (3, 1)):  # the last of a run with more depths
        with pytest.raises(ValueError, match="grows one step at a time"):
            method().carry(state, former, segment)


@pytest.mark.parametrize(("drop_path", "off"), [("spread", set()), ("released", {1, 2, 3})])
def test_stochastic_depth_after_growth(drop_path, off):
    model = timm.create_model("deit_tiny_patch16_224", img_size=32, embed_dim=12, depth=8, drop_path_rate=0.7)
    layers = give_drop_path(model).layers
    method(drop_path=drop_path).prepare(model)
    rates = [float(layer.rate) for layer in layers[::2]]  # of blocks 1 to 7; block 0 has none
    assert rates == pytest.approx([0.0 if index in off else 0.1 * index for index in range(1, 8)])


def test_a_model_of_another_depth_is_refused():
    with pytest.raises(ValueError, match=r"do not hold the 3 blocks .* end them with 3"):
        method().prepare(timm.create_model("deit_tiny_patch16_224", img_size=32, embed_dim=12, depth=3))
