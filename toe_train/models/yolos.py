"""YOLOS (arXiv 2106.00666): a plain vision transformer that finds objects, with detection tokens behind its patches.

timm has no YOLOS; these four are registered with it. The keys of the state_dict are those of the published weights
(hustvl/YOLOS models/backbone.py, models/detector.py), which lie under `model` in their files.

Shapes: B images, N = rows * columns patch tokens, Q detection tokens, D width, C classes.
"""

from __future__ import annotations

from typing import Any, get_args

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import PatchEmbed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from toe_train.models.yolos_backbone import Grid, Resizing, YolosBackbone

Size = int | tuple[int, int]


class DetectionHead(nn.Module):
    """Three linear layers with ReLU between, on each detection token; as PyTorch starts them."""

    def __init__(self, embed_dim: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(embed_dim, width) for width in (embed_dim, embed_dim, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, Q, D) -> (B, Q, outputs)."""
        first, second, last = self.layers
        return last(F.relu(second(F.relu(first(x)))))


class Yolos(nn.Module):
    """YOLOS: images (B, C, H, W) of any whole number of patches -> logits (B, Q, C + 1) and boxes (B, Q, 4).

    The last logit means "no object". Boxes are centre x, centre y, width and height as fractions of the image. Both
    modes give the same.

    Args:
        img_size: height and width in pixels that plans and benchmarks count with, cut to whole patches; one number is
            both. Images may have any other size, from batch to batch.
        patch_size: side of a patch in pixels.
        in_chans: channels of the image.
        num_classes: C. Published weights, trained with COCO's category numbers as labels, have 91.
        embed_dim: D.
        depth: number of blocks.
        num_heads: attention heads, of width `embed_dim / num_heads`.
        mlp_ratio: hidden width of the blocks' perceptrons over D.
        num_det_tokens: Q, the most objects that are found in an image.
        init_size: height and width in pixels of which `pos_embed` has a row for each patch; None for `img_size`. The
            four models below have their published ones.
        mid_size: the same of `mid_pos_embed`, which is added between the blocks; None for no such positions. In
            `timm.create_model`, which leaves out arguments that are None, it is `()`.
        position_resizing: when the tables are resized to an image. "by_count" has parity with the released code: where
            the number of patches is another; so an image of 36 x 48 patches gets the rows of a grid of 32 x 54 as they
            are. "by_grid": where rows or columns are other.
        drop_path_rate: of the last block; linear from 0 over the blocks. The published ones have none.

    Attributes:
        num_prefix_tokens, num_suffix_tokens: 1, the class token, and Q: tokens before and behind the patches.
        dynamic_img_size: True, as in timm's models that take images of any size.
        blocks, patch_embed: of the transformer.
        mid_additions: modules that add positions, the i-th after block i, called with `positions` (1, 1 + N + Q, D).
        init_grid: rows and columns of patches of `pos_embed`.

    Raises:
        ValueError: for arguments that do not fit together, and in forward for images of no whole number of patches.
    """

    num_prefix_tokens = 1
    dynamic_img_size = True

    def __init__(
        self,
        img_size: Size = (800, 1333),
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 91,
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        mlp_ratio: float = 4.0,
        num_det_tokens: int = 100,
        init_size: Size | None = None,
        mid_size: Size | tuple[()] | None = None,
        position_resizing: Resizing = "by_count",
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        _require(num_det_tokens, depth, mid_size, position_resizing)
        self.num_classes = num_classes
        self.embed_dim = self.num_features = embed_dim
        self.num_suffix_tokens = num_det_tokens
        rows, columns = _grid_of("img_size", img_size, patch_size)
        patch_embed = PatchEmbed(
            (rows * patch_size, columns * patch_size), patch_size, in_chans, embed_dim, strict_img_size=False
        )
        init_grid = (rows, columns) if init_size is None else _grid_of("init_size", init_size, patch_size)
        mid_grid = None if _is_none(mid_size) else _grid_of("mid_size", mid_size, patch_size)
        self.backbone = YolosBackbone(
            patch_embed,
            embed_dim,
            depth,
            num_heads,
            mlp_ratio,
            num_det_tokens,
            init_grid,
            mid_grid,
            position_resizing,
            drop_path_rate,
        )
        self.class_embed = DetectionHead(embed_dim, num_classes + 1)
        self.bbox_embed = DetectionHead(embed_dim, 4)

    @property
    def blocks(self) -> nn.ModuleList:
        """Of the transformer."""
        return self.backbone.blocks

    @property
    def patch_embed(self) -> PatchEmbed:
        """Of the transformer."""
        return self.backbone.patch_embed

    @property
    def mid_additions(self) -> nn.ModuleList:
        """Where positions are added between the blocks; empty without such positions."""
        return self.backbone.mid_additions

    @property
    def init_grid(self) -> Grid:
        """Rows and columns of patches of `backbone.pos_embed`."""
        return self.backbone.init_grid

    def no_weight_decay(self) -> set[str]:
        """Parameters that are spared weight decay, beside all of one dimension; as released, not `mid_pos_embed`."""
        return {f"backbone.{name}" for name in ("pos_embed", "cls_token", "det_token")}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the blocks anew in the backward pass instead of keeping their activations."""
        self.backbone.grad_checkpointing = enable

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) -> logits (B, Q, C + 1), boxes (B, Q, 4) in 0..1; see the class."""
        tokens = self.backbone(images)  # (B, Q, D)
        return self.class_embed(tokens), self.bbox_embed(tokens).sigmoid()


def _is_none(size: Size | tuple[()] | None) -> bool:
    return size is None or (not isinstance(size, int) and len(size) == 0)


def _grid_of(name: str, size: Size | tuple[()] | None, patch_size: int) -> Grid:
    """Rows and columns of whole patches in (height, width), or in a square."""
    sides = (size, size) if isinstance(size, int) else tuple(size or ())
    if len(sides) != 2 or any(side < patch_size for side in sides):
        raise ValueError(
            f"{name}={size} must be a height and a width in pixels of one patch ({patch_size}) or more each, such as "
            f"{(32 * patch_size, 54 * patch_size)}"
        )
    return sides[0] // patch_size, sides[1] // patch_size


def _require(num_det_tokens: int, depth: int, mid_size: Size | tuple[()] | None, position_resizing: str) -> None:
    """Refuse values that fit no model, each by its rule."""
    if num_det_tokens < 1:
        raise ValueError(f"num_det_tokens={num_det_tokens} must be 1 or more: each finds one object; published is 100")
    if depth < 2 and not _is_none(mid_size):
        raise ValueError(
            f"mid_size={mid_size} is for positions between blocks, and depth={depth} has none; use mid_size=None"
        )
    if position_resizing not in get_args(Resizing):
        raise ValueError(f"position_resizing={position_resizing!r} must be one of {', '.join(get_args(Resizing))}")


def _cfg() -> dict[str, Any]:
    """What timm's transforms read; weights are loaded from a file, as timm hosts none."""
    return {
        "url": "",
        "num_classes": 91,
        "input_size": (3, 800, 1333),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "backbone.patch_embed.proj",
        "classifier": "class_embed.layers.2",
    }


default_cfgs = generate_default_cfgs({f"yolos_{size}": _cfg() for size in ("tiny", "small", "small_dwr", "base")})


@register_model
def yolos_tiny(pretrained: bool = False, **kwargs: Any) -> Yolos:
    """YOLOS-Ti, 6.5 M parameters, positions of 800 x 1333 pixels and none between the blocks."""
    size = {"embed_dim": 192, "depth": 12, "num_heads": 3, "init_size": (800, 1333)}
    return build_model_with_cfg(Yolos, "yolos_tiny", pretrained, **{**size, **kwargs})


@register_model
def yolos_small(pretrained: bool = False, **kwargs: Any) -> Yolos:
    """YOLOS-S, 30.7 M parameters, positions of 512 x 864 pixels, also between the blocks."""
    size = {"embed_dim": 384, "depth": 12, "num_heads": 6, "init_size": (512, 864), "mid_size": (512, 864)}
    return build_model_with_cfg(Yolos, "yolos_small", pretrained, **{**size, **kwargs})


@register_model
def yolos_small_dwr(pretrained: bool = False, **kwargs: Any) -> Yolos:
    """YOLOS-S (dWr), deeper and narrower, 27.6 M parameters, positions of 512 x 864 pixels, also between the blocks."""
    size = {"embed_dim": 330, "depth": 14, "num_heads": 6, "init_size": (512, 864), "mid_size": (512, 864)}
    return build_model_with_cfg(Yolos, "yolos_small_dwr", pretrained, **{**size, **kwargs})


@register_model
def yolos_base(pretrained: bool = False, **kwargs: Any) -> Yolos:
    """YOLOS-B, 128 M parameters, positions of 800 x 1344 pixels, also between the blocks."""
    size = {"embed_dim": 768, "depth": 12, "num_heads": 12, "init_size": (800, 1344), "mid_size": (800, 1344)}
    return build_model_with_cfg(Yolos, "yolos_base", pretrained, **{**size, **kwargs})
