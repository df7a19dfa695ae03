"""The contract between a data source and the pipeline.

A source's constructor takes plain values from the configuration; `load` returns NumPy arrays. Nothing
here needs TensorFlow: data is read and checked before TensorFlow is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]


class DataError(ValueError):
    """Data that cannot be used: the message says which, why, and what to do."""


@dataclass(frozen=True)
class Stream:
    """A training split that is read while it is used, since it may be larger than memory.

    Attributes:
        num_rows: How many rows it has.
        ranges: The smallest and the largest value of each array.
        digest: SHA-256 of what is read, in hexadecimal.
        batches: (seed, epoch) -> a `tf.data.Dataset` of the epoch's whole batches, tensors by name; a
            function of its arguments alone.
    """

    num_rows: int
    ranges: Mapping[str, tuple[float, float]]
    digest: str
    batches: Callable[[int, int], Any]


@dataclass(frozen=True)
class Dataset:
    """Two splits of named arrays, whose first dimensions are equal within a split.

    Attributes:
        train: Arrays by name; of a stream, the first rows. Each epoch takes `num_train // batch_size` whole
            batches.
        test: Held-out arrays of the same names, dtypes and shapes but for the first dimension.
        batch_size: Rows in a batch.
        ordered: Batches follow the order of the rows in every epoch, because row b of a batch goes on
            where row b of the batch before it ended. Otherwise the training rows are shuffled.
        metadata: What a model may need to know of the data, as JSON values, such as its vocabulary.
        stream: The whole training split, if it is not in memory.

    Raises:
        DataError: On construction, if any of this does not hold, or a value is not finite.
    """

    train: Arrays
    test: Arrays
    batch_size: int
    ordered: bool = False
    metadata: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    stream: Stream | None = None

    def __post_init__(self) -> None:
        for name, arrays in (("train", self.train), ("test", self.test)):
            _check_split(name, arrays)
        if set(self.train) != set(self.test):
            raise DataError(
                f"The test split must have the training split's arrays {sorted(self.train)}. "
                f"Received: {sorted(self.test)}."
            )
        for name, array in self.train.items():
            other = self.test[name]
            if other.dtype != array.dtype or other.shape[1:] != array.shape[1:]:
                raise DataError(
                    f"The test split must have {name!r} like the training split's "
                    f"{array.dtype} {list(array.shape)}. Received: {other.dtype} {list(other.shape)}."
                )
        if self.num_train < self.batch_size:
            raise DataError(
                f"data.batch_size must be at most the {self.num_train} training examples. "
                f"Received: {self.batch_size}."
            )
        for name in ("train", "test"):
            num_rows = self.num_train if name == "train" else self.num_test
            if self.ordered and num_rows % self.batch_size:
                raise DataError(
                    f"The {name} split of ordered data must be whole batches of {self.batch_size}. "
                    f"Received: {num_rows} rows."
                )

        try:
            json.dumps(dict(self.metadata))
        except TypeError as error:
            raise DataError(f"The metadata must be JSON values. Received: {error}.") from error

    @property
    def num_train(self) -> int:
        """Number of training examples."""
        return _num_rows(self.train) if self.stream is None else self.stream.num_rows

    @property
    def num_test(self) -> int:
        """Number of held-out examples."""
        return _num_rows(self.test)

    def fingerprint(self) -> str:
        """Return the SHA-256 of names, dtypes, shapes, values and their order, in hexadecimal."""
        digest = hashlib.sha256()
        for split, arrays in (("train", self.train), ("test", self.test)):
            for name in sorted(arrays):
                array = np.ascontiguousarray(arrays[name])
                little_endian = array.dtype.newbyteorder("<")
                header = [split, name, little_endian.str, list(array.shape)]
                digest.update(json.dumps(header).encode())
                digest.update(array.astype(little_endian, copy=False).data)
        facts = [self.batch_size, self.ordered, dict(self.metadata)]
        if self.stream is not None:
            facts.append(self.stream.digest)
        digest.update(json.dumps(facts, sort_keys=True).encode())
        return digest.hexdigest()


class Source(Protocol):
    """What a class named by `data._target_` provides."""

    def load(self) -> Dataset:
        """Read or make the data.

        Raises:
            DataError: The data is missing, damaged or not what it should be.
        """


def check_memory(num_bytes: int, what: str) -> None:
    """Check that so much could be held in memory at all.

    Raises:
        DataError: The machine has less.
    """
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if num_bytes > available:
        raise DataError(
            f"{what} must fit into memory, {available / 1e9:.1f} GB. It says that it holds "
            f"{num_bytes / 1e9:.1f} GB. Write it as shards (python -m pipeline.records) where it does."
        )


def split_tail(arrays: Arrays, test_fraction: float) -> tuple[Arrays, Arrays]:
    """Split off the last `test_fraction` of the rows, at least one, as the test split."""
    num_test = max(1, round(_num_rows(arrays) * test_fraction))
    train = {name: array[:-num_test] for name, array in arrays.items()}
    return train, {name: array[-num_test:] for name, array in arrays.items()}


def _num_rows(arrays: Arrays) -> int:
    return len(next(iter(arrays.values())))


def _check_split(split: str, arrays: Arrays) -> None:
    if not arrays:
        raise DataError(f"The {split} split must have at least one array. Received: none.")
    lengths = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"The {split} arrays must be of equal length. Received: {lengths}.")
    if 0 in lengths.values():
        raise DataError(f"The {split} split must not be empty. Received: {lengths}.")
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array))[0][0])
            raise DataError(f"The {split} array {name!r} must be finite. Row {row} is not.")
