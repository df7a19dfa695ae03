"""The log of a run: one row for each epoch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from pipeline.runs import checksums

Metrics = dict[str, float]


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


def _line(row: Row) -> str:
    return json.dumps(checksums.seal(asdict(row))) + "\n"
