"""`toe-tools`: what surrounds a run; one subcommand each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from toe_train import data
from toe_train._version import __version__
from toe_train.analysis.tables import plan_table
from toe_train.build.evaluation import evaluate_checkpoint
from toe_train.cli import bench, export, labels, pack, report, view
from toe_train.cli.console import lasting_console
from toe_train.cli.exits import USER_ERROR, guarded
from toe_train.errors import UserError
from toe_train.recipes import load_config
from toe_train.runs import checkpoints
from toe_train.runs.processes import processes


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (0 done, 2 the user's error)."""
    with lasting_console():
        return _main(list(sys.argv[1:] if arguments is None else arguments))


def _main(given: list[str]) -> int:
    parser = _parser()
    options, rest = parser.parse_known_args(given)  # overrides may stand after an option, which subparsers do not know
    takes_overrides = hasattr(options, "overrides")
    if unknown := [text for text in rest if not takes_overrides or text.startswith("-") or "=" not in text]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if takes_overrides:
        options.overrides += rest
    return guarded(lambda: options.command(options, given))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="toe-tools", description="What surrounds a toe-train run.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: object, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--config", required=True, metavar="FILE", help="YAML file of the run")
        sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as with toe-train")
        sub.set_defaults(command=function)
        return sub

    parser.add_argument("--version", action="version", version=f"toe-tools {__version__}")
    command("doctor", _doctor, "Check a whole data set: every file is opened, every fault listed.")
    plan = command("plan", _plan, "Print the stages of a run: tokens, learning rate, FLOPs, predicted speed-up.")
    plan.add_argument("--classes", type=int, default=1000, metavar="N", help="width of the classifier (default: 1000)")
    evaluate = command("eval", _evaluate, "Evaluate a checkpoint on the run's validation images, all tokens.")
    evaluate.add_argument("--checkpoint", required=True, metavar="PATH", help="e.g. RUN/checkpoints/best.pt")
    evaluate.add_argument(
        "--weights", choices=("model", "ema"), default="model", help="raw or averaged weights (default: model)"
    )
    bench.add_options(command("bench", bench.run, bench.TEXT))
    for name, module in {"export": export, "labels": labels, "pack": pack, "report": report, "view": view}.items():
        sub = commands.add_parser(name, help=module.TEXT, description=module.TEXT)
        module.add_options(sub)
        sub.set_defaults(command=module.run)
    return parser


def _doctor(options: argparse.Namespace, given: list[str]) -> int:
    config = load_config(options.config, options.overrides)
    section, token_labels = config.data, config.token_labels
    faults = data.check_datasets(
        section.kind,
        section.root,
        sample=None,
        progress=sys.stderr.isatty(),
        label_root=token_labels.root if token_labels else None,
        label_geometry=token_labels.geometry if token_labels else "full",
    )
    if faults:
        print(f"{len(faults)} fault{'s' * (len(faults) > 1)} in {section.kind} {section.root}:")
        print("\n".join(f"  {fault}" for fault in faults))
        return USER_ERROR
    train, val = data.open_datasets(section.kind, section.root, section.download)
    labelled = f"; token labels of all train images in {token_labels.root}" if token_labels else ""
    print(f"healthy: {len(train)} train and {len(val)} val images in {len(train.classes)} classes{labelled}")
    return 0


def _plan(options: argparse.Namespace, given: list[str]) -> int:
    if options.classes < 1:
        raise UserError(f"--classes {options.classes} must be at least 1")
    print(plan_table(load_config(options.config, options.overrides), options.classes))
    return 0


def _evaluate(options: argparse.Namespace, given: list[str]) -> int:
    config = load_config(options.config, options.overrides)
    path = Path(options.checkpoint)
    with processes() as here:
        scores = evaluate_checkpoint(config, path, checkpoints.read(path), options.weights, here)
        if here.is_main:
            print(
                f"{path} ({options.weights}): top-1 {scores.top1:.3f} %, top-5 {scores.top5:.3f} %, "
                f"loss {scores.loss:.4f} over {scores.images} images"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
