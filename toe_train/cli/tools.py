"""`toe-tools`: what surrounds a run; one subcommand each."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from toe_train import data
from toe_train._version import __version__
from toe_train.analysis.end_to_end import EndToEndBenchmark, benchmark_end_to_end
from toe_train.analysis.expansion_speed import ExpansionBenchmark, benchmark_expansion
from toe_train.analysis.loader_speed import LoaderBenchmark, benchmark_loader
from toe_train.analysis.saving import SavingBenchmark, benchmark_saving
from toe_train.analysis.step_speed import StepBenchmark, benchmark_step
from toe_train.analysis.tables import plan_table
from toe_train.cli import labels, pack, report, view
from toe_train.cli.exits import USER_ERROR, guarded
from toe_train.errors import UserError
from toe_train.recipes import load_config
from toe_train.training import build, checkpoint
from toe_train.training.distributed import processes
from toe_train.training.export import export
from toe_train.training.runfolder import provenance

EXPORT_TEXT = "Write a checkpoint's model as safetensors in the layout of timm and the Hugging Face hub."


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (0 done, 2 the user's error)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
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
    bench = command("bench", _bench, "Time what a run spends its time on, in one go.")
    bench.add_argument(
        "--what",
        choices=("step", "expansion", "loader", "end-to-end", "saving"),
        default="step",
        help="step: the training step of each stage beside the full-token step; expansion: dropping and merging alone, "
        "beside a literal version of its steps; loader: augmented images, beside timm's loader; end-to-end: the step "
        "with loading, on the run's images; saving: a checkpoint (default: step)",
    )
    bench.add_argument(
        "--batch", type=_numbers, default=[32], metavar="N[,N...]", help="images of step and expansion (default: 32)"
    )
    bench.add_argument(
        "--sizes", type=_numbers, default=[], metavar="N[,N...]", help="image sizes of step (default: the run's)"
    )
    bench.add_argument("--profile", metavar="FILE", help="also write a Chrome trace of a step of each stage there")
    bench.add_argument("--rounds", type=int, default=20, metavar="N", help="timed repeats (default: 20)")
    bench.add_argument("--output", default="runs", metavar="DIR", help="where saving writes (default: runs)")
    bench.add_argument("--json", metavar="FILE", help="also write the figures, device and versions there")
    exporter = commands.add_parser("export", help=EXPORT_TEXT, description=EXPORT_TEXT)
    exporter.add_argument("--checkpoint", required=True, metavar="PATH", help="e.g. RUN/checkpoints/best.pt")
    exporter.add_argument(
        "--weights", choices=("model", "ema"), default="model", help="raw or averaged weights (default: model)"
    )
    exporter.add_argument("--output", required=True, metavar="DIR", help="new folder")
    exporter.set_defaults(command=_export)
    maker = commands.add_parser("labels", help=labels.TEXT, description=labels.TEXT)
    labels.add_options(maker)
    maker.set_defaults(command=labels.run)
    reporter = commands.add_parser("report", help=report.TEXT, description=report.TEXT)
    report.add_options(reporter)
    reporter.set_defaults(command=report.run)
    viewer = commands.add_parser("view", help=view.TEXT, description=view.TEXT)
    view.add_options(viewer)
    viewer.set_defaults(command=view.run)
    packer = commands.add_parser("pack", help=pack.TEXT, description=pack.TEXT)
    pack.add_options(packer)
    packer.set_defaults(command=pack.run)
    return parser


def _export(options: argparse.Namespace, given: list[str]) -> int:
    folder = Path(options.output)
    export(checkpoint.read(options.checkpoint), options.weights, folder)
    print(f'{folder}: model.safetensors and config.json; timm.create_model("local-dir:{folder}", pretrained=True)')
    return 0


def _numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text}: every number must be at least 1")
    return numbers


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
        scores = build.evaluate_checkpoint(config, path, checkpoint.read(path), options.weights, here)
        if here.is_main:
            print(
                f"{path} ({options.weights}): top-1 {scores.top1:.3f} %, top-5 {scores.top5:.3f} %, "
                f"loss {scores.loss:.4f} over {scores.images} images"
            )
    return 0


def _bench(options: argparse.Namespace, given: list[str]) -> int:
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


if __name__ == "__main__":
    sys.exit(main())
