"""The page of a sweep: which trial is the best, and what the values that were tried have to do with it.

It reads the sweep's ledger, and of the runs only whether each has a page of its own.
"""

from __future__ import annotations

import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree.ElementTree import Element

from pipeline import charts, page
from pipeline.charts import Curve, Point, Series, element
from pipeline.cli.quoting import override
from pipeline.runs.directory import RunDirectory
from pipeline.sweeps import leaderboard
from pipeline.sweeps import ledger as ledgers
from pipeline.sweeps.ledger import Ledger, Objectives, Trial

MAX_ROWS = 24
"""Rows of the table beyond which those in the middle are folded, unless one does not match."""

MAX_LENGTH = 28
"""Characters of a value beyond which it is broken into lines."""

MAX_REASON = 300
"""Characters of a reason beyond which it is folded."""

MAX_REASONS = 20
"""Reasons beyond which the others are folded."""

MAX_CURVES = 200
"""Trials that are drawn as curves, at most."""

MAX_MARKS = 1000
"""Trials that are drawn as marks, at most."""

MIN_COMPLETED = 4
"""Completed trials that importances are computed from, at least."""

NUM_BEST = 5
"""Trials that count as good where importances are computed, at least if there are twice as many."""

BEST_QUANTILE = 0.1
"""Share of the trials that count as good where there are many."""

INSTALL = "pip install 'roundtrip[sweep]'"

Column = Sequence[float | str | None]
"""What each trial has for a key, `None` for nothing: numbers if all of them are, else words."""


@dataclass(frozen=True)
class _Sweep:
    """What the page is made of.

    Attributes:
        directory: The sweep's.
        objectives: The metrics that it looks at, with their directions.
        trials: Of each configuration the last, in the order of their numbers.
    """

    directory: Path
    objectives: Objectives
    trials: Sequence[Trial]

    @cached_property
    def ranked(self) -> list[Trial]:
        return leaderboard.ranked(self.trials, self.objectives)

    @cached_property
    def best(self) -> Trial | None:
        return leaderboard.best(self.trials, self.objectives)

    @cached_property
    def keys(self) -> list[str]:
        return leaderboard.swept_keys(self.trials)

    @property
    def metrics(self) -> list[str]:
        return [name for name, _ in self.objectives]

    def found(self, trial: Trial) -> list[float | None]:
        """Return a trial's objectives, `None` for each that it does not have."""
        found = [trial.objective, *trial.further][: len(self.objectives)]
        return [*found, *[None] * (len(self.objectives) - len(found))]

    def label(self, trial: Trial) -> str:
        """Return what a pointer is told of a trial."""
        found = zip(self.metrics, map(page.number, self.found(trial)), strict=True)
        values = trial.values
        tried = ((key, values[key]) for key in self.keys if key in values)
        lines = [f"{name} {value}" for name, value in found] + [f"{key}={value}" for key, value in tried]
        return "\n".join([f"trial {trial.number}, {trial.state}", *lines])


def write(ledger: Ledger, objectives: Objectives) -> Path:
    """Write `sweep.html` into a sweep's directory; return its path.

    Args:
        ledger: The sweep's.
        objectives: At least one.

    Raises:
        ConfigError: The ledger is damaged.
    """
    sweep = _Sweep(ledger.directory.absolute(), objectives, ledger.latest())
    title = f"{sweep.directory.name}: {_count(len(sweep.trials), 'trial')}"
    if sweep.best:
        title += f", best {sweep.metrics[0]} {page.number(sweep.best.objective)}"
    sections = (_header, _best, _table, _reasons, _charts, _curves, _importance)
    path = ledger.page
    page.write(path, title, (part for section in sections for part in section(sweep)))
    return path


def _header(sweep: _Sweep) -> Iterator[Element]:
    yield element("h1", sweep.directory.name)
    aims = " and ".join(f"{direction} {name}" for name, direction in sweep.objectives)
    yield element("p", f"A sweep to {aims}.", class_="muted")
    yield element("p", element("code", str(sweep.directory)), class_="muted")
    states = Counter(trial.state for trial in sweep.trials).most_common()
    badges = [
        element("span", f"{number} {state}", class_=f"badge {_state_class(state)}")
        for state, number in states
    ]
    yield element("p", element("span", _count(len(sweep.trials), "trial")), *badges, class_="verdict")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _state_class(state: str) -> str:
    if state == ledgers.DONE:
        return page.MATCH
    return "muted" if state in (ledgers.PRUNED, ledgers.RUNNING, ledgers.INTERRUPTED) else page.MISMATCH


def _best(sweep: _Sweep) -> Iterator[Element]:
    yield element("h2", "Best trial")
    best = sweep.best
    if best is None:
        yield element("p", "None: no trial has an objective and matches what was verified.", class_="muted")
        return
    values = best.values
    yield page.facts(
        [
            ("trial", _link(sweep, best)),
            *zip(sweep.metrics, map(page.number, sweep.found(best)), strict=True),
            *((key, values[key]) for key in sweep.keys if key in values),
        ]
    )
    yield page.command("pipeline.evaluate", override("run_dir", Path(best.run_dir).absolute()))


def _link(sweep: _Sweep, trial: Trial) -> Element | str:
    """Return a trial's number, which leads to the page of its run if there is one."""
    report = RunDirectory(Path(trial.run_dir).absolute()).report
    if not report.is_file():
        return str(trial.number)
    path = os.path.relpath(report, sweep.directory)
    return element("a", str(trial.number), href=quote(os.fsencode(path)))


def _table(sweep: _Sweep) -> Iterator[Element]:
    yield element("h2", "Trials")
    header = ["rank", "trial", *sweep.keys, *sweep.metrics, "verdict", "state", "epochs", "seconds"]
    left = [key for key in sweep.keys if any(isinstance(value, str) for value in _column(sweep.trials, key))]
    ranked = sweep.ranked
    matching = [trial.number for trial in ranked if _is_matching(trial)]
    ranks = {number: str(rank) for rank, number in enumerate(matching, 1)}
    lines = []
    for trial in ranked:
        values = trial.values
        cells: list[str | Element] = [
            ranks.get(trial.number, page.MISSING),
            element("td", _link(sweep, trial)),
            *(
                _value(values.get(key, page.MISSING), "left" if key in left else "right")
                for key in sweep.keys
            ),
            *map(page.number, sweep.found(trial)),
            element("td", trial.verdict or page.MISSING, class_=page.status_class(trial.verdict or "")),
            element("td", trial.state, class_=_state_class(trial.state)),
            str(trial.epochs),
            page.number(trial.seconds, ".1f"),
        ]
        lines.append(page.Line(cells, is_kept=trial.verdict == page.MISMATCH))
    yield from page.table(header, lines, max_lines=MAX_ROWS, left=left)


def _is_matching(trial: Trial) -> bool:
    return trial.verdict == page.MATCH and trial.objective is not None


def _value(text: str, side: str) -> Element:
    short = leaderboard.shortened(text)
    cell = element("td", short, class_=f"{side} long" if len(short) > MAX_LENGTH else side)
    if short != text:
        cell.set("title", text)
    return cell


def _reasons(sweep: _Sweep) -> Iterator[Element]:
    """Yield why trials did not finish, each reason once."""
    numbers: dict[str, list[str]] = {}
    for trial in sweep.trials:
        if trial.reason:
            numbers.setdefault(f"{trial.state}: {trial.reason}", []).append(str(trial.number))
    if not numbers:
        return
    items = []
    for reason, found in numbers.items():
        said = f"{'trial' if len(found) == 1 else 'trials'} {', '.join(found)} {reason}"
        long = len(said) > MAX_REASON
        items.append(element("li", page.details(f"{said[:MAX_REASON]}…", said) if long else said))
    yield element("h3", "Why trials did not finish")
    yield element("ul", *items[:MAX_REASONS], class_="reasons")
    if len(items) > MAX_REASONS:
        others = element("ul", *items[MAX_REASONS:], class_="reasons")
        yield page.details(f"{len(items) - MAX_REASONS} more", others)


def _charts(sweep: _Sweep) -> Iterator[Element]:
    (metric, direction), *others = sweep.objectives
    yield element("h2", f"{metric} of each trial")
    trials = [trial for trial in sweep.trials if trial.objective is not None]
    if not trials:
        yield element("p", "No trial has an objective.", class_="muted")
        return
    best = Series(name="best so far", points=_best_so_far(trials, direction), color=2)
    marks = _marks(sweep, trials, lambda trial: (trial.number, trial.objective))
    title = f"{metric} by trial, and the best so far"
    series = [one for one in (best, *marks) if one.points]
    figures = [charts.figure(metric, title, series, x_label="trial")]
    figures += [_scatter(sweep, index) for index in range(1, len(others) + 1)]
    yield element("div", *figures, class_="curves")


def _best_so_far(trials: Iterable[Trial], direction: str) -> list[Point]:
    """Return the steps of a line that changes where a trial that matches is better than all before."""
    sign = _sign(direction)
    points: list[Point] = []
    for trial in trials:
        if points:
            points.append(Point(x=trial.number, y=points[-1].y))
        y = trial.objective if _is_matching(trial) else None
        if y is not None and (not points or sign * y < sign * points[-1].y):
            points.append(Point(x=trial.number, y=y))
    return points


def _sign(direction: str) -> int:
    return -1 if direction == "maximize" else 1


def _marks(
    sweep: _Sweep,
    trials: Iterable[Trial],
    place: Callable[[Trial], tuple[float | None, float | None]],
) -> list[Series]:
    """Return a mark for each trial that has a place; those of pruned ones below, of mismatches on top."""
    finished: list[Point] = []
    pruned: list[Point] = []
    for trial in trials:
        x, y = place(trial)
        if x is not None and y is not None:
            flagged = trial.verdict == page.MISMATCH
            point = Point(x=x, y=y, label=sweep.label(trial), flagged=flagged)
            (pruned if trial.state == ledgers.PRUNED else finished).append(point)
    finished.sort(key=lambda point: point.flagged)
    return [
        Series(name="pruned", points=pruned, shape="triangle", color=3, max_marks=MAX_MARKS),
        Series(name="finished", points=finished, shape="circle", max_marks=MAX_MARKS),
    ]


def _scatter(sweep: _Sweep, index: int) -> Element:
    """Return a chart of another objective by the first one."""
    (x_name, x_direction), (y_name, y_direction) = sweep.objectives[0], sweep.objectives[index]

    def place(trial: Trial) -> tuple[float | None, float | None]:
        found = sweep.found(trial)
        return found[0], found[index]

    places = [place(trial) for trial in sweep.trials if _is_matching(trial)]
    complete = [(x, y) for x, y in places if x is not None and y is not None]
    front = _front(complete, _sign(x_direction), _sign(y_direction))
    line = Series(name="Pareto front", points=[Point(x=x, y=y) for x, y in front], color=2)
    series = [one for one in (line, *_marks(sweep, sweep.trials, place)) if one.points]
    title = f"{y_name} of each trial by its {x_name}, and the Pareto front"
    return charts.figure(f"{y_name} by {x_name}", title, series, x_label=x_name, log_x=True)


def _front(places: Iterable[tuple[float, float]], x_sign: int, y_sign: int) -> list[tuple[float, float]]:
    """Return the places than which no other one is better; with a sign of 1, lower is better."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(places, key=lambda place: (x_sign * place[0], y_sign * place[1])):
        if not front or y_sign * y < y_sign * front[-1][1]:
            front.append((x, y))
    return front


def _curves(sweep: _Sweep) -> Iterator[Element]:
    trials = [trial for trial in sweep.ranked if trial.objective is not None]
    if not trials or not sweep.keys:
        return
    drawn = trials[:MAX_CURVES]
    columns = [[_in_short(value) for value in _column(drawn, key)] for key in sweep.keys]
    best = sweep.best
    curves = []
    for index, trial in enumerate(drawn):
        rank = 0 if best and trial.number == best.number else 1 + 5 * index // len(drawn)
        values = [*(column[index] for column in columns), *sweep.found(trial)]
        is_pruned = trial.state == ledgers.PRUNED
        curves.append(Curve(values=values, label=sweep.label(trial), rank=rank, dashed=is_pruned))
    metric, direction = sweep.objectives[0]
    yield element("h2", "Values and objectives" if len(sweep.objectives) > 1 else "Values and objective")
    if len(drawn) < len(trials):
        yield element("p", f"The best {len(drawn)} of {len(trials)} trials are drawn.", class_="muted")
    title = f"Values and {metric} of each trial"
    chart = charts.parallel(title, [*sweep.keys, *sweep.metrics], curves[::-1])
    name = f"A curve for each trial, coloured by its {metric} ({direction})"
    caption = element("figcaption", element("strong", name), charts.parallel_legend(curves, "pruned"))
    yield element("figure", caption, element("div", chart, class_="wide", tabindex=0), class_="full")


def _column(trials: Sequence[Trial], key: str) -> Column:
    texts = [trial.values.get(key) for trial in trials]
    numbers = [None if text is None else _finite(text) for text in texts]
    is_numeric = all(number is not None or text is None for number, text in zip(numbers, texts, strict=True))
    return numbers if is_numeric else texts


def _in_short(value: float | str | None) -> float | str | None:
    return leaderboard.shortened(value) if isinstance(value, str) else value


def _finite(text: str) -> float | None:
    """Return the finite number that a text says, if it does."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _importance(sweep: _Sweep) -> Iterator[Element]:
    yield element("h2", "Importance of each key")
    metric, direction = sweep.objectives[0]
    trials = [trial for trial in sweep.trials if trial.state == ledgers.DONE and _is_matching(trial)]
    objectives = [trial.objective for trial in trials if trial.objective is not None]
    columns = {key: _column(trials, key) for key in sweep.keys}
    columns = {key: column for key, column in columns.items() if len({*column} - {None}) > 1}
    obstacle = _obstacle(columns, objectives, metric)
    if obstacle:
        yield element("p", obstacle, class_="muted")
        return
    quantile = max(BEST_QUANTILE, min(0.5, (NUM_BEST - 0.5) / len(trials)))
    try:
        shares = _importances(columns, objectives, direction, quantile)
    except ImportError:
        yield element("p", "Optuna computes it, and is not installed: ", element("code", INSTALL), ".")
        return
    num_best = math.ceil(quantile * len(trials))
    said = (
        f"How much a key's values in the best {num_best} of the {len(trials)} completed trials, by {metric}, "
        "differ from those in all of them (PED-ANOVA, as shares). A rough guide where trials are few."
    )
    yield element("p", said, class_="muted")
    yield element("figure", charts.bars(f"Importance of each key for {metric}", shares))


def _obstacle(columns: Mapping[str, Column], objectives: Sequence[float], metric: str) -> str | None:
    """Return why there is nothing to compute, if there is not."""
    if len(objectives) < MIN_COMPLETED:
        return f"It takes {MIN_COMPLETED} completed trials that match to tell; there are {len(objectives)}."
    if len(set(objectives)) == 1:
        return f"There is none: {metric} is {page.number(objectives[0])} in each completed trial."
    return None if columns else "There is none: the completed trials have the same values."


def _importances(
    columns: Mapping[str, Column], objectives: Sequence[float], direction: str, quantile: float
) -> dict[str, float]:
    """Return each key's share in what sets the best trials apart, the largest first; all may be 0.

    PED-ANOVA: https://arxiv.org/abs/2304.10255.

    Args:
        columns: By key, a value for each trial; each key has at least two.
        objectives: One for each trial; at least two.
        direction: `minimize` or `maximize`.
        quantile: Which trials are the best, as a share of all.

    Raises:
        ImportError: Optuna is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import optuna

        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            study = optuna.create_study(direction=optuna.study.StudyDirection[direction.upper()])
            distributions = {key: _distribution(column) for key, column in columns.items()}
            for index, objective in enumerate(objectives):
                params = {key: column[index] for key, column in columns.items() if column[index] is not None}
                trial = optuna.trial.create_trial(
                    params=params, distributions={key: distributions[key] for key in params}, value=objective
                )
                study.add_trial(trial)
            evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=quantile)
            found = optuna.importance.get_param_importances(study, evaluator=evaluator, normalize=False)
        finally:
            optuna.logging.set_verbosity(verbosity)
    total = sum(found.values()) or 1.0
    return {key: found[key] / total for key in sorted(columns, key=lambda key: -found[key])}


def _distribution(column: Column) -> Any:
    """Return Optuna's description of the values that a key may have."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    words = sorted({value for value in column if isinstance(value, str)})
    if words:
        return CategoricalDistribution(words)
    numbers = [value for value in column if isinstance(value, float)]
    low, high = min(numbers), max(numbers)
    return FloatDistribution(low, high, log=low > 0 and high / low > charts.LOG_RATIO)
