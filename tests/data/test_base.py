from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from data.base import DataError, Dataset

X = np.arange(8, dtype=np.float32).reshape(4, 2)
Y = np.arange(4, dtype=np.int32)


def dataset(**changes: Any) -> Dataset:
    arrays = {"x": X, "y": Y}
    return Dataset(**{"train": arrays, "test": arrays, "batch_size": 2, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {}}, "train split must have at least one array"),
        ({"train": {"x": X, "y": Y[:3]}}, r"equal length. Received: {'x': 4, 'y': 3}"),
        ({"test": {"x": X[:0], "y": Y[:0]}}, "test split must not be empty"),
        ({"train": {"x": np.float32(1), "y": Y}}, "must be of equal length"),
        ({"test": {"x": X}}, r"test split must have .* arrays \['x', 'y'\]. Received: \['x'\]"),
        ({"test": {"x": X, "y": Y, "z": Y}}, r"Received: \['x', 'y', 'z'\]"),
        ({"metadata": {"a": X}}, "metadata must be JSON values"),
        ({"test": {"x": X, "y": Y.astype(float)}}, r"like .* int32 \[4\]. Received: float64"),
        ({"test": {"x": X[:, :1], "y": Y}}, r"Received: float32 \[4, 1\]"),
        ({"train": {"x": np.where(X == 5, np.nan, X), "y": Y}}, "'x' must be finite. Row 2 is not"),
        ({"batch_size": 5}, "batch_size must be at most the 4 training examples. Received: 5"),
        ({"batch_size": 3, "ordered": True}, "train split of ordered data must be whole batches of 3"),
    ],
)
def test_what_cannot_be_used_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        dataset(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"x": X[::-1], "y": Y}},
        {"train": {"x": X, "z": Y}, "test": {"x": X, "z": Y}},
        {"test": {"x": X + 1, "y": Y}},
        {"train": {"x": X.astype(float), "y": Y}, "test": {"x": X.astype(float), "y": Y}},
        {"batch_size": 4},
        {"ordered": True},
        {"metadata": {"vocabulary": "ab"}},
    ],
)
def test_the_fingerprint_changes_with_what_the_data_is(changes: dict[str, Any]) -> None:
    assert dataset(**changes).fingerprint() != dataset().fingerprint()


def test_the_fingerprint_does_not_depend_on_how_the_data_is_stored() -> None:
    other = {"y": Y.astype(">i4"), "x": np.asfortranarray(X)}
    assert dataset(train=other, test=other).fingerprint() == dataset().fingerprint()
