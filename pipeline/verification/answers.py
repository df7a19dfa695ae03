"""Comparing the answers of a restored signature with those of the trained model to the same request.

The requests and the answers of the trained model come from `pipeline.graphs.examples`.
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
from pipeline.graphs import examples
from pipeline.graphs.examples import BATCH_SIZE, Arrays
from pipeline.graphs.signatures import Signature
from pipeline.verification.comparison import json_number, number

LATENCY_SECS = 0.05
"""Time for which calls are repeated to measure a latency; there is at least one, after a call to warm up."""


@dataclass(frozen=True)
class AnswerComparison:
    """The comparison of a restored signature's answer with the trained model's.

    Attributes:
        max_abs_error: Largest absolute difference of any value of any output. It is 1 for a text that
            differs, and infinite if a shape or a kind of dtype differs.
        argmax_flips: Number of rows of an output in which another column has the largest value.
        match: Whether every output is within the tolerance.
        latency_ms: Median time of a call in milliseconds, by batch size.
    """

    max_abs_error: float
    argmax_flips: int
    match: bool
    latency_ms: Mapping[int, float]

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        """Return a comparison from the JSON values of a receipt.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: The values are not a comparison.
        """
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
    """Call a restored signature with a request, and compare its answer with the expected one.

    Args:
        signature: The restored signature.
        request: The inputs by name.
        expected: The trained model's answer: outputs by name.
        abs_tolerance: Absolute tolerance.
        rel_tolerance: Tolerance relative to the largest magnitude in an output.
        latency: Whether to measure the latency.

    Raises:
        DamagedError: The signature has other outputs.
    """
    restored = examples.call(signature, request)
    if restored.keys() != expected.keys():
        raise DamagedError(f"The outputs must be {sorted(expected)}. Received: {sorted(restored)}.")
    errors = {name: _max_abs_error(restored[name], expected[name]) for name in expected}
    bounds = {name: abs_tolerance + rel_tolerance * _largest(expected[name]) for name in expected}
    # A carried output is state and not a prediction, so the place of its largest value has no meaning.
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
    # Two infinities, or two NaN, in the same place are equal; their difference would be NaN.
    same = (restored == expected) | ((restored != restored) & (expected != expected))
    with np.errstate(invalid="ignore"):
        difference = np.abs(restored.astype(np.float64) - expected.astype(np.float64))
    return float(np.max(np.where(same, 0.0, np.where(np.isnan(difference), math.inf, difference))))


def _largest(expected: np.ndarray) -> float:
    """Return the largest finite magnitude in an array of floats; 0 for other dtypes, which must be equal."""
    if expected.dtype.kind != "f":
        return 0.0
    return float(np.max(np.abs(expected[np.isfinite(expected)]), initial=0.0))


def _argmax_flips(restored: np.ndarray, expected: np.ndarray) -> int:
    if restored.shape != expected.shape or expected.ndim < 2 or expected.dtype.kind != "f":
        return 0
    return int(np.sum(restored.argmax(-1) != expected.argmax(-1)))


def _latencies(signature: Signature, request: Arrays) -> dict[int, float]:
    """Return the median time of a call in milliseconds, by batch size: for one row, and for all rows."""
    if not any(spec.batched for spec in signature.inputs.values()):
        return {1: _latency(signature, request)}
    one = {name: array[:1] if signature.inputs[name].batched else array for name, array in request.items()}
    return {1: _latency(signature, one), BATCH_SIZE: _latency(signature, request)}


def _latency(signature: Signature, request: Arrays) -> float:
    times: list[float] = []
    signature.call(**request)  # The first call traces or allocates for these shapes.
    until = time.perf_counter() + LATENCY_SECS
    while not times or time.perf_counter() < until:
        started = time.perf_counter()
        signature.call(**request)
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)
