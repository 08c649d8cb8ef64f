"""A detector's weights as those of the classifier inside it, with what finds objects beside: so that both kinds fit.

Inside YOLOS is a plain vision transformer. Weights of one (DeiT) go there by their own names, its positions to the grid
of YOLOS's first table; the detection tokens, their rows of that table, the tables between the blocks and both heads are
new. Weights of a detector have them all.

Shapes: N patches, Q detection tokens, D width.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from toe_train.build.weights.asked import Asked
from toe_train.build.weights.positions import POSITIONS
from toe_train.build.weights.source import Weights
from toe_train.models import Yolos

INSIDE = "backbone."
HEAD = "class_embed.layers.2.weight"  # (C + 1, D)
TOKEN = "det_token"
TOKEN_ROWS = "det_pos_embed"  # the last rows of a detector's embedding, which `taken_apart` gives a name
# What a classifier has none of.
OWN = (TOKEN, TOKEN_ROWS, "mid_pos_embed", "bbox_embed.", "class_embed.")
# timm's weights of the published models' starts (hustvl/YOLOS README); the deep and narrow one has none.
STARTS = {
    "yolos_tiny": "deit_tiny_patch16_224",
    "yolos_small": "deit_small_patch16_224",
    "yolos_base": "deit_base_distilled_patch16_384",
}


class ClassifierInside:
    """A YOLOS as `fit` sees a classifier: names without `backbone.`, and positions (1, 1+N, D) of its first table.

    Attributes:
        patch_embed: grid and number of patches of that table, which images need not have.
    """

    def __init__(self, model: Yolos) -> None:
        self._model = model
        rows, columns = model.init_grid
        self.patch_embed = SimpleNamespace(grid_size=model.init_grid, num_patches=rows * columns)

    def state_dict(self) -> dict[str, Tensor]:
        """As the model's, taken apart."""
        return taken_apart(self._model.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Puts together what `state_dict` took apart, and gives it to the model."""
        whole = {key: value for key, value in state.items() if key != TOKEN_ROWS}
        whole[POSITIONS] = torch.cat([state[POSITIONS], state[TOKEN_ROWS]], dim=1)  # (1, 1+N+Q, D)
        self._model.load_state_dict({key if _is_a_head(key) else INSIDE + key: value for key, value in whole.items()})


def taken_apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a classifier or a detector by the classifier's names; the detection tokens' rows under a name."""
    found = {key.removeprefix(INSIDE): value for key, value in tensors.items()}
    if TOKEN in found and POSITIONS in found:
        count = found[POSITIONS].shape[1] - found[TOKEN].shape[1]
        found[POSITIONS], found[TOKEN_ROWS] = found[POSITIONS][:, :count], found[POSITIONS][:, count:]
    return found


def seen_alike(
    model: nn.Module, weights: Weights, asked: Asked
) -> tuple[nn.Module | ClassifierInside, Weights, tuple[str, ...]]:
    """A model and weights by the same names, for `fit`; all but a YOLOS as they are.

    The third are beginnings of names that the weights need not have: all of a detector's own, where they are none.

    Raises:
        UserError: a detector's weights for a classifier.
    """
    if not isinstance(model, Yolos):
        if TOKEN in weights.tensors:
            raise asked.fault(
                f"these are a detector's weights (they have {TOKEN}), and {type(model).__name__} is a classifier; give "
                f"a classifier's, or use a detector such as model.name={next(iter(STARTS))}"
            )
        return model, weights, ()
    tensors = taken_apart(weights.tensors)
    return ClassifierInside(model), replace(weights, tensors=tensors), () if TOKEN in tensors else OWN


def _is_a_head(key: str) -> bool:
    return key.startswith(("class_embed.", "bbox_embed."))
