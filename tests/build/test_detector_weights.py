"""Weights that a YOLOS starts from: a classifier's, as published ones did, or a detector's."""

import argparse

import pytest
import torch
from torch.nn import functional as F

from toe_train.build.initial_weights import Wanted, load_initial_weights
from toe_train.build.weights import fetched
from toe_train.errors import UserError
from toe_train.models import create_model

SMALL = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
COCO = ["(no category 0)", *(f"category {label}" for label in range(1, 91))]
for label, word in ((1, "person"), (18, "dog"), (62, "chair"), (90, "toothbrush")):
    COCO[label] = word


def deit_of(name="deit_tiny_patch16_224", size=16, **changes):
    torch.manual_seed(0)
    state = create_model(name, 10, 0.0, size, **{**SMALL, **changes}).state_dict()
    return {key: torch.randn_like(value) for key, value in state.items()}


def yolos_of(seed=1, classes=3, **changes):
    torch.manual_seed(seed)
    sizes = {"init_size": (24, 32), "mid_size": (16, 24), "num_det_tokens": 5}
    return create_model("yolos_tiny", classes, img_size=(24, 32), **{**SMALL, **sizes, **changes})


def load(model, path, state, classes=("a", "b", "c"), name="yolos_tiny"):
    torch.save(state, path)
    return load_initial_weights(model, Wanted(name, list(classes), (0.5,) * 3, (0.5,) * 3), str(path), False)


def same(model, source, prefix="backbone."):
    """Names of the source's tensors that the model now has."""
    state = model.state_dict()
    return {key for key, value in source.items() if torch.equal(state.get(prefix + key, torch.empty(0)), value)}


def test_a_classifier_becomes_the_transformer(tmp_path):
    source, model = deit_of(), yolos_of()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    told = load(model, tmp_path / "deit.pth", {"model": source, "epoch": 300})
    assert set(source) - same(model, source) == {"pos_embed", "head.weight", "head.bias"}
    assert "resized: pos_embed from 4x4 to 6x8 patches" in told
    assert "dropped: head.* (2 tensors)" in told
    grid = source["pos_embed"][:, 1:].view(1, 4, 4, 32).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(6, 8), mode="bicubic", align_corners=False).flatten(2).mT
    own = model.backbone.pos_embed
    torch.testing.assert_close(own[:, 1:49], grid)
    assert torch.equal(own[:, :1], source["pos_embed"][:, :1])
    assert torch.equal(own[:, 49:], before["backbone.pos_embed"][:, 49:])  # the detection tokens' rows
    new = ("backbone.det_token", "backbone.mid_pos_embed", "class_embed.layers.0.weight", "bbox_embed.layers.2.bias")
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in new)
    assert "(the weights are a classifier's)" in told


def test_the_class_token_keeps_its_own_row_of_a_distilled_start(tmp_path):
    """The released code gives it the distillation token's (docs/fidelity.md, "YOLOS")."""
    source, model = deit_of("deit_tiny_distilled_patch16_224"), yolos_of()
    told = load(model, tmp_path / "deit.pth", source)
    assert torch.equal(model.backbone.pos_embed[:, :1], source["pos_embed"][:, :1])
    assert torch.equal(model.backbone.cls_token, source["cls_token"])
    assert "dist_token" in told


def test_published_weights_of_a_detector(tmp_path):
    """Under `model`, beside the optimiser and the options; COCO's labels are its category ids."""
    source = yolos_of(0, 91).state_dict()
    state = {"model": source, "optimizer": {"state": {}}, "epoch": 149, "args": argparse.Namespace(lr=1)}
    model = yolos_of(1, 91)
    load(model, tmp_path / "yolos.pth", state, COCO)
    assert same(model, source, "") == set(source)


def test_a_detector_of_other_classes_keeps_its_boxes(tmp_path):
    source, model = yolos_of(0, 7).state_dict(), yolos_of(1, 3)
    told = load(model, tmp_path / "yolos.pth", {"model": source})
    assert {key.partition(".")[0] for key in set(source) - same(model, source, "")} == {"class_embed"}
    assert "(the file does not name its classes)" in told


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_det_tokens": 4}, r"det_token has shape \[1, 5, 32\] and not \[1, 4, 32\]"),
        ({"mid_size": None}, "mid_pos_embed is not the model's"),
        ({"embed_dim": 16}, r"give .*embed_dim=32"),
        ({"mid_size": (16, 16)}, r"mid_pos_embed has shape \[1, 1, 30, 32\] and not \[1, 1, 22, 32\]"),
    ],
)
def test_another_detectors_weights_are_refused(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        load(yolos_of(1, **changes), tmp_path / "yolos.pth", yolos_of(0).state_dict())


def test_a_classifier_takes_no_detectors_weights(tmp_path):
    model = create_model("deit_tiny_patch16_224", 3, 0.0, 16, **SMALL)
    with pytest.raises(
        UserError, match=r"a detector's weights \(they have det_token\), and VisionTransformer is a classifier"
    ):
        load(model, tmp_path / "w.pth", yolos_of(0, init_size=(16, 16)).state_dict(), name="deit_tiny_patch16_224")


def test_timms_weights_of_a_yolos_are_the_deits(monkeypatch):
    asked, model = [], yolos_of()
    monkeypatch.setattr(fetched, "require_reachable", lambda name, _: asked.append(name))
    monkeypatch.setattr(fetched.timm, "create_model", lambda name, **_: asked.append(name) or 1 / 0)
    with pytest.raises(UserError, match="timm's weights of deit_small_patch16_224 are not to be had"):
        load_initial_weights(model, Wanted("yolos_small", ["a"], (0.5,) * 3, (0.5,) * 3), "timm", False)
    assert asked == ["deit_small_patch16_224"] * 2
