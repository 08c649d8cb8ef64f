"""The options of both commands, apart from what they do: `--help` and a wrong option need no torch, whose import takes
seconds. A tool's work is in the file of this folder that has its name.
"""

from __future__ import annotations

import argparse
import textwrap

from toe_train._version import __version__
from toe_train.cli.help import OF_TOOLS, TEXTS, TRAIN, WIDTH, examples, tools_by_purpose
from toe_train.cli.tool_options import CONFIG, NPROC, TOOLS

HELP = {
    "--resume": "auto: from the run folder's last checkpoint if there is one; never: start anew, an earlier run is set "
    "aside; or from a checkpoint file, or a run folder's newest (default: auto)",
    "--dry-run": "print the plan and the predicted speed-up, build all, train nothing",
    "--output": "run folder (default: runs/<config name>, or the one that --config names)",
}


def train_parser() -> argparse.ArgumentParser:
    """Of `toe-train`."""
    parser = argparse.ArgumentParser(
        prog="toe-train",
        allow_abbrev=False,
        description="Train a vision transformer, faster by Token Expansion, from one YAML file.",
        epilog=examples(TRAIN),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"toe-train {__version__}")
    run = parser.add_argument_group("the run")
    run.add_argument("--config", required=True, metavar="FILE|RUN", help=CONFIG)
    run.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="dotted path and YAML value: optim.lr=1e-3")
    run.add_argument("--output", metavar="DIR", help=HELP["--output"])
    start = parser.add_argument_group("its start")
    start.add_argument("--dry-run", action="store_true", help=HELP["--dry-run"])
    start.add_argument("--resume", default="auto", metavar="auto|never|PATH", help=HELP["--resume"])
    start.add_argument("--nproc", default="auto", metavar="auto|N", help=NPROC)
    return parser


def tools_parser() -> argparse.ArgumentParser:
    """Of `toe-tools`; in the result `tool` is the name of the file that does the work, `parser` its options."""
    parser = argparse.ArgumentParser(
        prog="toe-tools",
        usage="toe-tools [-h] [--version] COMMAND ...",
        description="What surrounds a toe-train run.",
        epilog=f"{tools_by_purpose()}\n\n{examples(OF_TOOLS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"toe-tools {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", prog="toe-tools", help=argparse.SUPPRESS)
    for name, text in TEXTS.items():
        sub = commands.add_parser(
            name,
            description="\n".join(textwrap.wrap(text, WIDTH)),
            epilog=examples(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(tool="evaluate" if name == "eval" else name, parser=sub)
        TOOLS[name](sub)
    return parser
