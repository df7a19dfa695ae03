"""Receipts: what a verification found, as JSON in the run and in each export, and as tables.

The run's receipt holds every epoch and the receipt of every export; an export's holds its own epochs.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import formats, lock, sealed
from pipeline.formats.base import FACTS, read_manifest
from pipeline.run import RunDirectory, write_text

if TYPE_CHECKING:
    from pipeline.verification import Verified

MAX_TABLE_ROWS = 24
"""Rows of a table beyond which matching ones in the middle are left out."""

Receipt = dict[str, Any]


def write(
    run: RunDirectory, num_epochs: int, epochs: Sequence[Verified], exports: Sequence[Verified]
) -> Receipt:
    """Write the run's receipt, and each export's into the export; return the run's.

    What an earlier verification found of other epochs and exports that are still there stays in the run's
    receipt: to verify one epoch again proves nothing of the rest, for better or worse.

    Args:
        run: The run.
        num_epochs: Number of rows of its log.
        epochs: What was found of checkpoints.
        exports: What was found of exports.
    """
    with lock.turn(run.verification):
        return _write(run, num_epochs, epochs, exports)


def _write(
    run: RunDirectory, num_epochs: int, epochs: Sequence[Verified], exports: Sequence[Verified]
) -> Receipt:
    rows, receipts = _read(run, num_epochs)
    for verified in epochs:
        rows[verified.epoch] = verified.as_json()
    by_artifact: dict[str, list[Verified]] = {}
    for verified in exports:
        by_artifact.setdefault(verified.artifact, []).append(verified)
    for artifact, held in by_artifact.items():
        receipt = _receipt(held[0].format, artifact, [verified.as_json() for verified in held], [])
        receipt["files"] = dict(read_manifest(run.path / artifact).files)
        receipts[artifact] = receipt
        facts = run.path / artifact / formats.load(held[0].format).TRAITS.facts
        write_text(facts / formats.RECEIPT, _dump(receipt))
    latest = list(receipts.values())[-1] if receipts else {"format": "checkpoint", "artifact": "checkpoints"}
    all_rows = [rows[epoch] for epoch in sorted(rows)]
    receipt = _receipt(latest["format"], latest["artifact"], all_rows, list(receipts.values()))
    write_text(run.verification, _dump(receipt))
    return receipt


def _read(run: RunDirectory, num_epochs: int) -> tuple[dict[int, Receipt], dict[str, Receipt]]:
    """Return the rows of an earlier receipt by epoch and its exports by artifact, as far as they exist."""
    try:
        before = sealed.unseal(run.verification.read_text())
        rows = {row["epoch"]: row for row in before["epochs"] if row["epoch"] < num_epochs}
        exports = before.get("exports", [])
        receipts = {e["artifact"]: e for e in exports if (run.path / e["artifact"]).is_dir()}
        _receipt("", "", list(rows.values()), list(receipts.values()))  # reads what it needs
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}, {}
    return rows, receipts


def _receipt(format: str, artifact: str, rows: list[Receipt], exports: list[Receipt]) -> Receipt:
    newest = {export["format"]: export for export in sorted(exports, key=_version)}
    good = all(map(_matches, rows)) and all(export["verdict"] == "match" for export in newest.values())
    return {
        "verdict": "match" if good else "mismatch",
        "format": format,
        "artifact": artifact,
        "epochs": rows,
        **({"exports": exports} if exports else {}),
    }


def _version(export: Receipt) -> int:
    return int(export["artifact"].rpartition("/")[2])


def _matches(row: Receipt) -> bool:
    compared = [*row["metrics"].values(), *row.get("signatures", {}).values()]
    good = bool(row["metrics"]) and all(value["match"] for value in compared)
    return good and formats.DEFAULT not in row.get("not_compared", {})


def _dump(receipt: Mapping[str, Any]) -> str:
    return json.dumps(sealed.seal(receipt), indent=2) + "\n"


def read(directory: Path) -> Receipt | None:
    """Return the receipt inside an export, or `None` if there is none that can be read."""
    found = (read_file(directory / facts / formats.RECEIPT) for facts in FACTS)
    return next((receipt for receipt in found if receipt is not None), None)


def read_file(path: Path) -> Receipt | None:
    """Return the receipt in a file, or `None` if there is none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        receipt = sealed.unseal(path.read_text())
        if receipt.get("verdict") in ("match", "mismatch"):
            return receipt
    return None


def metrics_table(labelled: Sequence[tuple[str, Verified]], *, columns: int, heading: str = "epoch") -> str:
    """Return the metrics as an aligned table no wider than `columns`, if that can be.

    Where it is too wide, the restored metrics are left out; of many rows, matching ones in the middle.

    Args:
        labelled: What was restored, each with what the first column calls it.
        columns: The width.
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
    if sum(_widths([header, *cells])) + 2 * len(header) > columns:
        shown = [i for i, name in enumerate(header) if not name.startswith("restored_")]
        header, *cells = [[line[i] for i in shown] for line in [header, *cells]]
    return _aligned(header, cells, _hidden_rows([row for _, row in labelled]))


def parity_table(labelled: Sequence[tuple[str, Verified]], *, columns: int) -> str:
    """Return what each signature of each export answered as an aligned table; empty without exports.

    Where it is too wide, the latencies are left out; the arguments are those of `metrics_table`.
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
    if sum(_widths([header, *cells])) + 2 * len(header) > columns:
        shown = [i for i, name in enumerate(header) if not name.startswith("ms_")]
        header, *cells = [[line[i] for i in shown] for line in [header, *cells]]
    return _aligned(header, cells, set())


def _yes(match: bool) -> str:
    return "yes" if match else "NO"


def _widths(lines: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*lines, strict=True)]


def _aligned(header: Sequence[str], cells: Sequence[Sequence[str]], hidden: set[int]) -> str:
    widths = _widths([header, *cells])
    lines = []
    for number, line in enumerate([header, *cells]):
        if number - 1 not in hidden:
            lines.append("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
        elif number - 2 not in hidden:
            lines.append(f"... {len(hidden)} matching rows ...".rjust(widths[0]))
    return "\n".join(lines)


def _hidden_rows(rows: Sequence[Verified]) -> set[int]:
    """Return the indices of matching rows to leave out of a long table: one stretch in its middle."""
    half = MAX_TABLE_ROWS // 2
    middle = range(half, len(rows) - half)
    return set(middle) if all(rows[i].match for i in middle) else set()
