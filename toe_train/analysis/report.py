"""Finished and unfinished runs as the paper's tables: ours beside theirs, time per stage, curves.

Runs that differ in nothing but their seed, whose folders end in -s0, -s1, ..., are one row, with mean and standard
deviation.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from toe_train.analysis.flops import PlannedRun, plan_costs
from toe_train.analysis.paper import PaperRow, paper_row
from toe_train.analysis.tables import table
from toe_train.errors import UserError
from toe_train.recipes import RunConfig, load_config
from toe_train.training.runfolder import RunFolder
from toe_train.training.runlog import Record, read_metrics

SEED = re.compile(r"-s\d+$")
IMAGENET_CLASSES = 1000

Table = tuple[str, Sequence[str], list[tuple[str, ...]]]  # title, heads, cells


@dataclass(frozen=True)
class Run:
    """A run folder as it was read."""

    name: str  # without its seed
    config: RunConfig
    start: Record
    epochs: list[Record]

    @property
    def is_finished(self) -> bool:
        """Whether its last epoch is done."""
        return len(self.epochs) == self.config.epochs

    def last(self, key: str) -> float | None:
        """The last value of an epoch line's key that is not null."""
        found = [record[key] for record in self.epochs if record.get(key) is not None]
        return found[-1] if found else None

    def stage_seconds(self) -> dict[int, float]:
        """GPU-seconds of an epoch in each stage of ToE, the mean over its epochs, by the paper's clock."""
        before = 0.0
        taken: dict[int, list[float]] = {}
        for record in self.epochs:
            taken.setdefault(record["stage"], []).append(3600 * (record["gpu_hours"] - before))
            before = record["gpu_hours"]
        return {stage: mean(seconds) for stage, seconds in taken.items()}


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seed alone."""

    name: str
    runs: list[Run]

    @property
    def config(self) -> RunConfig:
        """That of the first."""
        return self.runs[0].config

    @cached_property
    def costs(self) -> PlannedRun:
        """FLOPs of the whole schedule."""
        return plan_costs(self.config, self.runs[0].start.get("num_classes", IMAGENET_CLASSES))

    @property
    def paper(self) -> PaperRow | None:
        """What the paper printed of it."""
        return paper_row(self.name, self.config.epochs, self.config.model.name, self.config.data.kind)

    def values(self, key: str) -> list[float]:
        """The last values of an epoch line's key, of the runs that have one."""
        return [value for run in self.runs if (value := run.last(key)) is not None]

    def mean(self, key: str) -> float | None:
        """Their mean."""
        values = self.values(key)
        return mean(values) if values else None

    def is_baseline_of(self, other: Row) -> bool:
        """Whether it is plain training of the other's model on the same data."""
        own, its = self.config, other.config
        plain = own.expansion is None and own.curriculum is None
        same = (own.model.name, own.model.kwargs, own.model.image_size, own.data.kind, own.epochs)
        return plain and same == (its.model.name, its.model.kwargs, its.model.image_size, its.data.kind, its.epochs)


@dataclass(frozen=True)
class Report:
    """Rows of runs under a title."""

    title: str
    rows: list[Row]

    def tables(self) -> list[Table]:
        """Title, heads and cells of each table."""
        shown = len(RESULT_HEADS) if any(row.paper for row in self.rows) else OWN_COLUMNS
        found: list[Table] = [("", RESULT_HEADS[:shown], [self._result(row)[:shown] for row in self.rows])]
        staged = [row for row in self.rows if row.config.expansion is not None and row.runs[0].epochs]
        if staged:
            heads = ("run", "stage", "tokens", "GPU-seconds an epoch", "against the last")
            found.append(("Time in each stage", heads, [cells for row in staged for cells in _stages(row)]))
        return found

    def markdown(self) -> str:
        """For a reader of text."""
        parts = [f"## {self.title}", *self.notes()]
        for title, heads, cells in self.tables():
            parts += [*([f"### {title}"] if title else []), table(heads, cells)]
        return "\n\n".join(parts) + "\n"

    def notes(self) -> list[str]:
        """What the figures are, and which runs are not what they seem."""
        origins = sorted({(run.start.get("device", "?"), run.start.get("versions", "?")) for run in self._all_runs()})
        notes = ["; ".join(f"{device}, {versions}" for device, versions in origins) + "."]
        notes.append(
            "Hours are by the paper's clock, forward to optimiser, and with loading, over all processes. Speed-ups are "
            "over plain training of the same model: in hours, over the run of it in this report, and by FLOPs, "
            "attention counted and as the paper counts."
        )
        if unfinished := [f"{run.name} ({len(run.epochs)} of {run.config.epochs})" for run in self._unfinished()]:
            notes.append(f"**Not finished**, epochs in brackets: {', '.join(unfinished)}.")
        return notes

    def page(self) -> str:
        """A page of HTML that needs nothing beside it."""
        body = [f"<h1>{html.escape(self.title)}</h1>"]
        body += [f"<p>{html.escape(note.replace('**', ''))}</p>" for note in self.notes()]
        for title, heads, cells in self.tables():
            body += [f"<h2>{html.escape(title)}</h2>"] if title else []
            body.append(_html_table(heads, cells))
        for name, draw in self.figures().items():
            picture = base64.b64encode(_png(draw)).decode()
            body.append(
                f'<h2>{html.escape(name)}</h2><img alt="{html.escape(name)}" src="data:image/png;base64,{picture}">'
            )
        return PAGE.format(title=html.escape(self.title), body="\n".join(body))

    def figures(self) -> dict[str, Callable[[Any], None]]:
        """What draws each figure into matplotlib's axes, by its title."""
        found: dict[str, Callable[[Any], None]] = {}
        if any(record["val_top1"] is not None for run in self._all_runs() for record in run.epochs):
            found["Top-1 accuracy over the epochs"] = self._draw_curves
        if len(self._rates()) > 1:
            found["Keep rate of the first stage, speed-up and accuracy"] = self._draw_rates
        return found

    def write(self, folder: Path) -> None:
        """Writes report.md, report.html and the figures as PNG.

        Raises:
            UserError: the folder does not take them.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "report.md").write_text(self.markdown(), encoding="utf-8")
            (folder / "report.html").write_text(self.page(), encoding="utf-8")
            for name, draw in self.figures().items():
                (folder / f"{name.split(' ', 1)[0].lower()}.png").write_bytes(_png(draw))
        except OSError as error:
            raise UserError(f"--output {folder} cannot be written ({error.strerror}); name another folder") from None

    def _all_runs(self) -> list[Run]:
        return [run for row in self.rows for run in row.runs]

    def _unfinished(self) -> list[Run]:
        return [run for run in self._all_runs() if not run.is_finished]

    def _baseline(self, row: Row) -> Row | None:
        return next((other for other in self.rows if other.is_baseline_of(row)), None)

    def _practical(self, row: Row, key: str) -> float | None:
        """Hours of the plain run / this one's; None where one of them is unfinished or there is none."""
        base = self._baseline(row)
        if base is None or not all(run.is_finished for run in (*base.runs, *row.runs)):
            return None
        own, other = row.mean(key), base.mean(key)
        return other / own if own and other else None

    def _result(self, row: Row) -> tuple[str, ...]:
        paper = row.paper
        theirs = (paper.top1, paper.hours, paper.practical, paper.by_flops) if paper else (None,) * 4
        return (
            row.name,
            str(len(row.runs)),
            _spread(row.values("val_top1")),
            _spread(row.values("ema_top1")),
            _number(row.mean("gpu_hours"), "{:.3g}"),
            _number(row.mean("gpu_hours_with_loading"), "{:.3g}"),
            _number(self._practical(row, "gpu_hours"), "{:.2f}x"),
            _number(self._practical(row, "gpu_hours_with_loading"), "{:.2f}x"),
            f"{row.costs.speedup:.3f}x",
            f"{row.costs.thop_speedup:.3f}x",
            f"{_number(theirs[0], '{:g}')}{' (averaged)' if paper and paper.averaged else ''}",
            _number(theirs[1], "{:g}"),
            _number(theirs[2], "{:.2f}x"),
            _number(theirs[3], "{:.2f}x"),
        )

    def _draw_curves(self, axes: Any) -> None:
        for row in self.rows:
            run = row.runs[0]
            points = [(r["epoch"] + 1, r["val_top1"]) for r in run.epochs if r["val_top1"] is not None]
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else None, label=row.name)
        axes.set(xlabel="epoch", ylabel="top-1, %")
        axes.legend(fontsize="small")

    def _rates(self) -> list[tuple[float, float, float, str]]:
        """r1, practical speed-up, top-1 and name of the rows that have all of these."""
        found = []
        for row in self.rows:
            speed, top1 = self._practical(row, "gpu_hours"), row.mean("val_top1")
            expansion = row.config.expansion
            if speed is not None and top1 is not None and row.config.curriculum is None:
                found.append((expansion.keep_rates[0] if expansion else 1.0, speed, top1, row.name))
        rates = {rate for rate, *_ in found}
        return sorted(found) if len(rates) == len(found) else []

    def _draw_rates(self, axes: Any) -> None:
        rates, speeds, scores, _ = zip(*self._rates(), strict=True)
        axes.plot(rates, speeds, marker="o", color="tab:blue")
        axes.set(xlabel="keep rate of the first stage, r1")
        axes.set_ylabel("speed-up in hours", color="tab:blue")
        other = axes.twinx()
        other.plot(rates, scores, marker="s", color="tab:orange")
        other.set_ylabel("top-1, %", color="tab:orange")


RESULT_HEADS = (
    "run",
    "seeds",
    "top-1 %",
    "averaged top-1 %",
    "GPU-hours",
    "with loading",
    "speed-up",
    "with loading",
    "by FLOPs",
    "by thop",
    "paper: top-1 %",
    "paper: GPU-hours",
    "paper: speed-up",
    "paper: by FLOPs",
)
OWN_COLUMNS = 10

PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; }}
table {{ border-collapse: collapse; }}
td, th {{ border-bottom: 1px solid #ddd; padding: .3em .6em; text-align: right; }}
td:first-child, th:first-child {{ text-align: left; }}
img {{ max-width: 100%; }}
</style>
{body}
</html>
"""


def read_report(folders: Sequence[Path], title: str) -> Report:
    """Reads run folders.

    Raises:
        UserError: one is no run folder, or runs of one name differ in more than their seed.
    """
    rows: dict[str, list[Run]] = {}
    for folder in folders:
        run = _read(folder)
        rows.setdefault(run.name, []).append(run)
    for name, runs in rows.items():
        first, *others = (run.config.model_copy(update={"seed": 0}) for run in runs)
        if any(other != first for other in others):
            raise UserError(f"the runs called {name} differ in more than their seed: report them under other names")
        if len({run.config.seed for run in runs}) < len(runs):
            raise UserError(f"two of the runs called {name} have the same seed: give each run once")
    return Report(title, [Row(name, runs) for name, runs in rows.items()])


def _read(root: Path) -> Run:
    folder = RunFolder(root)
    missing = [path.name for path in (folder.config, folder.metrics) if not path.is_file()]
    if missing:
        raise UserError(f"{root} is not a run folder: it holds no {' and no '.join(missing)}")
    starts = read_metrics(folder.metrics, "start")
    return Run(
        SEED.sub("", folder.root.name),
        load_config(folder.config, []),
        starts[-1] if starts else {},
        read_metrics(folder.metrics, "epoch"),
    )


def _stages(row: Row) -> list[tuple[str, ...]]:
    """A line for each stage, means over the runs that reached it."""
    by_run = [run.stage_seconds() for run in row.runs]
    kept = {record["stage"]: record["tokens_kept"] for run in row.runs for record in run.epochs}
    seconds = {stage: mean(taken[stage] for taken in by_run if stage in taken) for stage in sorted(kept)}
    last = seconds[max(seconds)]
    return [
        (row.name, str(stage), str(kept[stage]), f"{taken:.4g}", f"{last / taken:.2f}x")
        for stage, taken in seconds.items()
    ]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{values[0]:.2f}" if len(values) == 1 else f"{mean(values):.2f} ± {stdev(values):.2f}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _html_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "\n".join(["<table>", line(heads, "th"), *(line(row, "td") for row in rows), "</table>"])


def _png(draw: Callable[[Any], None]) -> bytes:
    from matplotlib.figure import Figure  # takes a second to import, and few commands draw

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    draw(figure.add_subplot())
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=130)
    return written.getvalue()
