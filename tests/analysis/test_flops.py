"""FLOPs against the paper's models, recomputed from their matrix products by hand."""

import pytest

from toe_train.analysis.flops import plan_costs, stage_cost
from toe_train.build.model import build_model
from toe_train.recipes import load_config


def deit_macs(width, after, full=197, classes=1000):
    """MACs of a DeiT forward pass: patches, one block on all tokens, eleven on `after` tokens, classifier on one."""

    def block(tokens):
        return 12 * tokens * width**2 + 2 * tokens**2 * width

    return (full - 1) * 16 * 16 * 3 * width + block(full) + 11 * block(after) + width * classes


@pytest.mark.parametrize(("name", "width"), [("tiny", 192), ("small", 384)])
def test_stages_of_deit_at_r05(configs, name, width):
    planned = plan_costs(load_config(configs / f"deit_{name}_toe_r05.yaml"), 1000)
    assert [part.cost.tokens_kept for part in planned.stretches] == [98, 147, 196]
    assert [part.cost.macs for part in planned.stretches] == [deit_macs(width, kept + 1) for kept in (98, 147, 196)]
    own = [196 * kept * width for kept in (98, 147)]  # ToE's own: every token's similarity to the kept ones, once
    assert [part.cost.expansion_macs for part in planned.stretches] == [*own, 0]


# Schedule speed-ups with attention counted, recomputed for the paper's rows of Table 2 with the released models.
@pytest.mark.parametrize(
    ("name", "stages", "whole"),
    [
        ("deit_tiny_toe_r05", (1.916, 1.328, 1.0), 1.319),
        ("deit_small_toe_r05", (1.880, 1.313, 1.0), 1.308),
        ("deit_base_toe_r04", (2.244, 1.399, 1.0), 1.389),
        ("deit_base_toe_hyper_r05", (1.860, 1.305, 1.0), 1.432),
        ("deit_base_toe_hyper_r04", (2.244, 1.399, 1.0), 1.572),
    ],
)
def test_speed_ups_of_table_2(configs, name, stages, whole):
    planned = plan_costs(load_config(configs / f"{name}.yaml"), 1000)
    assert tuple(round(part.speedup, 3) for part in planned.stretches) == stages
    assert round(planned.speedup, 3) == whole


# Billions of MACs per image in stages 1, 2 and 3 at r_1 = 0.4, and the schedule's speed-up with attention counted,
# recomputed with the released models. `thop` counts norms with 4 MACs a number, and no attention.
@pytest.mark.parametrize(
    ("size", "width", "depth", "thop", "with_attention", "speedup"),
    [
        ("t", 240, 12, (1.9086, 2.2774, 2.6588), (1.9484, 2.3820, 2.8680), 1.195),
        ("s", 384, 16, (3.4786, 4.7643, 6.0942), (3.5663, 4.9935, 6.5515), 1.301),
        ("m", 512, 20, (6.0227, 8.9162, 11.9094), (6.1671, 9.2997, 12.6780), 1.351),
    ],
)
def test_lv_vit(configs, size, width, depth, thop, with_attention, speedup):
    overrides = [
        f"model.name=lvvit_{size}",
        "expansion.keep_rates=[0.4, 0.7, 1.0]",
        "expansion.initial_keep_rate=0.2",
    ]
    planned = plan_costs(load_config(configs / "deit_small_toe_r05.yaml", overrides), 1000)
    costs = [part.cost for part in planned.stretches]
    assert [cost.tokens_kept for cost in costs] == [78, 136, 196]
    assert tuple(round(cost.macs / 1e9, 4) for cost in costs) == with_attention
    assert round(planned.speedup, 3) == speedup
    without_attention = []
    for cost in costs:
        tokens = 1 + cost.tokens_kept
        attention = 2 * width * (197**2 + (depth - 1) * tokens**2)
        normed = width * (2 * 197 + 2 * (depth - 1) * tokens + tokens) + 3 * 64 * 112**2  # blocks, last norm, stem
        without_attention.append(round((cost.macs - attention + 4 * normed) / 1e9, 4))
    assert tuple(without_attention) == thop


def test_counting_leaves_the_model_as_it_was(configs):
    built = build_model(load_config(configs / "quickstart.yaml"), 10)
    built.method.begin_epoch(25)
    stage_cost(built, 16, stage=1)
    assert built.method.stage == 3
    assert built.model.training
    assert all(module.training for module in built.model.modules())


@pytest.mark.parametrize(("name", "width"), [("tiny", 192), pytest.param("small", 384, marks=pytest.mark.slow)])
def test_efficienttrain_plus_plus_against_300_plain_epochs(configs, name, width):
    """Epochs, patches of an image and those that ToE keeps."""
    plain = [(217, 36, 36), (157, 100, 100), (54, 144, 144), (41, 196, 196)]
    with_toe = [(217, 36, 20), (53, 100, 60), (104, 100, 80), (18, 144, 114), (36, 144, 144), (41, 196, 196)]
    for file, timeline in ((f"deit_{name}_etpp", plain), (f"deit_{name}_etpp_toe_r06", with_toe)):
        cost = sum(epochs * deit_macs(width, kept + 1, patches + 1) for epochs, patches, kept in timeline)
        planned = plan_costs(load_config(configs / f"{file}.yaml"), 1000)
        assert planned.speedup == pytest.approx(300 * deit_macs(width, 197) / cost, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "speedups"),
    [
        ("deit_tiny_et", (1.527, 1.593)),
        ("deit_tiny_et_toe_r06", (1.782, 1.868)),
        ("deit_small_et", (1.527, 1.562)),
        ("deit_small_et_toe_r06", (1.786, 1.832)),
    ],
)
def test_table_4(configs, name, speedups):
    """By thop and with attention counted; the joint timeline (docs/fidelity.md, "FLOPs", "EfficientTrain with ToE")."""
    planned = plan_costs(load_config(configs / f"{name}.yaml"), 1000)
    assert (round(planned.thop_speedup, 3), round(planned.speedup, 3)) == speedups
    if "toe" in name:
        timeline = [(p.stretch.last, p.stretch.plan.image_size, p.cost.tokens_kept) for p in planned.stretches]
        assert timeline == [
            (59, 160, 60),
            (99, 160, 60),
            (119, 160, 80),
            (179, 160, 80),
            (199, 192, 114),
            (239, 192, 144),
            (299, 224, 196),
        ]


TOME = "method={kind: token_merging, r: 8}"
SPARSE = "method={{kind: structured_sparsity, heads_kept: {}, units_kept: {}}}"
DOUBLED = "method={{kind: depth_growth, depths: {}, from_epochs: {}, copy: double}}"
AUTHORS = DOUBLED.format("[3, 6, 12]", "[0, 38, 90]")  # StackBERT's own split of the steps
FROM_150 = "method.from_epochs=[0, 150]"  # of LV-ViT's 310 epochs, in place of half of them
SLOW = pytest.mark.slow


# The compared methods: billions of MACs of an image's forward pass, the mean over the run, by thop and with attention
# counted; the speed-ups by both; and that of a step of 1024 images whose FLOPs are rounded to two digits, from which
# the paper's ratios come. Recomputed with the released models (docs/fidelity.md, "FLOPs").
COMPARED = [
    ("deit_tiny_tome_r8", None, (0.8158, 0.9244), (1.322, 1.356), 1.320),
    ("deit_tiny_networkexpansion_6_12", None, (0.8163, 0.9475), (1.321, 1.323), 1.320),
    ("deit_tiny_s2vite", None, (0.7818, 0.8972), (1.380, 1.397), 1.375),
    ("deit_tiny", AUTHORS, (0.8880, 1.0312), (1.215, 1.216), 1.222),
    ("deit_small_tome_r8", None, (3.1993, 3.4165), (1.328, 1.346), 1.327),
    ("deit_small_networkexpansion_6_12", None, (3.2012, 3.4637), (1.327, 1.328), 1.327),
    ("deit_small", SPARSE.format(0.5, 0.5), (2.3316, 2.5028), (1.822, 1.837), 1.806),
    ("deit_small", AUTHORS, (3.4875, 3.7740), (1.218, 1.219), 1.182),
    ("lvvit_t_networkexpansion", None, (2.3173, 2.4717), (1.147, 1.160), 1.155),
    ("lvvit_t_networkexpansion", FROM_150, (2.3283, 2.4845), (1.142, 1.154), 1.139),
    pytest.param("lvvit_s_networkexpansion", None, (4.9298, 5.2703), (1.236, 1.243), 1.267, marks=SLOW),
    pytest.param("lvvit_s_networkexpansion", FROM_150, (4.9674, 5.3116), (1.227, 1.233), 1.267, marks=SLOW),
    pytest.param("lvvit_m_networkexpansion", None, (9.3233, 9.8972), (1.277, 1.281), 1.276, marks=SLOW),
    pytest.param("lvvit_m_networkexpansion", FROM_150, (9.4067, 9.9869), (1.266, 1.269), 1.276, marks=SLOW),
    pytest.param("deit_base", TOME, (12.6697, 13.1039), (1.331, 1.340), 1.333, marks=SLOW),
    pytest.param("deit_base", SPARSE.format(0.7, 0.6), (11.0067, 11.4684), (1.532, 1.531), 1.529, marks=SLOW),
    pytest.param("deit_base_networkexpansion_6_12", None, (12.6770, 13.2020), (1.330, 1.330), 1.333, marks=SLOW),
    pytest.param("deit_base_networkexpansion_8_12", None, (14.0725, 14.6559), (1.198, 1.198), 1.209, marks=SLOW),
    pytest.param("deit_base_stackbert", None, (13.8213, 14.3942), (1.220, 1.220), 1.238, marks=SLOW),
    pytest.param(
        "deit_base", DOUBLED.format("[6, 12]", "[0, 116]"), (13.6259, 14.1907), (1.238, 1.238), 1.238, marks=SLOW
    ),
    pytest.param(
        "deit_base", DOUBLED.format("[6, 12]", "[0, 120]"), (13.5143, 14.0743), (1.248, 1.248), 1.238, marks=SLOW
    ),
]


@pytest.mark.parametrize(("file", "override", "macs", "speedups", "two_digits"), COMPARED)
def test_the_compared_methods(configs, file, override, macs, speedups, two_digits):
    planned = plan_costs(load_config(configs / f"{file}.yaml", [override] if override else []), 1000)
    by_thop = planned.full.thop_macs / planned.thop_speedup
    counted = planned.full.macs / planned.speedup
    assert (round(by_thop / 1e9, 4), round(counted / 1e9, 4)) == macs
    assert (planned.thop_speedup, planned.speedup) == pytest.approx(speedups, abs=5e-4)
    full, own = (float(f"{3 * 1024 * cost:.1e}") for cost in (planned.full.thop_macs, by_thop))
    assert round(full / own, 3) == two_digits


def test_every_configuration_of_a_compared_method_is_in_that_table(configs):
    """The proxies have no printed figures."""
    listed = {getattr(row, "values", row)[0] for row in COMPARED}
    shipped = {
        path.stem
        for path in configs.glob("*.yaml")
        if not path.stem.startswith("proxy") and load_config(path).method is not None
    }
    assert shipped
    assert shipped <= listed
