"""The handwritten digits that are part of scikit-learn: 1,797 images, no download."""

from __future__ import annotations

import importlib.util
from typing import Annotated

import numpy as np

from data.base import Dataset, split_tail


class Digits:
    """Images `[N, 28, 28, 1]` uint8 in [0, 255], labels `[N]` uint8 in [0, 10).

    The originals have 8 x 8 pixels with values 0 to 16. `load` scales the values to 0 to 255, makes each
    pixel a square of 3 x 3, and adds a margin of 2 black pixels. The source is scikit-learn's `load_digits`,
    the test set of https://archive.ics.uci.edu/dataset/80.

    Args:
        batch_size: Rows in a batch.
        test_fraction: Fraction of the rows, from the end, that is the test split.

    Raises:
        ImportError: scikit-learn is not installed.
    """

    def __init__(
        self,
        *,
        batch_size: Annotated[int, ">= 1"] = 100,
        test_fraction: Annotated[float, "> 0", "< 1"] = 0.2,
    ) -> None:
        # Checked here, not in `load`: the check of the configuration reports it with all other problems.
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
