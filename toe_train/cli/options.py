"""The options of both commands, apart from what they do: `--help` and a wrong option need no torch, whose import takes
seconds. A tool's work is in the file of this folder that has its name.
"""

from __future__ import annotations

import argparse

from toe_train._version import __version__
from toe_train.cli.tool_options import NPROC, TOOLS

HELP = {
    "--resume": "auto: from the run folder's last checkpoint if there is one; never: start anew, an earlier run is set "
    "aside; or from a checkpoint file (default: auto)",
    "--dry-run": "print the plan and the predicted speed-up, build all, train nothing",
    "--output": "run folder (default: runs/<config name>, or that of a run's config.yaml)",
}


def train_parser() -> argparse.ArgumentParser:
    """Of `toe-train`."""
    parser = argparse.ArgumentParser(
        prog="toe-train",
        allow_abbrev=False,
        description="Train a vision transformer, faster by Token Expansion, from one YAML file.",
    )
    parser.add_argument("--version", action="version", version=f"toe-train {__version__}")
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="YAML file, or the name of one of configs/: deit_tiny_toe_r05"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="dotted path and YAML value: optim.lr=1e-3")
    parser.add_argument("--resume", default="auto", metavar="auto|never|PATH", help=HELP["--resume"])
    parser.add_argument("--nproc", default="auto", metavar="auto|N", help=NPROC)
    parser.add_argument("--dry-run", action="store_true", help=HELP["--dry-run"])
    parser.add_argument("--output", metavar="DIR", help=HELP["--output"])
    return parser


def tools_parser() -> argparse.ArgumentParser:
    """Of `toe-tools`; in the result `tool` is the name of the file that does the work, `parser` its options."""
    parser = argparse.ArgumentParser(prog="toe-tools", description="What surrounds a toe-train run.")
    parser.add_argument("--version", action="version", version=f"toe-tools {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (text, add_options) in TOOLS.items():
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(tool="evaluate" if name == "eval" else name, parser=sub)
        add_options(sub)
    return parser
