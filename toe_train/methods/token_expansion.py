"""Token Expansion (ToE, arXiv 2404.00672) as training uses it, with random dropping and its other options.

The algorithm is `toe_train.expansion`, which stands alone; here are its hooks into a run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from toe_train.expansion import NAME, ExpansionSchedule, TokenExpansion, attach, kept_mask
from toe_train.methods.method import Method


class TokenExpansionMethod(Method):
    """Drops patch tokens after a block, more of them in earlier stages, and merges them into kept ones.

    Args:
        schedule: of the stages.
        metric: see `TokenExpansion`, as the next three.
        initialization: "random" draws the seeds of each image from its place in the run.
        expansion: how the kept set grows.
        merging: whether dropped tokens are merged.
        after_block: see `attach`.
        restore: see `attach`; "ignore" also leaves dropped tokens out of a dense loss.

    Attributes:
        expansion: the module, once a model is prepared.
    """

    own_module = NAME
    expansion: TokenExpansion

    def __init__(
        self,
        schedule: ExpansionSchedule,
        metric: str = "cosine",
        initialization: str = "spatial",
        expansion: str = "farthest",
        merging: bool = True,
        after_block: int = 1,
        restore: str = "zero",
    ) -> None:
        self._schedule = schedule
        self._options: dict[str, Any] = {
            "metric": metric,
            "initialization": initialization,
            "expansion": expansion,
            "merging": merging,
        }
        self._after_block = after_block
        self._restore = restore
        self._num_tokens = 0

    @property
    def stage(self) -> int:
        """The module's."""
        return self.expansion.stage

    @stage.setter
    def stage(self, stage: int) -> None:
        self.expansion.stage = stage

    def prepare(self, model: nn.Module) -> None:
        """Attaches the module; every stage must be possible with the model's number of patches."""
        prefix = getattr(model, "num_prefix_tokens", 1)
        if self._options["initialization"] == "random" and getattr(model, "dynamic_img_size", False):
            raise ValueError(
                "initialization: random draws a number for each patch before the images are seen, and "
                f"{type(model).__name__} takes images of any number of patches; use spatial or even"
            )
        self.expansion = TokenExpansion(self._schedule, num_prefix_tokens=prefix, **self._options)
        handle = attach(model, self.expansion, self._after_block, self._restore)
        embedding: Any = getattr(model, "patch_embed", None)
        if not hasattr(embedding, "num_patches"):
            handle.remove()
            raise ValueError(
                f"{type(model).__name__} does not say how many patches its images have (`patch_embed.num_patches`), "
                "which a run's plan needs; use a model of images of one size, in timm without use_naflex"
            )
        self._num_tokens = embedding.num_patches
        for stage in range(1, self._schedule.num_stages + 1):
            self._schedule.num_kept(stage, self._num_tokens)

    def begin_epoch(self, epoch: int) -> None:
        """Enters the schedule's stage."""
        self.expansion.set_epoch(epoch)

    def tokens_kept(self, num_tokens: int, stage: int) -> int:
        """By the schedule."""
        return self.expansion.num_kept(num_tokens, stage)

    def measured(self, on: bool) -> None:
        """Lets the module alone think that it trains."""
        self.expansion.train(on)

    def draw(self, uniform: Callable[[str, int], Tensor]) -> None:
        """Noise that chooses the seeds, where they are random."""
        if self.expansion.initialization == "random":
            self.expansion.noise = uniform("initialization", self._num_tokens)  # (b, N)

    def counted(self) -> Tensor | None:
        """The kept tokens, where dropped ones are to be left out of the loss."""
        if self._restore != "ignore" or self.expansion.kept is None:
            return None
        return kept_mask(self.expansion.kept, self._num_tokens)
