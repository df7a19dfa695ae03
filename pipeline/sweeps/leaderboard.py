"""The leaderboard of a sweep: its trials from best to worst, as `leaderboard.csv` and for a terminal."""

from __future__ import annotations

import csv
import io
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.cli import tables
from pipeline.runs.files import write_text
from pipeline.sweeps.ledger import FINISHED, PRUNED, Ledger, Objectives, Trial

OPTIONAL = ("epochs", "seconds")
"""Columns that a narrow terminal does without."""

PATIENCE = 50
"""How many times as long as writing `leaderboard.csv` took it stays as it is."""


def ranked(trials: Sequence[Trial], objectives: Objectives) -> list[Trial]:
    """Return the trials from best to worst by the first objective.

    One that does not match comes behind all that do, one without an objective last.
    """
    return sorted(trials, key=lambda trial: _rank(trial, objectives))


def _rank(trial: Trial, objectives: Objectives) -> tuple[int, float, int]:
    sign = -1 if objectives[0][1] == "maximize" else 1
    if trial.objective is None:
        return 3, 0.0, trial.number
    group = 0 if trial.verdict == "match" else 1 if trial.state == PRUNED else 2
    return group, sign * trial.objective, trial.number


def best(trials: Sequence[Trial], objectives: Objectives) -> Trial | None:
    """Return the best trial of those whose verification says match, if there is one."""
    matching = [trial for trial in trials if trial.verdict == "match" and trial.objective is not None]
    return min(matching, key=lambda trial: _rank(trial, objectives), default=None)


def shortened(value: str) -> str:
    """Return a number with four significant digits at most, any other text as it is."""
    try:
        return value if float(value) == int(float(value)) else f"{float(value):.4g}"
    except (ValueError, OverflowError):
        return value


def swept_keys(trials: Sequence[Trial]) -> list[str]:
    """Return the keys that differ between the trials."""
    values: dict[str, set[str]] = {}
    for trial in trials:
        for key, value in trial.values.items():
            values.setdefault(key, set()).add(value)
    keys = [key for key, found in values.items() if len(found) > 1]
    return keys or list(values)


def rows(trials: Sequence[Trial], objectives: Objectives) -> tuple[list[str], list[list[str]]]:
    """Return a header and a row for each trial, for a table or a file."""
    keys = swept_keys(trials)
    metrics = [name for name, _ in objectives]
    header = ["trial", *keys, *metrics, "verdict", "state", "epochs", "seconds"]
    lines = []
    for trial in trials:
        values = trial.values
        found = [] if trial.objective is None else [trial.objective, *trial.further]
        lines.append(
            [
                str(trial.number),
                *(values.get(key, "") for key in keys),
                *(repr(number) for number in found),
                *[""] * (len(metrics) - len(found)),
                trial.verdict or "",
                trial.state,
                str(trial.epochs),
                "" if trial.seconds is None else f"{trial.seconds:.1f}",
            ]
        )
    return header, lines


class LeaderboardFile:
    """`leaderboard.csv` of a sweep, best trial first.

    To write it takes as long as the sweep has trials. It is therefore rewritten only when much more time
    than that has passed, and at the end.
    """

    def __init__(self, ledger: Ledger, objectives: Objectives) -> None:
        self.path = ledger.directory / "leaderboard.csv"
        self._ledger = ledger
        self._objectives = objectives
        self._due = 0.0

    def update(self) -> None:
        """Write the file, unless it was written a short while ago."""
        begin = time.monotonic()
        if begin >= self._due:
            self.write()
            end = time.monotonic()
            self._due = end + PATIENCE * (end - begin)

    def write(self) -> Path:
        """Write the file; return its path."""
        trials = ranked(self._ledger.latest(), self._objectives)
        header, lines = rows(trials, self._objectives)
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow([*header, "run_dir", "reason"])
        for trial, line in zip(trials, lines, strict=True):
            writer.writerow([*line, trial.run_dir, trial.reason or ""])
        write_text(self.path, text.getvalue())
        return self.path


def show(ledger: Ledger, objectives: Objectives) -> None:
    """Print the summary, as wide as the terminal is."""
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    print(summary(ledger, objectives, columns=columns), flush=True)


def summary(ledger: Ledger, objectives: Objectives, *, columns: int) -> str:
    """Return the leaderboard as an aligned table, and a sentence for each trial that did not finish.

    Args:
        ledger: The sweep's.
        objectives: See `objectives_of`.
        columns: The table is not to be wider, if that can be.
    """
    trials = ranked(ledger.latest(), objectives)
    header, lines = rows(trials, objectives)
    lines = [list(map(shortened, line)) for line in lines]
    unfinished = [
        f"trial {trial.number} {trial.state}: {trial.reason or 'no reason'} ({trial.run_dir})"
        for trial in trials
        if trial.state not in FINISHED
    ]
    table = tables.aligned(header, lines, columns=columns, optional=OPTIONAL)
    return "\n".join([table, *unfinished, f"ledger: {ledger.path}    page: {ledger.page}"])
