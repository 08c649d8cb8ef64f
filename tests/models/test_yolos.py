"""YOLOS with itself: image sizes, positions, checkpointing, its start, and what it refuses."""

import copy
import math

import pytest
import timm
import torch
from timm.data import resolve_data_config
from torch import nn
from torch.nn import functional as F

from toe_train.errors import UserError
from toe_train.models import Yolos, create_model

SMALL = {"patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_det_tokens": 5}
SIZES = {"init_size": (16, 24), "mid_size": (20, 28)}


def build(**options):
    torch.manual_seed(0)
    model = create_model("yolos_tiny", 3, img_size=(24, 32), **{**SMALL, **SIZES, **options})
    for parameter in model.parameters():  # biases away from their initial zeros
        nn.init.normal_(parameter, std=0.2)
    return model


def images(height=24, width=32, batch=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def step(model, x):
    """Outputs and gradients of one backward pass."""
    model.zero_grad()
    logits, boxes = model(x)
    (logits.square().sum() + boxes.sum()).backward()
    return logits, boxes, [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("size", [(24, 32), (16, 24), (4, 40)])
def test_images_of_any_whole_number_of_patches(size):
    logits, boxes, gradients = step(build().train(), images(*size))
    assert (logits.shape, boxes.shape) == ((2, 5, 4), (2, 5, 4))
    assert ((boxes > 0) & (boxes < 1)).all()
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)  # the tables' too


def test_images_are_told_apart_and_stay_apart():
    model, x = build().eval(), images(batch=3)
    torch.testing.assert_close(model(x)[0], torch.cat([model(image)[0] for image in x.split(1)]))
    assert (model(x)[0][0] - model(x)[0][1]).abs().max() > 1e-3


def test_each_table_is_added_at_its_place():
    """The forward pass by hand, with the tables resized one by one."""
    model = build().eval()
    own, grid = model.backbone, (6, 8)

    def resized(table, rows, columns):  # (1, T0, D)
        patches = table[:, 1:-5].view(1, rows, columns, 24).permute(0, 3, 1, 2)
        patches = F.interpolate(patches, size=grid, mode="bicubic", align_corners=False).flatten(2).mT
        return torch.cat([table[:, :1], patches, table[:, -5:]], dim=1)

    patches = own.patch_embed.proj(images()).flatten(2).mT
    x = torch.cat([own.cls_token.expand(2, -1, -1), patches, own.det_token.expand(2, -1, -1)], dim=1)
    x = x + resized(own.pos_embed, 4, 6)
    for block, table in zip(own.blocks, [*own.mid_pos_embed, 0], strict=True):
        x = block(x)
        x = x + (resized(table, 5, 7) if torch.is_tensor(table) else 0)
    expected = model.class_embed(own.norm(x)[:, -5:])
    torch.testing.assert_close(model(images())[0], expected)


@pytest.mark.parametrize(("rule", "same"), [("by_count", True), ("by_grid", False)])
def test_which_images_get_the_tables_as_they_are(rule, same):
    model = build(init_size=(16, 24), mid_size=None, position_resizing=rule).eval()
    table = model.backbone.pos_embed
    assert model.backbone._resized(table, (4, 6), (4, 6)) is table
    assert (model.backbone._resized(table, (4, 6), (6, 4)) is table) == same


def test_gradient_checkpointing_changes_no_gradient():
    model, checkpointed = build().train(), build().train()
    checkpointed.set_grad_checkpointing()
    torch.testing.assert_close(step(checkpointed, images()), step(model, images()), rtol=0, atol=0)


def test_it_starts_as_published():
    torch.manual_seed(0)
    model = create_model("yolos_small", 91, img_size=(512, 864), depth=2)
    own = model.backbone
    block = own.blocks[1]
    tables = (own.pos_embed, own.mid_pos_embed, own.det_token, own.cls_token)
    for value in (*tables, block.attn.qkv.weight, block.attn.proj.weight, block.mlp.fc1.weight):
        assert value.std().item() == pytest.approx(0.02, rel=0.12 if value is own.cls_token else 0.03)
    assert own.pos_embed.abs().max() > 0.06  # cut at 2, and not at two deviations
    assert not block.mlp.fc1.bias.any()
    for layer, fan in ((own.patch_embed.proj, 3 * 16 * 16), (model.class_embed.layers[1], 384)):  # PyTorch's start
        assert layer.weight.abs().max().item() == pytest.approx(fan**-0.5, rel=0.01)
        assert layer.bias.any()
    assert own.norm.eps == block.norm1.eps == 1e-6
    assert model.no_weight_decay() == {"backbone.pos_embed", "backbone.cls_token", "backbone.det_token"}
    assert model.no_weight_decay() <= set(model.state_dict())


def test_sizes_and_names():
    with torch.device("meta"):
        model = create_model("yolos_tiny", num_classes=7, img_size=(800, 1333))
        without = create_model("yolos_small", num_classes=91, mid_size=None)
        small = timm.create_model("yolos_small", mid_size=())
    assert isinstance(model, Yolos)
    assert model.patch_embed.grid_size == model.init_grid == (50, 83)
    assert model.patch_embed.num_patches == 50 * 83
    assert (len(model.blocks), model.embed_dim, model.num_prefix_tokens, model.num_suffix_tokens) == (12, 192, 1, 100)
    for other in (without, small):
        assert "backbone.mid_pos_embed" not in other.state_dict()
        assert len(other.mid_additions) == 0
    assert resolve_data_config(model=model)["mean"] == (0.485, 0.456, 0.406)
    assert Yolos(img_size=(32, 48)).init_grid == (2, 3)


def test_a_deep_copy_is_the_same_model():
    model = build().eval()
    other = copy.deepcopy(model)
    assert all(torch.equal(a, b) for a, b in zip(model(images()), other(images()), strict=True))
    assert list(other.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    assert [value.dtype for value in build().to(dtype)(images().to(dtype))] == [dtype, dtype]


@pytest.mark.slow
def test_compiled_model_equals_eager():
    torch.compiler.reset()
    model = build().train()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(step(compiled, images()), step(model, images()), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("size", "near"), [((25, 32), "24 x 32"), ((24, 30), "24 x 32"), ((1, 34), "4 x 32"), ((0, 32), "4 x 32")]
)
def test_images_of_no_whole_number_of_patches_are_refused(size, near):
    words = rf"images of {size[0]} x {size[1]} pixels.*patch size 4.*nearest are {near}$"
    with pytest.raises(ValueError, match=words):
        build()(images(*size))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_size": (3, 24)}, r"init_size=\(3, 24\) must be a height and a width in pixels of one patch \(4\)"),
        ({"init_size": 0}, r"init_size=0 must be a height and a width"),
        ({"mid_size": 0}, r"mid_size=0 must be a height and a width"),
        ({"mid_size": (16, 24, 3)}, r"mid_size=\(16, 24, 3\) must be a height and a width"),
        ({"depth": 1}, r"mid_size=\(20, 28\) .*depth=1 has none; use mid_size=None"),
        ({"num_det_tokens": 0}, "num_det_tokens=0 must be 1 or more"),
        ({"position_resizing": "never"}, "position_resizing='never' must be one of by_count, by_grid"),
        ({"num_heads": 5}, "cannot be built"),
        ({"dept": 3}, "dept"),
    ],
)
def test_arguments_that_do_not_fit(options, message):
    with pytest.raises(UserError, match=message):
        create_model("yolos_tiny", 3, img_size=(24, 32), **{**SMALL, **SIZES, **options})


def test_the_parts_add_up():
    state = build().state_dict()
    assert state["backbone.pos_embed"].shape == (1, 1 + 24 + 5, 24)
    assert state["backbone.mid_pos_embed"].shape == (2, 1, 1 + 35 + 5, 24)
    assert state["class_embed.layers.2.weight"].shape == (4, 24)
    assert math.prod(state["bbox_embed.layers.2.weight"].shape) == 4 * 24


def test_without_init_size_positions_are_the_images():
    model = create_model("yolos_tiny", 3, img_size=(32, 48), init_size=None, mid_size=None, depth=1)
    assert model.state_dict()["backbone.pos_embed"].shape[1] == 1 + 2 * 3 + 100
