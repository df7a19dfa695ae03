"""Comparison of a restored epoch with the log: metrics, tolerances, and what is said of a difference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.config.schema import Verify
from pipeline.errors import ConfigError
from pipeline.formats import exports
from pipeline.runs.log import Metrics, Row
from pipeline.verification.parity import Parity

if TYPE_CHECKING:
    pass


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
        signatures: Of an export, the answers of its signatures to the recorded requests.
        not_compared: Of an export, the signatures whose answers are not known, each with the reason.
        left_out: Of an export, the signatures that its format cannot hold, each with the reason.
        quantization: What its weights are stored as, or `none`.
        size_bytes: Of an export, the size of its files.
        load_secs: Of an export, the time to open it.
        problems: Why it could not be restored; then there is nothing else.
    """

    epoch: int
    format: str
    artifact: str
    metrics: Mapping[str, Comparison] = field(default_factory=dict)
    signatures: Mapping[str, Parity] = field(default_factory=dict)
    not_compared: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    quantization: str = "none"
    size_bytes: int | None = None
    load_secs: float | None = None
    problems: Sequence[str] = ()

    @property
    def match(self) -> bool:
        """Whether it was restored, and all metrics and answers match, `serving_default`'s among them."""
        good = all(comparison.match for comparison in self.metrics.values())
        answered = all(found.match for found in self.signatures.values())
        return bool(self.metrics) and good and answered and exports.DEFAULT not in self.not_compared

    @property
    def label(self) -> str:
        """How tables call an export, such as `tflite int8@3`."""
        quantization = "" if self.quantization == "none" else f" {self.quantization}"
        return f"{self.format}{quantization}@{self.epoch}"

    def as_json(self) -> dict[str, Any]:
        """Return what the receipt says of it."""
        row: dict[str, Any] = {
            "epoch": self.epoch,
            "format": self.format,
            "artifact": self.artifact,
            "metrics": {f"test/{name}": c.as_json() for name, c in self.metrics.items()},
        }
        if self.size_bytes is not None:
            row["signatures"] = {
                name: {
                    "max_abs_error": _json_number(found.max_abs_error),
                    "argmax_flips": found.argmax_flips,
                    "match": found.match,
                    "latency_ms": {str(size): value for size, value in found.latency_ms.items()},
                }
                for name, found in self.signatures.items()
            }
            row["not_compared"] = dict(self.not_compared)
            row["left_out"] = dict(self.left_out)
            row["quantization"] = self.quantization
            row["size_bytes"] = self.size_bytes
            row["load_secs"] = self.load_secs
        if self.problems:
            row["problems"] = list(self.problems)
        return row

    def losses(self) -> list[str]:
        """Return a sentence for each metric of a quantized export: what the quantization costs."""
        return [
            f"{self.label}: test/{name} {c.logged:.6g} -> {c.restored:.6g}, {c.difference:+.3g} "
            f"(accepted: {c.tolerance:g})"
            for name, c in self.metrics.items()
            if self.quantization != "none"
        ]

    def complaints(self) -> list[str]:
        """Return a sentence for each metric and each signature that does not match."""
        where = f"{self.artifact}, epoch {self.epoch}"
        metrics = [
            f"{where}: test/{name} must be {c.logged!r} as logged. "
            f"Restored: {c.restored!r}, {c.difference:+.3g} (tolerance {c.tolerance:g})."
            for name, c in self.metrics.items()
            if not c.match
        ]
        metrics += [
            f"{where}: {name} is not compared: {reason}." for name, reason in self.not_compared.items()
        ]
        return metrics + [
            f"{where}: {name} must answer as the trained model did. "
            f"Largest difference: {found.max_abs_error:.3g}, argmax flips: {found.argmax_flips}."
            for name, found in self.signatures.items()
            if not found.match
        ]


def compare(row: Row, restored: Metrics, tolerance: Tolerance) -> dict[str, Comparison]:
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
    return {
        name: Comparison(logged, restored[name], tolerance.of(logged)) for name, logged in row.test.items()
    }


def _json_number(value: float) -> float | str:
    """JSON has no word for infinities and not-a-number: they are written as strings."""
    return value if math.isfinite(value) else str(value)
