"""Which epochs are trained, kept and exported.

These are functions of the log and the configuration. Nothing else is saved for them, so a run that goes on
decides as if it had not been stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config.schema import Best, Train
from pipeline.errors import ConfigError, unknown
from pipeline.runs.log import Row


def select_rows(rows: Sequence[Row], epochs: Any, best: Best, kept: set[int] | None = None) -> list[Row]:
    """Return the rows of some epochs.

    Args:
        rows: The log: at least one row, that of epoch e at position e.
        epochs: `all`, `last`, `best`, an epoch, or a list of epochs.
        best: The metric and the direction that decide which epoch is the best; of equals, the first.
        kept: The epochs whose checkpoints are kept; `None` if all are. `epochs="all"` means these.

    Raises:
        ConfigError: An epoch is not in the log or not kept, or `epochs` is nothing of the above.
    """
    held = set(range(len(rows))) if kept is None else kept
    if epochs == "all":
        return [row for row in rows if row.epoch in held]
    if epochs == "last":
        return [rows[-1]]
    if epochs == "best":
        if best.metric not in rows[0].judged:
            raise ConfigError(unknown("best.metric", best.metric, rows[0].judged))
        epochs = min(rows, key=lambda row: _cost(row, best)).epoch
    # The type itself is compared, because `isinstance(True, int)` holds.
    wanted = list(epochs) if isinstance(epochs, list | tuple) else [epochs]
    missing = [epoch for epoch in wanted if type(epoch) is not int or not 0 <= epoch < len(rows)]
    if missing or not wanted:
        raise ConfigError(
            f"The epoch must be all, best, last, or of the log's 0 to {len(rows) - 1}. "
            f"Received: {', '.join(map(str, missing)) or 'none'}."
        )
    if lost := [str(epoch) for epoch in wanted if epoch not in held]:
        raise ConfigError(
            f"The epoch must be one whose checkpoint is kept: {', '.join(map(str, sorted(held)))}. "
            f"Received: {', '.join(lost)}. See train.keep."
        )
    return [rows[epoch] for epoch in wanted]


def _cost(row: Row, best: Best) -> float:
    return -row.judged[best.metric] if best.direction == "maximize" else row.judged[best.metric]


@dataclass(frozen=True)
class Policy:
    """Decides how long a run trains, and which checkpoints it keeps.

    Attributes:
        train: The section `train`.
        best: The section `best`.
        exported: The epochs that will be exported; see `Settings.epoch`.
    """

    train: Train
    best: Best
    exported: Any

    def is_complete(self, rows: Sequence[Row]) -> bool:
        """Return whether a log is complete: it has all epochs, or early stopping ends it."""
        if rows[-1].epoch >= self.train.epochs:
            return True
        stopping = self.train.early_stopping
        return stopping.patience is not None and self._num_stale(rows) >= stopping.patience

    def _num_stale(self, rows: Sequence[Row]) -> int:
        """Return the number of epochs since the last improvement by more than `min_delta`."""
        lowest, since = _cost(rows[0], self.best), 0
        for row in rows[1:]:
            if _cost(row, self.best) < lowest - self.train.early_stopping.min_delta:
                lowest, since = _cost(row, self.best), 0
            else:
                since += 1
        return since

    def kept(self, rows: Sequence[Row]) -> set[int]:
        """Return the epochs of a log whose checkpoints are kept.

        The last is always among them, because a run goes on from there.
        """
        if self.train.keep == "all":
            return {row.epoch for row in rows}
        num_last = 1 if self.train.keep == "best" else self.train.keep
        (best,) = select_rows(rows, "best", self.best)
        listed = self.exported if isinstance(self.exported, list) else [self.exported]
        last = {row.epoch for row in rows[-num_last:]}
        return last | {best.epoch} | {epoch for epoch in listed if type(epoch) is int and epoch < len(rows)}
