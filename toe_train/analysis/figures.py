"""Figures of a report, drawn into matplotlib's axes."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from statistics import mean, stdev
from typing import Any

from toe_train.analysis.conditions import Conditions
from toe_train.analysis.runs import Row

FLOPS_PER_MAC = 6  # of the forward pass: 2, and the backward pass is twice the forward (paper, section 4.1)
MOST_BOUNDARIES = 12  # that are drawn; more would be a hatching


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        name: of its file, without the suffix.
        title: over it.
        caption: what a reader has to know.
        draw: into axes.
        entries: of its legend.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Any], None]
    entries: int


def png(figure: Figure) -> bytes:
    """The picture, its legend below it."""
    from matplotlib.figure import Figure as Canvas  # takes a second to import, and few commands draw

    canvas = Canvas(figsize=(7, 4.2 + 0.19 * ((figure.entries + 1) // 2)), layout="constrained")
    axes = canvas.add_subplot()
    figure.draw(axes)
    if axes.get_legend_handles_labels()[1]:
        canvas.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    written = io.BytesIO()
    canvas.savefig(written, format="png", dpi=130)
    return written.getvalue()


def figures(rows: Sequence[Row], words: str) -> list[Figure]:
    """Those that the rows give; `words` is what their score is called."""
    score, count = f"{words[:1].upper()}{words[1:].replace(' %', ' accuracy')}", len(rows)
    dotted = "Means over the seeds, the band from the lowest to the highest."
    dotted += " Dotted: a stage of a row begins." if 0 < len(_boundaries(rows)) <= MOST_BOUNDARIES else ""
    found = []
    if any(len(_curve(row, f"val_{row.headline}")) > 1 for row in rows):
        found.append(Figure("accuracy", f"{score} over the epochs", dotted, _curves(rows, None, words), count))
    for task, alike in _by_task([row for row in rows if _curve(row, "train_loss")]).items():
        name, title = f"loss_{task}", f"Training loss of {task.replace('_', ' ')} over the epochs"
        draw = _curves(alike, "train_loss", "training loss")
        found.append(Figure(name, title, dotted, draw, len(alike)))
    if any(row.values(f"val_{row.headline}") for row in rows):
        by_flops = {row.name: float(FLOPS_PER_MAC * row.costs.whole_macs) for row in rows}
        bars = "Bars: the deviation over seeds. "
        line = "A line joins plain runs of several lengths on images of one size, which a method has to lie above."
        axis = "FLOPs of the training for each image of the data set"
        found.append(Figure("compute", f"{score} over compute", bars + line, _over(rows, by_flops, axis, words), count))
        conditions, by_time = _times(rows)
        if len(by_time) > 1:
            under = f"Rows timed under the same conditions: {', '.join(conditions)}"
            under += f" (processes second, threads of each third), of the seeds that all of them have. {bars}{line}"
            draw = _over(rows, by_time, "GPU-hours with loading", words)
            found.append(Figure("time", f"{score} over measured time", under, draw, len(by_time)))
    return found


def rates_figure(rates: Sequence[tuple[float, float, float]], words: str) -> Figure:
    """Keep rates of the first stage with the speed-up in hours and the score of each."""

    def draw(axes: Any) -> None:
        firsts, speeds, scores = zip(*rates, strict=True)
        axes.plot(firsts, speeds, marker="o", color="tab:blue")
        axes.set(xlabel="keep rate of the first stage, r1")
        axes.set_ylabel("speed-up in hours", color="tab:blue")
        other = axes.twinx()
        other.plot(firsts, scores, marker="s", color="tab:orange")
        other.set_ylabel(words, color="tab:orange")

    return Figure("keep", "Keep rate of the first stage, speed-up and accuracy", "", draw, 0)


def _boundaries(rows: Sequence[Row]) -> list[int]:
    """Epochs, from 0, with which a stage of some row begins."""
    return sorted({epoch for row in rows for epoch in row.counted[0].boundaries})


def _by_task(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by what they learn: others have other losses."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.config.task_kind, []).append(row)
    return found


def _curve(row: Row, key: str) -> dict[int, list[float]]:
    """Values of an epoch line's key, by epoch from 1, of the row's counted runs."""
    found: dict[int, list[float]] = {}
    for run in row.counted:
        for record in run.epochs:
            if record.get(key) is not None:
                found.setdefault(record["epoch"] + 1, []).append(record[key])
    return dict(sorted(found.items()))


def _curves(rows: Sequence[Row], key: str | None, label: str) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        for row, style in zip(rows, _styles(len(rows)), strict=True):
            curve = _curve(row, key or f"val_{row.headline}")
            if not curve:
                continue
            means = [mean(values) for values in curve.values()]
            axes.plot(list(curve), means, marker="." if len(curve) < 30 else None, label=row.name, **style)
            if max(map(len, curve.values())) > 1:
                lows, highs = [min(values) for values in curve.values()], [max(values) for values in curve.values()]
                axes.fill_between(list(curve), lows, highs, color=style["color"], alpha=0.12, linewidth=0)
        boundaries = _boundaries(rows)
        for epoch in boundaries if len(boundaries) <= MOST_BOUNDARIES else ():
            axes.axvline(epoch + 0.5, color="0.7", linestyle=":", linewidth=1, zorder=0)
        axes.set(xlabel="epoch", ylabel=label)

    return draw


def _over(rows: Sequence[Row], costs: dict[str, float], axis: str, words: str) -> Callable[[Any], None]:
    """Scores over what the rows cost, and a line through the plain rows of each model."""

    def draw(axes: Any) -> None:
        shown = [row for row in rows if row.name in costs and row.values(f"val_{row.headline}")]
        for row, style in zip(rows, _styles(len(rows)), strict=True):
            if row in shown:
                values = row.values(f"val_{row.headline}")
                deviation = stdev(values) if len(values) > 1 else None
                marker = "*" if row.is_plain else "s" if row.is_simple else "o"
                axes.errorbar(
                    costs[row.name],
                    mean(values),
                    yerr=deviation,
                    label=row.name,
                    marker=marker,
                    markersize=10 if row.is_plain else 6,
                    linestyle="none",
                    color=style["color"],
                    markerfacecolor=style["color"] if style["linestyle"] == "-" else "none",
                    capsize=3,
                )
        for row in shown:
            alike = [other for other in shown if _are_lengths(row, other)]
            if len(alike) > 1 and alike[0] is row:
                alike.sort(key=lambda other: costs[other.name])
                places = [costs[other.name] for other in alike]
                axes.plot(places, [mean(o.values(f"val_{o.headline}")) for o in alike], color="0.4", zorder=0)
        _scale(axes, [costs[row.name] for row in shown])
        axes.set(xlabel=axis, ylabel=words)

    return draw


def _are_lengths(row: Row, other: Row) -> bool:
    """Whether both are plain runs that differ in their length alone."""
    sizes = {one.config.model.image_size for one in (row, other)}
    return row.is_plain and other.is_plain and row.recipe == other.recipe and len(sizes) == 1


def _scale(axes: Any, costs: Sequence[float]) -> None:
    """Logarithmic where they are far apart, and FLOPs with a word for their thousands."""
    from matplotlib.ticker import EngFormatter

    if costs and max(costs) > 8 * min(costs):
        axes.set_xscale("log")
    if costs and max(costs) > 1e6:
        axes.xaxis.set_major_formatter(EngFormatter(places=2))
        axes.tick_params(axis="x", labelsize="small")


def _times(rows: Sequence[Row]) -> tuple[Conditions, dict[str, float]]:
    """The conditions that most rows were timed under, and the mean hours of those, of the seeds that all have."""
    known = [found for row in rows for found in row.conditions]
    if not known:
        return (), {}
    conditions = max(dict.fromkeys(known), key=known.count)
    times = {row.name: row.times("gpu_hours_with_loading", conditions) for row in rows}
    by_seed = {name: hours for name, hours in times.items() if hours}
    seeds = set.intersection(*(set(hours) for hours in by_seed.values())) if by_seed else set()
    return conditions, {name: mean(hours[seed] for seed in seeds) for name, hours in by_seed.items() if seeds}


def _styles(count: int) -> list[dict[str, Any]]:
    """A colour for each row, and another kind of line where the colours begin anew."""
    colors, lines = [f"C{place}" for place in range(10)], ("-", "--", "-.", ":")
    return [
        {"color": color, "linestyle": lines[place // len(colors) % len(lines)]}
        for place, color in enumerate(islice(cycle(colors), count))
    ]
