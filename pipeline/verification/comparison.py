"""Comparison of the metrics of a restored model with those that the training logged.

tolerance = tolerance_of(verify, exact=True)              # 0 for a format that keeps the bits
compare(row, {"loss": 0.25}, tolerance)["loss"].match
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
"""Relative tolerance of a format that a converter has written."""


@dataclass(frozen=True)
class Tolerance:
    """|restored - logged| <= absolute + relative x |logged|."""

    absolute: float = 0.0
    relative: float = 0.0

    def of(self, logged: float) -> float:
        """Return the largest difference from a value that is accepted."""
        return self.absolute + self.relative * abs(logged)


def tolerance_of(verify: Verify, *, exact: bool) -> Tolerance:
    """Return the tolerance of a format: its own, or what was given if that is more."""
    own = 0.0 if exact else CONVERTED_TOLERANCE
    return Tolerance(verify.abs_tolerance or 0.0, max(verify.rel_tolerance or 0.0, own))


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

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        """Return a comparison from JSON values; `difference` and `match` follow from the other numbers."""
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
    """Hold restored metrics against a row of the log.

    Raises:
        ConfigError: They are not the same metrics.
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
    """Return a number as JSON can hold it: as the string `inf`, `-inf` or `nan` where it is not finite."""
    return value if math.isfinite(value) else str(value)


def number(value: Any) -> float:
    """Return a number as `json_number` wrote it.

    Raises:
        ValueError: The value is no number.
    """
    if isinstance(value, bool) or not (isinstance(value, int | float) or value in ("inf", "-inf", "nan")):
        raise ValueError(f"{value!r} is no number")
    return float(value)
