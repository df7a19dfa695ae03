"""Handwritten digits that come with scikit-learn: 1,797 images, no download."""

from __future__ import annotations

import importlib.util
from typing import Annotated

import numpy as np

from data.base import Dataset, split_tail


class Digits:
    """Images `[N, 28, 28, 1]` uint8 in [0, 255], labels `[N]` uint8 in [0, 10).

    The 8 x 8 originals (0 ... 16) are scaled to 0 ... 255, each pixel becomes a square of 3 x 3, and a
    margin of 2 black pixels surrounds them. The last `test_fraction` of the rows is the test split.
    """

    def __init__(
        self,
        *,
        batch_size: Annotated[int, ">= 1"] = 100,
        test_fraction: Annotated[float, "> 0", "< 1"] = 0.2,
    ) -> None:
        if importlib.util.find_spec("sklearn") is None:
            raise ImportError(
                "data=digits needs scikit-learn, which is not installed. "
                "Install it: pip install 'roundtrip[digits]'."
            )
        self.batch_size = batch_size
        self.test_fraction = test_fraction

    def load(self) -> Dataset:
        """Read the images and enlarge them."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        enlarged = grey.repeat(3, axis=1).repeat(3, axis=2)
        images = np.pad(enlarged, ((0, 0), (2, 2), (2, 2)))[..., np.newaxis]
        arrays = {"images": images, "labels": digits.target.astype(np.uint8)}
        train, test = split_tail(arrays, self.test_fraction)
        return Dataset(train=train, test=test, batch_size=self.batch_size)
