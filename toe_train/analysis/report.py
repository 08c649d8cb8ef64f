"""Runs as the paper's tables: ours beside theirs, time per stage, curves."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from toe_train.analysis.box_scores import box_scores
from toe_train.analysis.paper import PaperRow
from toe_train.analysis.runs import Row, Run, read_rows, stage_of
from toe_train.analysis.tables import size_text, table
from toe_train.build.method import build_method
from toe_train.errors import UserError

Table = tuple[str, Sequence[str], list[tuple[str, ...]]]  # title, heads, cells


@dataclass(frozen=True)
class Report:
    """Rows of runs under a title."""

    title: str
    rows: list[Row]

    def tables(self) -> list[Table]:
        """Title, heads and cells of each table."""
        shown = len(RESULT_HEADS) if any(row.paper for row in self.rows) else OWN_COLUMNS
        heads = [head.format(score=self._score_words()) for head in RESULT_HEADS]
        found: list[Table] = [("", heads[:shown], [self._result(row)[:shown] for row in self.rows])]
        found += box_scores(self.rows)
        staged = [row for row in self.rows if row.has_stages and row.stage_seconds()]
        if staged:
            left_out = {
                "blocks": not any(row.grows for row in staged),
                "paper: GPU-seconds": not any(row.paper and row.paper.stage_seconds for row in staged),
            }
            columns = [place for place, head in enumerate(STAGE_HEADS) if not left_out.get(head)]
            lines = [tuple(cells[place] for place in columns) for row in staged for cells in _stages(row)]
            found.append(("Time in each stage", [STAGE_HEADS[place] for place in columns], lines))
        return found

    def markdown(self) -> str:
        """For a reader of text."""
        parts = [f"## {self.title}", *self.notes()]
        for title, heads, cells in self.tables():
            parts += [*([f"### {title}"] if title else []), table(heads, cells)]
        return "\n\n".join(parts) + "\n"

    def notes(self) -> list[str]:
        """What the figures are, and which runs are not what they seem."""
        origins = sorted(set().union(*(run.origins for run in self._all_runs())))
        notes = ["; ".join(origins) + "."]
        notes.append(
            "Hours are by the paper's clock, forward to optimiser, and with loading, over all processes. Speed-ups are "
            "over plain training of the same model by the same recipe: in hours, over the run of it in this report on "
            "the same device, and by FLOPs, attention counted and as the paper counts."
        )
        if unfinished := [run for run in self._all_runs() if not run.is_finished]:
            named = ", ".join(f"{run.folder} ({len(run.epochs)} of {run.config.epochs})" for run in unfinished)
            notes.append(f"**Not finished**, epochs in brackets: {named}; left out where another seed is finished.")
        if mixed := [run.folder for run in self._all_runs() if run.is_mixed]:
            notes.append(
                f"**Went on with other values** than it began with: {', '.join(mixed)}; see its metrics.jsonl."
            )
        notes += [f"**{row.name}**: {note}." for row in self.rows if (note := build_method(row.config).note)]
        notes += dict.fromkeys(row.paper.note for row in self.rows if row.paper and row.paper.note)
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
        if any(row.values(f"val_{row.headline}") for row in self.rows):
            words = self._score_words()
            found[f"{words[:1].upper()}{words[1:].replace(' %', ' accuracy')} over the epochs"] = self._draw_curves
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

    def _score_words(self) -> str:
        """What the rows' tasks go by."""
        words = {"top1": "top-1 %", "ap": "AP"}
        return " or ".join(words[kind] for kind in sorted({row.headline for row in self.rows}, reverse=True))

    def _all_runs(self) -> list[Run]:
        return [run for row in self.rows for run in row.runs]

    def _baseline(self, row: Row) -> Row | None:
        return next((other for other in self.rows if other.is_baseline_of(row)), None)

    def _practical(self, row: Row, key: str) -> float | None:
        """Hours of the plain run / this one's; None without one, both finished and on the same device."""
        base = self._baseline(row)
        if base is None or not all(run.is_finished for run in (*base.counted, *row.counted)):
            return None
        if base.devices != row.devices or len(row.devices) > 1:
            return None
        own, other = row.mean(key), base.mean(key)
        return other / own if own and other else None

    def _result(self, row: Row) -> tuple[str, ...]:
        paper = row.paper
        theirs = (paper.top1, paper.hours, paper.practical, paper.by_flops) if paper else (None,) * 4
        return (
            row.name,
            str(len(row.counted)),
            _spread(row.values(f"val_{row.headline}")),
            _spread(row.values(f"ema_{row.headline}")),
            _number(row.mean("gpu_hours"), "{:.3g}"),
            _number(row.mean("gpu_hours_with_loading"), "{:.3g}"),
            _number(self._practical(row, "gpu_hours"), "{:.2f}x"),
            _number(self._practical(row, "gpu_hours_with_loading"), "{:.2f}x"),
            f"{row.costs.speedup:.3f}x",
            f"{row.costs.thop_speedup:.3f}x",
            f"{_number(theirs[0], '{:g}')}{_of_averages(paper)}",
            _number(theirs[1], "{:g}"),
            _number(theirs[2], "{:.2f}x"),
            _number(theirs[3], "{:.2f}x"),
        )

    def _draw_curves(self, axes: Any) -> None:
        for row in self.rows:
            run = row.counted[0]
            key = f"val_{row.headline}"
            points = [(r["epoch"] + 1, r[key]) for r in run.epochs if r.get(key) is not None]
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else None, label=row.name)
        axes.set(xlabel="epoch", ylabel=self._score_words())
        axes.legend(fontsize="small")

    def _rates(self) -> list[tuple[float, float, float, str]]:
        """r1, practical speed-up, top-1 and name of the rows that have all of these."""
        found = []
        for row in self.rows:
            speed, top1 = self._practical(row, "gpu_hours"), row.mean(f"val_{row.headline}")
            expansion = row.config.expansion
            if speed is not None and top1 is not None and row.config.curriculum is None and row.has_default_tokens:
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
        other.set_ylabel(self._score_words(), color="tab:orange")


RESULT_HEADS = (
    "run",
    "seeds",
    "{score}",
    "averaged {score}",
    "GPU-hours",
    "with loading",
    "speed-up",
    "with loading",
    "by FLOPs",
    "by thop",
    "paper: {score}",
    "paper: GPU-hours",
    "paper: speed-up",
    "paper: by FLOPs",
)
OWN_COLUMNS = 10
STAGE_HEADS = (
    "run",
    "stage",
    "pixels",
    "tokens",
    "blocks",
    "GPU-seconds an epoch",
    "against the last",
    "paper: GPU-seconds",
)

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
    return Report(title, read_rows(folders))


def _stages(row: Row) -> list[tuple[str, ...]]:
    """A line for each stage of the row."""
    kept = {stage_of(record): record["tokens_kept"] for run in row.counted for record in run.epochs}
    seconds = row.stage_seconds()
    theirs = row.paper.stage_seconds if row.paper else ()
    last = list(seconds.values())[-1]
    return [
        (
            row.name,
            str(stage),
            size_text(pixels),
            str(kept[stage, pixels]),
            row.blocks(stage),
            f"{taken:.4g}",
            f"{last / taken:.2f}x",
            f"{theirs[stage - 1]:g}" if 0 < stage <= len(theirs) else "-",
        )
        for (stage, pixels), taken in seconds.items()
    ]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{values[0]:.2f}" if len(values) == 1 else f"{mean(values):.2f} ± {stdev(values):.2f}"


def _of_averages(paper: PaperRow | None) -> str:
    """What the paper's accuracy is of the averaged model: it, or a second figure beside it."""
    if paper is None:
        return ""
    return " (averaged)" if paper.averaged else f" / {paper.averaged_top1:g}" if paper.averaged_top1 else ""


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
