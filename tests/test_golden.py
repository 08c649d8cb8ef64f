"""The released codes' own figures, checked in every clone: tests/golden holds them and says how they were made.

Nothing here skips. A file that is missing is a fault of the clone.
"""

import json

import numpy as np
import pytest
import torch
from golden_figures import GOLDEN, by_rule, cases, figures, near
from timm.data.mixup import mixup_target
from torch import nn

from toe_train import ExpansionSchedule, TokenExpansion, attach
from toe_train.data import low_frequency_crop
from toe_train.models import create_model
from toe_train.tasks.token_labelling import TokenLabelLoss, token_targets


def test_the_figures_are_small_enough_for_a_clone():
    assert sum(file.stat().st_size for file in GOLDEN.iterdir()) < 1_000_000


@pytest.mark.parametrize(
    ("number", "case"),
    [
        pytest.param(n, case, id=f"{case['side']}x{case['side']}-stage{case['stage']}")
        for n, case in cases("token_expansion.npz")
    ],
)
def test_token_expansion(number, case):
    """The same tokens in the same order, their merged values, and gradients with respect to every token."""
    stored = figures("token_expansion.npz")
    x, y, grad, kept = (stored[f"{number:02d}_{name}"] for name in ("x", "y", "grad", "kept"))
    schedule = ExpansionSchedule(range(len(case["rates"])), case["rates"], case["r0"], case["k"])
    expansion = TokenExpansion(schedule, num_prefix_tokens=1, metric="cosine")
    expansion.set_epoch(case["stage"] - 1)
    x.requires_grad_()
    output, positions = expansion(x)
    assert positions.dtype == torch.int64
    assert torch.equal(positions, kept.long())
    assert positions.shape[1] == schedule.num_kept(case["stage"], case["side"] ** 2) == case["kept_tokens"]
    assert torch.equal(output[:, 0], x[:, 0])  # the class token
    near(output, y, 1e-5)
    (output * torch.linspace(0.5, 1.5, output.numel()).view_as(output)).sum().backward()
    near(x.grad, grad, 1e-5)


def test_the_expansion_cases_are_of_every_kind():
    """Else a part of the behaviour would go unchecked in silence."""
    kinds = [case for _, case in cases("token_expansion.npz")]
    assert {case["stage"] for case in kinds} == {1, 2, 3}
    assert {case["side"] % 2 for case in kinds} == {0, 1}
    assert {case["k"] for case in kinds} == {2, 3}
    assert {case["rates"][0] for case in kinds} >= {0.4, 0.5, 0.6}
    assert any(case["stage"] == len(case["rates"]) for case in kinds)  # the last stage, where it drops tokens too


@pytest.fixture
def lvvit():
    """LV-ViT-T by the rule, with ToE attached, and two images."""
    model = create_model("lvvit_t", num_classes=10, drop_path_rate=0.0, img_size=224).train()
    model.load_state_dict(by_rule(model.state_dict()), strict=True)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # with the running statistics that the rule gave
            module.eval()
    model.mix_token = False
    expansion = TokenExpansion(ExpansionSchedule([1, 2, 3], [0.4, 0.7, 1.0], 0.2, 2))
    attach(model, expansion, after_block=1)
    images = np.random.RandomState(7).standard_normal((2, 3, 224, 224)).astype(np.float32)
    return model, expansion, torch.from_numpy(images)


@pytest.mark.parametrize(("stage", "name"), [(0, "train"), (1, "toe1"), (2, "toe2")])
@torch.no_grad()
def test_lvvit_in_training(lvvit, stage, name):
    """Without ToE, and in its first two stages, where the dropped positions of the dense output hold the bias alone."""
    model, expansion, images = lvvit
    stored = figures("lvvit_t_forward.npz")
    expansion.set_epoch(stage)
    cls, aux, boxes = model(images)
    near(cls, stored[f"{name}_cls"], 2e-4)
    near(aux, stored[f"{name}_aux"], 2e-4)
    assert not boxes.any()
    dropped = (aux == model.aux_head.bias).all(dim=2).sum(dim=1)
    assert dropped.tolist() == [196 - expansion.num_kept(196)] * 2


@torch.no_grad()
def test_lvvit_in_evaluation(lvvit):
    """On all tokens, whatever the stage."""
    model, expansion, images = lvvit
    expansion.set_epoch(1)
    near(model.eval()(images), figures("lvvit_t_forward.npz")["eval_logits"], 2e-4)


@pytest.mark.parametrize("size", "tsml")
def test_published_lvvit_weights_fit(size):
    with torch.device("meta"):
        model = create_model(f"lvvit_{size}", num_classes=1000, drop_path_rate=0.0, img_size=224)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == json.loads((GOLDEN / f"lvvit_keys_{size}.json").read_text())


@pytest.mark.parametrize(("number", "size"), [(0, 24), (1, 40)])
def test_low_frequency_crop(number, size):
    stored = figures("low_frequency_crop.npz")
    near(low_frequency_crop(stored[f"{number}_in"], size), stored[f"{number}_out_{size}"], 1e-5)


def test_token_label_targets():
    """The released code's, from the transposed place of the map: docs/fidelity.md, "Token labels"."""
    stored = figures("token_labels.npz")
    target = stored["target_released_code"]  # (B, K, 2 + N): ground truth, class token, patch tokens
    classes = target.shape[1]
    of_class, of_patches = token_targets(
        stored["scores"],
        stored["ids"],
        stored["crops_top_left_h_w"],
        num_classes=classes,
        grid=(14, 14),
        smoothing=0.1,
        alignment="released",
    )
    near(of_class, target[..., 1], 1e-5)
    near(of_patches, target[..., 2:].mT, 1e-5)
    near(mixup_target(stored["ground_truth"], classes, smoothing=0.1), target[..., 0], 1e-5)


@pytest.mark.parametrize(("mixed", "name"), [(False, "loss_no_box"), (True, "loss_box")])
def test_token_label_loss(mixed, name):
    """With MixToken the class token's target is mixed by the share of the box, the patches' targets are not."""
    stored = figures("token_labels.npz")
    of_class, of_patches = stored["target_released_code"][..., 1], stored["target_released_code"][..., 2:].mT
    if mixed:
        top, left, bottom, right = stored["box"].tolist()
        own = 1 - (bottom - top) * (right - left) / 196
        of_class = own * of_class + (1 - own) * of_class.flip(0)
    output = (stored["cls_logits"], stored["aux_logits"], stored["box"])
    near(TokenLabelLoss()(output, (of_class, of_patches)).double(), stored[name], 1e-5)
