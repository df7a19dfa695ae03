"""Evaluation of a split through the signature `evaluate`.

Training and verification share this loop, so a difference between their metrics is one of the model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.graphs.signatures import METRICS, Signature


def initial_state(signatures: Mapping[str, Signature], batch_size: int) -> dict[str, Any]:
    """Return the carried state before the first batch, by name; empty if the model carries none.

    Args:
        signatures: Includes `evaluate`, and `initial_state` if the model carries state.
        batch_size: Rows of the state.
    """
    if not signatures["evaluate"].carried:
        return {}
    return dict(signatures["initial_state"].call(batch_size=np.asarray(batch_size, np.int32)))


def evaluate(
    signatures: Mapping[str, Signature], arrays: Mapping[str, Any], *, batch_size: int
) -> dict[str, float]:
    """Evaluate a split through the signature `evaluate`.

    The signature returns sums over the rows of a batch. Sums of batches are added in float64 and divided by
    the sum of `count` at the end. So a last batch with fewer rows has the weight that it should have. Those
    that the signature `metrics` takes, if there is one, are not divided: it computes metrics from them.

    Args:
        signatures: Includes `evaluate`, and `initial_state` if the model carries state.
        arrays: The split: tensors or arrays by name, whose first dimension is the rows.
        batch_size: Rows of a batch. The last batch may have fewer, unless the model carries state.

    Returns:
        The mean of each sum by name: `loss` for the output `loss_sum`, and so on; and what `metrics` returns.
    """
    signature = signatures["evaluate"]
    carried = initial_state(signatures, batch_size)
    totals: defaultdict[str, Any] = defaultdict(float)
    num_rows = len(next(iter(arrays.values())))
    for start in range(0, num_rows, batch_size):
        batch = {name: array[start : start + batch_size] for name, array in arrays.items()}
        outputs = dict(signature.call(**batch, **carried))
        carried = {name: outputs.pop(name) for name in signature.carried}
        for name, value in outputs.items():
            totals[name] = totals[name] + np.asarray(value, np.float64)
    found = _of_states(signatures, totals)
    count = totals.pop("count")
    found |= {name.removesuffix("_sum"): float(total / count) for name, total in totals.items()}
    return dict(sorted(found.items()))


def _of_states(signatures: Mapping[str, Signature], totals: dict[str, Any]) -> dict[str, float]:
    """Take what the signature `metrics` needs out of the totals, and return the metrics that it computes."""
    if METRICS not in signatures:
        return {}
    inputs = signatures[METRICS].inputs
    states = {name: np.asarray(totals.pop(name), spec.dtype) for name, spec in inputs.items()}
    return {name: float(np.asarray(value)) for name, value in signatures[METRICS].call(**states).items()}
