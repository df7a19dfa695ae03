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
    """A line of the log: the metrics after an epoch, and its checkpoint.

    Attributes:
        epoch: Number of epochs trained; 0 is before the first step.
        step: Number of optimizer steps taken since the beginning of the run.
        train: The metric `loss`: the mean of the losses of the epoch's steps; `None` for epoch 0.
        test: Metrics of the held-out split.
        checkpoint: Path of the checkpoint, relative to the run directory, without the suffixes of its files.
        files: SHA-256 of each file of the checkpoint, by the file's name in `checkpoints/`.
        validation: Metrics of the validation split; `None` without one.
    """

    epoch: int
    step: int
    train: Metrics | None
    test: Metrics
    checkpoint: str
    files: Mapping[str, str] = field(default_factory=dict)
    validation: Metrics | None = None

    @property
    def judged(self) -> Metrics:
        """The metrics by which epochs and trials are chosen: the test split's only if there is no other."""
        return self.test if self.validation is None else self.validation


def to_line(row: Row) -> str:
    """Return a row as a line, with the line feed; floats keep all of their bits."""
    facts = asdict(row)
    if row.validation is None:  # As in the logs of earlier versions.
        del facts["validation"]
    return json.dumps(checksums.with_checksum(facts)) + "\n"


def from_line(line: str) -> Row:
    """Return the row in a line.

    Raises:
        ValueError, TypeError, AttributeError: The line is not a row, or its checksum is wrong.
    """
    row = Row(**checksums.checked(line))
    if not isinstance(row.files, dict):
        raise ValueError(f"digests {row.files}")
    # Training stops at a loss that is not finite, so a row cannot have one.
    numbers = [*row.test.values(), *(row.train or {}).values(), *(row.validation or {}).values()]
    if not all(isinstance(number, float) and math.isfinite(number) for number in numbers):
        raise ValueError(f"metrics that are no finite numbers: {numbers}")
    return row
