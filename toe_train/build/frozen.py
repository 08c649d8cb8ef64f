"""The first epochs of a fine-tuning, in which the head alone trains (linear probing)."""

from __future__ import annotations

from torch import nn

from toe_train.build.weights.unpack import is_of_the_head
from toe_train.errors import UserError

NORM_OF_THE_HEAD = "fc_norm."  # of timm's models that average their tokens, which other weights often lack


def freeze_body(model: nn.Module, name: str) -> list[nn.Module]:
    """Lets nothing but the head ask for a gradient; with it timm's norm between the averaged tokens and the head.

    An optimiser passes over parameters without a gradient: neither decay nor moments touch them.

    Args:
        model: a classifier.
        name: its name, for the message.

    Returns:
        The batch norms that are frozen, which are to stay in eval mode: else their statistics would change.

    Raises:
        UserError: the model has no head.
    """
    parameters = dict(model.named_parameters())
    is_of_it = getattr(model, "is_of_the_head", is_of_the_head)  # transformers' classifiers have another name for it
    head = [key for key in parameters if is_of_it(key) or key.startswith(NORM_OF_THE_HEAD)]
    if not any(map(is_of_it, head)):
        raise UserError(
            f"model.frozen_epochs: {name} has no head by timm's name, head.weight, that could be trained alone; set it "
            "to 0"
        )
    for key, parameter in parameters.items():
        parameter.requires_grad_(key in head)
    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    return [norm for norm in norms if not any(parameter.requires_grad for parameter in norm.parameters())]
