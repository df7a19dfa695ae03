"""Data that a function of the user's returns or yields."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterable, Mapping
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from data.base import Arrays, DataError, Dataset
from data.splits import divide, held_out


class PythonData:
    """The arrays that a function of the user's returns, which must be the same each time.

    The function returns one of these:

    - a dict of arrays `[N, ...]` by name, of which some rows are held out;
    - a tuple of such dicts, the training split and the test split; a third is metadata for the model;
    - rows, from a generator for instance: a dict of values by name for each; some rows are held out.

    TensorFlow is imported before the function is called, so the function may use it.

    Args:
        function: The path of the function, such as `mine.data.load`.
        arguments: Its arguments by name.
        batch_size: Rows in a batch.
        split: Which rows are the test split, if the function returns one split: the `tail`, or a `random`
            choice.
        test_fraction: Fraction of the rows that is the test split.
        seed: Seeds the choice of the test split.

    Attributes:
        packages: The package of the function. A later command calls it if it is told to trust the package.

    Raises:
        ValueError: There is no such function. Its module is looked for, and not imported.
    """

    needs_tensorflow = True

    def __init__(
        self,
        *,
        function: str,
        arguments: dict[str, Any] | None = None,
        batch_size: Annotated[int, ">= 1"] = 32,
        split: Literal["tail", "random"] = "random",
        test_fraction: Annotated[float, "> 0", "< 1"] = 0.1,
        seed: Annotated[int, ">= 0"] = 0,
    ) -> None:
        self.function = function
        self.arguments = arguments or {}
        self.batch_size = batch_size
        self.split: Literal["tail", "random"] = split
        self.test_fraction = test_fraction
        self.seed = seed
        self.packages = [function.partition(".")[0]]
        _check_exists(function)

    def load(self) -> Dataset:
        """Call the function, and hold rows out if it returns one split.

        Raises:
            DataError: The function does not take the arguments, or returns something else.
        """
        found = self._call()
        metadata: Mapping[str, Any] = {}
        if isinstance(found, tuple) and len(found) in (2, 3):
            train, test = (self._arrays(split) for split in found[:2])
            metadata = found[2] if len(found) == 3 else {}
        else:
            arrays = self._arrays(found if isinstance(found, Mapping) else self._stacked(found))
            num_rows = len(next(iter(arrays.values())))
            rows = held_out(num_rows, self.split, test_fraction=self.test_fraction, seed=self.seed)
            train, test = divide(arrays, rows)
        if not isinstance(metadata, Mapping):
            raise DataError(f"{self.function} must return a dict of metadata. Received: {metadata!r}.")
        return Dataset(train=train, test=test, batch_size=self.batch_size, metadata=metadata)

    def _call(self) -> Any:
        module, _, name = self.function.rpartition(".")
        function = getattr(importlib.import_module(module), name, None)
        if not callable(function):
            raise DataError(f"data.function must name a function. {self.function} is {function!r}.")
        try:
            inspect.signature(function).bind(**self.arguments)
        except TypeError as error:
            raise DataError(
                f"data.arguments must be arguments of {self.function}{inspect.signature(function)}: {error}. "
                f"Received: {self.arguments}."
            ) from error
        return function(**self.arguments)

    def _arrays(self, found: Any) -> Arrays:
        """Return a dict of arrays of one length."""
        if not isinstance(found, Mapping) or not found:
            raise DataError(
                f"{self.function} must return a dict of arrays, training and test arrays, or rows that are "
                f"dicts. Received: {type(found).__name__}{'' if found else ' of nothing'}."
            )
        try:
            arrays = {str(name): np.asarray(values) for name, values in found.items()}
        except ValueError as error:  # Rows of unequal length.
            raise DataError(f"{self.function} must return arrays: {error}.") from error
        lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
        if len({*lengths.values()}) != 1:
            raise DataError(f"{self.function} must return arrays of one length. Received: {lengths}.")
        return arrays

    def _stacked(self, rows: Any) -> dict[str, list[Any]]:
        """Return the values of rows by name."""
        if not isinstance(rows, Iterable):
            raise DataError(
                f"{self.function} must return arrays, or rows that are dicts. Received: "
                f"{type(rows).__name__}."
            )
        columns: dict[str, list[Any]] = {}
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping) or (number and row.keys() != columns.keys()):
                names = f" of {', '.join(map(str, columns))}" if columns else ""
                received = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
                raise DataError(
                    f"{self.function} must yield dicts{names}. Row {number} is not. Received: {received}."
                )
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
        return columns


def _check_exists(path: str) -> None:
    """Check that a function exists. Its module is read, not run: it may import TensorFlow.

    Raises:
        ValueError: There is no such module, or it does not have the name.
    """
    module, _, name = path.rpartition(".")
    source = _source(module)
    if source is None:
        raise ValueError(
            "data.function must be the path of a function, such as mine.data.load, in a module that Python "
            f"finds from the working directory or PYTHONPATH. Received: {path}."
        )
    if not re.search(rf"\b{re.escape(name)}\b", source.read_text()):
        defined = ", ".join(re.findall(r"^def (\w+)", source.read_text(), re.MULTILINE))
        raise ValueError(f"data.function must name a function of {source}: {defined}. Received: {name}.")


def _source(module: str) -> Path | None:
    """Return the file of a module without importing the packages that it is in."""
    name, *deeper = module.split(".")
    try:
        spec: ModuleSpec | None = importlib.util.find_spec(name) if name else None
    except ValueError:  # The module was made by hand.
        return None
    for part in deeper:
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, spec.submodule_search_locations if spec else [])
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None
