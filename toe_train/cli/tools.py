"""`toe-tools`: what surrounds a run; one subcommand each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from toe_train._version import __version__
from toe_train.analysis.tables import plan_table
from toe_train.cli import bench, doctor, evaluate, export, labels, pack, report, view
from toe_train.cli.console import lasting_console
from toe_train.cli.exits import guarded
from toe_train.cli.printing import print_any_name
from toe_train.errors import UserError
from toe_train.recipes import load_config


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (0 done, 2 the user's error)."""
    print_any_name()
    with lasting_console():
        return _main(list(sys.argv[1:] if arguments is None else arguments))


def _main(given: list[str]) -> int:
    parser = _parser()
    options, rest = parser.parse_known_args(given)  # overrides may stand after an option, which subparsers do not know
    takes_overrides = hasattr(options, "overrides")
    takes_folder = hasattr(options, "takes_folder")
    if unknown := [
        text for text in rest if not takes_overrides or text.startswith("-") or ("=" not in text and not takes_folder)
    ]:
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
    plan = command("plan", _plan, "Print the stages of a run: tokens, learning rate, FLOPs, predicted speed-up.")
    plan.add_argument("--classes", type=int, default=1000, metavar="N", help="width of the classifier (default: 1000)")
    bench.add_options(command("bench", bench.run, bench.TEXT))
    others = {
        "doctor": doctor,
        "eval": evaluate,
        "export": export,
        "labels": labels,
        "pack": pack,
        "report": report,
        "view": view,
    }
    for name, module in others.items():
        sub = commands.add_parser(name, help=module.TEXT, description=module.TEXT)
        module.add_options(sub)
        sub.set_defaults(command=module.run)
    return parser


def _plan(options: argparse.Namespace, given: list[str]) -> int:
    if options.classes < 1:
        raise UserError(f"--classes {options.classes} must be at least 1")
    print(plan_table(load_config(options.config, options.overrides), options.classes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
