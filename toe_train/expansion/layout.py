"""Where a model has its blocks, how wide its tokens are, and how many of them are no patches.

Found by structure and by the few names that timm, transformers and torchvision use; what is not found is given by hand.
No library is imported for that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

# Names of a list of blocks: timm (and LV-ViT), torchvision and transformers 5, transformers 4, open_clip.
_LISTS = ("blocks", "layers", "layer", "resblocks")
# Names by which a module says how wide its tokens are: timm, torchvision; transformers' stands in its `config`.
_WIDTHS = ("embed_dim", "num_features", "hidden_dim", "hidden_size")
# Parameters that stand in front of the patch tokens, (1, n, D) or (D,).
_PREFIXES = (
    "cls_token",
    "class_token",
    "class_embedding",
    "dist_token",
    "distillation_token",
    "reg_token",
    "register_tokens",
)
# Modules that make patch tokens of an image: a model that has one and no prefix parameters has no prefix tokens.
_EMBEDDINGS = ("patch_embed", "patch_embedding", "patch_embeddings", "conv_proj", "embeds")


@dataclass(frozen=True)
class Layout:
    """The blocks of a model, as `find_layout` found them.

    Attributes:
        path: dotted name of the list.
        owners: the modules that hold it, from the model itself to the one that has it as an attribute.
        blocks: its modules, (B, P+N+S, D) -> (B, P+N+S, D).
        width: D.
        num_prefix_tokens: P, or None where nothing says.
        num_suffix_tokens: S, tokens behind the patches.
        additions: modules that add positions between the blocks, the i-th after block i.
    """

    path: str
    owners: tuple[nn.Module, ...]
    blocks: tuple[nn.Module, ...]
    width: int
    num_prefix_tokens: int | None
    num_suffix_tokens: int
    additions: tuple[nn.Module, ...]


def named(model: nn.Module) -> str:
    """The name of its class, for messages."""
    return type(model).__name__


def find_blocks(model: nn.Module, path: str | None = None) -> str:
    """The dotted name of the list of blocks.

    A list `blocks` of the model itself goes first; else it is the only list anywhere in it that has one of the usual
    names and holds modules of one class with parts of their own.

    Args:
        model: to look into.
        path: the name, where it is given by hand.

    Raises:
        ValueError: there is none, or more than one.
    """
    if path is not None:
        given = _at(model, path)
        if not _is_list(given):
            found = "there is none" if given is None else f"it is a {named(given)}"
            raise ValueError(
                f"blocks={path!r} must name a list of blocks (nn.ModuleList, nn.Sequential) in {named(model)}, and "
                f"{found}; {_choice(_candidates(model))}"
            )
        return path
    if _is_list(getattr(model, "blocks", None)):
        return "blocks"
    wrapped = isinstance(getattr(model, "module", None), nn.Module)
    candidates = [] if wrapped else _candidates(model)
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise ValueError(f"{named(model)} has more than one list of blocks; {_choice(candidates)}")
    remedy = (
        "attach to the model inside the wrapper"
        if wrapped
        else "use a plain vision transformer (ViT, DeiT), or name the list if there is one: attach(..., blocks=...)"
    )
    raise ValueError(
        f"{named(model)} has no plain list of blocks (`blocks`, `layers`, ... of one class) between which tokens could "
        f"be dropped (stages and feature maps need every token); {remedy}"
    )


def find_layout(model: nn.Module, path: str | None = None, width: int | None = None) -> Layout:
    """Everything that `attach` has to know of a model.

    Args:
        model: to look into.
        path: dotted name of its list of blocks, where it is given by hand.
        width: D, where it is given by hand.

    Raises:
        ValueError: the blocks or the width are not found.
    """
    path = find_blocks(model, path)
    owners, blocks = _owners(model, path), _at(model, path)
    assert isinstance(blocks, (nn.ModuleList, nn.Sequential))
    width = _width(model, owners) if width is None else width
    return Layout(
        path,
        owners,
        tuple(blocks),
        width,
        _prefix_tokens(owners, width),
        num_suffix_tokens=getattr(innermost_with(owners, "num_suffix_tokens"), "num_suffix_tokens", 0),
        additions=tuple(getattr(innermost_with(owners, "mid_additions"), "mid_additions", ())),
    )


def innermost_with(owners: Iterable[nn.Module], attribute: str) -> nn.Module | None:
    """Of the modules that hold the blocks, outermost first, the innermost that has an attribute; None where none has.

    What a model says of its tokens so holds inside a wrapper too.
    """
    return next((owner for owner in reversed(tuple(owners)) if hasattr(owner, attribute)), None)


def count_prefix_tokens(model: nn.Module, width: int) -> int | None:
    """Tokens in front of the patch tokens; None where nothing says.

    By `num_prefix_tokens` of the model (timm), else by the class, distillation and register tokens among its
    parameters.

    Args:
        model: to look into.
        width: D of its tokens.
    """
    said = getattr(model, "num_prefix_tokens", None)
    if isinstance(said, int):
        return said
    parameters = {name.rpartition(".")[2]: parameter for name, parameter in model.named_parameters()}
    tokens = [parameter.numel() // width for name, parameter in parameters.items() if name in _PREFIXES]
    if tokens or any(name.rpartition(".")[2] in _EMBEDDINGS for name, _ in model.named_modules()):
        return sum(tokens)
    return None


def _prefix_tokens(owners: tuple[nn.Module, ...], width: int) -> int | None:
    """What the innermost owner says that says a number; else what the parameters of the whole model do."""
    saying = [owner for owner in owners if isinstance(getattr(owner, "num_prefix_tokens", None), int)]
    return count_prefix_tokens((saying or owners[:1])[-1], width)


def _candidates(model: nn.Module) -> list[str]:
    """Dotted names of all lists that may be the blocks, none of them inside another list, as those of stages are."""
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(part.isdigit() for part in name.split("."))
        if inside or name.rpartition(".")[2] not in _LISTS or any(name.startswith(f"{outer}.") for outer in found):
            continue
        if _is_list(module) and _are_alike(module.children()):
            found.append(name)
    return found


def _are_alike(modules: Iterable[nn.Module]) -> bool:
    """Whether all are of one class, and made of other modules."""
    classes = {type(module) for module in modules}
    return len(classes) == 1 and all(any(True for _ in module.children()) for module in modules)


def _is_list(module: object) -> bool:
    return isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 0


def _at(model: nn.Module, path: str) -> nn.Module | None:
    """The module of a dotted name, which may pass through properties (YOLOS's `blocks`)."""
    module: object = model
    for name in path.split("."):
        module = getattr(module, name, None)
    return module if isinstance(module, nn.Module) else None


def _owners(model: nn.Module, path: str) -> tuple[nn.Module, ...]:
    owners = [model]
    for name in path.split(".")[:-1]:
        owners.append(owners[-1].get_submodule(name))
    return tuple(owners)


def _width(model: nn.Module, owners: tuple[nn.Module, ...]) -> int:
    """What the innermost owner says that says anything."""
    for owner in reversed(owners):
        for source in (owner, getattr(owner, "config", None)):
            for attribute in _WIDTHS:
                width = getattr(source, attribute, None)
                if isinstance(width, int) and not isinstance(width, bool):
                    return width
    raise ValueError(
        f"{named(model)} does not say how wide its tokens are (no integer `embed_dim`): only a plain vision "
        "transformer with one width can drop tokens; if yours is one, set the attribute or give attach(..., width=...)"
    )


def _choice(candidates: list[str]) -> str:
    if not candidates:
        return "none is found in it"
    return "say which: " + " or ".join(f"attach(..., blocks={name!r})" for name in candidates)
