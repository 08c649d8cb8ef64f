"""`toe-tools report`: run folders as the paper's tables."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from toe_train.analysis.folders import run_folders
from toe_train.analysis.report import read_report
from toe_train.errors import UserError


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Reports the runs; returns the exit code."""
    found = run_folders([Path(path) for path in options.runs])
    for line in found.passed_over:
        print(line, file=sys.stderr)  # since the report may go to a file
    report = read_report(found.runs, options.title, options.against)
    text = report.markdown_of_differences() if options.differences else report.markdown()
    print(text, end="")
    if options.output:
        report.write(Path(options.output))
    if options.into:
        _put(Path(options.into), options.title, text)
    return 0


def _put(path: Path, title: str, text: str) -> None:
    """Put the report in the place of the former one with its title."""
    begin, end = f"<!-- report {title} -->", "<!-- end of report -->"
    try:
        whole = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--into {path} cannot be read ({error}); name a text file with the marks") from None
    before, found, rest = whole.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise UserError(f"--into {path}: it has no lines {begin!r} and {end!r}, between which the report would go")
    path.write_text(f"{before}{begin}\n{text.partition(chr(10))[2].strip()}\n{end}{after}", encoding="utf-8")
