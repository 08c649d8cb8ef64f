"""LV-ViT (arXiv 2104.10858): a vision transformer with an output for every patch, trained with token labels.

timm has no LV-ViT; these four are registered with it. The keys of the state_dict are those of the published weights
(zihangJiang/TokenLabeling tlt/models/lvvit.py).

Shapes: B images, N = rows * columns patch tokens, D width, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, Mlp, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from toe_train.models.mix_token import TokenMix, draw_box, no_mix, swap_in_boxes


class ConvStem(nn.Module):
    """Patch embedding by four convolutions, each patch token seeing a little more than its patch.

    Attributes:
        img_size, patch_size, grid_size, num_patches: as timm's `PatchEmbed` has them.
    """

    def __init__(self, img_size: tuple[int, int], patch_size: int, in_chans: int, width: int, embed_dim: int) -> None:
        super().__init__()
        if patch_size < 2 or patch_size % 2:
            raise ValueError(
                f"patch_size={patch_size} must be even, as the stem halves the image before it cuts patches; "
                f"the nearest is {max(2, patch_size - 1)}"
            )
        if any(side % patch_size or side <= 0 for side in img_size):
            raise ValueError(
                f"img_size={img_size} is not a multiple of patch_size={patch_size}: the model would not see the edge; "
                f"use {tuple(max(side // patch_size, 1) * patch_size for side in img_size)}"
            )
        self.img_size = img_size
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (img_size[0] // patch_size, img_size[1] // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.conv1 = nn.Conv2d(in_chans, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.proj = nn.Conv2d(width, embed_dim, patch_size // 2, stride=patch_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, D), in raster order."""
        if x.shape[2:] != self.img_size:
            raise ValueError(
                f"images of {tuple(x.shape[2:])} pixels: the model was made for img_size={self.img_size}, which its "
                "position embedding belongs to; resize the images or build the model for their size"
            )
        x = F.relu(self.bn1(self.conv1(x)))  # (B, width, H/2, W/2)
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        return self.proj(x).flatten(2).transpose(1, 2)  # (B, N, D)


class Block(nn.Module):
    """Pre-norm transformer block whose branches are divided by `skip_lam` before they are added."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, skip_lam: float, drop_path: float) -> None:
        super().__init__()
        self.skip_lam = skip_lam
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads, qkv_bias=False)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1+N, D) -> (B, 1+N, D)."""
        x = torch.add(x, self.drop_path1(self.attn(self.norm1(x))), alpha=1 / self.skip_lam)  # in one kernel
        return torch.add(x, self.drop_path2(self.mlp(self.norm2(x))), alpha=1 / self.skip_lam)


class LvVit(nn.Module):
    """LV-ViT with its class head, its head for every patch, and MixToken.

    In eval mode the output is `cls + 0.5 * aux.max over the patches` (B, K). In training it is

        cls    (B, K) logits of the class token,
        aux    (B, N, K) logits of each patch of its own image, MixToken undone,
        boxes  (B, 4) int64 what MixToken swapped: top, left, bottom, right in cells; 0 where it is off.

    Args:
        img_size: side of the image in pixels, or (height, width); a multiple of `patch_size`.
        patch_size: side of a patch in pixels, even.
        in_chans: channels of the image.
        num_classes: K; 0 replaces both heads by identities, and in eval mode the class token is given out.
        embed_dim: D.
        depth: number of blocks.
        num_heads: attention heads, of width `embed_dim / num_heads`.
        mlp_ratio: hidden width of the blocks' perceptrons over D.
        skip_lam: divisor of the branches.
        stem_width: channels of the stem's first three convolutions.
        drop_path_rate: of the last block; linear from 0 over the blocks.
        dense: whether there is a head for every patch. Without, it is the class head alone, whose logits (B, K) are the
            output in both modes, and nothing is mixed: LV-ViT for training without token labels.

    Attributes:
        dense_output: `dense`: every patch position has an output, so `attach` puts the kept tokens back into the grid.
        mix_token: whether training swaps tokens.
        given_mix: what the next training forward swaps, set by a training loop before a step so that it is a function
            of the samples and not of the number of processes. With None, one box is drawn for the batch from the
            device's global torch generator and the batch is paired with its reverse, as the authors' code does.
        last_mix: what the last training forward swapped (nothing, with `mix_token` off), for losses that need more
            than the boxes: `swap_in_boxes(mask, model.last_mix, grid)` undoes MixToken on a mask as on `aux`.

    Raises:
        ValueError: for a patch size or image size that does not fit, and in forward for images of another size and
            for a `given_mix` that does not fit the batch.
    """

    num_prefix_tokens = 1

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 384,
        depth: int = 16,
        num_heads: int = 6,
        mlp_ratio: float = 3.0,
        skip_lam: float = 2.0,
        stem_width: int = 64,
        drop_path_rate: float = 0.0,
        dense: bool = True,
    ) -> None:
        super().__init__()
        self.dense_output = dense
        self.num_classes = num_classes
        self.embed_dim = self.num_features = embed_dim
        self.grad_checkpointing = False
        self.mix_token = True
        self.given_mix: TokenMix | None = None
        self.last_mix: TokenMix | None = None
        size = (img_size, img_size) if isinstance(img_size, int) else (img_size[0], img_size[1])
        self.patch_embed = ConvStem(size, patch_size, in_chans, stem_width, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.patch_embed.num_patches, embed_dim))
        rates = [drop_path_rate * index / max(depth - 1, 1) for index in range(depth)]
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio, skip_lam, rate) for rate in rates)
        self.norm = nn.LayerNorm(embed_dim)
        self.head = _head(embed_dim, num_classes)
        if dense:
            self.aux_head = _head(embed_dim, num_classes)
        trunc_normal_(self.pos_embed, std=0.02)
        trunc_normal_(self.cls_token, std=0.02)
        self.apply(_initialise)

    def no_weight_decay(self) -> set[str]:
        """Parameters that are spared weight decay, beside all of one dimension."""
        return {"pos_embed", "cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers by name, as timm's models tell them."""
        return {"stem": r"cls_token|pos_embed|patch_embed", "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the blocks anew in the backward pass instead of keeping their activations."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The class token's head; the patches' is `aux_head`."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Give both heads new weights for another number of classes."""
        self.num_classes = num_classes
        for name in ("head", "aux_head") if self.dense_output else ("head",):
            setattr(self, name, _head(self.embed_dim, num_classes).to(self.cls_token.device, self.cls_token.dtype))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> normed tokens (B, 1+N, D), without MixToken."""
        return self._encode(self.patch_embed(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Normed tokens (B, 1+N, D) -> logits (B, K) of the evaluation, or the class token (B, D)."""
        if pre_logits or not self.num_classes:
            return x[:, 0]
        if not self.dense_output:
            return self.head(x[:, 0])
        return self.head(x[:, 0]) + 0.5 * self.aux_head(x[:, 1:]).amax(dim=1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Images (B, C, H, W) -> logits (B, K), in training (cls, aux, boxes); see the class."""
        if not self.training or not self.dense_output:
            return self.forward_head(self.forward_features(x))
        patches = self.patch_embed(x)  # (B, N, D)
        if not self.mix_token:
            mix = no_mix(len(x), x.device)
            tokens = self._encode(patches)  # (B, 1+N, D)
            cls_token, patches = tokens[:, 0], tokens[:, 1:]
        else:
            grid = self.patch_embed.grid_size
            mix = self._mix(len(x), x.device)
            tokens = self._encode(swap_in_boxes(patches, mix, grid))
            # Swapped back before the head, which sees each token alone: logits are wider than tokens.
            cls_token, patches = tokens[:, 0], swap_in_boxes(tokens[:, 1:], mix, grid)
        self.last_mix = mix
        return self.head(cls_token), self.aux_head(patches), mix.boxes

    def _encode(self, patches: Tensor) -> Tensor:
        """Patch tokens (B, N, D) -> normed tokens (B, 1+N, D)."""
        cls_tokens = self.cls_token.expand(patches.shape[0], -1, -1)  # torch.export makes len() a constant
        x = torch.cat([cls_tokens, patches], dim=1) + self.pos_embed  # (B, 1+N, D)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.grad_checkpointing else block(x)
        return self.norm(x)

    def _mix(self, batch: int, device: torch.device) -> TokenMix:
        mix = self.given_mix
        if mix is None:
            box = draw_box(self.patch_embed.grid_size, device=device)
            return TokenMix(box.expand(batch, 4), torch.arange(batch - 1, -1, -1, device=device))
        if mix.boxes.shape != (batch, 4) or mix.partners.shape != (batch,) or mix.boxes.device != device:
            raise ValueError(
                f"given_mix with boxes {tuple(mix.boxes.shape)} and partners {tuple(mix.partners.shape)} on "
                f"{mix.boxes.device} does not fit {batch} images on {device}: set it to a TokenMix with boxes "
                f"({batch}, 4) and partners ({batch},) there before each step, or to None"
            )
        return mix


def _head(embed_dim: int, num_classes: int) -> nn.Module:
    head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
    _initialise(head)
    return head


def _initialise(module: nn.Module) -> None:
    """Linear layers as published; convolutions and norms keep PyTorch's start."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _cfg(crop_pct: float) -> dict[str, Any]:
    """What timm's transforms read; weights are loaded from a file, as none are hosted."""
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "crop_pct": crop_pct,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.conv1",
        "classifier": ("head", "aux_head"),
    }


default_cfgs = generate_default_cfgs(
    {"lvvit_t": _cfg(0.9), "lvvit_s": _cfg(0.9), "lvvit_m": _cfg(1.0), "lvvit_l": _cfg(1.0)}
)


@register_model
def lvvit_t(pretrained: bool = False, **kwargs: Any) -> LvVit:
    """LV-ViT-T, 8.5 M parameters."""
    size = {"embed_dim": 240, "depth": 12, "num_heads": 4, "skip_lam": 1.0}
    return build_model_with_cfg(LvVit, "lvvit_t", pretrained, **{**size, **kwargs})


@register_model
def lvvit_s(pretrained: bool = False, **kwargs: Any) -> LvVit:
    """LV-ViT-S, 26.2 M parameters."""
    size = {"embed_dim": 384, "depth": 16, "num_heads": 6, "skip_lam": 2.0}
    return build_model_with_cfg(LvVit, "lvvit_s", pretrained, **{**size, **kwargs})


@register_model
def lvvit_m(pretrained: bool = False, **kwargs: Any) -> LvVit:
    """LV-ViT-M, 55.8 M parameters."""
    size = {"embed_dim": 512, "depth": 20, "num_heads": 8, "skip_lam": 2.0}
    return build_model_with_cfg(LvVit, "lvvit_m", pretrained, **{**size, **kwargs})


@register_model
def lvvit_l(pretrained: bool = False, **kwargs: Any) -> LvVit:
    """LV-ViT-L, 150 M parameters."""
    size = {"embed_dim": 768, "depth": 24, "num_heads": 12, "skip_lam": 3.0, "stem_width": 128}
    return build_model_with_cfg(LvVit, "lvvit_l", pretrained, **{**size, **kwargs})
