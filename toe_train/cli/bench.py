"""`toe-tools bench`: what a run spends its time on."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from toe_train.analysis.benchmark import Benchmark
from toe_train.analysis.end_to_end import benchmark_end_to_end
from toe_train.analysis.expansion_speed import benchmark_expansion
from toe_train.analysis.loader_speed import benchmark_loader
from toe_train.analysis.method_speed import benchmark_methods
from toe_train.analysis.reading_speed import benchmark_reading
from toe_train.analysis.saving import benchmark_saving
from toe_train.analysis.start_speed import benchmark_start
from toe_train.analysis.step_speed import benchmark_step
from toe_train.cli.threads import tell_if_busy
from toe_train.errors import UserError
from toe_train.recipes import RunConfig, load_config
from toe_train.runs.folder import provenance


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Times and prints; returns the exit code."""
    # A value of --beside that is an override, as it stands behind it.
    overrides = [text for text in options.beside if "=" in text and not Path(text).exists()]
    options.beside = [text for text in options.beside if text not in overrides]
    options.overrides = [*options.overrides, *overrides]
    require_consistent(options)
    batches = options.batch or [32]
    config = load_config(options.config, options.overrides)
    for name in ("json", "profile"):  # before anything is timed
        _require_writable(name, getattr(options, name))
    tell_if_busy()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result: Benchmark
    if options.what == "saving":
        result = benchmark_saving(config, Path(options.output or "runs"), options.rounds)
    elif options.what == "loader":
        result = benchmark_loader(config, options.rounds, device)
    elif options.what == "reading":
        result = benchmark_reading(config, options.rounds, Path(options.beside[0]) if options.beside else None)
    elif options.what == "start":
        result = benchmark_start(config, options.rounds)
    elif options.what == "end-to-end":
        result = benchmark_end_to_end(config, options.rounds, device)
    elif options.what == "expansion":
        result = benchmark_expansion(config, batches[0], options.rounds, device)
    elif options.beside:
        result = benchmark_methods(_beside(options, config), batches[0], options.rounds, device)
    else:
        trace = Path(options.profile) if options.profile else None
        whole = options.graph == "model"
        result = benchmark_step(config, batches, options.rounds, device, options.sizes, trace=trace, whole_graph=whole)
        if options.graph and not result.compiled:
            print(f"note: --graph {options.graph} had no effect, as the step is not compiled; set train.compile=true")
    origin = provenance(given, program="toe-tools")
    print(f"{origin['device']}, {origin['versions']}, {result.rounds} rounds")
    print(result.as_table())
    if options.json:
        try:
            Path(options.json).write_text(json.dumps({**origin, **result.as_dict()}, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"--json {options.json} cannot be written ({error.strerror}); name another file") from None
    return 0


def _beside(options: argparse.Namespace, config: RunConfig) -> dict[str, RunConfig]:
    """The runs of `--config` and `--beside` by name, the plain file name where no two have the same."""
    paths = [options.config, *options.beside]
    if len(set(paths)) < len(paths):
        raise UserError("--beside: a file is named twice; give each run once")
    stems = [Path(path).stem for path in paths]
    names = stems if len(set(stems)) == len(stems) else paths
    configs = [config, *(load_config(path, options.overrides) for path in options.beside)]
    return dict(zip(names, configs, strict=True))


def require_consistent(options: argparse.Namespace) -> None:
    """Raises UserError for an option that this benchmark would not read, or a value out of range."""
    if options.rounds < 1:
        raise UserError(f"--rounds {options.rounds} must be at least 1")
    if options.what != "step" and (options.sizes or options.profile or options.graph):
        raise UserError(
            f"--sizes, --graph and --profile are of --what step, and this is {options.what}; leave them out"
        )
    if options.beside and options.what not in ("step", "reading"):
        raise UserError(f"--beside is of --what step and reading, and this is {options.what}; leave it out")
    if len(options.beside) > 1 and options.what == "reading":
        raise UserError("--beside: of --what reading it is one folder; give one")
    if options.beside and (options.sizes or options.profile or options.graph):
        raise UserError("--beside: --sizes, --graph and --profile are of one run's steps; leave them out")
    if options.beside and len(options.batch or [32]) > 1:
        raise UserError("--batch: with --beside give one number")
    if options.batch and options.what in ("loader", "reading", "end-to-end"):
        raise UserError(
            f"--batch is of --what step and expansion, and this is {options.what}, whose batch is the run's: set "
            "train.global_batch, and train.max_micro_batch for a process's part of it"
        )
    if options.batch and options.what in ("saving", "start"):
        raise UserError(f"--batch is of --what step and expansion, and this is {options.what}; leave it out")
    if options.output is not None and options.what != "saving":
        raise UserError(
            f"--output is of --what saving, and this is {options.what}; leave it out, or give --json for the figures"
        )
    if options.what == "expansion" and len(options.batch or [32]) > 1:
        raise UserError("--batch: --what expansion takes one number")
    if options.json and options.profile and Path(options.json).resolve() == Path(options.profile).resolve():
        raise UserError(f"--json and --profile are both {options.json}; name two files")


def _require_writable(name: str, given: str | None) -> None:
    """Makes the folder of an output file and sees that the file can be written; what is in it stays."""
    if not given:
        return
    path = Path(given)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        existed = path.exists()
        path.open("ab").close()
        if not existed:
            path.unlink()
    except OSError as error:
        raise UserError(f"--{name} {path} cannot be written ({error.strerror}); name another file") from None
