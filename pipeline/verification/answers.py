"""Comparison of the answers of a restored signature with those of the trained model to the same request.

The requests and the trained model's answers come from `pipeline.graphs.examples`.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from pipeline.errors import DamagedError
from pipeline.graphs.examples import BATCH_SIZE, Arrays, _call
from pipeline.graphs.signatures import Signature
from pipeline.verification.comparison import json_number, number

LATENCY_SECS = 0.05
"""Time that a latency is measured for after a first call, if that leaves time for another."""


@dataclass(frozen=True)
class AnswerComparison:
    """What a restored signature answers, held against the trained model's answer.

    Attributes:
        max_abs_error: Largest difference of any value of any output; of a text, of 0 or 1.
        argmax_flips: Rows whose largest value is in another place.
        match: Whether every output is within the tolerance.
        latency_ms: Median time of one request in milliseconds, by its batch size.
    """

    max_abs_error: float
    argmax_flips: int
    match: bool
    latency_ms: Mapping[int, float]

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        """Return a comparison as a receipt holds it."""
        if not isinstance(facts["match"], bool) or type(facts["argmax_flips"]) is not int:
            raise ValueError(f"{facts} is no comparison of answers")
        latencies = {int(size): number(value) for size, value in facts["latency_ms"].items()}
        return cls(number(facts["max_abs_error"]), facts["argmax_flips"], facts["match"], latencies)

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        return {
            "max_abs_error": json_number(self.max_abs_error),
            "argmax_flips": self.argmax_flips,
            "match": self.match,
            "latency_ms": {str(size): value for size, value in self.latency_ms.items()},
        }


def compare(
    signature: Signature,
    request: Arrays,
    expected: Arrays,
    *,
    abs_tolerance: float,
    rel_tolerance: float,
    latency: bool,
) -> AnswerComparison:
    """Hold a restored signature's answer to a request against the expected one.

    Args:
        signature: The restored signature.
        request: Its inputs.
        expected: What the trained model answered.
        abs_tolerance: Absolute tolerance.
        rel_tolerance: Tolerance relative to the largest value of an output.
        latency: Whether to measure it.
    """
    restored = _call(signature, request)
    if restored.keys() != expected.keys():
        raise DamagedError(f"The outputs must be {sorted(expected)}. Received: {sorted(restored)}.")
    errors = {name: _max_abs_error(restored[name], expected[name]) for name in expected}
    bounds = {name: abs_tolerance + rel_tolerance * _largest(expected[name]) for name in expected}
    flips = [_argmax_flips(restored[name], value) for name, value in expected.items() if name not in request]
    return AnswerComparison(
        max_abs_error=max(errors.values()),
        argmax_flips=max(flips, default=0),
        match=all(math.isfinite(errors[name]) and errors[name] <= bounds[name] for name in expected),
        latency_ms=_latencies(signature, request) if latency else {},
    )


def _max_abs_error(restored: np.ndarray, expected: np.ndarray) -> float:
    if restored.shape != expected.shape or restored.dtype.kind != expected.dtype.kind:
        return math.inf
    if expected.dtype.kind == "S":
        return float(np.any(restored != expected))
    if not expected.size:
        return 0.0
    same = (restored == expected) | ((restored != restored) & (expected != expected))
    with np.errstate(invalid="ignore"):
        difference = np.abs(restored.astype(np.float64) - expected.astype(np.float64))
    return float(np.max(np.where(same, 0.0, np.where(np.isnan(difference), math.inf, difference))))


def _largest(expected: np.ndarray) -> float:
    """Return the largest finite magnitude of floats; 0 of anything else, which is the same or is not."""
    if expected.dtype.kind != "f":
        return 0.0
    return float(np.max(np.abs(expected[np.isfinite(expected)]), initial=0.0))


def _argmax_flips(restored: np.ndarray, expected: np.ndarray) -> int:
    if restored.shape != expected.shape or expected.ndim < 2 or expected.dtype.kind != "f":
        return 0
    return int(np.sum(restored.argmax(-1) != expected.argmax(-1)))


def _latencies(signature: Signature, request: Arrays) -> dict[int, float]:
    """Return the median time of a call in milliseconds with one row, and with all the rows."""
    if not any(spec.batched for spec in signature.inputs.values()):
        return {1: _latency(signature, request)}
    one = {name: array[:1] if signature.inputs[name].batched else array for name, array in request.items()}
    return {1: _latency(signature, one), BATCH_SIZE: _latency(signature, request)}


def _latency(signature: Signature, request: Arrays) -> float:
    times: list[float] = []
    signature.call(**request)
    until = time.perf_counter() + LATENCY_SECS
    while not times or time.perf_counter() < until:
        started = time.perf_counter()
        signature.call(**request)
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)
