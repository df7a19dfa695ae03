"""Numbers and their doubles: examples of the function f([x, x]) = 2x."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from data.base import Arrays, Dataset


class Numbers:
    """Feature `[N, 2]` float32 = [x, x], target `[N, 1]` float32 = 2x.

    The training split has x = 0, 1, ..., count - 1. The test split has the numbers half-way between them.

    Args:
        batch_size: Rows in a batch.
        count: Rows of the training split.
    """

    def __init__(
        self, *, batch_size: Annotated[int, ">= 1"] = 20, count: Annotated[int, ">= 2"] = 100
    ) -> None:
        self.batch_size = batch_size
        self.count = count

    def load(self) -> Dataset:
        """Make both splits."""
        whole = np.arange(self.count, dtype=np.float32)
        return Dataset(train=_doubles(whole), test=_doubles(whole[:-1] + 0.5), batch_size=self.batch_size)


def _doubles(x: np.ndarray) -> Arrays:
    return {"feature": np.stack([x, x], axis=1), "target": 2 * x[:, np.newaxis]}
