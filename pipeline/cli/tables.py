"""Aligned tables for a terminal."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence

GAP = "  "


def aligned(
    header: Sequence[str],
    lines: Sequence[Sequence[str]],
    *,
    columns: int = sys.maxsize,
    optional: Collection[str] = (),
    hidden: Collection[int] = (),
) -> str:
    """Return a table whose cells are aligned to the right.

    Args:
        header: The names of the columns.
        lines: A cell for each column.
        columns: The width of the terminal. Where the table is wider, its optional columns are left out.
        optional: Names of these columns.
        hidden: Indices of neighbouring lines in whose place the table says how many they are.
    """
    cells = [list(header), *map(list, lines)]
    if sum(widths := _widths(cells)) + len(GAP) * len(widths) > columns:
        shown = [i for i, name in enumerate(header) if name not in optional]
        cells = [[line[i] for i in shown] for line in cells]
        widths = _widths(cells)
    table = []
    for index, line in enumerate(cells, -1):
        if index not in hidden:
            table.append(GAP.join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
        elif index - 1 not in hidden:
            table.append(f"... {len(hidden)} matching rows ...".rjust(widths[0]))
    return "\n".join(table)


def _widths(cells: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*cells, strict=True)]
