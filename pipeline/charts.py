"""Charts for pages: series of points in, an SVG element out.

It knows nothing of runs. A page includes `STYLE`, which draws in the page's own colours: it must define the
CSS variables `--text`, `--muted`, `--line`, `--surface`, `--bad`, and `--color-1`, `--color-2`, ...
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal
from xml.etree.ElementTree import Element

WIDTH = 360
HEIGHT = 220

MAX_MARKS = 60
"""Marks of a series beyond which some are left out, though never flagged ones."""

MAX_STEPS = 6
"""Steps between the ticks of an axis, at most."""

LOG_RATIO = 100.0
"""Ratio of the largest to the smallest value beyond which a positive axis is logarithmic."""

MIN_SPAN = 0.01
"""Span of an axis relative to its largest value, at least: a flat curve is to look flat."""

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

STYLE = """
figure { container-type: inline-size; }
svg.chart { display: block; width: 100%; height: auto; font-size: 12px; }
@container (min-width: 25rem) { svg.chart { font-size: 9.5px; } }
svg.chart text { fill: var(--muted); font-variant-numeric: tabular-nums; }
svg.chart .grid { stroke: var(--line); }
svg .curve { fill: none; stroke: currentColor; stroke-width: 2; }
svg .curve { stroke-linejoin: round; stroke-linecap: round; }
svg .mark { fill: var(--surface); stroke: currentColor; stroke-width: 1.5; }
svg .hollow { fill: none; pointer-events: all; }
svg .flagged { color: var(--bad); stroke-width: 2.5; }
svg .color-1 { color: var(--color-1); }
svg .color-2 { color: var(--color-2); }
svg .color-3 { color: var(--color-3); }
svg .color-4 { color: var(--color-4); }
.legend { display: flex; flex-wrap: wrap; gap: 0 1rem; margin: 0; padding: 0; list-style: none; }
.legend li { display: flex; align-items: center; gap: .4rem; }
.legend svg { width: 22px; height: 14px; flex: none; }
"""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point of a series.

    Attributes:
        x: Where it is across.
        y: How high it is. A point that is not finite is not drawn.
        label: What a pointer that rests on its mark is told.
        flagged: Whether something is wrong with it: then it is always drawn, crossed out.
    """

    x: float
    y: float
    label: str = ""
    flagged: bool = False


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points that belong together, as a line or as marks.

    Attributes:
        name: Its name in the legend.
        points: In the order of a line.
        shape: A line through the points, or a mark at each. A square stands around a circle.
        color: Number of the page's variable `--color-<number>`, 1 to 4.
    """

    name: str
    points: Sequence[Point]
    shape: Literal["line", "circle", "square"] = "line"
    color: int = 1


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """A scale from values to pixels; of a logarithmic one, `low` and `high` are powers of ten."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    logarithmic: bool = False

    def fraction(self, value: float) -> float:
        return ((math.log10(value) if self.logarithmic else value) - self.low) / (self.high - self.low)


def element(tag: str, *content: Element | str, **attributes: object) -> Element:
    """Return an element; `_` in the name of an attribute stands for `-`, and `class_` for `class`."""
    made = Element(
        tag, {name.rstrip("_").replace("_", "-"): str(value) for name, value in attributes.items()}
    )
    for item in content:
        if not isinstance(item, str):
            made.append(item)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + item
        else:
            made.text = (made.text or "") + item
    return made


def chart(title: str, series: Sequence[Series], *, x_label: str) -> Element:
    """Return an `svg` that draws the series over each other.

    The y axis is logarithmic where all values are positive and their ratio is beyond `LOG_RATIO`.

    Args:
        title: What the chart shows, for who cannot see it.
        series: In the order they are drawn. Of those without a finite point, nothing is.
        x_label: Name of the x axis.
    """
    drawn = [(one, [p for p in one.points if math.isfinite(p.x) and math.isfinite(p.y)]) for one in series]
    points = [point for _, finite in drawn for point in finite]
    svg = element("svg", element("title", title), class_="chart", role="img", viewBox=f"0 0 {WIDTH} {HEIGHT}")
    if not points:
        svg.append(element("text", "no finite values", x=WIDTH / 2, y=HEIGHT / 2, text_anchor="middle"))
        return svg
    frame = _Frame(_linear([p.x for p in points]), _y_axis([p.y for p in points]))
    svg.extend(frame.elements(x_label))
    for one, finite in drawn:
        if one.shape == "line":
            path = "L".join(f"{x:.1f},{y:.1f}" for x, y in map(frame.place, [*finite, *finite[-1:]]))
            svg.append(element("path", d=f"M{path}" if path else "", class_=f"curve color-{one.color}"))
        else:
            svg.extend(_marks(one, finite, frame))
    return svg


def legend(series: Iterable[Series]) -> Element:
    """Return an HTML list that says what each series is, and what a flagged mark is if there is one."""
    items = []
    flagged = False
    for one in series:
        flagged = flagged or any(point.flagged for point in one.points)
        if one.shape == "line":
            swatch = element("path", d="M2,7L20,7", class_=f"curve color-{one.color}")
        else:
            swatch = _mark(one, 11, 7, is_flagged=False)
        items.append((swatch, one.name))
    if flagged:
        items.append((element("path", d=_cross(11, 7), class_="curve flagged"), "mismatch"))
    swatches = [
        (element("svg", swatch, viewBox="0 0 22 14", aria_hidden="true"), name) for swatch, name in items
    ]
    return element("ul", *(element("li", swatch, name) for swatch, name in swatches), class_="legend")


@dataclass(frozen=True)
class _Frame:
    """The area that is drawn in, between its axes."""

    x: _Axis
    y: _Axis

    @property
    def left(self) -> float:
        return 10 + 7.3 * max(len(label) for _, label in self.y.ticks)

    @property
    def edges(self) -> tuple[float, float, float, float]:
        """Left, right, top and bottom of where points are."""
        return self.left + 8, WIDTH - 14, 24 if self.y.logarithmic else 12, HEIGHT - 42

    def place(self, point: Point) -> tuple[float, float]:
        """Return where a point is, in pixels."""
        left, right, top, bottom = self.edges
        return (
            left + self.x.fraction(point.x) * (right - left),
            bottom - self.y.fraction(point.y) * (bottom - top),
        )

    def elements(self, x_label: str) -> Iterator[Element]:
        """Yield the ticks with their labels and the name of the x axis."""
        left, right, _, bottom = self.edges
        for value, label in self.y.ticks:
            y = f"{bottom - value * (bottom - self.edges[2]):.1f}"
            yield element("path", d=f"M{self.left},{y}H{WIDTH - 6}", class_="grid")
            yield element("text", label, x=self.left - 5, y=y, dy="0.35em", text_anchor="end")
        for value, label in self.x.ticks:
            x = f"{left + value * (right - left):.1f}"
            yield element("text", label, x=x, y=HEIGHT - 21, text_anchor="middle")
        yield element("text", x_label, x=(left + right) / 2, y=HEIGHT - 5, text_anchor="middle")
        if self.y.logarithmic:
            yield element("text", "log scale", x=WIDTH - 6, y=11, text_anchor="end")


def _y_axis(values: Sequence[float]) -> _Axis:
    if min(values) <= 0 or max(values) / min(values) <= LOG_RATIO:
        return _linear(values)
    axis = _Axis(low=math.log10(min(values)), high=math.log10(max(values)), ticks=(), logarithmic=True)
    powers = range(math.ceil(axis.low), math.floor(axis.high) + 1)
    shown = powers[:: math.ceil(len(powers) / MAX_STEPS)]
    plain = max(map(abs, powers)) <= 3
    ticks = [
        ((power - axis.low) / (axis.high - axis.low), f"{10.0**power:g}" if plain else _power(power))
        for power in shown
    ]
    return _Axis(low=axis.low, high=axis.high, ticks=ticks, logarithmic=True)


def _power(exponent: int) -> str:
    return f"10{str(exponent).translate(SUPERSCRIPTS)}"


def _linear(values: Sequence[float]) -> _Axis:
    """Return an axis whose ticks are 1, 2 or 5 times a power of ten apart; whole between whole values."""
    low, high = min(values), max(values)
    size = max(abs(low), abs(high))
    missing = (MIN_SPAN * size or 1.0) - (high - low)
    if missing > 0:
        low, high = low - missing / 2, high + missing / 2
    step = _round_up((high - low) / MAX_STEPS)
    if all(value == round(value) for value in values):
        step = max(step, 1.0)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    numbers = [number * step for number in range(first, last + 1)]
    ticks = [((number - low) / (high - low), _label(number, step, size)) for number in numbers]
    return _Axis(low=low, high=high, ticks=ticks)


def _round_up(step: float) -> float:
    power: float = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _label(number: float, step: float, size: float) -> str:
    """Return a tick's label with as many digits as the step needs."""
    place = math.floor(math.log10(step) + 1e-9)
    if size < 1e6 and place >= -4:
        return f"{number + 0.0:.{max(0, -place)}f}"
    return f"{number:.{max(1, math.floor(math.log10(size)) - place + 1)}g}"


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Return about `MAX_MARKS` of the points, evenly, with the last one and every flagged one."""
    stride = math.ceil(len(points) / MAX_MARKS)
    kept = {*range(0, len(points), stride or 1), len(points) - 1}
    return [point for index, point in enumerate(points) if index in kept or point.flagged]


def _marks(series: Series, points: Sequence[Point], frame: _Frame) -> Iterator[Element]:
    """Yield a mark for the points at each pixel, with all of their labels."""
    at: dict[tuple[int, int], list[Point]] = {}
    for point in _thinned(points):
        x, y = frame.place(point)
        at.setdefault((round(x), round(y)), []).append(point)
    for (x, y), together in at.items():
        mark = _mark(series, x, y, is_flagged=any(point.flagged for point in together))
        mark.insert(0, element("title", "\n".join(point.label for point in together)))
        yield mark


def _mark(series: Series, x: float, y: float, *, is_flagged: bool) -> Element:
    if series.shape == "circle":
        mark = element("circle", cx=x, cy=y, r=3)
    else:
        mark = element("rect", x=x - 5.5, y=y - 5.5, width=11, height=11, class_="hollow")
    group = element("g", mark, class_=f"mark color-{series.color}")
    if is_flagged:
        group.append(element("path", d=_cross(x, y)))
        group.set("class", "mark flagged")
    return group


def _cross(x: float, y: float) -> str:
    return f"M{x - 5},{y - 5}l10,10m0,-10l-10,10"
