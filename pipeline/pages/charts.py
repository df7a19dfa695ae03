"""Charts for pages: numbers in, an SVG element out.

It knows nothing of runs. A page includes `STYLE`, which draws in the page's own colours: it must define the
CSS variables `--text`, `--muted`, `--line`, `--surface`, `--bad`, `--color-1`, `--color-2`, ... and, from the
best to the worst, `--rank-1`, `--rank-2`, ...
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal
from xml.etree.ElementTree import Element

WIDTH = 360
HEIGHT = 220

MAX_MARKS = 60
"""Marks of a series beyond which some are left out, unless the series says otherwise."""

MAX_STEPS = 6
"""Steps between the ticks of an axis, at most."""

MAX_WORDS = 12
"""Words that are written at an axis of words, at most."""

LOG_RATIO = 100.0
"""Ratio of the largest to the smallest value beyond which a positive axis is logarithmic."""

MIN_SPAN = 0.01
"""Span of an axis relative to its largest value, at least: a flat curve is to look flat."""

LARGEST = 1e300
"""Size of a value from which on it is not drawn: differences of such values overflow."""

DIGIT_WIDTH = 7.3
"""Width of a digit, in pixels, at most."""

AXIS_DISTANCE = 125.0
"""Pixels between two axes of parallel coordinates, at least."""

PARALLEL_EDGES = (96.0, 64.0, 46.0, 276.0)
"""Pixels from the left, and from the right, to the outer axes; where axes begin and end."""

MIN_GAP = 0.06
"""Distance between the labels of an axis of parallel coordinates, relative to its length, at least."""

RANKS = ("the best", "best fifth", "second fifth", "third fifth", "fourth fifth", "last fifth")
"""What a curve of each rank is."""

BAR_HEIGHT = 36

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

STYLE = """
figure { container-type: inline-size; }
svg.chart { display: block; width: 100%; height: auto; font-size: 12px; }
@container (min-width: 25rem) { svg.chart { font-size: 9.5px; } }
svg.parallel { min-width: var(--width); max-width: calc(1.3 * var(--width)); margin: auto; }
svg.chart.parallel { font-size: 11px; }
svg.chart text { fill: var(--muted); font-variant-numeric: tabular-nums; }
svg.chart .name { fill: var(--text); }
svg.chart .grid { stroke: var(--line); }
svg .curve { fill: none; stroke: currentColor; stroke-width: 2; }
svg .curve { stroke-linejoin: round; stroke-linecap: round; }
svg .mark { fill: var(--surface); stroke: currentColor; stroke-width: 1.5; }
svg .hollow { fill: none; pointer-events: all; }
svg.parallel text { pointer-events: none; paint-order: stroke; stroke: var(--surface); stroke-width: 3px; }
svg .axis { fill: none; stroke: var(--muted); }
svg .trial { fill: none; stroke: currentColor; stroke-width: 1.75; stroke-linejoin: round; }
svg .trial { stroke-linecap: round; }
svg .trial:hover { color: var(--text); stroke-width: 4; }
svg .dashed { stroke-dasharray: 5 4; }
svg .bar { fill: currentColor; }
svg .track { fill: var(--line); }
svg .flagged { color: var(--bad); stroke-width: 2.5; }
svg .color-1 { color: var(--color-1); }
svg .color-2 { color: var(--color-2); }
svg .color-3 { color: var(--color-3); }
svg .color-4 { color: var(--color-4); }
svg .rank-0 { color: var(--color-2); stroke-width: 3.5; }
svg .rank-1 { color: var(--rank-1); }
svg .rank-2 { color: var(--rank-2); }
svg .rank-3 { color: var(--rank-3); }
svg .rank-4 { color: var(--rank-4); }
svg .rank-5 { color: var(--rank-5); }
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
        max_marks: Marks beyond which some are left out, though never flagged ones.
    """

    name: str
    points: Sequence[Point]
    shape: Literal["line", "circle", "square", "triangle"] = "line"
    color: int = 1
    max_marks: int = MAX_MARKS


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A curve of parallel coordinates.

    Attributes:
        values: Where it crosses each axis; `None` where it does not.
        label: What a pointer that rests on it is told.
        rank: Position of what it is in `RANKS`.
        dashed: Whether it is to look different.
    """

    values: Sequence[float | str | None]
    label: str = ""
    rank: int = 1
    dashed: bool = False


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


def shortened(text: str, max_length: int) -> str:
    """Return a text; of a longer one, its beginning and its end."""
    end = (max_length - 1) // 2
    return text if len(text) <= max_length else f"{text[: max_length - 1 - end]}…{text[-end:]}"


def figure(name: str, title: str, series: Sequence[Series], *, x_label: str, log_x: bool = False) -> Element:
    """Return an HTML `figure`: a name, a legend, and the chart."""
    caption = element("figcaption", element("strong", name), legend(series))
    return element("figure", caption, chart(title, series, x_label=x_label, log_x=log_x))


def chart(title: str, series: Sequence[Series], *, x_label: str, log_x: bool = False) -> Element:
    """Return an `svg` that draws the series over each other.

    The y axis is logarithmic where all values are positive and their ratio is beyond `LOG_RATIO`.

    Args:
        title: What the chart shows, for who cannot see it.
        series: In the order they are drawn. Of those without a finite point, nothing is.
        x_label: Name of the x axis.
        log_x: Whether the x axis may be logarithmic too.
    """
    drawn = [(one, [p for p in one.points if _is_drawable(p.x) and _is_drawable(p.y)]) for one in series]
    points = [point for _, finite in drawn for point in finite]
    svg = element("svg", element("title", title), class_="chart", role="img", viewBox=f"0 0 {WIDTH} {HEIGHT}")
    if not points:
        svg.append(element("text", "no finite values", x=WIDTH / 2, y=HEIGHT / 2, text_anchor="middle"))
        return svg
    x_axis = _axis if log_x else _linear
    frame = _Frame(x_axis([p.x for p in points]), _axis([p.y for p in points]))
    svg.extend(frame.elements(x_label))
    for one, finite in drawn:
        if one.shape == "line":
            path = "L".join(f"{x:.1f},{y:.1f}" for x, y in map(frame.place, [*finite, *finite[-1:]]))
            svg.append(element("path", d=f"M{path}" if path else "", class_=f"curve color-{one.color}"))
        else:
            svg.extend(_marks(one, finite, frame))
    return svg


def _is_drawable(value: float) -> bool:
    """Return whether a value is finite, and so is the span between it and any other."""
    return abs(value) < LARGEST


def legend(series: Iterable[Series]) -> Element:
    """Return an HTML list that says what each series is, and what a flagged mark is if there is one."""
    items: list[tuple[Element, str]] = []
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
    return _legend(items)


def _legend(items: Iterable[tuple[Element, str]]) -> Element:
    swatches = [
        (element("svg", swatch, viewBox="0 0 22 14", aria_hidden="true"), name) for swatch, name in items
    ]
    return element("ul", *(element("li", swatch, name) for swatch, name in swatches), class_="legend")


def parallel(title: str, names: Sequence[str], curves: Sequence[Curve]) -> Element:
    """Return an `svg` of upright axes side by side, and of curves that cross them.

    An axis has numbers, from low to high and logarithmic as that of `chart`; or words, in alphabetical order.

    Args:
        title: What the chart shows, for who cannot see it.
        names: Of the axes, at least two; each is written on two lines, parted at its last dot.
        curves: In the order they are drawn, the last one on top. At an axis, all have numbers or all words.
    """
    left, right, top, bottom = PARALLEL_EDGES
    distance = max(AXIS_DISTANCE, (WIDTH - left - right) / (len(names) - 1))
    width, height = left + distance * (len(names) - 1) + right, bottom + 24
    axes = [_upright([curve.values[index] for curve in curves]) for index in range(len(names))]
    svg = element("svg", element("title", title), class_="chart parallel", role="img")
    svg.set("viewBox", f"0 0 {width:g} {height:g}")
    svg.set("style", f"--width: {width:g}px")
    for curve in curves:
        points = [
            None if value is None else (left + index * distance, bottom - axis.places[value] * (bottom - top))
            for index, (value, axis) in enumerate(zip(curve.values, axes, strict=True))
        ]
        classes = f"trial rank-{curve.rank}{' dashed' if curve.dashed else ''}"
        svg.append(
            element("g", element("title", curve.label), element("path", d=_path(points)), class_=classes)
        )
    for index, (name, axis) in enumerate(zip(names, axes, strict=True)):
        svg.extend(axis.elements(name, left + index * distance))
    return svg


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """Return a path through the points, with gaps where there is none."""
    path = ""
    for before, point in pairwise([None, *points]):
        if point:
            at = f"{point[0]:.1f},{point[1]:.1f}"
            # A move alone draws nothing, and there may be no next point.
            path += f"L{at}" if before else f"M{at}h0"
    return path


def parallel_legend(curves: Iterable[Curve], dashed: str) -> Element:
    """Return an HTML list that says what the curves of each rank are, and what dashed ones are."""
    curves = list(curves)
    items = []
    for rank in sorted({curve.rank for curve in curves}):
        swatch = element("g", element("path", d="M2,7L20,7"), class_=f"trial rank-{rank}")
        items.append((swatch, RANKS[rank]))
    if any(curve.dashed for curve in curves):
        items.append((element("g", element("path", d="M2,7L20,7"), class_="trial dashed"), dashed))
    return _legend(items)


def bars(title: str, shares: Mapping[str, float]) -> Element:
    """Return an `svg` of a bar for each share, one below the other, with its name and its percentage.

    Args:
        title: What the chart shows, for who cannot see it.
        shares: By name, 0 to 1; from top to bottom.
    """
    svg = element("svg", element("title", title), class_="chart", role="img")
    svg.set("viewBox", f"0 0 {WIDTH} {BAR_HEIGHT * len(shares)}")
    for index, (name, share) in enumerate(shares.items()):
        y = index * BAR_HEIGHT
        track = {"x": 0, "y": y + 19, "height": 8, "rx": 2}
        svg.append(
            element(
                "g",
                element("title", f"{name}: {share:.1%}"),
                element("text", shortened(name, 42), x=0, y=y + 13, class_="name"),
                element("text", f"{share:.0%}", x=WIDTH, y=y + 13, text_anchor="end"),
                element("rect", **track, width=WIDTH, class_="track"),
                element("rect", **track, width=f"{share * WIDTH:.1f}", class_="bar color-1"),
            )
        )
    return svg


@dataclass(frozen=True)
class _Frame:
    """The area that is drawn in, between its axes."""

    x: _Axis
    y: _Axis

    @property
    def left(self) -> float:
        return 10 + DIGIT_WIDTH * max(len(label) for _, label in self.y.ticks)

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
        room = DIGIT_WIDTH * (max(len(label) for _, label in self.x.ticks) + 1)
        stride = math.ceil(len(self.x.ticks) * room / (right - left))
        for value, label in self.x.ticks[::stride]:
            x = f"{left + value * (right - left):.1f}"
            yield element("text", label, x=x, y=HEIGHT - 21, text_anchor="middle")
        name = f"{x_label} (log scale)" if self.x.logarithmic else x_label
        yield element("text", name, x=(left + right) / 2, y=HEIGHT - 5, text_anchor="middle")
        if self.y.logarithmic:
            yield element("text", "log scale", x=WIDTH - 6, y=11, text_anchor="end")


@dataclass(frozen=True)
class _Upright:
    """An axis of parallel coordinates; places are 0 at its lower end and 1 at its upper."""

    places: Mapping[float | str, float]
    ticks: Sequence[tuple[float, str]]
    logarithmic: bool = False

    def elements(self, name: str, x: float) -> Iterator[Element]:
        """Yield the axis, its name and its labels."""
        _, _, top, bottom = PARALLEL_EDGES
        yield element("path", d=f"M{x:.1f},{top}V{bottom}", class_="axis")
        group, dot, last = name.rpartition(".")
        scale = "log scale" if self.logarithmic else ""
        lines = [(group + dot, 13.0, "group"), (last, 28.0, "name"), (scale, bottom + 18, "scale")]
        for text, y, kind in [line for line in lines if line[0]]:
            yield element("text", shortened(text, 19), x=f"{x:.1f}", y=y, text_anchor="middle", class_=kind)
        for place, label in self.ticks:
            y = bottom - place * (bottom - top)
            text = shortened(label, 12)
            yield element("text", text, x=f"{x - 6:.1f}", y=f"{y:.1f}", dy="0.35em", text_anchor="end")


def _upright(values: Iterable[float | str | None]) -> _Upright:
    distinct = {value for value in values if value is not None}
    numbers = sorted(value for value in distinct if not isinstance(value, str))
    if not numbers:
        return _words(sorted(value for value in distinct if isinstance(value, str)))
    axis = _axis(numbers)
    places: dict[float | str, float] = {value: axis.fraction(value) for value in numbers}
    exact = [(places[value], f"{value:.4g}") for value in numbers]
    gaps = [high - low for (low, _), (high, _) in pairwise(exact)]
    is_exact = len(numbers) <= MAX_STEPS + 1 and min(gaps, default=1.0) >= MIN_GAP
    return _Upright(places, exact if is_exact else axis.ticks, axis.logarithmic)


def _words(words: Sequence[str]) -> _Upright:
    """Return an axis whose first word is at the top."""
    places: dict[float | str, float] = {
        word: 1 - (index + 0.5) / len(words) for index, word in enumerate(words)
    }
    stride = math.ceil(len(words) / MAX_WORDS) or 1
    return _Upright(places, [(places[word], word) for word in words[::stride]])


def _axis(values: Sequence[float]) -> _Axis:
    """Return an axis that is logarithmic where that helps."""
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


def _thinned(points: Sequence[Point], max_marks: int) -> list[Point]:
    """Return about `max_marks` of the points, evenly, with the last one and every flagged one."""
    stride = math.ceil(len(points) / max_marks)
    kept = {*range(0, len(points), stride or 1), len(points) - 1}
    return [point for index, point in enumerate(points) if index in kept or point.flagged]


def _marks(series: Series, points: Sequence[Point], frame: _Frame) -> Iterator[Element]:
    """Yield a mark for the points at each pixel, with all of their labels."""
    at: dict[tuple[int, int], list[Point]] = {}
    for point in _thinned(points, series.max_marks):
        x, y = frame.place(point)
        at.setdefault((round(x), round(y)), []).append(point)
    for (x, y), together in at.items():
        mark = _mark(series, x, y, is_flagged=any(point.flagged for point in together))
        mark.insert(0, element("title", "\n".join(point.label for point in together)))
        yield mark


def _mark(series: Series, x: float, y: float, *, is_flagged: bool) -> Element:
    if series.shape == "circle":
        mark = element("circle", cx=x, cy=y, r=3)
    elif series.shape == "triangle":
        mark = element("path", d=f"M{x - 4},{y - 3}h8l-4,7z")
    else:
        mark = element("rect", x=x - 5.5, y=y - 5.5, width=11, height=11, class_="hollow")
    group = element("g", mark, class_=f"mark color-{series.color}")
    if is_flagged:
        group.append(element("path", d=_cross(x, y)))
        group.set("class", "mark flagged")
    return group


def _cross(x: float, y: float) -> str:
    return f"M{x - 5},{y - 5}l10,10m0,-10l-10,10"
