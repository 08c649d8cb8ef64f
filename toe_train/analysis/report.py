"""Runs as the paper's tables: ours beside theirs, differences with their intervals, time per stage, figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev

from toe_train.analysis.box_scores import box_scores
from toe_train.analysis.comparison import Comparison, baseline_of, comparisons
from toe_train.analysis.differences import HEADS, lines_of, note
from toe_train.analysis.figures import Figure, figures, png, rates_figure
from toe_train.analysis.kept_pictures import kept_figures
from toe_train.analysis.origins import how_made
from toe_train.analysis.page import Table, page
from toe_train.analysis.paper import PaperRow
from toe_train.analysis.runs import Row, Run, read_rows, stage_of
from toe_train.analysis.tables import size_text, table
from toe_train.errors import UserError


@dataclass(frozen=True)
class Report:
    """Rows of runs under a title."""

    title: str
    rows: list[Row]
    against: str | None = None  # the row that all others are compared with

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Each row against its baseline and simpler ones of equal compute, or all against one."""
        return comparisons(self.rows, self.against)

    def tables(self) -> list[Table]:
        """Title, heads and cells of each table."""
        shown = len(RESULT_HEADS) if any(row.paper for row in self.rows) else OWN_COLUMNS
        heads = [head.format(score=self._score_words()) for head in RESULT_HEADS]
        found: list[Table] = [("", heads[:shown], [self._result(row)[:shown] for row in self.rows])]
        found += box_scores(self.rows)
        if self.comparisons:
            found.append(self._differences())
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
        made = "\n".join(f"- {line}" for line in self.made())
        parts.append(f"<details><summary>How each row was made</summary>\n\n{made}\n\n</details>")
        return "\n\n".join(parts) + "\n"

    def markdown_of_differences(self) -> str:
        """The title and that table alone, without the seeds that are still needed; UserError where there is none."""
        if not self.comparisons:
            raise UserError("--differences: no two of these rows are compared; give finished ones, the plain one too")
        _, heads, lines = self._differences()
        return f"## {self.title}\n\n{table(heads[:-1], [line[:-1] for line in lines])}\n"

    def made(self) -> list[str]:
        """How each row was made."""
        return [how_made(row, self.rows) for row in self.rows]

    def notes(self) -> list[str]:
        """What the figures are, and which runs are not what they seem."""
        origins = sorted(set().union(*(run.origins for run in self._all_runs())))
        notes = ["; ".join(origins) + ".", HOURS]
        if self.comparisons:
            notes.append(note(self.against))
        elif len(self.rows) > 1:
            notes.append(
                "**No two rows are compared**: there is no finished plain row of the model and recipe of another one, "
                "and none that is simpler and costs about as many FLOPs."
            )
        if unfinished := [run for run in self._all_runs() if not run.is_finished]:
            named = ", ".join(f"{run.folder} ({len(run.epochs)} of {run.config.epochs})" for run in unfinished)
            notes.append(f"**Not finished**, epochs in brackets: {named}; left out where another seed is finished.")
        if mixed := [run.folder for run in self._all_runs() if run.is_mixed]:
            notes.append(
                f"**Went on with other values** than it began with: {', '.join(mixed)}; see its metrics.jsonl. "
                "Differences leave it out."
            )
        if disturbed := [run.folder for run in self._all_runs() if run.disturbed]:
            notes.append(
                f"**Times are left out** of {', '.join(disturbed)}: epochs of one stage differ in speed, as where "
                "other programs share the machine, or the run changed machine, processes, threads or versions on the "
                "way."
            )
        notes += [f"**{row.name}**: {row.costs.note}." for row in self.rows if row.costs.note]
        notes += dict.fromkeys(row.paper.note for row in self.rows if row.paper and row.paper.note)
        return notes

    def page(self) -> str:
        """A page of HTML that needs nothing beside it."""
        return page(self.title, self.notes(), self.tables(), self.made(), self._pictures)

    def figures(self) -> list[Figure]:
        """Those that the rows give."""
        found = figures(self.rows, self._score_words())
        rates = self._rates()
        found += [rates_figure(rates, self._score_words())] if len(rates) > 1 else []
        return found + kept_figures(self.rows)

    @cached_property
    def _pictures(self) -> list[tuple[Figure, bytes]]:
        """The figures, drawn."""
        return [(figure, png(figure)) for figure in self.figures()]

    def write(self, folder: Path) -> None:
        """Writes report.md, report.html and the figures as PNG.

        Raises:
            UserError: the folder does not take them.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "report.md").write_text(self.markdown(), encoding="utf-8")
            (folder / "report.html").write_text(self.page(), encoding="utf-8")
            for figure, picture in self._pictures:
                (folder / f"{figure.name}.png").write_bytes(picture)
        except OSError as error:
            raise UserError(f"--output {folder} cannot be written ({error.strerror}); name another folder") from None

    def _differences(self) -> Table:
        """How far rows are from each other."""
        return "Differences, seed by seed", HEADS, lines_of(self.comparisons)

    def _score_words(self) -> str:
        """What the rows' tasks go by."""
        words = {"top1": "top-1 %", "ap": "AP"}
        return " or ".join(words[kind] for kind in sorted({row.headline for row in self.rows}, reverse=True))

    def _all_runs(self) -> list[Run]:
        return [run for row in self.rows for run in row.runs]

    def _baseline(self, row: Row) -> Row | None:
        """What its speed-ups are over."""
        return baseline_of(row, self.rows) or (row if row.is_plain else None)

    def _practical(self, row: Row, key: str) -> list[float]:
        """Hours of the plain run / this one's, by seed; none without one, both finished and timed alike.

        Of the seeds that both have: those were likely trained together, and machines differ from day to day.
        """
        base = self._baseline(row)
        if base is None or not all(run.is_finished for run in (*base.counted, *row.counted)):
            return []
        shared = next((found for found in row.conditions if found in base.conditions), None)
        if shared is None:
            return []
        own, other = row.times(key, shared), base.times(key, shared)
        if base is row:
            return [1.0] if own else []
        return [other[seed] / own[seed] for seed in sorted(own.keys() & other.keys())]

    def _by_flops(self, row: Row) -> tuple[float, float]:
        """Speed-ups by FLOPs, attention counted and as the paper counts; without a baseline here, as its plan says."""
        base, own = self._baseline(row), row.costs
        if base is None:
            return own.speedup, own.thop_speedup
        return base.costs.macs / own.macs, base.costs.thop_macs / own.thop_macs

    def _result(self, row: Row) -> tuple[str, ...]:
        paper, by_flops = row.paper, self._by_flops(row)
        theirs = (paper.top1, paper.hours, paper.practical, paper.by_flops) if paper else (None,) * 4
        return (
            row.name,
            str(row.config.epochs),
            str(len(row.counted)),
            _spread(row.values(f"val_{row.headline}")),
            _spread(row.values(f"ema_{row.headline}")),
            _number(row.mean_time("gpu_hours"), "{:.3g}"),
            _number(row.mean_time("gpu_hours_with_loading"), "{:.3g}"),
            _spread(self._practical(row, "gpu_hours"), "x"),
            _spread(self._practical(row, "gpu_hours_with_loading"), "x"),
            f"{by_flops[0]:.3f}x",
            f"{by_flops[1]:.3f}x",
            f"{_number(theirs[0], '{:g}')}{_of_averages(paper)}",
            _number(theirs[1], "{:g}"),
            _number(theirs[2], "{:.2f}x"),
            _number(theirs[3], "{:.2f}x"),
        )

    def _rates(self) -> list[tuple[float, float, float]]:
        """r1, practical speed-up and top-1 of the rows that have all of these, where no two have one r1."""
        found = []
        for row in self.rows:
            speeds, top1 = self._practical(row, "gpu_hours"), row.mean(f"val_{row.headline}")
            expansion = row.config.expansion
            if speeds and top1 is not None and row.config.curriculum is None and row.has_default_tokens:
                found.append((expansion.keep_rates[0] if expansion else 1.0, mean(speeds), top1))
        return sorted(found) if len({rate for rate, *_ in found}) == len(found) else []


HOURS = (
    "Hours are by the paper's clock, forward to optimiser, and with loading, over all processes. Speed-ups are over "
    "plain training of the same model by the same recipe, the row of it in this report: in hours where both ran under "
    "the same conditions, of the seeds that both have, with the deviation, and by FLOPs, attention counted and as the "
    "paper counts, both without the method's own work."
)
RESULT_HEADS = (
    "run",
    "epochs",
    "seeds",
    "{score}",
    "averaged {score}",
    "GPU-hours",
    "GPU-hours with loading",
    "speed-up",
    "speed-up with loading",
    "by FLOPs",
    "by thop",
    "paper: {score}",
    "paper: GPU-hours",
    "paper: speed-up",
    "paper: by FLOPs",
)
OWN_COLUMNS = 11
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


def read_report(folders: Sequence[Path], title: str, against: str | None = None) -> Report:
    """Reads run folders; `against` names the row that all others are compared with.

    Raises:
        UserError: one is no run folder, or runs of one name differ in more than their seed.
    """
    return Report(title, read_rows(folders), against)


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


def _spread(values: Sequence[float], unit: str = "") -> str:
    """Their mean and, of several, their deviation."""
    if not values:
        return "-"
    told = f"{mean(values):.2f}{unit}"
    return told if len(values) == 1 else f"{told} ± {stdev(values):.2f}"


def _of_averages(paper: PaperRow | None) -> str:
    """What the paper's accuracy is of the averaged model: it, or a second figure beside it."""
    if paper is None:
        return ""
    return " (averaged)" if paper.averaged else f" / {paper.averaged_top1:g}" if paper.averaged_top1 else ""


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
