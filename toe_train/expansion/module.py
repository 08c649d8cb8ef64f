"""`TokenExpansion`: the module that a model runs between two of its blocks.

Shapes: B batch, P prefix tokens, N patch tokens, K kept tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toe_train.expansion.schedule import EXPANSIONS, INITIALIZATIONS, METRICS, ExpansionSchedule, check_option
from toe_train.expansion.selection import expand, gather, initialise, merge


class TokenExpansion(nn.Module):
    """Keep a growing subset of the patch tokens while training, and merge the others into it (paper, section 3).

    It has no parameters and no buffers, so a model's state_dict does not change. It does nothing (and returns its very
    input) in eval mode and in dense stages. Prefix tokens (class, distillation, registers) are never scored, never
    merged and stay in front.

    The defaults reproduce the authors' released code: the same tokens in the same order, the same merged values and
    gradients. Every other choice below leaves that parity.

    Args:
        schedule: when tokens are dropped, and how many.
        num_prefix_tokens: tokens in front of the patch tokens: 0 for mean-pooled models without any, 1 with a class
            token, 2 with a distillation token too, more with registers. The released code knows 1 only.
        metric: what "nearest" means, on L2-normalised tokens.
            "cosine" is the paper's choice and has parity. "euclidean" (selects the same tokens as cosine, up to
            rounding) and "manhattan" are the paper's Table 9 as its text defines it. "euclidean_released" and
            "manhattan_released" have parity with the released code, which takes the farthest token for the nearest
            with these two.
        initialization: where the seeds lie.
            "spatial" has parity: every `int(1 // initial_keep_rate)`-th token up to the count, which leaves the last
            rows of the image without seeds at some rates (196 tokens at 0.2: none after position 152). "even" spreads
            the same number over the whole image. "random" draws them anew for each image and step.
        expansion: how the kept set grows from the seeds (paper, Table 7).
            "farthest" is the method and has parity. "uniform" scores nothing and fills the stage's whole budget with
            evenly spread tokens, or random ones if `initialization` is "random". "none" keeps the seeds only, a
            smaller budget.
        merging: whether dropped tokens are averaged into the nearest kept one (parity) or left out (Table 7).

    Attributes:
        stage: current stage, that of epoch 0 until `set_epoch` is called, or this is set.
        told_stage: whether that has been done.
        noise: (B, N) uniform numbers on the tokens' device for random initialisation, set by a training loop before a
            step so that the seeds are a function of a sample and not of the number of processes. With None, numbers
            are drawn from the device's global generator. Not used by the other initialisations.
        kept: what the last forward returned as its second value, for dense outputs and for pictures.
        num_tokens: patch tokens N of the last forward that dropped some.
        remember_owner: whether forward leaves `owner` behind; `attach` sets it.
        owner: (B, N) int64, for each token the place 0..K-1 in `kept` of the token that it was merged into (its own
            for a kept one). None where it is not remembered, nothing is dropped, or nothing is merged.

    Raises:
        ValueError: for an option that does not exist, a negative number of prefix tokens, and in forward for shapes
            that do not fit.
    """

    noise: Tensor | None
    kept: Tensor | None
    owner: Tensor | None

    def __init__(
        self,
        schedule: ExpansionSchedule,
        num_prefix_tokens: int = 1,
        metric: str = "cosine",
        initialization: str = "spatial",
        expansion: str = "farthest",
        merging: bool = True,
    ) -> None:
        super().__init__()
        check_option("metric", metric, METRICS)
        check_option("initialization", initialization, INITIALIZATIONS)
        check_option("expansion", expansion, EXPANSIONS)
        if not isinstance(num_prefix_tokens, int) or num_prefix_tokens < 0:
            raise ValueError(
                f"num_prefix_tokens={num_prefix_tokens!r} must be a whole number, 0 or more; it is 1 with a class token"
            )
        self.schedule = schedule
        self.num_prefix_tokens = num_prefix_tokens
        self.metric = metric
        self.initialization = initialization
        self.expansion = expansion
        self.merging = merging
        self.stage = schedule.stage(0)
        self.told_stage = False
        self.noise = None
        self.kept = None
        self.num_tokens = 0
        self.remember_owner = False
        self.owner = None

    def set_epoch(self, epoch: int) -> None:
        """Enter the stage of an epoch (0-based); the training loop calls this before each epoch."""
        self.stage = self.schedule.stage(epoch)

    @property
    def stage(self) -> int:
        """The current stage."""
        return self._stage

    @stage.setter
    def stage(self, stage: int) -> None:
        self._stage = stage
        self.told_stage = True

    @property
    def drops(self) -> bool:
        """Whether forward drops tokens now: in training mode, in a stage that keeps a part of them."""
        return self.training and not self.schedule.is_dense(self.stage)

    @property
    def why_no_maps(self) -> str | None:
        """Why feature maps cannot be made now, and what to do; None where they can."""
        if not self.drops:
            return None
        return (
            f"in stage {self.stage} of its training the model keeps a part of the patch tokens, in no grid's order: "
            "call model.eval() before it, or ask for no maps while tokens are dropped"
        )

    def num_kept(self, num_tokens: int, stage: int | None = None) -> int:
        """Patch tokens that training keeps in a stage (None: the current one), out of `num_tokens`."""
        stage = self.stage if stage is None else stage
        if self.expansion == "none" and not self.schedule.is_dense(stage):
            return self.schedule.num_seeds(num_tokens)
        return self.schedule.num_kept(stage, num_tokens)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Drop and merge tokens.

        Args:
            x: (B, P+N, D) tokens.

        Returns:
            y: (B, P+K, D), prefix tokens first, then the kept ones in the order of selection.
            kept: (B, K) int64 positions in 0..N-1 of y's patch tokens; None when nothing is dropped, y being x then.
        """
        if not self.drops:
            self.kept = self.owner = None
            return x, None
        self._require_patches(x)
        prefix = self.num_prefix_tokens
        patches = x[:, prefix:]  # (B, N, D)
        kept, owner = self._select(patches)  # (B, K), (B, N) or None
        self.kept, self.num_tokens = kept, patches.shape[1]
        self.owner = owner if self.remember_owner else None
        return gather(x, kept, prefix) if owner is None else merge(x, kept, owner, prefix), kept  # (B, P+K, D)

    def extra_repr(self) -> str:
        """Options and the current stage, for print(model)."""
        return (
            f"{self.schedule}, num_prefix_tokens={self.num_prefix_tokens}, metric={self.metric!r}, "
            f"initialization={self.initialization!r}, expansion={self.expansion!r}, merging={self.merging}, "
            f"stage={self.stage}"
        )

    def _require_patches(self, x: Tensor) -> None:
        if x.ndim != 3 or x.shape[1] <= self.num_prefix_tokens:
            raise ValueError(
                f"tokens of shape {tuple(x.shape)}: expected (batch, {self.num_prefix_tokens} prefix + patch tokens, "
                "width) with at least one patch token; give feature maps as (batch, height * width, channels)"
            )

    def _select(self, patches: Tensor) -> tuple[Tensor, Tensor | None]:
        """Kept positions (B, K) and every token's owner (B, N), None when no token needs one."""
        num_tokens = patches.shape[1]
        if self.expansion == "farthest":
            start = self._positions(patches, self.schedule.num_seeds(num_tokens), self.initialization)  # (B, S)
            rounds = self.schedule.rounds(self.stage, num_tokens)
        else:
            whole_budget = self.expansion == "uniform"
            kind = "even" if whole_budget and self.initialization == "spatial" else self.initialization
            start = self._positions(patches, self.num_kept(num_tokens), kind)  # (B, K)
            rounds = ()
        if not rounds and not self.merging:
            return start, None
        kept, owner = expand(patches, start, rounds, self.metric)
        return kept, owner if self.merging else None

    def _positions(self, patches: Tensor, count: int, kind: str) -> Tensor:
        batch, num_tokens, _ = patches.shape
        noise = self._checked_noise(batch, num_tokens, patches.device) if kind == "random" else None
        return initialise(kind, batch, num_tokens, count, self.schedule.seed_stride, patches.device, noise)

    def _checked_noise(self, batch: int, num_tokens: int, device: torch.device) -> Tensor:
        if self.noise is None:
            return torch.rand(batch, num_tokens, device=device)
        if self.noise.shape != (batch, num_tokens) or self.noise.device != device:
            raise ValueError(
                f"noise of shape {tuple(self.noise.shape)} on {self.noise.device} does not fit {batch} images of "
                f"{num_tokens} patch tokens on {device}: set it to torch.rand({batch}, {num_tokens}) there before each "
                "step, or to None"
            )
        return self.noise
