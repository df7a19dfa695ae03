"""Receipts: what a verification found, as JSON in the run and in each export, and as tables.

The run's receipt holds every epoch and the receipt of every export; an export's holds its own epochs.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.formats import exports as registry
from pipeline.formats.base import FACTS, read_manifest
from pipeline.runs import checksums, locks
from pipeline.runs.directory import RunDirectory
from pipeline.runs.files import write_text

if TYPE_CHECKING:
    from pipeline.verification.comparison import Verified


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
    with locks.turn(run.verification):
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
        facts = run.path / artifact / registry.load(held[0].format).TRAITS.facts
        write_text(facts / registry.RECEIPT, _dump(receipt))
    latest = list(receipts.values())[-1] if receipts else {"format": "checkpoint", "artifact": "checkpoints"}
    all_rows = [rows[epoch] for epoch in sorted(rows)]
    receipt = _receipt(latest["format"], latest["artifact"], all_rows, list(receipts.values()))
    write_text(run.verification, _dump(receipt))
    return receipt


def _read(run: RunDirectory, num_epochs: int) -> tuple[dict[int, Receipt], dict[str, Receipt]]:
    """Return the rows of an earlier receipt by epoch and its exports by artifact, as far as they exist."""
    try:
        before = checksums.unseal(run.verification.read_text())
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
    return good and registry.DEFAULT not in row.get("not_compared", {})


def _dump(receipt: Mapping[str, Any]) -> str:
    return json.dumps(checksums.seal(receipt), indent=2) + "\n"


def read(directory: Path) -> Receipt | None:
    """Return the receipt inside an export, or `None` if there is none that can be read."""
    found = (read_file(directory / facts / registry.RECEIPT) for facts in FACTS)
    return next((receipt for receipt in found if receipt is not None), None)


def read_file(path: Path) -> Receipt | None:
    """Return the receipt in a file, or `None` if there is none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        receipt = checksums.unseal(path.read_text())
        if receipt.get("verdict") in ("match", "mismatch"):
            return receipt
    return None
