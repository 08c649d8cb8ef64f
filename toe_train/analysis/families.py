"""Families of vision transformers, each as a tiny model with random weights, made without a download.

They are what `docs/models.md` and the tests go through: which of them tokens can be dropped in, and which not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from toe_train.expansion import ExpansionSchedule, TokenExpansion, attach

PIXELS, PATCH, WIDTH, DEPTH, CLASSES = 32, 8, 32, 3, 5
NUM_TOKENS = (PIXELS // PATCH) ** 2


@dataclass(frozen=True)
class Family:
    """One of them.

    Attributes:
        library: timm, transformers or torchvision.
        name: of the family, as people call it.
        example: what one asks the library for.
        make: builds the tiny model.
        num_prefix_tokens: P of it.
        blocks: path of the blocks.
        rotary: whether blocks are given positions.
    """

    library: str
    name: str
    example: str
    make: Callable[[], nn.Module]
    num_prefix_tokens: int = 1
    blocks: str = "blocks"
    rotary: bool = False

    @property
    def id(self) -> str:
        """For tests."""
        return f"{self.library} {self.name}"


def _timm(example: str, **options: Any) -> Callable[[], nn.Module]:
    size = {"img_size": PIXELS, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": 2}
    return functools.partial(timm.create_model, example, **{**size, "num_classes": CLASSES, **options})


def _transformers(model: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        size = {
            "image_size": PIXELS,
            "patch_size": PATCH,
            "hidden_size": WIDTH,
            "num_hidden_layers": DEPTH,
            "num_attention_heads": 2,
            "intermediate_size": 2 * WIDTH,
            "num_labels": CLASSES,
        }
        made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**{**size, **options}))
        return made

    return make


def _of_default(model: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**options))
        return made

    return make


def _torchvision() -> nn.Module:
    return torchvision.models.VisionTransformer(PIXELS, PATCH, DEPTH, 2, WIDTH, 2 * WIDTH, num_classes=CLASSES)


def _of_timm(name: str, example: str, prefix: int, rotary: bool = False, **options: Any) -> Family:
    return Family("timm", name, example, _timm(example, **options), prefix, rotary=rotary)


def _of_transformers(
    name: str, model: str, config: str, prefix: int, blocks: str, rotary: bool = False, **options: Any
) -> Family:
    return Family("transformers", name, model, _transformers(model, config, **options), prefix, blocks, rotary)


SERVED: tuple[Family, ...] = (
    _of_timm("ViT", "vit_small_patch16_224", 1),
    _of_timm("DeiT, distilled", "deit_small_distilled_patch16_224", 2),
    _of_timm("DeiT-III", "deit3_small_patch16_224", 1),
    _of_timm("DINOv2 with registers", "vit_small_patch14_reg4_dinov2", 5),
    _of_timm("SigLIP", "vit_base_patch16_siglip_224", 0),
    _of_timm("SigLIP, mean-pooled", "vit_base_patch16_siglip_gap_224", 0),
    _of_timm("DINOv3", "vit_small_patch16_dinov3", 5, rotary=True),
    _of_timm("EVA-02", "eva02_tiny_patch14_224", 1, rotary=True, mlp_ratio=2),
    _of_timm("rotary ViT", "vit_small_patch16_rope_224", 1, rotary=True),
    _of_timm("rotary ViT with absolute positions", "vit_small_patch16_rope_ape_224", 1, rotary=True),
    _of_timm("mixed rotary ViT", "vit_small_patch16_rope_mixed_224", 1, rotary=True),
    _of_timm("PE", "vit_pe_core_tiny_patch16_384", 1, rotary=True),
    _of_timm("NaFlex, images of one size", "naflexvit_base_patch16_gap", 4),
    _of_transformers("ViT", "ViTForImageClassification", "ViTConfig", 1, "vit.layers"),
    _of_transformers("DeiT", "DeiTForImageClassification", "DeiTConfig", 2, "deit.layers"),
    _of_transformers("DINOv2", "Dinov2ForImageClassification", "Dinov2Config", 1, "dinov2.encoder.layer"),
    _of_transformers(
        "DINOv2 with registers",
        "Dinov2WithRegistersForImageClassification",
        "Dinov2WithRegistersConfig",
        5,
        "dinov2_with_registers.encoder.layer",
    ),
    _of_transformers(
        "DINOv3",
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        5,
        "model.layer",
        True,
        num_register_tokens=4,
        pos_embed_rescale=None,
    ),
    _of_transformers("I-JEPA", "IJepaForImageClassification", "IJepaConfig", 0, "ijepa.layers"),
    _of_transformers("SigLIP", "SiglipVisionModel", "SiglipVisionConfig", 0, "encoder.layers"),
    _of_transformers("CLIP", "CLIPVisionModel", "CLIPVisionConfig", 1, "encoder.layers"),
    Family("torchvision", "ViT", "vit_b_16", _torchvision, 1, "encoder.layers"),
)


def _refused_by_timm(name: str, example: str, **options: Any) -> Family:
    return Family("timm", name, example, functools.partial(timm.create_model, example, **options))


def _refused_by_transformers(name: str, model: str, config: str, **options: Any) -> Family:
    return Family("transformers", name, model, _transformers(model, config, **options))


_SMALL = {"depth": 2, "embed_dim": 24, "num_heads": 2}
REFUSED: tuple[Family, ...] = (
    _refused_by_timm("Swin", "swin_tiny_patch4_window7_224"),
    _refused_by_timm("Hiera", "hiera_tiny_224"),
    _refused_by_timm("SAM", "samvit_base_patch16", img_size=64, **_SMALL),
    _refused_by_timm("BEiT", "beit_base_patch16_224", **_SMALL),
    _refused_by_timm("ViT with relative positions", "vit_relpos_small_patch16_224", depth=2),
    _refused_by_timm("ViT with shared relative positions", "vit_srelpos_small_patch16_224", depth=2),
    _refused_by_timm("XCiT", "xcit_nano_12_p16_224", depth=2),
    _refused_by_timm("CaiT", "cait_xxs24_224", depth=2),
    _refused_by_timm("ConViT", "convit_tiny", depth=4),
    _refused_by_timm("hybrid ViT", "vit_tiny_r_s16_p8_224", depth=2),
    _refused_by_timm("MLP-Mixer", "mixer_s32_224"),
    _refused_by_timm("ConvNeXt", "convnext_atto"),
    _refused_by_timm("PiT", "pit_ti_224"),
    _refused_by_timm("backbone of feature maps", "vit_tiny_patch16_224", features_only=True, depth=2, out_indices=[1]),
    Family("transformers", "Swin", "SwinModel", _of_default("SwinModel", "SwinConfig", depths=[1, 1, 1, 1])),
    _refused_by_transformers("BEiT", "BeitModel", "BeitConfig", use_relative_position_bias=True),
    _refused_by_transformers("SAM", "SamVisionModel", "SamVisionConfig", window_size=2, global_attn_indexes=[1]),
    _refused_by_transformers("YOLOS", "YolosModel", "YolosConfig", image_size=[PIXELS, PIXELS]),
    _refused_by_transformers("SigLIP 2, padded", "Siglip2VisionModel", "Siglip2VisionConfig"),
    _refused_by_transformers("backbone of feature maps", "Dinov2Backbone", "Dinov2Config"),
    _refused_by_transformers("masked image modelling", "ViTForMaskedImageModeling", "ViTConfig"),
    _refused_by_transformers("masked autoencoder", "ViTMAEForPreTraining", "ViTMAEConfig"),
    Family("torchvision", "Swin", "swin_t", torchvision.models.swin_t),
)


def refusal(family: Family) -> str | None:
    """Why tokens cannot be dropped in a family, None if they can. Its model is built without memory, on meta."""
    with torch.device("meta"):
        model = family.make()
    prefix = getattr(model, "num_prefix_tokens", family.num_prefix_tokens)
    try:
        attach(model, TokenExpansion(ExpansionSchedule([0], [0.5], 0.25), prefix)).remove()
    except ValueError as error:
        return str(error)
    return None


def build(family: Family) -> nn.Module:
    """The tiny model, with weights away from the zeros and small layer scales that they begin with."""
    torch.manual_seed(0)
    model = family.make()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def answer(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What a model says of images: logits, or the pooled tokens of one without a head."""
    output: Any = model(images)
    if isinstance(output, torch.Tensor):
        return output
    found: torch.Tensor = output.logits if "logits" in output else output.pooler_output
    return found


class Reordered(TokenExpansion):
    """Keeps every token, in another order for each image: what a model then says must not change."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens (B, P+N, D) -> the same in another order, and the order (B, N)."""
        if not self.training:
            return x, None
        prefix = self.num_prefix_tokens
        batch, count = x.shape[0], x.shape[1] - prefix
        order = torch.stack([torch.randperm(count, device=x.device) for _ in range(batch)])  # (B, N)
        index = order.unsqueeze(2).expand(-1, -1, x.shape[2])  # (B, N, D)
        return torch.cat([x[:, :prefix], x[:, prefix:].gather(1, index)], dim=1), order
