"""`toe-tools bench`: what a run spends its time on."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from toe_train.analysis.end_to_end import EndToEndBenchmark, benchmark_end_to_end
from toe_train.analysis.expansion_speed import ExpansionBenchmark, benchmark_expansion
from toe_train.analysis.loader_speed import LoaderBenchmark, benchmark_loader
from toe_train.analysis.saving import SavingBenchmark, benchmark_saving
from toe_train.analysis.step_speed import StepBenchmark, benchmark_step
from toe_train.errors import UserError
from toe_train.recipes import load_config
from toe_train.training.runfolder import provenance

TEXT = "Time what a run spends its time on, in one go."


def add_options(sub: argparse.ArgumentParser) -> None:
    """Gives the subcommand its options, beside the configuration."""
    sub.add_argument(
        "--what",
        choices=("step", "expansion", "loader", "end-to-end", "saving"),
        default="step",
        help="step: the training step of each stage beside the full-token step; expansion: dropping and merging alone, "
        "beside a literal version of its steps; loader: augmented images, beside timm's loader; end-to-end: the step "
        "with loading, on the run's images; saving: a checkpoint (default: step)",
    )
    sub.add_argument(
        "--batch", type=_numbers, default=[32], metavar="N[,N...]", help="images of step and expansion (default: 32)"
    )
    sub.add_argument(
        "--sizes", type=_numbers, default=[], metavar="N[,N...]", help="image sizes of step (default: the run's)"
    )
    sub.add_argument("--profile", metavar="FILE", help="also write a Chrome trace of a step of each stage there")
    sub.add_argument("--rounds", type=int, default=20, metavar="N", help="timed repeats (default: 20)")
    sub.add_argument("--output", default="runs", metavar="DIR", help="where saving writes (default: runs)")
    sub.add_argument("--json", metavar="FILE", help="also write the figures, device and versions there")


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Times and prints; returns the exit code."""
    if options.rounds < 1:
        raise UserError(f"--rounds {options.rounds} must be at least 1")
    if options.what != "step" and (options.sizes or options.profile):
        raise UserError(f"--sizes and --profile are of --what step, and this is {options.what}; leave them out")
    if options.what == "expansion" and len(options.batch) > 1:
        raise UserError("--batch: --what expansion takes one number")
    config = load_config(options.config, options.overrides)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result: StepBenchmark | ExpansionBenchmark | LoaderBenchmark | EndToEndBenchmark | SavingBenchmark
    if options.what == "saving":
        result = benchmark_saving(config, Path(options.output), options.rounds)
    elif options.what == "loader":
        result = benchmark_loader(config, options.rounds)
    elif options.what == "end-to-end":
        result = benchmark_end_to_end(config, options.rounds, device)
    elif options.what == "expansion":
        result = benchmark_expansion(config, options.batch[0], options.rounds, device)
    else:
        trace = Path(options.profile) if options.profile else None
        result = benchmark_step(config, options.batch, options.rounds, device, options.sizes, trace=trace)
    origin = provenance(given, program="toe-tools")
    print(f"{origin['device']}, {origin['versions']}, {result.rounds} rounds")
    print(result.as_table())
    if options.json:
        try:
            Path(options.json).parent.mkdir(parents=True, exist_ok=True)
            Path(options.json).write_text(json.dumps({**origin, **result.as_dict()}, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"--json {options.json} cannot be written ({error.strerror}); name another file") from None
    return 0


def _numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text}: every number must be at least 1")
    return numbers
