"""YOLOS trained with Token Expansion: detection tokens that stay, and positions that follow what was kept."""

import copy

import pytest
import torch
from torch import nn

from toe_train.expansion import ExpansionSchedule, TokenExpansion, attach
from toe_train.models import create_model

DEPTH, DET = 4, 5


def build(stage=1, after_block=1, **options):
    """A small YOLOS in training whose images of 24 x 32 pixels have 48 patches; stage None is without ToE."""
    torch.manual_seed(0)
    sizes = {"init_size": (16, 24), "mid_size": (20, 28), **options}
    small = {"patch_size": 4, "embed_dim": 24, "depth": DEPTH, "num_heads": 2, "num_det_tokens": DET}
    model = create_model("yolos_tiny", 3, img_size=(24, 32), **small, **sizes).train()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    if stage is not None:
        expansion = TokenExpansion(ExpansionSchedule([1, 2, 3], [0.5, 0.75, 1.0], 0.25))
        expansion.set_epoch(stage)
        attach(model, expansion, after_block)
    return model


def images(batch=2, height=24, width=32):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def step(model, x):
    model.zero_grad()
    logits, boxes = model(x)
    (logits.square().sum() + boxes.sum()).backward()
    return logits, boxes, [parameter.grad.clone() for parameter in model.parameters()]


def by_hand(model, x, after_block, expansion):
    """The forward pass with the rows of what was kept written out, an image at a time."""
    own, found = model.backbone, []
    tables = own._mid_positions((x.shape[2] // 4, x.shape[3] // 4))
    for image in x.split(1):
        tokens = torch.cat([own.cls_token, own.patch_embed(image), own.det_token], dim=1)
        tokens = tokens + own._resized(own.pos_embed, own.init_grid, (x.shape[2] // 4, x.shape[3] // 4))
        rows = list(range(tokens.shape[1]))
        for index, block in enumerate(own.blocks):
            if index == after_block:
                left, kept = expansion(tokens[:, :-DET])
                tokens = torch.cat([left, tokens[:, -DET:]], dim=1)
                rows = [0, *(kept[0] + 1).tolist(), *rows[-DET:]]
            tokens = block.forward(tokens)
            if index < DEPTH - 1:
                tokens = tokens + tables[index][:, rows]
        found.append(model.class_embed(own.norm(tokens[:, -DET:])))
    return torch.cat(found)


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("after_block", [0, 1, 3])
def test_positions_follow_what_each_image_kept(batch, after_block):
    model = build(after_block=after_block)
    logits, _ = model(images(batch))
    kept = model.token_expansion.kept
    assert kept.shape == (batch, 24)
    assert batch == 1 or not torch.equal(kept[0], kept[1])
    alone = copy.deepcopy(model.token_expansion)
    torch.testing.assert_close(logits, by_hand(model, images(batch), after_block, alone))


def test_the_batch_is_the_sum_of_its_images():
    model = build()
    logits, _, gradients = step(model, images(3))
    parts = [step(model, image) for image in images(3).split(1)]
    torch.testing.assert_close(logits, torch.cat([part[0] for part in parts]))
    sums = [sum(each) for each in zip(*(part[2] for part in parts), strict=True)]
    torch.testing.assert_close(gradients, sums, rtol=1e-4, atol=1e-4)


def test_detection_tokens_are_never_scored_and_stay_behind():
    """What the expansion sees is the class token and the patches, and the last tokens pass it by unchanged."""
    model = build(mid_size=None)
    seen, after = [], []
    model.token_expansion.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model.blocks[0].register_forward_hook(lambda module, args, output: seen.append(output))
    model.blocks[1].norm1.register_forward_pre_hook(lambda module, args: after.append(args[0]))
    model(images())
    before, patches = seen
    assert torch.equal(patches, before[:, :-DET])
    assert after[0].shape[1] == 1 + 24 + DET
    assert torch.equal(after[0][:, -DET:], before[:, -DET:])
    assert torch.equal(after[0][:, 0], before[:, 0])


def test_a_dropped_position_between_the_blocks_learns_nothing():
    model = build()
    model.backbone.mid_grid = (6, 8)  # the images' own, so that no row is a mixture of others
    model.backbone.mid_pos_embed = nn.Parameter(torch.randn(DEPTH - 1, 1, 1 + 48 + DET, 24))
    model(images(1))[0].sum().backward()
    learnt = model.backbone.mid_pos_embed.grad[:, 0].abs().amax(dim=2) > 0  # (L, T)
    assert learnt[0].all()  # before the tokens were dropped
    kept = torch.zeros(48, dtype=torch.bool).scatter(0, model.token_expansion.kept[0], True)
    for row in learnt[1:]:
        assert torch.equal(row[1:-DET], kept)
        assert row[0]
        assert row[-DET:].all()


@pytest.mark.parametrize("stage", [0, 3])
def test_dense_stages_are_the_plain_model(stage):
    torch.testing.assert_close(step(build(stage), images()), step(build(None), images()), rtol=0, atol=0)


def test_evaluation_is_dense_to_the_last_bit():
    model, plain = build(), build(None)
    model(images())  # leaves what it kept behind
    for a, b in zip(model.eval()(images()), plain.eval()(images()), strict=True):
        assert torch.equal(a, b)
    assert list(model.state_dict()) == list(plain.state_dict())


def test_image_sizes_take_turns():
    model, plain = build(), build()
    for height, width, kept in ((24, 32, 24), (16, 40, 20), (32, 24, 24)):
        model(images(2, height, width))
        assert model.token_expansion.kept.shape == (2, kept)
    torch.testing.assert_close(step(model, images()), step(plain, images()), rtol=0, atol=0)


@pytest.mark.parametrize("after_block", [0, 1, 2])
def test_gradient_checkpointing_changes_no_gradient(after_block):
    model, checkpointed = build(after_block=after_block), build(after_block=after_block)
    checkpointed.backbone.grad_checkpointing = True
    torch.testing.assert_close(step(checkpointed, images()), step(model, images()), rtol=0, atol=0)


def test_two_passes_before_a_backward_pass_under_checkpointing():
    """The first one's blocks are computed anew after the second one has kept other tokens."""
    results = []
    for checkpointing in (False, True):
        model = build()
        model.set_grad_checkpointing(checkpointing)
        x = images(2)
        (model(x[:1])[0].square().sum() + model(x[1:])[0].square().sum()).backward()
        results.append([parameter.grad for parameter in model.class_embed.parameters()])
        results[-1] += [parameter.grad for parameter in model.backbone.parameters()]
    torch.testing.assert_close(results[1], results[0])


def test_a_deep_copy_follows_its_own_expansion():
    model = build()
    model(images())
    other = copy.deepcopy(model)
    other.token_expansion.set_epoch(2)
    assert torch.equal(other(images())[0], build(2)(images())[0])
    assert other.token_expansion.kept.shape == (2, 36)
    assert model.token_expansion.kept.shape == (2, 24)
    torch.testing.assert_close(step(model, images()), step(build(), images()), rtol=0, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(other.eval()(images()), model.eval()(images()), strict=True))


def test_remove_gives_the_plain_model_back():
    model = build(None)
    handle = attach(model, TokenExpansion(ExpansionSchedule([0], [0.5], 0.25)))
    handle.expansion.set_epoch(0)
    model(images())
    handle.remove()
    torch.testing.assert_close(step(model, images()), step(build(None), images()), rtol=0, atol=0)
    assert not any(addition._forward_pre_hooks for addition in model.mid_additions)


def test_compiled_model_equals_eager():
    torch.compiler.reset()
    model = build()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(step(compiled, images()), step(model, images()), atol=1e-4, rtol=1e-3)


def test_prefix_tokens_are_counted():
    model = build(None)
    with pytest.raises(ValueError, match="has 1 prefix tokens, the expansion was made for 0"):
        attach(model, TokenExpansion(ExpansionSchedule([0], [0.5], 0.25), num_prefix_tokens=0))


class Wrapper(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("path", ["net.blocks", "net.backbone.blocks"])
def test_inside_a_wrapper_it_is_the_bare_model(path):
    model, bare = Wrapper(build(None)), build()
    expansion = TokenExpansion(ExpansionSchedule([1, 2, 3], [0.5, 0.75, 1.0], 0.25))
    expansion.set_epoch(1)
    attach(model, expansion, blocks=path)
    for one, other in zip(step(model, images()), step(bare, images()), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert torch.equal(expansion.kept, bare.token_expansion.kept)


def test_the_transformer_alone_has_detection_tokens_too():
    model, bare = build(None).backbone, build()
    expansion = TokenExpansion(ExpansionSchedule([1, 2, 3], [0.5, 0.75, 1.0], 0.25))
    expansion.set_epoch(1)
    attach(model, expansion, width=24)
    assert torch.equal(model(images()), bare.backbone(images()))
