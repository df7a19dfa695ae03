"""Which rows of a data set are held out: a function of the rows and the arguments, and of nothing else.

tail          the last rows, in their order
random        rows drawn with a seed
stratified    rows drawn with a seed, of each class as large a part as of all rows
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from data.base import Arrays, DataError

Split = Literal["tail", "random", "stratified"]


def held_out(
    num_rows: int,
    split: Split,
    *,
    test_fraction: float,
    seed: int,
    classes: npt.NDArray[Any] | None = None,
) -> npt.NDArray[np.bool_]:
    """Return which rows are the test split: bool `[N]`. Each split has at least one row.

        >>> held_out(4, "tail", test_fraction=0.25, seed=0).tolist()
        [False, False, False, True]
        >>> classes = np.array(["cat", "cat", "cat", "cat", "dog", "dog"])
        >>> test = held_out(6, "stratified", test_fraction=0.5, seed=0, classes=classes)
        >>> sorted(classes[test].tolist())
        ['cat', 'cat', 'dog']

    Args:
        num_rows: N, the number of rows.
        split: How the rows are chosen.
        test_fraction: The fraction of the rows, in (0, 1).
        seed: Seeds the choice; `tail` makes no use of it.
        classes: The class of each row `[N]`, of integers or text, for `stratified`.

    Raises:
        DataError: There are fewer than two rows, or no classes to stratify by.
    """
    if num_rows < 2:
        raise DataError(f"Data that is split must have at least 2 rows. Received: {num_rows}.")
    num_test = min(max(1, round(num_rows * test_fraction)), num_rows - 1)
    mask = np.zeros(num_rows, bool)
    rows = np.arange(num_rows)
    if split != "tail":
        rows = np.random.default_rng(seed).permutation(num_rows)
    if split == "stratified":
        if classes is None or classes.ndim != 1 or classes.dtype.kind not in "iuUSO":
            received = "none" if classes is None else f"{classes.dtype} {list(classes.shape)}"
            raise DataError(
                f"data.split=stratified needs one class for each row, a text or an integer. "
                f"Received: {received}. Choose random or tail."
            )
        # Rows at equal distances in the order of the classes: each class gives its part, within one row.
        rows = rows[np.argsort(classes[rows], kind="stable")]
        rows = rows[((np.arange(num_test) + 0.5) * num_rows / num_test).astype(int)]
    mask[rows[-num_test:]] = True
    return mask


def divide(arrays: Arrays, test: npt.NDArray[np.bool_]) -> tuple[Arrays, Arrays]:
    """Return a training split and a test split of arrays, whose rows keep their order.

    Args:
        arrays: Arrays `[N, ...]` by name.
        test: Which rows are the test split, bool `[N]`.
    """
    train = {name: array[~test] for name, array in arrays.items()}
    return train, {name: array[test] for name, array in arrays.items()}
