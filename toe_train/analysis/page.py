"""A report as a page of HTML that needs nothing beside it, for wide and narrow screens."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence

from toe_train.analysis.figures import Figure

Table = tuple[str, Sequence[str], list[tuple[str, ...]]]  # title, heads, cells

PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; }}
td, th {{ border-bottom: 1px solid #ddd; padding: .3em .6em; text-align: right; vertical-align: bottom; }}
td {{ white-space: nowrap; }}
th {{ min-width: 4em; }}
td.words, th.words {{ text-align: left; }}
td:first-child, th:first-child {{ text-align: left; position: sticky; left: 0; background: #fff; }}
p, li {{ overflow-wrap: anywhere; }}
figure {{ margin: 1em 0; }}
img {{ max-width: 100%; }}
figcaption {{ color: #555; }}
</style>
{body}
</html>
"""


def page(
    title: str,
    notes: Sequence[str],
    tables: Sequence[Table],
    made: Sequence[str],
    figures: Sequence[tuple[Figure, bytes]],
) -> str:
    """The page.

    Args:
        title: over it.
        notes: paragraphs, in which **words** are bold, *words* lean and `words` are code.
        tables: in order.
        made: how each row was made, as `notes`.
        figures: in order, each with its picture as PNG.
    """
    body = [f"<h1>{html.escape(title)}</h1>", *(f"<p>{_marked(note)}</p>" for note in notes)]
    for name, heads, cells in tables:
        body += [f"<h2>{html.escape(name)}</h2>"] if name else []
        body.append(f'<div class="wide">{_table(heads, cells)}</div>')
    for figure, encoded in figures:
        picture, alt = base64.b64encode(encoded).decode(), html.escape(figure.title)
        caption = f"<figcaption>{html.escape(figure.caption)}</figcaption>" if figure.caption else ""
        body.append(f'<h2>{alt}</h2><figure><img alt="{alt}" src="data:image/png;base64,{picture}">{caption}</figure>')
    items = "\n".join(f"<li>{_marked(line)}</li>" for line in made)
    body.append(f"<h2>How each row was made</h2>\n<ul>\n{items}\n</ul>")
    return PAGE.format(title=html.escape(title), body="\n".join(body))


def _marked(text: str) -> str:
    """Markdown's bold and leaning words and code, as HTML."""
    bold = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(text))
    leaning = re.sub(r"(?<!\*)\*([^*\s][^*]*)\*", r"<i>\1</i>", bold)
    return re.sub(r"`(.+?)`", r"<code>\1</code>", leaning)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    of_words = [any(cell[:1].isalpha() for cell in column) for column in zip(*rows, strict=True)] or [False] * len(
        heads
    )

    def line(cells: Sequence[str], tag: str) -> str:
        begin = [f'<{tag} class="words">' if words else f"<{tag}>" for words in of_words]
        return "<tr>" + "".join(f"{b}{html.escape(c)}</{tag}>" for b, c in zip(begin, cells, strict=True)) + "</tr>"

    return "\n".join(["<table>", line(heads, "th"), *(line(row, "td") for row in rows), "</table>"])
