"""Tables in text: a row in each line, columns with names in the first line.

Format: https://www.rfc-editor.org/rfc/rfc4180, with any delimiter; a byte order mark is passed over.
"""

from __future__ import annotations

import csv
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt

from data.base import DataError, Dataset, refuse
from data.splits import Split, held_out

Kind = Literal["int", "float", "text"]
Array = npt.NDArray[Any]

MISSING_VALUES = ("", "NA", "NaN", "null")
"""Cells that are no value, unless the configuration names others."""

POLICIES = ("refuse", "drop", "impute")
ARTICLES: Mapping[str, str] = {"int": "an integer", "float": "a finite number", "text": "a text"}


class CsvTable:
    """The columns of a CSV file: inputs `[N, 1]` and targets `[N]`, int64, float32 or text.

    An array has the name of its column, with `_` for everything but the letters a to z, digits and `_`. A
    target of text becomes the int64 number of its class. The metadata holds:

    - `columns`: the names of the inputs in their order;
    - `classes`: the sorted classes of a target of text, or a list for each of several by name;
    - `vocabularies`: the sorted texts of the training split, for each input of text;
    - `imputed`: the value that stands for a missing one, by column.

    Args:
        path: A CSV file in UTF-8, whose first line names the columns.
        target: The column to predict, or a list of columns.
        test_path: A file of the test split, with the same columns in any order. `None` takes rows of `path`.
        inputs: The columns to predict from. `None` is all others.
        batch_size: Rows in a batch.
        delimiter: The character between two columns, or `tab`.
        types: The type of some columns: `int` (int64), `float` (float32) or `text`. A type that is not given
            is int if all rows of `path` are integers, else float if all are numbers, else text.
        missing: What becomes of missing values: `refuse`, `drop` (the row) or `impute` (the median of the
            training split, or the empty text); or one of them for each column by name. A missing target is
            never imputed.
        missing_values: The cells that are missing values. `None` is an empty cell, NA, NaN and null.
        split: Which rows are the test split, if there is no `test_path`: the `tail`, a `random` choice, or a
            choice `stratified` by the target.
        test_fraction: Fraction of the rows that is the test split.
        seed: Seeds the choice of the test split.

    Raises:
        ValueError: Arguments contradict each other.
    """

    def __init__(
        self,
        *,
        path: Path,
        target: Any,
        test_path: Path | None = None,
        inputs: list[str] | None = None,
        batch_size: Annotated[int, ">= 1"] = 32,
        delimiter: str = ",",
        types: dict[str, Kind] | None = None,
        missing: Any = "refuse",
        missing_values: list[str] | None = None,
        split: Split = "random",
        test_fraction: Annotated[float, "> 0", "< 1"] = 0.1,
        seed: Annotated[int, ">= 0"] = 0,
    ) -> None:
        self.path = path
        self.targets = [target] if isinstance(target, str) else target
        self.test_path = test_path
        self.inputs = inputs
        self.batch_size = batch_size
        self.delimiter = "\t" if delimiter == "tab" else delimiter
        self.types = types or {}
        self.missing = missing
        self.missing_values = {*(MISSING_VALUES if missing_values is None else missing_values)}
        self.split: Split = split
        self.test_fraction = test_fraction
        self.seed = seed
        self._check()

    def _check(self) -> None:
        targets = self.targets
        if not (isinstance(targets, list) and targets and all(isinstance(name, str) for name in targets)):
            raise ValueError(f"data.target must be a column or a list of columns. Received: {targets!r}.")
        named = [*targets, *(self.inputs or [])]
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise ValueError(f"data.target and data.inputs must name a column once. Twice: {twice}.")
        if self.inputs is not None and not self.inputs:
            raise ValueError("data.inputs must name at least one column, or be null for all others.")
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n':
            raise ValueError(f"data.delimiter must be one character, or tab. Received: {self.delimiter!r}.")
        if self.split == "stratified" and len(targets) > 1 and self.test_path is None:
            raise ValueError(f"data.split=stratified needs one target. Received: {targets}.")
        policies = self.missing.values() if isinstance(self.missing, Mapping) else [self.missing]
        if wrong := [policy for policy in policies if policy not in POLICIES]:
            raise ValueError(
                f"data.missing must be one of {', '.join(POLICIES)}, or one for each column by name. "
                f"Received: {wrong[0]!r}."
            )

    def load(self) -> Dataset:
        """Read the file, and find types, classes and vocabularies.

        Raises:
            DataError: A file is missing or is no table, or cells are not of the type of their column. The
                message names the line, the column and the value, of up to 5 cells.
        """
        table = _read(self.path, self.delimiter)
        inputs = self._inputs(table)
        names = _array_names([*inputs, *self.targets])
        kinds = {
            name: self.types.get(name) or _inferred(table.cells[name], self.missing_values) for name in names
        }
        rows = self._parse(table, kinds)
        if self.test_path is None:
            test_rows = held_out(
                len(rows.lines),
                self.split,
                test_fraction=self.test_fraction,
                seed=self.seed,
                classes=rows.arrays[self.targets[0]],
            )
            train, test = rows.take(~test_rows), rows.take(test_rows)
        else:
            other = _read(self.test_path, self.delimiter)
            _check_known("data.test_path must have the columns of data.path", names, other)
            train, test = rows, self._parse(other, kinds)
        imputed = {name: _typical(train, name) for name in inputs if self._policy(name) == "impute"}
        classes = {name: sorted({*rows.arrays[name]}) for name in self.targets if kinds[name] == "text"}
        # One target has a list, several have a list each.
        listed: Any = classes if len(self.targets) > 1 else next(iter(classes.values()), None)
        train, test = train.filled(imputed), test.filled(imputed)
        return Dataset(
            train=_finished(train, inputs, names, classes),
            test=_finished(test, inputs, names, classes),
            batch_size=self.batch_size,
            metadata={
                "columns": [names[name] for name in inputs],
                **({"classes": listed} if classes else {}),
                "vocabularies": {
                    names[name]: sorted({*train.arrays[name]}) for name in inputs if kinds[name] == "text"
                },
                "imputed": {names[name]: value for name, value in imputed.items()},
            },
        )

    def _inputs(self, table: _Table) -> list[str]:
        """Return the columns to predict from, once every column that a key names is known to exist."""
        policies = self.missing if isinstance(self.missing, Mapping) else {}
        for key, named in (
            ("target", self.targets),
            ("inputs", self.inputs or []),
            ("types", self.types),
            ("missing", policies),
        ):
            _check_known(f"data.{key} must name columns of data.path", named, table)
        return self.inputs or [name for name in table.cells if name not in self.targets]

    def _policy(self, name: str) -> str:
        """Return what becomes of the missing values of a column."""
        policy = self.missing.get(name, "refuse") if isinstance(self.missing, Mapping) else self.missing
        return "refuse" if policy == "impute" and name in self.targets else policy

    def _parse(self, table: _Table, kinds: Mapping[str, Kind]) -> _Rows:
        """Return the values of some columns, without the rows that are dropped.

        Raises:
            DataError: A cell is not of the type of its column, or a value is missing that must be there.
        """
        problems: list[Iterator[str]] = []
        arrays: dict[str, Array] = {}
        missing: dict[str, Array] = {}
        for name, kind in kinds.items():
            cells, absent = _with_stand_ins(table.cells[name], kind, self.missing_values)
            if self._policy(name) == "refuse":
                problems.append(_refused(table, name, absent))
            missing[name] = absent
            try:
                arrays[name] = _values(cells, kind)
            except (ValueError, OverflowError):
                problems.append(_unfit(table, name, cells, kind))
        refuse(itertools.chain.from_iterable(problems))
        dropped = np.zeros(len(table.lines), bool)
        for name in kinds:
            if self._policy(name) == "drop":
                dropped |= missing[name]
        if dropped.all():
            raise DataError(f"{table.path} must have a row that is whole. All {len(dropped)} lack a value.")
        return _Rows(table.path, arrays, missing, np.array(table.lines)).take(~dropped)


@dataclass(frozen=True)
class _Table:
    """The cells of a file as they are written.

    Attributes:
        path: The file.
        cells: The cells of each column, by its name.
        lines: The number of the first line of each row.
    """

    path: Path
    cells: Mapping[str, Sequence[str]]
    lines: Sequence[int]

    def cell(self, row: int, name: str) -> str:
        """Return where a cell is, for a message."""
        return f"{self.path}, line {self.lines[row]}, column {name!r}"


@dataclass(frozen=True)
class _Rows:
    """The values of rows by column: int64, float32 or objects of type str.

    Attributes:
        path: The file.
        arrays: The values `[N]` of each column.
        missing: Which values `[N]` are missing, and stand-ins in `arrays`.
        lines: The number of the line `[N]` of each row.
    """

    path: Path
    arrays: Mapping[str, Array]
    missing: Mapping[str, Array]
    lines: Array

    def take(self, rows: npt.NDArray[np.bool_]) -> _Rows:
        """Return some of the rows."""
        arrays, missing = (
            {name: array[rows] for name, array in of.items()} for of in (self.arrays, self.missing)
        )
        return _Rows(self.path, arrays, missing, self.lines[rows])

    def filled(self, values: Mapping[str, Any]) -> _Rows:
        """Return the rows with values in place of those that are missing, by column."""
        filled = {
            name: np.where(self.missing[name], value, self.arrays[name]) for name, value in values.items()
        }
        # `where` would make float64 of float32 and a Python number.
        filled = {name: array.astype(self.arrays[name].dtype) for name, array in filled.items()}
        return _Rows(self.path, {**self.arrays, **filled}, self.missing, self.lines)


def _read(path: Path, delimiter: str) -> _Table:
    """Read a file.

    Raises:
        DataError: The file is missing, is not UTF-8, or its lines are no table.
    """
    rows: list[list[str]] = []
    lines: list[int] = []
    end = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            # Strict, since a quote that is never closed would otherwise take the rest of the file for a cell.
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for row in reader:
                if row:  # Else the line is blank.
                    rows.append(row)
                    lines.append(end + 1)
                end = reader.line_num
    except UnicodeDecodeError as error:
        raise DataError(_not_utf8(path)) from error
    except csv.Error as error:
        raise DataError(
            f"{path} must be a table with a quote behind each quoted cell. Reading failed in the row that "
            f"begins in line {end + 1}: {error}."
        ) from error
    except OSError as error:
        raise DataError(
            f"data.path and data.test_path must name CSV files. {path}: {error.strerror}."
        ) from error
    if len(rows) < 2:
        raise DataError(f"{path} must have a line of names and a row. Received: {len(rows)} lines.")
    names = [name.strip() for name in rows[0]]
    _check_names(path, names)
    refuse(
        f"{path}, line {line}: a row must have {len(names)} cells. Received: {len(row)}. A cell that holds "
        f"{delimiter!r} needs quotes."
        for line, row in zip(lines, rows, strict=True)
        if len(row) != len(names)
    )
    return _Table(path, dict(zip(names, zip(*rows[1:], strict=True), strict=True)), lines[1:])


def _check_names(path: Path, names: Sequence[str]) -> None:
    if unnamed := [number for number, name in enumerate(names, 1) if not name]:
        raise DataError(
            f"{path} must have a name for each column in its first line. Without one: columns {unnamed}. "
            "Name them; pandas leaves its index out with to_csv(index=False)."
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path} must have each column once. Twice: {twice}.")


def _check_known(rule: str, names: Iterable[str], table: _Table) -> None:
    if unknown := [name for name in names if name not in table.cells]:
        hint = " Is data.delimiter right?" if len(table.cells) == 1 else ""
        raise DataError(f"{rule}. {table.path} lacks {unknown}. It has: {', '.join(table.cells)}.{hint}")


def _not_utf8(path: Path) -> str:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return (
                    f"{path} must be UTF-8. Line {number} is not: {error.reason} "
                    f"({line[error.start : error.end]!r}). Convert it, for instance with iconv."
                )
    return f"{path} must be UTF-8."  # pragma: no cover - the file has changed meanwhile


def _array_names(columns: Sequence[str]) -> dict[str, str]:
    """Return the name of the array of each column: TensorFlow takes letters of ASCII, digits and `_`.

    Raises:
        DataError: No letter is left, or two columns would be one array.
    """
    names: dict[str, str] = {}
    for column in columns:
        letters = unicodedata.normalize("NFKD", column).encode("ascii", "ignore").decode()
        name = re.sub(r"\W+", "_", letters).strip("_")
        if not name or name in names.values():
            reason = f"like another, {name!r}" if name else "of no letter"
            raise DataError(
                f"Columns must differ in the letters a to z and the digits of their names, which arrays are "
                f"named by. The name of {column!r} would be {reason}. Rename it in the file."
            )
        names[column] = f"column_{name}" if name[0].isdigit() else name
    return names


def _with_stand_ins(cells: Sequence[str], kind: Kind, missing: set[str]) -> tuple[Sequence[str], Array]:
    """Return the cells of a column with stand-ins for missing values, and which cells `[N]` are missing."""
    if missing.isdisjoint(cells):
        return cells, np.zeros(len(cells), bool)
    stand_in = "" if kind == "text" else "0"
    return (
        [stand_in if cell in missing else cell for cell in cells],
        np.array([cell in missing for cell in cells]),
    )


def _inferred(cells: Sequence[str], missing: set[str]) -> Kind:
    """Return the narrowest type that all values of a column have."""
    filled, _ = _with_stand_ins(cells, "int", missing)
    kinds: tuple[Kind, ...] = ("int", "float")
    for kind in kinds:
        try:
            _numbers(filled, kind)
        except (ValueError, OverflowError):
            continue
        return kind
    return "text"


def _numbers(cells: Sequence[str], kind: Kind) -> Array:
    """Return cells as int64 or float32; too large a float becomes infinite.

    Raises:
        ValueError: A cell is no number.
        OverflowError: An integer has more than 64 bits.
    """
    if any("_" in cell for cell in cells):  # Python would read 1_000.
        raise ValueError("an underscore")
    if kind == "int":
        return np.array([*map(int, cells)], np.int64)
    with np.errstate(over="ignore"):
        return np.array([*map(float, cells)]).astype(np.float32)


def _values(cells: Sequence[str], kind: Kind) -> Array:
    """Return cells as values of a type.

    Raises:
        ValueError: A cell is no number, or an infinite one.
        OverflowError: An integer has more than 64 bits.
    """
    if kind == "text":
        return np.array(cells, object)
    numbers = _numbers(cells, kind)
    if not np.isfinite(numbers).all():
        raise ValueError("not finite")
    return numbers


def _refused(table: _Table, name: str, absent: Array) -> Iterator[str]:
    for row in np.flatnonzero(absent).tolist():
        yield (
            f"{table.cell(row, name)}: a value must be there. Received: {table.cells[name][row]!r}. "
            "Drop such rows with data.missing=drop; of inputs, data.missing=impute replaces the value."
        )


def _unfit(table: _Table, name: str, cells: Sequence[str], kind: Kind) -> Iterator[str]:
    """Yield a sentence for each cell of a column that is not of its type."""

    def fits(cell: str) -> bool:
        try:
            _values([cell], kind)
        except (ValueError, OverflowError):
            return False
        return True

    for row in (row for row, cell in enumerate(cells) if not fits(cell)):
        yield (
            f"{table.cell(row, name)}: the value must be {ARTICLES[kind]}. Received: {cells[row]!r}. "
            "data.types says otherwise, data.missing_values takes it for a missing value."
        )


def _typical(rows: _Rows, name: str) -> Any:
    """Return the value that stands for missing ones: the median, rounded for integers, or the empty text.

    Raises:
        DataError: All values are missing.
    """
    known = rows.arrays[name][~rows.missing[name]]
    if rows.arrays[name].dtype == object:
        return ""
    if not len(known):
        raise DataError(
            f"{rows.path}, column {name!r}: a value must be there to impute the others from. All are missing "
            "in the training split. Leave the column out with data.inputs."
        )
    median = np.median(known)
    return round(float(median)) if known.dtype == np.int64 else float(median)


def _finished(
    rows: _Rows, inputs: Sequence[str], names: Mapping[str, str], classes: Mapping[str, Sequence[str]]
) -> dict[str, Array]:
    """Return the arrays of a split: inputs `[N, 1]`, targets `[N]`, those of text as numbers of classes.

    Raises:
        DataError: A class of the test file is not in the training file.
    """
    arrays = {}
    for column, name in names.items():
        values = rows.arrays[column]
        if column in classes:
            numbers = {label: number for number, label in enumerate(classes[column])}
            refuse(
                f"{rows.path}, line {line}, column {column!r}: a class must be one of data.path. "
                f"Received: {label!r}."
                for line, label in zip(rows.lines, values, strict=True)
                if label not in numbers
            )
            values = np.array([numbers[label] for label in values], np.int64)
        arrays[name] = values[:, np.newaxis] if column in inputs else values
    return arrays
