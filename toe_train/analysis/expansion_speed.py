"""Speed of Token Expansion alone, against a literal version of its steps, as ratios measured in one run.

The full-token training step takes its turns with them, so that the operation's share of it is known too.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from toe_train.analysis.benchmark import Benchmark
from toe_train.analysis.steps import step_cases, timed_steps
from toe_train.analysis.tables import table
from toe_train.analysis.timing import Timing, take_turns, timing
from toe_train.build.model import build_model
from toe_train.errors import UserError
from toe_train.methods.token_expansion import TokenExpansionMethod
from toe_train.recipes import RunConfig
from toe_train.training.precision import autocast_on, precision_on

# The options of ToE that the literal version knows.
KNOWN = {"metric": "cosine", "initialization": "spatial", "expansion": "farthest", "merging": True}
REFERENCE = Path(__file__).parents[2] / "tests/expansion/reference.py"


@dataclass(frozen=True)
class ExpansionSpeed:
    """A stage's times.

    Attributes:
        stage: of Token Expansion.
        tokens_kept: of its patch tokens.
        own: of the project's operation, forward, and backward from a given gradient.
        literal: of the literal version.
        share_of_step: own time / that of the full-token training step, median over the rounds. The operation runs as it
            is, also where the step is compiled, which fuses some of it.
    """

    stage: int
    tokens_kept: int
    own: Timing
    literal: Timing
    share_of_step: float


@dataclass(frozen=True)
class ExpansionBenchmark(Benchmark):
    """Result of `benchmark_expansion`; `step` is the full-token training step of the same batch."""

    model: str
    batch: int
    tokens: int
    width: int
    precision: str
    threads: int
    step: Timing
    stages: tuple[ExpansionSpeed, ...]

    def as_table(self) -> str:
        """For a reader."""
        rows = [
            (
                str(speed.stage),
                f"{speed.tokens_kept}/{self.tokens}",
                f"{speed.own.milliseconds:.2f}",
                f"{speed.literal.milliseconds:.2f}",
                f"{speed.own.speedup:.2f}x",
                f"{speed.own.speedup_spread[0]:.2f} .. {speed.own.speedup_spread[1]:.2f}",
                f"{100 * speed.share_of_step:.2f} %",
            )
            for speed in self.stages
        ]
        setting = f"batch {self.batch}, width {self.width}, {self.precision}, {self.threads} CPU threads"
        heads = ("stage", "tokens", "ms", "literal, ms", "faster", "quartiles", "of the full step")
        step = f"full-token training step: {self.step.milliseconds:.1f} ms"
        return f"{setting}; forward and backward; {step}\n{table(heads, rows)}"


def benchmark_expansion(
    config: RunConfig, batch: int, rounds: int, device: torch.device, num_classes: int = 1000
) -> ExpansionBenchmark:
    """Times the operation that drops and merges tokens, forward and backward, beside the literal version in tests/.

    Args:
        config: a run with ToE by cosine from spatial seeds, which is what the literal version knows.
        batch: images, even.
        rounds: timed repeats, in which both and all stages take turns; the full training step follows by itself.
        device: where to compute.
        num_classes: width of the step's classifier; ImageNet's by default.

    Raises:
        UserError: an odd batch, the run has no such ToE, or the project's tests are not at hand.
    """
    built = build_model(config, 2)
    method, section = built.method, config.expansion
    if section is None or not isinstance(method, TokenExpansionMethod):
        raise UserError("expansion = null: there is nothing to time; give a configuration with ToE")
    for name, value in KNOWN.items():
        if getattr(section, name) != value:
            raise UserError(f"expansion.{name} = {getattr(section, name)}: the literal version knows {value} alone")
    literally, expansion = _literal_version(), method.expansion
    schedule, width = expansion.schedule, int(getattr(built.model, "embed_dim"))  # noqa: B009
    prefix = expansion.num_prefix_tokens
    tokens = torch.randn(batch, prefix + built.num_tokens, width, generator=torch.Generator().manual_seed(0))
    tokens = tokens.to(device).requires_grad_()
    autocast = autocast_on(device, config.train.precision)
    expansion.train()
    seeds = [schedule.seed_stride * slot for slot in range(schedule.num_seeds(built.num_tokens))]
    stages = [stage for stage in range(1, schedule.num_stages + 1) if not schedule.is_dense(stage)]
    gradients = {
        stage: torch.randn_like(tokens[:, : prefix + expansion.num_kept(built.num_tokens, stage)]) for stage in stages
    }

    def own(stage: int) -> None:
        expansion.stage = stage
        with autocast:
            kept, _ = expansion(tokens)
        torch.autograd.grad(kept, tokens, gradients[stage])

    def literal(stage: int) -> None:
        with autocast:
            kept, _ = literally(tokens, prefix, seeds, schedule.rounds(stage, built.num_tokens))
        torch.autograd.grad(kept, tokens, gradients[stage])

    (step,), _ = timed_steps(config, step_cases(config)[:1], batch, device, num_classes)
    times = take_turns([partial(version, stage) for stage in stages for version in (own, literal)], rounds, device)
    # In turns of its own: what comes after a whole step pays for the memory that the step gave back to the system.
    (whole,) = take_turns([step], rounds, device)
    return ExpansionBenchmark(
        model=config.model.name,
        batch=batch,
        tokens=built.num_tokens,
        width=width,
        rounds=rounds,
        precision=precision_on(device, config.train.precision),
        threads=torch.get_num_threads(),
        step=timing(whole, whole),
        stages=tuple(
            ExpansionSpeed(
                stage,
                schedule.num_kept(stage, built.num_tokens),
                timing(own_times, literal_times),
                timing(literal_times, literal_times),
                1 / timing(own_times, whole).speedup,
            )
            for stage, own_times, literal_times in zip(stages, times[::2], times[1::2], strict=True)
        ),
    )


def _literal_version() -> Callable[..., tuple[Tensor, Tensor]]:
    spec = importlib.util.spec_from_file_location("toe_reference", REFERENCE)
    if spec is None or spec.loader is None or not REFERENCE.is_file():
        raise UserError(f"{REFERENCE} is not there: the literal version is part of the tests; run this from a clone")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    version: Callable[..., tuple[Tensor, Tensor]] = module.expand_literally
    return version
