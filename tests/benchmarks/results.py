"""What the benchmarks print and keep: tables of contenders, medians over their turns, ratios with targets."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ratio:
    """How a contender compares with another one.

    Attributes:
        value: The ratio of their medians.
        meaning: What it says after the number, such as `x its speed`.
        at_least: The smallest value that is good enough, if there is one.
        at_most: The largest one, if there is one.
    """

    value: float
    meaning: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool:
        """Whether it is good enough."""
        low = -float("inf") if self.at_least is None else self.at_least
        return low <= self.value <= (float("inf") if self.at_most is None else self.at_most)

    @property
    def target(self) -> str:
        """The target and whether it is met, as a table says it."""
        targets = [(">=", self.at_least), ("<=", self.at_most)]
        listed = [f"{sign} {limit:.3g}" for sign, limit in targets if limit is not None]
        return f"{', '.join(listed)}: {'yes' if self.met else 'NO'}" if listed else ""

    def __str__(self) -> str:
        return (
            f"{self.value:,.2f} {self.meaning}" if self.value < 100 else f"{self.value:,.0f} {self.meaning}"
        )


@dataclass(frozen=True)
class Line:
    """A contender.

    Attributes:
        row: What was measured, such as a model.
        contender: Who took part.
        values: One for each of its turns.
        ratios: How it compares.
    """

    row: str
    contender: str
    values: Sequence[float]
    ratios: Sequence[Ratio] = ()

    @property
    def median(self) -> float:
        """The median over the turns."""
        return statistics.median(self.values)

    @property
    def measured(self) -> str:
        """The median and the range."""
        numbers = (
            [self.median]
            if len(self.values) == 1
            else [self.median, *sorted(self.values)[:: len(self.values) - 1]]
        )
        texts = [f"{number:,.{_decimals(self.median)}f}" for number in numbers]
        return texts[0] if len(texts) == 1 else f"{texts[0]} ({texts[1]}-{texts[2]})"


@dataclass(frozen=True)
class Table:
    """What a benchmark came to.

    Attributes:
        title: What was measured.
        unit: Of the values.
        lines: The contenders, those of a row one after the other.
        note: What must be known to read it.
    """

    title: str
    unit: str
    lines: Sequence[Line]
    note: str = ""

    @property
    def missed(self) -> list[Ratio]:
        """The ratios that are not good enough."""
        return [ratio for line in self.lines for ratio in line.ratios if not ratio.met]


def parser(description: str | None, *, repeats: int) -> argparse.ArgumentParser:
    """Return the options that every benchmark has."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--repeats", type=int, default=repeats, help="turns of each contender")
    made.add_argument("--into", type=Path, help="a file of JSON lines to add the table to")
    return made


def show(table: Table, into: Path | None) -> int:
    """Print a table, and keep it; return the exit code that says whether all targets are met."""
    print(f"\n{table.title}; {table.unit}: median (range)")
    if table.note:
        print(table.note)
    width = max(len(line.contender) for line in table.lines) + 4
    before = None
    for line in table.lines:
        if line.row != before:
            print(f"\n{line.row}")
            before = line.row
        said = [f"{ratio!s:34}{ratio.target}".rstrip() for ratio in line.ratios] or [""]
        print(f"  {line.contender:{width}}{line.measured:>28}    {said[0]}".rstrip())
        for further in said[1:]:
            print(f"  {'':{width}}{'':>28}    {further}")
    print(flush=True)
    if into is not None:
        with into.open("a") as file:
            file.write(json.dumps(asdict(table)) + "\n")
    return int(bool(table.missed))


def read(path: Path) -> list[Table]:
    """Return the tables that `show` kept."""
    tables = []
    for text in path.read_text().splitlines() if path.exists() else ():
        kept = json.loads(text)
        lines = [
            Line(**{**line, "ratios": [Ratio(**ratio) for ratio in line["ratios"]]}) for line in kept["lines"]
        ]
        tables.append(Table(**{**kept, "lines": lines}))
    return tables


def _decimals(number: float) -> int:
    return next((decimals for decimals, limit in enumerate((1000, 10, 1)) if number >= limit), 3)
