"""Weights as others publish them: timm's models at random weights, in the files of DeiT, MAE, DINO and timm."""

import argparse
import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from toe_train.build.initial_weights import Wanted, load_initial_weights
from toe_train.cli.train import main
from toe_train.errors import UserError
from toe_train.models import create_model

NAME = "deit_tiny_patch16_224"
DISTILLED = "deit_tiny_distilled_patch16_224"
SMALL = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
WANTED = Wanted(NAME, ["ant", "bee", "cat"], (0.5,) * 3, (0.5,) * 3)


def model_of(seed=0, name=NAME, size=16, classes=3, **changes):
    torch.manual_seed(seed)
    model = create_model(name, classes, 0.0, size, **{**SMALL, **changes})
    for parameter in model.parameters():  # none at zero or one, so that each one counts
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def load(tmp_path, content, model, averaged=False):
    path = tmp_path / "w.pth"
    torch.save(content, path)
    return load_initial_weights(model, WANTED, str(path), averaged)


def features(model, size=16):
    torch.manual_seed(9)
    with torch.no_grad():
        return model.forward_head(model.forward_features(torch.randn(2, 3, size, size)), pre_logits=True)


def assert_same_function(first, second):
    torch.testing.assert_close(features(first), features(second), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "prefix", ["model.", "backbone.", "encoder.", "module.", "_orig_mod.", "module._orig_mod.model."]
)
def test_a_prefix_is_taken_off(tmp_path, prefix):
    source, model = model_of(0), model_of(1)
    told = load(tmp_path, {prefix + key: value for key, value in source.state_dict().items()}, model)
    assert f"tensors, {prefix} taken off their names" in told
    assert_same_function(model, source)


@pytest.mark.parametrize(
    ("sections", "averaged", "taken"),
    [
        (("model",), False, "model"),
        (("state_dict",), False, "state_dict"),
        (("teacher",), False, "teacher"),
        (("student", "teacher"), False, "teacher"),
        (("model", "model_ema"), False, "model"),
        (("model", "model_ema"), True, "model_ema"),
        (("state_dict", "state_dict_ema"), False, "state_dict"),
        (("state_dict", "state_dict_ema"), True, "state_dict_ema"),
        (("strange",), False, "strange"),
    ],
)
def test_a_section_is_taken_and_said(tmp_path, sections, averaged, taken):
    sources = {name: model_of(seed) for seed, name in enumerate(sections)}
    model = model_of(9)
    content = {name: source.state_dict() for name, source in sources.items()}
    told = load(tmp_path, {**content, "epoch": 3, "args": argparse.Namespace(lr=1.0)}, model, averaged)
    others = [name for name in sections if name != taken]
    assert f"taken: {taken}" + (f", not {others[0]}" if others else "") in told
    assert_same_function(model, sources[taken])


def test_sections_within_prefixes_and_what_stands_beside(tmp_path):
    """DINO's checkpoint: two models under a wrapper's prefix, each with a projection."""
    sources = {name: model_of(seed) for seed, name in enumerate(("student", "teacher"))}
    content = {
        name: {
            **{f"module.backbone.{key}": value for key, value in source.state_dict().items()},
            "module.head.mlp.0.weight": torch.ones(3, 32),
        }
        for name, source in sources.items()
    }
    model = model_of(9)
    told = load(tmp_path, content, model)
    assert "taken: teacher, not student" in told
    assert "dropped: 1 tensors that are not under module.backbone. (module.head.mlp.0.weight)" in told
    assert_same_function(model, sources["teacher"])


@pytest.mark.parametrize(
    ("content", "averaged", "words"),
    [
        (lambda state: state, True, "holds no averaged weights, which model.initial_averaged=true asks for"),
        (lambda state: {"model": state}, True, "use model.initial_averaged=false"),
        (
            lambda state: {"model_ema": state},
            False,
            r"averaged weights alone \(model_ema\); use model.initial_averaged=t",
        ),
        (lambda state: {"one": state, "two": state}, False, r"several sections \(one, two\)"),
        (
            lambda state: {"a." + key: value for key, value in state.items()} | {"b." + k: v for k, v in state.items()},
            False,
            "several models, under a., b.;",
        ),
        (lambda state: {"epoch": 3}, False, "no tensors"),
        (lambda state: {**state, "norm.bias": state["norm.bias"].to_sparse()}, False, "sparse or quantised: norm.bias"),
        (lambda state: [1], False, "holds list and no state_dict"),
        (lambda state: {**state, "hook": argparse.ArgumentParser}, False, "objects that could run a program"),
    ],
)
def test_what_cannot_be_decided_is_refused_in_one_line(tmp_path, content, averaged, words):
    with pytest.raises(UserError, match=words) as refused:
        load(tmp_path, content(model_of().state_dict()), model_of(1), averaged)
    assert "\n" not in str(refused.value)


def test_what_served_pretraining_is_dropped(tmp_path):
    """MAE's file: a decoder beside the encoder, and no head."""
    source, model = model_of(0), model_of(1)
    state = {key: value for key, value in source.state_dict().items() if not key.startswith("head.")}
    decoder = {f"decoder_{key}": value for key, value in state.items()}
    told = load(tmp_path, {"model": {**state, **decoder, "mask_token": torch.ones(1, 1, 32)}}, model)
    assert "mask_token" in told.split("dropped: ")[1]
    assert "decoder_blocks.* (24 tensors)" in told
    assert "new: head.weight, head.bias (the weights have none)" in told
    assert_same_function(model, source)


def test_mae_for_an_average_of_patches_has_a_new_last_norm(tmp_path):
    source, model = model_of(0), model_of(1, global_pool="avg")
    told = load(tmp_path, source.state_dict(), model)
    assert "dropped: norm.* (2 tensors)" in told
    assert "new: head.weight, head.bias, fc_norm.weight, fc_norm.bias" in told


def test_a_distilled_model_gives_what_a_plain_one_has(tmp_path):
    source, model = model_of(0, DISTILLED).state_dict(), model_of(1)
    told = load(tmp_path, {"model": source}, model)
    assert f"so the distillation token is lost, which model.name={DISTILLED} keeps" in told
    assert torch.equal(model.pos_embed[:, 1:], source["pos_embed"][:, 2:])
    assert torch.equal(model.pos_embed[:, :1], source["pos_embed"][:, :1])
    assert_same_function(model_of(0, DISTILLED), _loaded(tmp_path, source, model_of(1, DISTILLED)))


def _loaded(tmp_path, source, model):
    load(tmp_path, source, model)
    return model


def test_a_plain_model_for_a_distilled_one(tmp_path):
    source, model = model_of(0).state_dict(), model_of(1, DISTILLED)
    own = model.state_dict()
    told = load(tmp_path, source, model)
    assert "new: head.weight, head.bias, head_dist.weight, head_dist.bias, dist_token" in told
    assert torch.equal(model.pos_embed[:, 1:2], own["pos_embed"][:, 1:2])
    assert torch.equal(model.pos_embed[:, 2:], source["pos_embed"][:, 1:])


def test_the_token_that_is_read_out_must_be_there(tmp_path):
    source = model_of(0, class_token=False, global_pool="avg")
    with pytest.raises(UserError) as refused:
        load(tmp_path, source.state_dict(), model_of(1))
    assert str(refused.value).endswith(
        f"these weights have no prefix tokens, and {NAME} as it is built here has 1 prefix token (1 class); give "
        "model.kwargs.class_token=false model.kwargs.global_pool=avg"
    )
    assert_same_function(
        source, _loaded(tmp_path, source.state_dict(), model_of(1, class_token=False, global_pool="avg"))
    )


REGISTERS = {"reg_tokens": 4}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"no_embed_class": True}, {}),
        ({}, {"no_embed_class": True}),
        ({**REGISTERS, "no_embed_class": True}, REGISTERS),
        (REGISTERS, {**REGISTERS, "no_embed_class": True}),
        (REGISTERS, REGISTERS),
        ({}, {"init_values": 1e-5}),
        ({"init_values": 1e-5}, {"init_values": 1e-5}),
    ],
)
def test_the_function_stays_where_the_form_differs(tmp_path, theirs, ours):
    source = model_of(0, **theirs)
    assert_same_function(source, _loaded(tmp_path, source.state_dict(), model_of(1, **ours)))


def test_dinov2_with_registers(tmp_path):
    """Its registers have another name, and no rows of the positional embedding."""
    source = model_of(0, **REGISTERS, no_embed_class=True, init_values=1e-5)
    state = source.state_dict()
    row = torch.randn(1, 1, 32)
    theirs = {
        **{key: value for key, value in state.items() if not key.startswith("head.")},
        "register_tokens": state["reg_token"],
        "cls_token": state["cls_token"] - row,
        "pos_embed": torch.cat([row, state["pos_embed"]], dim=1),
        "mask_token": torch.ones(1, 32),
    }
    del theirs["reg_token"]
    for ours in ({"no_embed_class": True}, {}):
        model = model_of(1, **REGISTERS, init_values=1e-5, **ours)
        told = load(tmp_path, theirs, model)
        assert "renamed: register_tokens to reg_token" in told
        assert_same_function(source, model)
    told = load(tmp_path, theirs, model_of(1, init_values=1e-5))
    assert "so the register token is lost, which model.kwargs.reg_tokens=4 keeps" in told


@pytest.mark.parametrize(
    ("theirs", "fits"),
    [
        ({"init_values": 1e-5}, "give model.kwargs.init_values=1e-05"),
        ({"depth": 3}, "give model.kwargs.depth=3"),
        ({"embed_dim": 48}, "give model.kwargs.embed_dim=48"),
        ({"embed_dim": 384}, "give model.name=deit_small_patch16_224"),
        ({"patch_size": 8}, "give model.kwargs.patch_size=8"),
        ({"global_pool": "avg"}, "give model.kwargs.global_pool=avg"),
    ],
)
def test_a_refusal_names_the_model_that_fits(tmp_path, theirs, fits):
    with pytest.raises(UserError) as refused:
        load(tmp_path, model_of(0, **theirs).state_dict(), model_of(1))
    assert str(refused.value).endswith(fits)
    assert "\n" not in str(refused.value)


def test_an_oblong_grid_is_resized_where_it_is_known(tmp_path):
    torch.manual_seed(0)
    source = timm.create_model(NAME, num_classes=3, img_size=(12, 28), **SMALL)
    with pytest.raises(UserError, match="pos_embed has 22 rows beside the prefix tokens 1 cls_token: its patches lie"):
        load(tmp_path, source.state_dict(), model_of(1))
    folder = tmp_path / "exported"
    folder.mkdir()
    save_file(source.state_dict(), folder / "model.safetensors")
    card = {"pretrained_cfg": {"input_size": [3, 12, 28], "mean": [0.1, 0.2, 0.3], "std": [0.5] * 3}}
    (folder / "config.json").write_text(json.dumps(card))
    told = load_initial_weights(model_of(1), WANTED, str(folder), False)
    assert "resized: pos_embed from 3x7 to 4x4 patches" in told
    assert "note: these weights were trained on images normalised with mean [0.1, 0.2, 0.3]" in told
    assert '"augment.mean=[0.1, 0.2, 0.3]" "augment.std=[0.5, 0.5, 0.5]" would be theirs' in told


@pytest.mark.parametrize(
    ("names", "kept"), [(["ant", "bee", "cat"], True), (["dog", "eel", "fox"], False), (None, False)]
)
def test_the_head_goes_by_the_classes_names(tmp_path, names, kept):
    source, model = model_of(0), model_of(1)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"label_names": names}))
    told = load_initial_weights(model, WANTED, str(tmp_path), False)
    assert torch.equal(model.head.weight, source.head.weight) == kept
    assert ("new: head.weight, head.bias" in told) != kept


def test_the_head_of_another_run_s_classes_starts_anew(tiny, image_root, tmp_path, capsys):
    given = ["--config", str(tiny), "expansion=null", "epochs=1", "train.global_batch=4", "augment.mix_group=4"]
    given += ["data.kind=image_folder", "data.workers=0", f"data.root={image_root}"]
    first = tmp_path / "first"
    assert main([*given, "--output", str(first)]) == 0
    again = [*given, f"model.initial_weights={first}", "--dry-run"]
    assert main(again) == 0
    assert "new: " not in capsys.readouterr().out.partition("initial weights from")[2]
    for split in ("train", "val"):
        (image_root / split / "dog").rename(image_root / split / "eel")
    assert main(again) == 0
    told = capsys.readouterr().out
    assert f"initial weights from {first}/checkpoints/best.pt\n" in told
    assert "new: head.weight, head.bias (the weights are of other classes: bird, cat, dog)" in told
