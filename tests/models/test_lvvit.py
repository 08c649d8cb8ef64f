"""LV-ViT against the published keys and counts, the released code's outputs, and itself."""

import copy
import json
import pickle

import numpy
import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.layers import DropPath
from torch import nn

from toe_train.errors import UserError
from toe_train.expansion import ExpansionSchedule, TokenExpansion, attach
from toe_train.models import TokenMix, create_model, give_drop_path, swap_in_boxes

SMALL = {"patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2, "stem_width": 8}
GRID = (8, 8)
# Two pairs, each with its own box.
MIX = TokenMix(torch.tensor([[1, 2, 5, 7], [0, 0, 3, 3], [0, 0, 3, 3], [1, 2, 5, 7]]), torch.tensor([3, 2, 1, 0]))


def build(name="lvvit_t", drop_path=0.0, **options):
    torch.manual_seed(0)
    model = create_model(name, 5, drop_path, 32, **{**SMALL, **options})
    for parameter in model.parameters():  # biases away from their initial zeros
        nn.init.normal_(parameter, std=0.1)
    return model.train()


def images(batch=4, size=32):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def step(model, x):
    """Train outputs and gradients of one backward pass."""
    model.zero_grad()
    cls, aux, boxes = model(x)
    (cls.square().sum() + aux.square().mean()).backward()
    return cls, aux, boxes, [parameter.grad.clone() for parameter in model.parameters()]


# Parameters at 224 and 1000 classes, and of the stem, a block and a head; entries of the state_dict.
@pytest.mark.parametrize(
    ("name", "whole", "stem", "block", "head", "entries"),
    [
        ("lvvit_t", 8_534_720, 1_066_800, 578_160, 241_000, 160),
        ("lvvit_s", 26_151_824, 1_656_768, 1_478_016, 385_000, 204),
        ("lvvit_m", 55_830_544, 2_181_184, 2_626_048, 513_000, 248),
        ("lvvit_l", 150_021_968, 6_606_720, 5_905_152, 769_000, 292),
    ],
)
def test_parameter_counts(name, whole, stem, block, head, entries):
    with torch.device("meta"):
        model = timm.create_model(name)
    parts = (model, model.patch_embed, model.blocks[0], model.head)
    assert [sum(parameter.numel() for parameter in part.parameters()) for part in parts] == [whole, stem, block, head]
    assert len(model.state_dict()) == entries


@pytest.mark.parametrize("size", "tsml")
def test_published_weights_fit(golden, size):
    keys = json.loads(golden(f"lvvit_keys_{size}.json").read_text())
    with torch.device("meta"):
        model = timm.create_model(f"lvvit_{size}")
        model.load_state_dict({key: torch.empty(shape) for key, shape in keys.items()}, strict=True)


@pytest.mark.parametrize(("name", "crop_pct"), [("t", 0.9), ("s", 0.9), ("m", 1.0), ("l", 1.0)])
def test_timm_knows_the_models_and_their_evaluation(name, crop_pct):
    with torch.device("meta"):
        model = timm.create_model(f"lvvit_{name}")
    assert timm.is_model(f"lvvit_{name}")
    data = resolve_data_config(model=model)
    assert (data["crop_pct"], data["interpolation"], data["input_size"]) == (crop_pct, "bicubic", (3, 224, 224))
    assert data["mean"] == (0.485, 0.456, 0.406)
    assert type(model).__name__ == "LvVit"


def by_rule(model):
    """The weights by which the reference outputs were made (README.md beside them)."""
    state = model.state_dict()
    for index, key in enumerate(sorted(state)):
        value = state[key]
        if not value.is_floating_point():
            continue
        drawn = numpy.random.RandomState(index).standard_normal(value.numel()).astype(numpy.float32)
        drawn = torch.from_numpy(drawn).view(value.shape)
        if key.endswith("running_var"):
            state[key] = 1 + 0.1 * drawn.abs()
        elif key.endswith("running_mean") or (value.ndim <= 1 and not key.endswith("weight")):
            state[key] = 0.1 * drawn
        else:
            state[key] = 1 + 0.1 * drawn if value.ndim <= 1 else 0.05 * drawn
    model.load_state_dict(state, strict=True)
    for module in model.modules():  # the reference was made with BatchNorm in eval mode
        if isinstance(module, nn.BatchNorm2d):
            module.train(False).requires_grad_(False)
    return model


def test_outputs_of_the_released_code(golden):
    reference = {key: torch.from_numpy(value) for key, value in numpy.load(golden("lvvit_t_forward.npz")).items()}
    x = numpy.random.RandomState(7).standard_normal((2, 3, 224, 224)).astype(numpy.float32)
    x = torch.from_numpy(x)
    model = by_rule(create_model("lvvit_t", 10, 0.0, 224).train())
    model.mix_token = False
    expansion = TokenExpansion(ExpansionSchedule([1, 2, 3], [0.4, 0.7, 1.0], 0.2))
    attach(model, expansion)
    with torch.no_grad():
        for stage, prefix in enumerate(("train", "toe1", "toe2")):
            expansion.set_epoch(stage)
            cls, aux, boxes = model(x)
            torch.testing.assert_close(cls, reference[f"{prefix}_cls"], atol=2e-4, rtol=0)
            torch.testing.assert_close(aux, reference[f"{prefix}_aux"], atol=2e-4, rtol=0)
            assert boxes.tolist() == [[0] * 4] * 2
        torch.testing.assert_close(model.eval()(x), reference["eval_logits"], atol=2e-4, rtol=0)


def test_it_starts_as_published():
    torch.manual_seed(0)
    model = create_model("lvvit_s", 1000, 0.1, 224)
    for weight in (model.blocks[3].attn.qkv.weight, model.blocks[7].mlp.fc1.weight, model.pos_embed, model.head.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.03)
        assert weight.abs().max() < 0.12  # six deviations
    assert not model.blocks[3].mlp.fc1.bias.any()
    assert not model.aux_head.bias.any()
    bound = (64 * 3 * 3) ** -0.5  # PyTorch's uniform start of a convolution
    assert model.patch_embed.conv2.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    rates = [getattr(block.drop_path2, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.1 * index / 15 for index in range(16)])
    assert model.blocks[0].norm1.eps == model.norm.eps == 1e-5
    assert model.no_weight_decay() == {"pos_embed", "cls_token"}


def test_branches_are_divided_by_skip_lam():
    plain, halved = build(skip_lam=1.0).blocks[0], build(skip_lam=2.0).blocks[0]
    x = torch.randn(2, 5, 24)
    middle = x + (plain(x) - plain.mlp(plain.norm2(x + plain.attn(plain.norm1(x)))) - x) / 2
    torch.testing.assert_close(halved(x), middle + plain.mlp(plain.norm2(middle)) / 2)


def test_train_and_eval_outputs_belong_together():
    model = build()
    model.mix_token = False
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    cls, aux, boxes = model(images())
    assert (cls.shape, aux.shape, boxes.shape, boxes.dtype) == ((4, 5), (4, 64, 5), (4, 4), torch.int64)
    assert not boxes.any()
    torch.testing.assert_close(model.eval()(images()), cls + 0.5 * aux.max(1).values)
    assert model.forward_head(model.forward_features(images()), pre_logits=True).shape == (4, 24)


@pytest.mark.parametrize(
    ("size", "patch", "grid"),
    [((32, 32), 4, (8, 8)), ((48, 48), 16, (3, 3)), ((32, 64), 8, (4, 8)), ((28, 28), 14, (2, 2))],
)
def test_other_image_and_patch_sizes(size, patch, grid):
    model = timm.create_model("lvvit_t", num_classes=5, img_size=size, **{**SMALL, "patch_size": patch})
    assert model.patch_embed.grid_size == grid
    assert model.patch_embed.patch_size == (patch, patch)
    assert model.train()(torch.randn(2, 3, *size))[1].shape == (2, grid[0] * grid[1], 5)
    assert model.eval()(torch.randn(2, 3, *size)).shape == (2, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 7}, "patch_size=7 must be even.* the nearest is 6"),
        ({"patch_size": 16, "img_size": 40}, r"not a multiple of patch_size=16.* use \(32, 32\)"),
        ({"num_heads": 5}, "cannot be built"),
        ({"dept": 3}, "dept"),
    ],
)
def test_sizes_that_do_not_fit(options, message):
    options = {**SMALL, "img_size": 28, **options}
    with pytest.raises(UserError, match=message):
        create_model("lvvit_t", 5, 0.0, **options)


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"images of \(64, 64\) pixels: .*img_size=\(32, 32\)"):
        build()(images(size=64))


def test_mixing_swaps_tokens_before_the_blocks_and_answers_after_them():
    """Without blocks a token's output is a function of the token and its position, so each cell can be told apart."""
    model = build(depth=0)
    nn.init.zeros_(model.pos_embed)
    plain, mixed = copy.deepcopy(model), model
    plain.mix_token = False
    mixed.given_mix = MIX
    cls, aux, boxes = mixed(images())
    expected_cls, expected_aux, _ = plain(images())
    torch.testing.assert_close(aux, expected_aux)  # every token came back to its own image
    torch.testing.assert_close(cls, expected_cls)
    assert torch.equal(boxes, MIX.boxes)
    assert mixed.last_mix is MIX
    # The position stays where it is while tokens are swapped.
    nn.init.normal_(model.pos_embed)
    plain.load_state_dict(mixed.state_dict())
    seen = []
    hook = mixed.norm.register_forward_hook(lambda module, args, output: seen.append(output))
    mixed(images())
    hook.remove()
    patches = swap_in_boxes(plain.patch_embed(images()), MIX, GRID)
    torch.testing.assert_close(seen[0][:, 1:], plain.norm(patches + plain.pos_embed[:, 1:]))


def test_a_mix_that_is_given_does_what_the_models_own_does():
    model = build()
    torch.manual_seed(4)
    *own, own_gradients = step(model, images())
    mix = model.last_mix
    assert mix.partners.tolist() == [3, 2, 1, 0]
    assert (mix.boxes == mix.boxes[0]).all()
    assert mix.boxes[0].any()
    torch.manual_seed(5)
    *_, other_boxes, _ = step(model, images())
    assert not torch.equal(other_boxes, mix.boxes)
    model.given_mix = mix
    *given, gradients = step(model, images())
    for value, expected in zip((*given, *gradients), (*own, *own_gradients), strict=True):
        assert torch.equal(value, expected)


def test_a_pair_depends_on_its_own_box_only():
    model = build()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    model.given_mix = MIX
    cls, aux, _ = model(images())
    model.given_mix = TokenMix(MIX.boxes[1:3], torch.tensor([1, 0]))
    pair_cls, pair_aux, _ = model(images()[1:3])
    torch.testing.assert_close(pair_cls, cls[1:3])
    torch.testing.assert_close(pair_aux, aux[1:3])


def test_a_mix_of_the_wrong_shape():
    model = build()
    model.given_mix = MIX
    with pytest.raises(ValueError, match=r"given_mix with boxes \(4, 4\) .* does not fit 2 images on cpu: .*\(2, 4\)"):
        model(images(2))


def test_given_drop_path_makes_training_repeatable():
    model = build(drop_path=0.5)
    model.given_mix = MIX
    draws = give_drop_path(model)
    assert draws.count == 4  # block 0 has rate 0
    assert not any(isinstance(module, DropPath) for module in model.modules())
    draws.give(torch.rand(4, 4))
    first = model(images())
    assert all(torch.equal(value, again) for value, again in zip(first, model(images()), strict=True))
    draws.give(torch.rand(4, 4))
    assert not torch.equal(first[0], model(images())[0])


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_gradient_checkpointing_changes_no_gradient(drop_path):
    results = []
    for checkpointing in (False, True):
        model = build(drop_path=drop_path)
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(7)
        cls, aux, boxes, gradients = step(model, images())
        results.append((cls, aux, boxes, *gradients))
    for value, other in zip(*results, strict=True):
        torch.testing.assert_close(value, other)


def test_every_parameter_gets_a_gradient():
    *_, gradients = step(build(), images())
    assert all(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.slow  # the fast one of LV-ViT is test_lvvit_expansion.py's
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("mixing", ["given", "own", "off"])
def test_compiled_model_equals_eager(backend, mixing):
    torch.compiler.reset()
    model = build()
    model.mix_token = mixing != "off"
    model.given_mix = MIX if mixing == "given" else None
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    *outputs, gradients = step(compiled, images())
    model.given_mix = model.last_mix
    *expected, expected_gradients = step(model, images())
    for value, other in zip((*outputs, *gradients), (*expected, *expected_gradients), strict=True):
        torch.testing.assert_close(value, other, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(compiled.eval()(images()), model.eval()(images()), atol=1e-4, rtol=1e-4)


def test_new_boxes_compile_nothing_anew():
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounter()
    model = build()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for shift in range(3):
        model.given_mix = TokenMix(MIX.boxes + shift, MIX.partners.roll(2 * shift))
        compiled(images())
    assert counter.frame_count == 1


def test_copies_and_pickles_are_the_same_model():
    model = build()
    model(images())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.load_state_dict(model.state_dict(), strict=True)
        other.given_mix = model.given_mix = model.last_mix
        assert all(torch.equal(a, b) for a, b in zip(other(images()), model(images()), strict=True))
        model.given_mix = None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    model = build().to(dtype)
    assert [value.dtype for value in model(images().to(dtype))] == [dtype, dtype, torch.int64]
    model.reset_classifier(7)
    assert model.eval()(images().to(dtype)).dtype == dtype


def test_other_numbers_of_classes():
    model = build()
    assert model.get_classifier() is model.head
    model.reset_classifier(7)
    assert [value.shape for value in model(images())] == [(4, 7), (4, 64, 7), (4, 4)]
    assert model.eval()(images()).shape == (4, 7)
    model.reset_classifier(0)
    assert model(images()).shape == (4, 24)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("given", [False, True])
def test_the_host_never_waits_for_the_device(given):
    model, x = build().cuda(), images().cuda()
    model.given_mix = TokenMix(*(part.cuda() for part in MIX)) if given else None
    step(model, x)  # the libraries start
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(model, x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_without_its_dense_head_it_is_an_ordinary_classifier():
    model = create_model("lvvit_t", 5, 0.0, 32, patch_size=4, embed_dim=32, depth=2, num_heads=2, dense=False)
    x = torch.randn(2, 3, 32, 32)
    assert model.train()(x).shape == model.eval()(x).shape == (2, 5)
    assert not [name for name in model.state_dict() if name.startswith("aux_head")]
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)
    handle = attach(model, TokenExpansion(ExpansionSchedule([0, 1, 2], [0.5, 0.75, 1.0], 0.25)))
    handle.expansion.set_epoch(0)
    assert model.train()(x).shape == (2, 7)
    assert handle.expansion.kept.shape == (2, 32)
