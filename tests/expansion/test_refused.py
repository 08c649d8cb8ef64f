"""Models and calls in which dropping tokens would be wrong, each by the name of its reason."""

import re

import pytest
import timm
import torch
from torch import nn

from toe_train.analysis.families import REFUSED, SERVED, refusal
from toe_train.expansion import ExpansionSchedule, TokenExpansion, attach

REASONS = {
    "timm Swin": "within windows .*shift_size",
    "timm Hiera": "within windows .*use_mask_unit_attn",
    "timm SAM": "within windows .*window_size",
    "timm BEiT": "relative positions .*relative_position_bias_table",
    "timm ViT with relative positions": "relative positions .*`rel_pos`",
    "timm ViT with shared relative positions": "relative positions .*`shared_rel_pos`",
    "timm XCiT": "class token after some of the blocks",
    "timm CaiT": "class token after some of the blocks",
    "timm ConViT": "class token after some of the blocks",
    "timm hybrid ViT": "hybrid.*patch_embed.backbone",
    "timm MLP-Mixer": r"block 1 of MlpMixer \(MixerBlock\) cannot run on a subset",
    "timm ConvNeXt": "no plain list of blocks.*stages",
    "timm PiT": "no plain list of blocks.*stages",
    "timm backbone of feature maps": "image's grid.*out_indices",
    "transformers Swin": "within windows .*shift_size",
    "transformers BEiT": "relative positions .*relative_position_bias",
    "transformers SAM": "within windows .*window_size",
    "transformers YOLOS": "detection tokens .*`detection_tokens` of YolosEmbeddings",
    "transformers SigLIP 2, padded": "unlike numbers of patches.*pixel_attention_mask",
    "transformers backbone of feature maps": "image's grid.*out_indices",
    "transformers masked image modelling": "Conv2d behind its blocks .*`decoder.0`",
    "transformers masked autoencoder": "back to their places.*decoder_pos_embed",
    "torchvision Swin": "within windows .*shift_size",
}


def expansion_for(prefix=1, stage=1):
    expansion = TokenExpansion(ExpansionSchedule([1, 2, 3], [0.5, 0.75, 1.0], 0.25), prefix)
    expansion.set_epoch(stage)
    return expansion


@pytest.mark.parametrize("family", REFUSED, ids=lambda family: family.id.replace(" ", "-"))
def test_models_that_need_every_token(family):
    reason = refusal(family)
    assert reason is not None
    assert re.search(REASONS[family.id], reason), reason


def naflex():
    return next(family for family in SERVED if family.name.startswith("NaFlex")).make()


def test_padded_batches():
    """Images of one size are served; padding would be kept and merged as if it were an image."""
    model = naflex().train()
    expansion = expansion_for(4)
    attach(model, expansion)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    y, x = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    coordinates = torch.stack([y, x], dim=2).reshape(1, 16, 2).expand(2, -1, -1)
    valid = torch.ones(2, 16, dtype=torch.bool)
    valid[1, 12:] = False
    batch = {"patches": torch.randn(2, 16, 192), "patch_coord": coordinates, "patch_valid": valid}
    with pytest.raises(ValueError, match=r"`attn_mask`, which says what patches are padding.*images of one size"):
        model(batch)
    expansion.set_epoch(3)
    assert model(batch).shape == (2, 5)


class Block(nn.Module):
    """Scales tokens by what it is given, under any name."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, hidden_states, scale=None, **others):
        x = self.linear(hidden_states)
        return x if scale is None else x * scale


class Tower(nn.Module):
    """Blocks under a name of its own, called as asked."""

    def __init__(self, by_name=False):
        super().__init__()
        self.by_name = by_name
        self.stack = nn.ModuleList([Block(), Block()])

    def forward(self, x, **beside):
        for block in self.stack:
            x = block(hidden_states=x, **beside) if self.by_name else block(x, **beside)
        return x


def tower(**options):
    torch.manual_seed(0)
    model = Tower(**options).train()
    attach(model, expansion_for(1), blocks="stack", width=8)
    return model


@pytest.mark.parametrize("shape", [(2, 17, 1), (17, 1), (1, 17, 8)])
def test_an_argument_with_a_row_for_each_token_under_an_unknown_name(shape):
    with pytest.raises(ValueError, match=r"Block is given `scale`.*seems to have a row for each of the 16 .*rope"):
        tower()(torch.randn(2, 17, 8), scale=torch.ones(shape))


def test_in_a_structure_too():
    with pytest.raises(ValueError, match=r"Block is given `others`.*\(2, 16\).* seems to have a row for each"):
        tower()(torch.randn(2, 17, 8), others={"a": [torch.ones(2, 16)]})


def test_other_arguments_pass():
    assert tower()(torch.randn(2, 17, 8), scale=torch.ones(2, 1, 8), flag=True, attn_mask=None).shape == (2, 9, 8)


@pytest.mark.parametrize(
    ("beside", "reason"),
    [
        ({"rope": torch.ones(15, 4)}, r"`rope` of shape \(15, 4\) must be \(\.\.\., 16 or 17"),
        ({"position_embeddings": (torch.ones(16, 4), torch.ones(9, 4))}, r"\(9, 4\) must be"),
        ({"attn_mask": torch.ones(2, 17, 17)}, r"`attn_mask` of shape \(2, 17, 17\) must be \(17, 17\) or \(batch"),
        ({"attention_mask": torch.ones(2, 1, 16, 16)}, "must be"),
        ({"positions": torch.ones(17, 8)}, r"must be \(batch, 17, width\)"),
        ({"is_causal": True}, "in the order of the tokens"),
    ],
)
def test_known_arguments_of_another_shape(beside, reason):
    with pytest.raises(ValueError, match=rf"Block is given `{next(iter(beside))}`.*{reason}"):
        tower()(torch.randn(2, 17, 8), **beside)


def test_tokens_given_by_name():
    x = torch.randn(2, 17, 8)
    assert torch.equal(tower(by_name=True)(x), tower()(x))
    assert tower(by_name=True)(x).shape == (2, 9, 8)


def test_the_list_of_blocks_by_hand():
    model = Tower()
    with pytest.raises(ValueError, match=r"Tower has no plain list of blocks.*attach\(\.\.\., blocks=\.\.\.\)"):
        attach(model, expansion_for())
    with pytest.raises(ValueError, match=r"blocks='tower' must name a list .*there is none; none is found"):
        attach(model, expansion_for(), blocks="tower")
    with pytest.raises(ValueError, match=r"blocks='stack.0' must name a list .*it is a Block"):
        attach(model, expansion_for(), blocks="stack.0")
    with pytest.raises(ValueError, match=r"no integer `embed_dim`.*width=\.\.\."):
        attach(model, expansion_for(), blocks="stack")
    attach(model, expansion_for(), blocks="stack", width=8)


def two_towers():
    import transformers

    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**text, "hidden_size": 32, "num_hidden_layers": 3, "image_size": 32, "patch_size": 8}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision))


def test_one_of_two_towers():
    model = two_towers().train()
    with pytest.raises(ValueError, match=r"more than one list.*blocks='text_model.*or .*blocks='vision_model.encoder"):
        attach(model, expansion_for())
    expansion = expansion_for()
    attach(model, expansion, blocks="vision_model.encoder.layers")
    model.get_image_features(pixel_values=torch.randn(2, 3, 32, 32))
    assert expansion.kept.shape == (2, 8)


def test_reentrant_checkpointing_of_positions(monkeypatch):
    """It hands a block copies of its tokens, which do not say of which forward pass they are."""
    from toe_train.analysis.families import build

    families = {family.id: family for family in SERVED}
    x = torch.randn(2, 3, 32, 32)
    monkeypatch.setattr("timm.models.eva.checkpoint", checkpoint_reentrant)
    model = build(families["timm DINOv3"]).train()
    model.set_grad_checkpointing()
    attach(model, expansion_for(5))
    loss = model(x).sum()
    with pytest.raises(ValueError, match="use_reentrant=False"):
        loss.backward()


def checkpoint_reentrant(function, x, **options):
    return torch.utils.checkpoint.checkpoint(lambda x: function(x, **options), x, use_reentrant=True)


def test_a_stage_that_nobody_told():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2).train()
    expansion = TokenExpansion(ExpansionSchedule([1], [0.5], 0.25))
    attach(model, expansion)
    with pytest.warns(UserWarning, match=r"nobody has called set_epoch.*stays in stage 0.*set_epoch\(epoch\)"):
        model(torch.randn(2, 3, 32, 32))
    with pytest.warns(UserWarning, match="nobody has called set_epoch"):
        torch.compile(model, backend="eager", fullgraph=True)(torch.randn(2, 3, 32, 32))
    expansion.set_epoch(0)
    model(torch.randn(2, 3, 32, 32))
