"""Comparing the metrics of a restored model with those that the training logged.

    tolerance = tolerance_of(verify, exact=True)
    compare(row, {"loss": 0.25}, tolerance)["loss"].match

For a format that keeps the graph as it is, the tolerance is 0: its metrics must be the same to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pipeline.config.schema import Verify
from pipeline.errors import DamagedError
from pipeline.runs.log import Metrics, Row

CONVERTED_TOLERANCE = 1e-5
"""Relative tolerance for a format that a converter writes, because it may round in another order."""


@dataclass(frozen=True)
class Tolerance:
    """The condition |restored - logged| <= absolute + relative x |logged|."""

    absolute: float = 0.0
    relative: float = 0.0

    def of(self, logged: float) -> float:
        """Return the largest difference from a logged value that is accepted."""
        return self.absolute + self.relative * abs(logged)


def tolerance_of(verify: Verify, *, exact: bool) -> Tolerance:
    """Return the tolerance for a format.

    Args:
        verify: The tolerances of the configuration. They can only add to those of the format.
        exact: Whether the format keeps the graph as it is, so that its own tolerance is 0.
    """
    own = 0.0 if exact else CONVERTED_TOLERANCE
    return Tolerance(verify.abs_tolerance or 0.0, max(verify.rel_tolerance or 0.0, own))


@dataclass(frozen=True)
class Comparison:
    """A metric as the training logged it, beside that of the restored model, and the tolerance."""

    logged: float
    restored: float
    tolerance: float

    @property
    def difference(self) -> float:
        """Restored minus logged."""
        return self.restored - self.logged

    @property
    def match(self) -> bool:
        """Whether the difference is within the tolerance; never for NaN, which fails every comparison."""
        return abs(self.difference) <= self.tolerance

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        """Return a comparison from JSON values.

        `difference` and `match` are not read but computed, so that a receipt cannot claim a match that its
        numbers deny.

        Raises:
            ValueError, KeyError, TypeError: The values are not a comparison.
        """
        return cls(number(facts["logged"]), number(facts["restored"]), number(facts["tolerance"]))

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        return {
            "logged": self.logged,
            "restored": json_number(self.restored),
            "difference": json_number(self.difference),
            "tolerance": self.tolerance,
            "match": self.match,
        }


def compare(row: Row, restored: Metrics, tolerance: Tolerance) -> dict[str, Comparison]:
    """Compare restored metrics with those in a row of the log, by name.

    Raises:
        DamagedError: The row has other metrics than the restored model.
    """
    if row.test.keys() != restored.keys():
        raise DamagedError(
            f"Epoch {row.epoch} of the log must have the metrics {sorted(restored)}. "
            f"Received: {sorted(row.test)}."
        )
    return {
        name: Comparison(logged, restored[name], tolerance.of(logged)) for name, logged in row.test.items()
    }


def json_number(value: float) -> float | str:
    """Return a number for JSON: itself if it is finite, otherwise the string `inf`, `-inf` or `nan`."""
    return value if math.isfinite(value) else str(value)


def number(value: Any) -> float:
    """Return the number that `json_number` wrote.

    Raises:
        ValueError: The value is not a number.
    """
    # In Python, `True` is an integer, too.
    if isinstance(value, bool) or not (isinstance(value, int | float) or value in ("inf", "-inf", "nan")):
        raise ValueError(f"{value!r} is no number")
    return float(value)
