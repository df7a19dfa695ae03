"""Tables of the results of a verification, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.cli.tables import aligned

if TYPE_CHECKING:
    from pipeline.verification.receipt import VerifiedEpoch


MAX_TABLE_ROWS = 24
"""Number of rows above which a table leaves out matching rows in its middle."""


def metrics_table(
    labelled: Sequence[tuple[str, VerifiedEpoch]], *, columns: int, heading: str = "epoch"
) -> str:
    """Return the metrics as an aligned table.

    A table that is too wide leaves the restored metrics out; one that is too long, matching middle rows.

    Args:
        labelled: The verified epochs, each with its text for the first column.
        columns: The width of the terminal in characters.
        heading: The name of the first column.
    """
    names = sorted({name for _, row in labelled for name in row.metrics})
    header = [heading, *(f"test_{n}" for n in names), *(f"restored_{n}" for n in names), "match"]
    cells = [
        [
            label,
            *(f"{row.metrics[name].logged:.6g}" if row.metrics else "-" for name in names),
            *(f"{row.metrics[name].restored:.6g}" if row.metrics else "-" for name in names),
            "DAMAGED" if row.problems else _yes(all(c.match for c in row.metrics.values())),
        ]
        for label, row in labelled
    ]
    hidden = _hidden_rows([row for _, row in labelled])
    optional = [name for name in header if name.startswith("restored_")]
    return aligned(header, cells, columns=columns, optional=optional, hidden=hidden)


def parity_table(labelled: Sequence[tuple[str, VerifiedEpoch]], *, columns: int) -> str:
    """Return the comparisons of answers as an aligned table, a row for each signature of each export.

    The table is empty if there are no exports. If it is too wide, the latencies are left out.

    Args:
        labelled: The verified epochs, each with its text for the first column.
        columns: The width of the terminal in characters.
    """
    header = [
        "export",
        "signature",
        "max_error",
        "flips",
        "ms_at_1",
        "ms_at_32",
        "load_s",
        "size_kB",
        "match",
    ]
    cells = []
    for label, row in labelled:
        for name, found in row.signatures.items():
            latencies = [found.latency_ms.get(size) for size in (1, 32)]
            cells.append(
                [
                    label,
                    name,
                    f"{found.max_abs_error:.2g}",
                    str(found.argmax_flips),
                    *("-" if value is None else f"{value:.3g}" for value in latencies),
                    f"{row.load_secs:.2f}",
                    f"{(row.size_bytes or 0) / 1e3:,.0f}",
                    _yes(found.match),
                ]
            )
        cells += [[label, name, *["-"] * 6, "not compared"] for name in row.not_compared]
    if not cells:
        return ""
    return aligned(header, cells, columns=columns, optional=("ms_at_1", "ms_at_32"))


def _yes(match: bool) -> str:
    return "yes" if match else "NO"


def _hidden_rows(rows: Sequence[VerifiedEpoch]) -> set[int]:
    """Return the indices of the rows to leave out of a long table: those in the middle, if all match."""
    half = MAX_TABLE_ROWS // 2
    middle = range(half, len(rows) - half)
    return set(middle) if all(rows[i].match for i in middle) else set()
