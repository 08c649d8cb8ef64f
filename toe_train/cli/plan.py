"""`toe-tools plan`: the stages of a run, before it is trained, and simpler runs of equal compute."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from toe_train.analysis.equal_compute import TITLES, EqualRun, equal_runs
from toe_train.analysis.tables import plan_table
from toe_train.build.preflight import build_parts
from toe_train.errors import UserError
from toe_train.recipes import RunConfig, dump_config, load_config, load_saved


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Prints them; returns the exit code."""
    if options.classes < 1:
        raise UserError(f"--classes {options.classes} must be at least 1")
    if options.equal_compute and not options.output:
        raise UserError("--equal-compute writes configurations; name a folder for them with --output")
    if options.output and not options.equal_compute:
        raise UserError("--output is where --equal-compute writes, and the plan is printed; give both or neither")
    config = load_config(options.config, options.overrides)
    build_parts(config, world_size=1, num_classes=options.classes)  # refuses what a run would be refused for
    if not options.equal_compute:
        print(plan_table(config, options.classes))
        if config.train.global_batch != config.global_batch:  # auto
            batch = config.global_batch
            print(f"note: the batch, and the learning rate by it, follow the number of images; here {batch}")
        return 0
    folder, source = Path(options.output), Path(options.config)
    for found in equal_runs(config, options.classes):
        if isinstance(found, EqualRun):
            path = folder / f"{source.stem}_{found.kind}.yaml"
            _write(path, _header(found, path, source, config, given), found.config)
            print(f"{found.line}: {path}")
        else:
            print(found.line)
    return 0


def _header(found: EqualRun, path: Path, source: Path, config: RunConfig, given: list[str]) -> str:
    """What the file is, for its reader."""
    lines = [
        f"{TITLES[found.kind]}, beside {source.name} of {config.epochs} epochs with what the last line here gives it.",
        "",
        f"  toe-train --config {shlex.quote(str(path))}",
        "",
        f"{found.words}, {found.share:.3f} of the FLOPs of that run, its method's own work counted{found.how_near}.",
        *_shares(found.config, config),
        f"Made by: {shlex.join(['toe-tools', *given])}",
    ]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)


def _shares(made: RunConfig, config: RunConfig) -> list[str]:
    """What a run of another length has otherwise: warm-up and cool-down, whose share is of whole epochs, averaging."""
    whole = (config.curriculum and config.curriculum.budget_epochs) or config.epochs
    lines = []
    for name, own, there in (
        ("Warm-up", made.schedule.warmup_epochs, config.schedule.warmup_epochs),
        ("Cool-down", made.schedule.cooldown_epochs, config.schedule.cooldown_epochs),
    ):
        if made.epochs != whole and (own or there):
            lines.append(
                f"{name}: {own} of {made.epochs} epochs ({own / made.epochs:.1%}), there {there} of {whole} "
                f"({there / whole:.1%})."
            )
    if made.train.ema_decay != config.train.ema_decay:
        lines.append(
            f"Averaging: a decay of {made.train.ema_decay}, there {config.train.ema_decay}, so that a weight counts as "
            "much after the same share of the run."
        )
    return lines


def _write(path: Path, header: str, config: RunConfig) -> None:
    """Writes a configuration; one that is there already and is equal stays as it is.

    Raises:
        UserError: another one is there, or the folder does not take it.
    """
    if path.exists():
        if load_saved(path) == config:
            return
        raise UserError(f"{path} is there and another run: name another --output, or remove it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{header}\n{dump_config(config)}", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {path.parent} cannot be written ({error.strerror}); name another folder") from None
