"""What pages are made of: their skeleton and style, and the pieces that more than one of them has.

A page needs nothing but itself: no script, no network. It is built of elements, so that whatever a name or a
path contains is shown as text.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from pipeline.pages import charts
from pipeline.pages.charts import element
from pipeline.runs.files import write_text

MATCH = "match"
MISMATCH = "mismatch"
DAMAGED = "damaged"
MISSING = "-"

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --surface: #ffffff; --text: #1b2129; --muted: #586271; --line: #dfe3e9;
  --good: #14633a; --good-page: #ddf3e4; --bad: #b3261e; --bad-page: #fde7e5;
  --color-1: #1f5fd0; --color-2: #b45309; --color-3: #7a3fc4; --color-4: #0d7a70;
  --rank-1: #1f5fd0; --rank-2: #3d8ac9; --rank-3: #72b0bd; --rank-4: #a9c8c2; --rank-5: #cfd6d8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #13161b; --surface: #1b1f26; --text: #e5e9ef; --muted: #9ca7b6; --line: #323945;
    --good: #86dca8; --good-page: #15372450; --bad: #ff9d94; --bad-page: #4a1d1b80;
    --color-1: #7fb0ff; --color-2: #f2a65a; --color-3: #c7a3ff; --color-4: #5fd0c3;
    --rank-1: #8fb9ff; --rank-2: #5796d8; --rank-3: #3f7797; --rank-4: #385b68; --rank-5: #39424c;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 70rem; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--text);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
h1 { margin: 0 0 .2rem; font-size: 1.7rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.2rem; }
h3 { margin: 1.4rem 0 .4rem; font-size: 1rem; }
p, dl, ul { margin: .4rem 0; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .86em; }
code { overflow-wrap: anywhere; }
a, summary { color: var(--color-1); }
.muted, figcaption, dt { color: var(--muted); }
.verdict { display: flex; flex-wrap: wrap; align-items: center; gap: .4rem .8rem; margin: 1rem 0 0; }
.badge { padding: .2rem .8rem; border: 1px solid; border-radius: 2rem; font-weight: 650; }
.match { color: var(--good); }
.mismatch, .damaged { color: var(--bad); font-weight: 650; }
.badge.match { background: var(--good-page); }
.badge.mismatch, .problems { background: var(--bad-page); }
.problems { margin: 1rem 0; padding: .8rem 1rem; border-left: 4px solid var(--bad); border-radius: 4px; }
.problems h2 { margin: 0; font-size: 1rem; }
.problems ul, .reasons { padding-left: 1.2rem; overflow-wrap: anywhere; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1rem; }
figure { margin: 0; max-width: 34rem; min-width: 0; }
figure, .scroll, pre, .facts {
  padding: .8rem; background: var(--surface); border: 1px solid var(--line); border-radius: 8px;
}
figcaption { display: flex; flex-wrap: wrap; gap: 0 1rem; margin-bottom: .4rem; font-size: .85rem; }
figcaption strong { flex: 1 0 100%; color: var(--text); font-size: .95rem; overflow-wrap: anywhere; }
figure.full { max-width: none; }
.wide { overflow-x: auto; }
.scroll { margin: .5rem 0; padding: 0; overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .55rem; text-align: right; white-space: nowrap; }
th { color: var(--muted); font-weight: 600; vertical-align: bottom; border-bottom: 1px solid var(--line); }
tr + tr td { border-top: 1px solid var(--line); }
.left { text-align: left; }
.long { min-width: 14rem; white-space: normal; overflow-wrap: anywhere; }
.gap td { text-align: center; color: var(--muted); }
pre { margin: .4rem 0; overflow-x: auto; line-height: 1.5; }
pre.command { user-select: all; }
dl.facts { display: grid; grid-template-columns: fit-content(50%) minmax(0, 1fr); gap: .35rem 1.2rem; }
dd { margin: 0; }
dt, dd { overflow-wrap: anywhere; }
@media (max-width: 30rem) { dl.facts { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; } }
summary { padding: .3rem 0; cursor: pointer; }
"""


class Line(NamedTuple):
    """A line of a table.

    Attributes:
        cells: Texts, or `td` elements.
        is_kept: Whether it is to be seen however long the table is.
    """

    cells: Sequence[str | Element]
    is_kept: bool = False


def write(path: Path, title: str, sections: Iterable[Element]) -> None:
    """Write a page in one step."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", STYLE + charts.STYLE),
    )
    html = element("html", head, element("body", element("main", *sections)), lang="en")
    text = ElementTree.tostring(html, encoding="us-ascii", method="html").decode("ascii")
    write_text(path, f"<!doctype html>\n{text}\n")


def table(
    header: Sequence[str], lines: Sequence[Line], *, max_lines: int, left: Collection[str] = ()
) -> Iterator[Element]:
    """Yield a table; of more than `max_lines`, those in the middle that are not kept are folded below.

    Args:
        header: Name of each column; a long one is broken at its last dot.
        lines: A cell for each column.
        max_lines: How many are seen at once, not counting those that are kept.
        left: Names of the columns that are aligned left.
    """
    half = max_lines // 2
    hidden = [index for index in range(half, len(lines) - half) if not lines[index].is_kept]
    folded = set(hidden)
    rows = []
    for index, line in enumerate(lines):
        if index not in folded:
            rows.append(_row(header, line, left))
        elif index - 1 not in folded:
            rows.append(element("tr", element("td", "…", colspan=len(header)), class_="gap"))
    yield _framed(header, rows, left)
    if hidden:
        others = _framed(header, [_row(header, lines[index], left) for index in hidden], left)
        yield details(f"{len(hidden)} more rows, none of which mismatches", others)


def _framed(header: Sequence[str], rows: Iterable[Element], left: Collection[str]) -> Element:
    """Return a table in a frame of its own, in which it scrolls where it is too wide."""
    names = []
    for name in header:
        group, dot, last = name.rpartition(".")
        lines = [group + dot, element("br"), last] if dot else [name]
        names.append(element("th", *lines, scope="col", class_=_side(name, left)))
    whole = element("table", element("thead", element("tr", *names)), element("tbody", *rows))
    return element("div", whole, class_="scroll", tabindex=0)


def _row(header: Sequence[str], line: Line, left: Collection[str]) -> Element:
    cells = zip(header, line.cells, strict=True)
    return element(
        "tr",
        *(
            element("td", cell, class_=_side(name, left)) if isinstance(cell, str) else cell
            for name, cell in cells
        ),
    )


def _side(name: str, left: Collection[str]) -> str:
    return "left" if name in left else "right"


def status_class(status: str) -> str:
    """Return the class of what says that something matches, or does not."""
    return status if status in (MATCH, MISMATCH, DAMAGED) else "muted"


def facts(said: Iterable[tuple[str, str | Element]]) -> Element:
    """Return a list of names and what is said of them."""
    pairs = (element(tag, item) for fact in said for tag, item in zip(("dt", "dd"), fact, strict=True))
    return element("dl", *pairs, class_="facts")


def sentences(texts: Iterable[str]) -> Element:
    """Return a list of sentences."""
    return element("ul", *(element("li", text) for text in texts))


def details(summary: str, *content: Element | str) -> Element:
    """Return what is folded below its summary."""
    return element("details", element("summary", summary), *content)


def command(module: str, *overrides: str) -> Element:
    """Return a command that a click selects whole."""
    return element("pre", shlex.join(["python", "-m", module, *overrides]), class_="command")


def number(value: Any, spec: str = ".6g") -> str:
    """Return a number as text; a receipt's word for one that is not finite as it is."""
    if value is None:
        return MISSING
    return value if isinstance(value, str) else "0" if value == 0 else f"{value:{spec}}"
