"""The contract between a data source and the pipeline.

The constructor of a data source takes plain values from the configuration, and `load` returns NumPy arrays.
This module does not need TensorFlow: data is read and checked before TensorFlow is imported.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]

MAX_PROBLEMS = 5
"""Problems of the data that one message holds."""


class DataError(ValueError):
    """Data that cannot be used. The message names the data, the reason and the remedy."""


@dataclass(frozen=True)
class Stream:
    """A training split that is read during training, because it may be larger than memory.

    Attributes:
        num_rows: The number of rows.
        ranges: The smallest and the largest value of each array, by name; text has none.
        digest: SHA-256 of the files of the split, in hexadecimal.
        batches: Takes the seed and the number of the epoch; returns a `tf.data.Dataset` of whole batches,
            tensors by name. Equal arguments must give equal batches in an equal order, because a run that
            continues reads the epoch anew and skips the steps that are done.
    """

    num_rows: int
    ranges: Mapping[str, tuple[float, float]]
    digest: str
    batches: Callable[[int, int], Any]


@dataclass(frozen=True)
class Dataset:
    """A training split and a test split of named arrays, checked when the object is made.

        >>> x = np.linspace(0, 1, 8, dtype=np.float32)
        >>> dataset = Dataset(train={"x": x[:6]}, test={"x": x[6:]}, batch_size=3)
        >>> dataset.num_train, dataset.num_test
        (6, 2)
        >>> Dataset(train={"x": x[:6]}, test={"y": x[6:]}, batch_size=3)
        Traceback (most recent call last):
        data.base.DataError: The test split must have the training split's arrays ['x']. Received: ['y'].

    The first dimension of every array is the row, and all arrays of a split have the same number of rows.

    Text may come as `str` or as bytes, also in arrays of objects, and is held as UTF-8 in bytes of one width:

        >>> dataset = Dataset({"city": np.array(["Köln", "Ulm"])}, {"city": np.array(["Bonn"])}, 1)
        >>> dataset.train["city"].dtype, dataset.test["city"].dtype
        (dtype('S5'), dtype('S5'))

    Attributes:
        train: Arrays `[N, ...]` by name. If there is a `stream`, its first rows. An epoch has
            `num_train // batch_size` whole batches.
        test: Held-out arrays with the names, the dtypes and, except for the number of rows, the shapes of
            the training arrays.
        batch_size: Rows in a batch.
        ordered: Whether batches keep the order of the rows in every epoch. A model that carries state needs
            this: row b of a batch continues row b of the batch before. If false, the training rows are
            shuffled in every epoch.
        metadata: Facts that a model may need, such as the vocabulary of a text, as JSON values.
        stream: The whole training split, if it is not in memory.
        validation: Rows that neither train nor are the test split, if there are any: the best epoch is
            chosen by them.

    Raises:
        DataError: The object would break one of these rules, or an array holds a value that is not finite,
            or an object that is no text.
    """

    train: Arrays
    test: Arrays
    batch_size: int
    ordered: bool = False
    metadata: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    stream: Stream | None = None
    validation: Arrays | None = None

    def __post_init__(self) -> None:
        for name, arrays in (("train", self.train), ("test", self.test)):
            _check_split(name, arrays)
        self._encode_text()
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
        # State is carried through whole batches only: a shorter last batch would have rows without a state.
        for name in ("train", "test"):
            num_rows = self.num_train if name == "train" else self.num_test
            if self.ordered and num_rows % self.batch_size:
                raise DataError(
                    f"The {name} split of ordered data must be whole batches of {self.batch_size}. "
                    f"Received: {num_rows} rows."
                )
        # `run.json` records the metadata.
        try:
            json.dumps(dict(self.metadata))
        except TypeError as error:
            raise DataError(f"The metadata must be JSON values. Received: {error}.") from error

    def _encode_text(self) -> None:
        """Replace text by bytes, as wide as the longest text of its name in either split."""
        splits = {
            split: {name: _as_bytes(f"The {split} array {name!r}", array) for name, array in arrays.items()}
            for split, arrays in (("train", self.train), ("test", self.test))
        }
        for name in [name for name, array in splits["train"].items() if array.dtype.kind == "S"]:
            both = [arrays for arrays in splits.values() if name in arrays and arrays[name].dtype.kind == "S"]
            width = max(arrays[name].dtype.itemsize for arrays in both)
            for arrays in both:
                arrays[name] = arrays[name].astype(f"S{width}", copy=False)
        for split, arrays in splits.items():
            # The dataclass is frozen: nobody else replaces the arrays.
            object.__setattr__(self, split, arrays)

    @property
    def num_train(self) -> int:
        """Number of training examples."""
        return _num_rows(self.train) if self.stream is None else self.stream.num_rows

    @property
    def num_test(self) -> int:
        """Number of held-out examples."""
        return _num_rows(self.test)

    @property
    def num_validation(self) -> int:
        """Number of examples of the validation split; 0 without one."""
        return 0 if self.validation is None else _num_rows(self.validation)

    def fingerprint(self) -> str:
        """Return the SHA-256 of names, dtypes, shapes, values and their order, in hexadecimal.

        A run records the fingerprint. Later commands compare it, because metrics on other data prove nothing.
        """
        digest = hashlib.sha256()
        splits = {"train": self.train, "test": self.test, "validation": self.validation or {}}
        for split, arrays in splits.items():
            for name in sorted(arrays):
                array = np.ascontiguousarray(arrays[name])
                if array.dtype.kind == "S":
                    # The width of the bytes depends on the longest text of both splits: it is no content.
                    digest.update(json.dumps([split, name, "text", list(array.shape)]).encode())
                    digest.update(np.char.str_len(array).astype("<i8").data)
                    digest.update(b"".join(array.ravel().tolist()))
                    continue
                # The same values must have the same fingerprint on a processor with the other byte order.
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
    """The method of a class that `data._target_` names.

        >>> class Line:
        ...     def __init__(self, *, batch_size: int = 5, slope: float = 2.0) -> None:
        ...         self.batch_size = batch_size
        ...         self.slope = slope
        ...
        ...     def load(self) -> Dataset:
        ...         x = np.linspace(0, 1, 20, dtype=np.float32)
        ...         arrays = {"x": x, "y": self.slope * x}
        ...         return Dataset(train=arrays, test=arrays, batch_size=self.batch_size)
        >>> source: Source = Line(slope=3.0)
        >>> dataset = source.load()
        >>> float(dataset.train["y"][-1])
        3.0

    The constructor takes keyword arguments with type annotations; they are the keys of the section `data`.
    `Annotated[int, ">= 1"]` states a range as well. A later command makes the source from the same
    arguments, so `load` must return the same arrays each time. A class with `needs_tensorflow = True` finds
    TensorFlow imported when `load` is called; any other is called before that. If `load` calls a function
    that an argument names, the attribute `packages` lists the packages that a later command must trust.
    """

    def load(self) -> Dataset:
        """Read or make the data.

        Raises:
            DataError: The data is missing, damaged or not as it should be. `ValueError` and `OSError` are
                reported in the same way.
        """


def check_memory(num_bytes: int, what: str) -> None:
    """Check that the memory of the machine could hold a number of bytes.

    A damaged or hostile header may announce any size. The check comes before the memory is taken, since
    Linux ends a process that takes too much instead of raising an error in it.

    Args:
        num_bytes: The number of bytes.
        what: The name of the file, for the message.

    Raises:
        DataError: The machine has less memory.
    """
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if num_bytes > available:
        raise DataError(
            f"{what} must fit into memory, {available / 1e9:.1f} GB. It says that it holds "
            f"{num_bytes / 1e9:.1f} GB. Write it as shards (python -m pipeline.records) where it does."
        )


def refuse(problems: Iterable[str]) -> None:
    """Raise an error with the first few of some problems, if there are any.

        >>> refuse(f"Line {number} is empty." for number in range(2))
        Traceback (most recent call last):
        data.base.DataError: Line 0 is empty.
        Line 1 is empty.

    Args:
        problems: A sentence for each problem. A file may have any number, so only the first are asked for.

    Raises:
        DataError: There is a problem.
    """
    found = [*itertools.islice(problems, MAX_PROBLEMS + 1)]
    if len(found) > MAX_PROBLEMS:
        found[MAX_PROBLEMS] = "There are more."
    if found:
        raise DataError("\n".join(found))


def split_tail(arrays: Arrays, test_fraction: float) -> tuple[Arrays, Arrays]:
    """Return a training split and a test split: the last `test_fraction` of the rows, at least one row.

    Args:
        arrays: Arrays `[N, ...]` by name.
        test_fraction: In (0, 1).
    """
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


def _as_bytes(what: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return text as UTF-8 in bytes of one width, which TensorFlow takes; any other array as it is.

    Raises:
        DataError: An object is no text, or the bytes would not fit into memory.
    """
    if array.dtype.kind not in "OUT":
        return array
    encoded: list[bytes] = []
    for number, value in enumerate(array.ravel().tolist()):
        row = number * len(array) // array.size
        try:
            encoded.append(value.encode() if isinstance(value, str) else value)
        except UnicodeEncodeError as error:
            raise DataError(f"{what} must be text in UTF-8. Row {row} is not: {error}.") from error
        if not isinstance(value, str | bytes):
            raise DataError(
                f"{what} holds objects, which must be text (str or bytes). Row {row} is of type "
                f"{type(value).__name__}. Make an array of one dtype of it."
            )
        # NumPy fills bytes up with NULs, so one at the end of a text would be lost.
        if encoded[-1].endswith(b"\0"):
            raise DataError(f"{what} must not end with a NUL character. Row {row} does. Strip it.")
    width = max(map(len, encoded), default=0)
    check_memory(len(encoded) * width, f"{what}, with each text as wide as the longest of {width:,} bytes,")
    return np.array(encoded, f"S{max(1, width)}").reshape(array.shape)
