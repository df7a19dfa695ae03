"""Arrays of the user, from NumPy's `.npz` archives.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Annotated

import numpy as np

from data.base import Arrays, DataError, Dataset, check_memory, split_tail


class Npz:
    """The arrays of `.npz` archives, `[N, ...]`, with the names of the inputs of the model's `evaluate`.

    Args:
        path: Archive of the training split.
        test_path: Archive of the test split. `None` takes the last `test_fraction` of the rows of `path`.
        batch_size: Rows in a batch.
        test_fraction: Fraction of the rows, from the end, that is the test split if there is no `test_path`.
    """

    def __init__(
        self,
        *,
        path: Path,
        test_path: Path | None = None,
        batch_size: Annotated[int, ">= 1"] = 32,
        test_fraction: Annotated[float, "> 0", "< 1"] = 0.1,
    ) -> None:
        self.path = path
        self.test_path = test_path
        self.batch_size = batch_size
        self.test_fraction = test_fraction

    def load(self) -> Dataset:
        """Read the archives.

        Raises:
            DataError: An archive is missing or damaged, or holds arrays of unequal length.
        """
        arrays = _read(self.path)
        if self.test_path is None:
            # `split_tail` takes the length of one array for the length of all.
            lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
            if len(set(lengths.values())) != 1 or min(lengths.values()) < 2:
                raise DataError(
                    f"{self.path} must hold arrays of one length, at least 2. Received: {lengths}."
                )
            train, test = split_tail(arrays, self.test_fraction)
        else:
            train, test = arrays, _read(self.test_path)
        return Dataset(train=train, test=test, batch_size=self.batch_size)


def _check_headers(members: zipfile.ZipFile) -> None:
    """Check that each array has as many bytes as its header announces, before memory is taken for any.

    Raises:
        ValueError: An array has more or fewer bytes.
        DataError: The machine has less memory than the arrays need.
    """
    check_memory(sum(info.file_size for info in members.infolist()), str(members.filename))
    for info in members.infolist():
        with members.open(info) as file:
            is_long = np.lib.format.read_magic(file) != (1, 0)
            read = np.lib.format.read_array_header_2_0 if is_long else np.lib.format.read_array_header_1_0
            shape, _, dtype = read(file)
            expected = math.prod(shape) * dtype.itemsize
            if not dtype.hasobject and expected != info.file_size - file.tell():
                raise ValueError(
                    f"{info.filename} must have the {expected:,} bytes of {list(shape)} {dtype}. "
                    f"It has {info.file_size - file.tell():,}"
                )


def read_archive(path: Path) -> Arrays:
    """Return the arrays of an archive.

    Raises:
        DataError: The archive is damaged, holds Python objects, or is larger than memory.
        FileNotFoundError: The archive does not exist.
    """
    try:
        # `np.load` would also open a single `.npy` array, which has no names; `ZipFile` refuses it. Python
        # objects are pickles, which run code when they are loaded, so `allow_pickle` stays false.
        with zipfile.ZipFile(path) as members, np.load(path, allow_pickle=False) as archive:
            _check_headers(members)
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise
    except Exception as error:  # On damaged bytes, NumPy and zipfile raise errors without a common type.
        raise DataError(
            f"{path} must be an .npz archive of plain arrays, as numpy.savez writes it. "
            f"Reading it failed: {error}."
        ) from error


def _read(path: Path) -> Arrays:
    try:
        return read_archive(path)
    except FileNotFoundError:
        raise DataError(f"data.path and data.test_path must name .npz files. Not found: {path}.") from None
