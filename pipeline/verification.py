"""Verification: what was restored, evaluated and held against the log, and the receipt of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from pipeline import checkpoints, formats
from pipeline.binding import ConfigError
from pipeline.config import Verify
from pipeline.evaluation import Signature, evaluate
from pipeline.run import Metrics, Row, RunDirectory, write_text

if TYPE_CHECKING:
    from pathlib import Path

    from data.base import Dataset

MAX_TABLE_ROWS = 24
"""Rows of a table beyond which matching ones in the middle are left out."""


@dataclass(frozen=True)
class Comparison:
    """A metric as it was logged in training and as the restored model gives it."""

    logged: float
    restored: float
    tolerance: float

    @property
    def difference(self) -> float:
        """Restored minus logged."""
        return self.restored - self.logged

    @property
    def match(self) -> bool:
        """Whether the difference is within the tolerance; a value that is no number never is."""
        return abs(self.difference) <= self.tolerance

    def as_json(self) -> dict[str, Any]:
        """Return what the receipt says of it."""
        return {
            "logged": self.logged,
            "restored": _json_number(self.restored),
            "difference": _json_number(self.difference),
            "tolerance": self.tolerance,
            "match": self.match,
        }


@dataclass(frozen=True)
class Verified:
    """An epoch that was restored from an artifact, with each metric compared.

    Attributes:
        epoch: The epoch.
        format: Name of the artifact's format.
        artifact: Its path relative to the run directory.
        metrics: Comparisons by the metric's name, such as `loss`.
        problems: Why it could not be restored; then there are no metrics.
    """

    epoch: int
    format: str
    artifact: str
    metrics: Mapping[str, Comparison]
    problems: Sequence[str] = ()

    @property
    def match(self) -> bool:
        """Whether it was restored, and every metric matches."""
        return bool(self.metrics) and all(comparison.match for comparison in self.metrics.values())

    def as_json(self) -> dict[str, Any]:
        """Return what the receipt says of it."""
        return {
            "epoch": self.epoch,
            "format": self.format,
            "artifact": self.artifact,
            "metrics": {f"test/{name}": c.as_json() for name, c in self.metrics.items()},
            **({"problems": list(self.problems)} if self.problems else {}),
        }

    def complaints(self) -> list[str]:
        """Return a sentence for each metric that does not match."""
        return [
            f"{self.artifact}, epoch {self.epoch}: test/{name} must be {c.logged!r} as logged. "
            f"Restored: {c.restored!r}, {c.difference:+.3g} (tolerance {c.tolerance:g})."
            for name, c in self.metrics.items()
            if not c.match
        ]


def compare(row: Row, restored: Metrics, tolerance: Verify, *, format: str, artifact: str) -> Verified:
    """Hold restored metrics against a row of the log.

    Raises:
        ConfigError: They are not the same metrics.
    """
    if row.test.keys() != restored.keys():
        raise ConfigError(
            [
                f"Epoch {row.epoch} of the log must have the metrics {sorted(restored)}. "
                f"Received: {sorted(row.test)}."
            ]
        )
    comparisons = {
        name: Comparison(
            logged, restored[name], tolerance.abs_tolerance + tolerance.rel_tolerance * abs(logged)
        )
        for name, logged in row.test.items()
    }
    return Verified(row.epoch, format, artifact, comparisons)


def verify_checkpoints(
    run: RunDirectory, rows: Sequence[Row], dataset: Dataset, tolerance: Verify
) -> list[Verified]:
    """Restore the checkpoint of each row into the run's graph, evaluate it, and compare."""
    if not rows:
        return []
    opened: checkpoints.Graph | ConfigError
    try:
        opened = checkpoints.open_graph(run.graph)
    except ConfigError as error:
        opened = error

    def metrics(row: Row) -> Metrics:
        if isinstance(opened, ConfigError):
            raise opened
        checkpoints.restore(run.path / row.checkpoint, opened.weights)
        return _evaluate(opened.signatures, dataset)

    return [
        _verified(row, metrics, tolerance, format="checkpoint", artifact=row.checkpoint)
        for row in tqdm(rows, desc="restore and evaluate", unit="epoch", disable=None)
    ]


def verify_export(
    run: RunDirectory,
    format: str,
    directory: Path,
    log: Sequence[Row],
    dataset: Dataset,
    tolerance: Verify,
) -> Verified:
    """Open an export, evaluate it, and compare it with its epoch's row.

    Raises:
        ConfigError: The export does not say which epoch it holds, or the log lacks that epoch.
    """
    epoch = formats.exported_epoch(format, directory)
    if not 0 <= epoch < len(log):
        raise ConfigError([f"{directory} holds epoch {epoch}, which the log does not have."])

    def metrics(row: Row) -> Metrics:
        return _evaluate(formats.load(format).open(directory), dataset)

    artifact = str(directory.relative_to(run.path))
    return _verified(log[epoch], metrics, tolerance, format=format, artifact=artifact)


def _verified(
    row: Row, metrics: Callable[[Row], Metrics], tolerance: Verify, *, format: str, artifact: str
) -> Verified:
    """Hold what `metrics` restores against a row; where it cannot, the problems are the result."""
    try:
        return compare(row, metrics(row), tolerance, format=format, artifact=artifact)
    except ConfigError as error:
        return Verified(row.epoch, format, artifact, {}, error.problems)


def _evaluate(signatures: Mapping[str, Signature], dataset: Dataset) -> Metrics:
    return evaluate(signatures, dataset.test, batch_size=dataset.batch_size)


def write_receipts(
    run: RunDirectory, num_epochs: int, epochs: Sequence[Verified], exports: Sequence[Verified]
) -> dict[str, Any]:
    """Write the run's receipt, and each export's into the export; return the run's.

    What an earlier verification found of other epochs and exports that are still there stays in the run's
    receipt: to verify one epoch again proves nothing of the rest, for better or worse.

    Args:
        run: The run.
        num_epochs: Number of rows of its log.
        epochs: What was found of checkpoints.
        exports: What was found of exports.
    """
    rows, receipts = _read_receipt(run, num_epochs)
    for verified in epochs:
        rows[verified.epoch] = verified.as_json()
    for verified in exports:
        receipt = _receipt(verified.format, verified.artifact, [verified.as_json()], [])
        receipts[verified.artifact] = receipt
        facts = run.path / verified.artifact / formats.load(verified.format).FACTS
        write_text(facts / formats.RECEIPT, _dump(receipt))
    latest = list(receipts.values())[-1] if receipts else {"format": "checkpoint", "artifact": "checkpoints"}
    all_rows = [rows[epoch] for epoch in sorted(rows)]
    receipt = _receipt(latest["format"], latest["artifact"], all_rows, list(receipts.values()))
    write_text(run.verification, _dump(receipt))
    return receipt


def _read_receipt(
    run: RunDirectory, num_epochs: int
) -> tuple[dict[int, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return the rows of an earlier receipt by epoch and its exports by artifact, as far as they exist."""
    try:
        before = json.loads(run.verification.read_text())
        rows = {row["epoch"]: row for row in before["epochs"] if row["epoch"] < num_epochs}
        exports = before.get("exports", [])
        receipts = {e["artifact"]: e for e in exports if (run.path / e["artifact"]).is_dir()}
        _receipt("", "", list(rows.values()), list(receipts.values()))  # reads what it needs
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}, {}
    return rows, receipts


def _receipt(
    format: str, artifact: str, rows: list[dict[str, Any]], exports: list[dict[str, Any]]
) -> dict[str, Any]:
    matches = [metric["match"] for row in rows for metric in row["metrics"].values()]
    complete = all(row["metrics"] for row in rows)
    good = complete and all(matches) and all(export["verdict"] == "match" for export in exports)
    return {
        "verdict": "match" if good else "mismatch",
        "format": format,
        "artifact": artifact,
        "epochs": rows,
        **({"exports": exports} if exports else {}),
    }


def _dump(receipt: Mapping[str, Any]) -> str:
    return json.dumps(receipt, indent=2, allow_nan=False) + "\n"


def _json_number(value: float) -> float | str:
    """JSON has no word for infinities and not-a-number: they are written as strings."""
    return value if math.isfinite(value) else str(value)


def table(epochs: Sequence[Verified], exports: Sequence[Verified], *, columns: int) -> str:
    """Return the comparison as an aligned table no wider than `columns`, if that can be.

    Where it is too wide, the restored metrics are left out; of many rows, matching ones in the middle.
    """
    labelled = [(str(row.epoch), row) for row in epochs]
    labelled += [(f"{row.format}@{row.epoch}", row) for row in exports]
    names = sorted({name for _, row in labelled for name in row.metrics})
    header = ["epoch", *(f"test_{n}" for n in names), *(f"restored_{n}" for n in names), "match"]
    cells = [
        [
            label,
            *(f"{row.metrics[name].logged:.6g}" if row.metrics else "-" for name in names),
            *(f"{row.metrics[name].restored:.6g}" if row.metrics else "-" for name in names),
            "yes" if row.match else "DAMAGED" if row.problems else "NO",
        ]
        for label, row in labelled
    ]
    hidden = _hidden_rows([row for _, row in labelled])
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    shown = list(range(len(header)))
    if sum(widths) + 2 * len(widths) > columns:
        shown = [i for i in shown if not header[i].startswith("restored_")]
    lines = []
    for number, line in enumerate([header, *cells]):
        if number - 1 not in hidden:
            lines.append("  ".join(line[i].rjust(widths[i]) for i in shown))
        elif number - 2 not in hidden:
            lines.append(f"... {len(hidden)} matching rows ...".rjust(widths[0]))
    return "\n".join(lines)


def _hidden_rows(rows: Sequence[Verified]) -> set[int]:
    """Return the indices of matching rows to leave out of a long table: one stretch in its middle."""
    half = MAX_TABLE_ROWS // 2
    middle = range(half, len(rows) - half)
    return set(middle) if all(rows[i].match for i in middle) else set()
