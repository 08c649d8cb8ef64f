"""YOLOS against the released code's own figures: a part of them in every clone, all of them where they are."""

import json
import math

import numpy as np
import pytest
import timm
import torch
from golden_figures import GOLDEN, by_rule, figures, near

from toe_train import ExpansionSchedule, TokenExpansion, attach
from toe_train.models import create_model

# Positions of other grids than the image's 6 x 8 patches, before the blocks and between them.
WITH_MID = {"init_size": (64, 96), "mid_size": (80, 112)}


@pytest.fixture(scope="module", params=["cut", "whole"])
def reference(request, golden):
    if request.param == "cut":
        return figures("yolos_ti_forward.npz")
    with np.load(golden("yolos_ti_forward.npz")) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files if key != "meta"}


def build(**options):
    model = create_model("yolos_tiny", num_classes=91, **options)
    model.load_state_dict(by_rule(model.state_dict()))
    return model.eval()


def drawn(seed, *shape):
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def require_near(output, reference, name):
    """Logits (B, Q, 92), of which the reference may hold each n-th query, and boxes (B, Q, 4)."""
    logits, boxes = output
    expected = reference[name.format("logits")]
    near(logits[:, :: logits.shape[1] // expected.shape[1]], expected, 2e-4)
    near(boxes, reference[name.format("boxes")], 2e-4)


@pytest.mark.parametrize(("tag", "options"), [("", {"img_size": (800, 1333)}), ("mid_", WITH_MID)])
def test_outputs_and_kept_tokens(reference, tag, options):
    model, x = build(**options), drawn(7, 2, 3, 96, 128)
    expansion = TokenExpansion(ExpansionSchedule([0, 1, 2], [0.5, 0.75, 1.0], 0.25))
    attach(model, expansion)
    with torch.no_grad():
        require_near(model(x), reference, f"{tag}eval_{{}}")
        model.train()
        for stage in (1, 2):
            expansion.set_epoch(stage - 1)
            require_near(model(x), reference, f"{tag}toe{stage}_{{}}")
            assert torch.equal(expansion.kept, reference[f"{tag}toe{stage}_kept"].long())


@pytest.mark.parametrize("stage", [1, 2])
def test_gradients_with_positions_between_the_blocks(reference, stage):
    expected = {key: value for key, value in reference.items() if key.startswith(f"mid_toe{stage}_grad_")}
    if not expected:
        pytest.skip("tests/golden holds the gradients of stage 1 alone")
    model = build(**WITH_MID)
    expansion = TokenExpansion(ExpansionSchedule([0, 1, 2], [0.5, 0.75, 1.0], 0.25))
    attach(model, expansion)
    expansion.set_epoch(stage - 1)
    outputs = model.train()(drawn(7, 2, 3, 96, 128))
    sum((part * torch.linspace(0.5, 1.5, part.numel()).view_as(part)).sum() for part in outputs).backward()
    for key, value in expected.items():
        gradient = getattr(model.backbone, key.partition("_grad_")[2]).grad
        gradient = gradient[..., :: gradient.shape[-1] // value.shape[-1]]
        assert value.any()
        near(gradient, value, 1e-3 * value.abs().max().item())


@pytest.mark.parametrize(("rule", "name"), [("by_count", "released"), ("by_grid", "resized")])
def test_as_many_patches_in_another_grid(reference, rule, name):
    model = build(init_size=(96, 128), position_resizing=rule)
    with torch.no_grad():
        require_near(model(drawn(8, 1, 3, 128, 96)), reference, f"swap_eval_{{}}_{name}")


def test_images_padded_to_one_size(reference):
    source, canvas = np.random.RandomState(9), torch.zeros(2, 3, 96, 112)
    for image, (height, width) in zip(canvas, [(64, 112), (96, 80)], strict=True):
        image[:, :height, :width] = torch.from_numpy(source.standard_normal((3, height, width)).astype(np.float32))
    with torch.no_grad():
        require_near(build(**WITH_MID)(canvas), reference, "pad_eval_{}")


@pytest.mark.parametrize(
    ("name", "size", "parameters"),
    [("ti", "tiny", 6_488_736), ("s", "small", 30_684_768), ("b", "base", 127_798_368)],
)
def test_published_weights_fit(name, size, parameters):
    keys = json.loads((GOLDEN / f"yolos_keys_{name}.json").read_text())
    assert sum(map(math.prod, keys.values())) == parameters
    with torch.device("meta"):
        model = timm.create_model(f"yolos_{size}")
        model.load_state_dict({key: torch.empty(shape) for key, shape in keys.items()}, strict=True)


def test_the_deep_and_narrow_one():
    with torch.device("meta"):
        state = timm.create_model("yolos_small_dwr").state_dict()
    assert (len(state), sum(value.numel() for value in state.values())) == (188, 27_561_696)
    assert state["backbone.mid_pos_embed"].shape == (13, 1, 1829, 330)
