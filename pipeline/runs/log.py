"""The log of a run: one row for each epoch, as a line of JSON with its own checksum.

    line = to_line(Row(3, 12, {"loss": 0.5}, {"loss": 0.6}, "checkpoints/epoch-0003"))
    from_line(line).test["loss"]

The file that holds the lines, `metrics.jsonl`, belongs to `pipeline.runs.directory`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from pipeline.runs import checksums

Metrics = dict[str, float]
"""Metrics by name, such as `loss`."""


@dataclass(frozen=True)
class Row:
    """A line of the log: the metrics after an epoch, and the checkpoint that holds its weights.

    Attributes:
        epoch: Epochs trained; 0 is before the first step.
        step: Optimizer steps taken.
        train: Mean of the training batches' losses over the epoch; `None` for epoch 0.
        test: Metrics of the held-out split.
        checkpoint: Path of the checkpoint, relative to the run directory, without its suffix.
        files: SHA-256 of each of its files, by their names in `checkpoints/`.
    """

    epoch: int
    step: int
    train: Metrics | None
    test: Metrics
    checkpoint: str
    files: Mapping[str, str] = field(default_factory=dict)


def to_line(row: Row) -> str:
    """Return a row as a line, its end included; floats keep all of their digits."""
    return json.dumps(checksums.seal(asdict(row))) + "\n"


def from_line(line: str) -> Row:
    """Return the row that a line holds.

    Raises:
        ValueError, TypeError, AttributeError: The line is no row, or was changed after it was written.
    """
    row = Row(**checksums.unseal(line))
    if not isinstance(row.files, dict):
        raise ValueError(f"digests {row.files}")
    numbers = [*row.test.values(), *(row.train or {}).values()]
    if not all(isinstance(number, float) and math.isfinite(number) for number in numbers):
        raise ValueError(f"metrics that are no finite numbers: {numbers}")
    return row
