"""Loading a data set, and checking that it has the arrays that a model takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.errors import DataSetError

if TYPE_CHECKING:
    import numpy.typing as npt

    from data.base import Dataset, Source
    from models.base import ArraySpec, Model


def load(source: Source) -> Dataset:
    """Load a data set.

    Raises:
        DataSetError: The source cannot load it.
    """
    # `DataError`, which a source raises, is a `ValueError`; a source of a user's own may raise either type.
    try:
        return source.load()
    except (ValueError, OSError) as error:
        raise DataSetError(str(error)) from error


def check_batch(model: Model, dataset: Dataset) -> None:
    """Check that the arrays of a data set have the names, shapes, dtypes and ranges that a model takes.

    Raises:
        DataSetError: Arrays are missing, left over or do not fit, with a sentence for each.
    """
    try:
        specs = model.arrays(dataset.metadata)
    except ValueError as error:
        raise DataSetError(str(error)) from error
    consumed = "\n".join(f"    {name}: {spec}" for name, spec in specs.items())
    if set(specs) != set(dataset.train):
        provided = ", ".join(f"{name} {list(a.shape)} {a.dtype}" for name, a in dataset.train.items())
        raise DataSetError(
            f"The data must provide the arrays that the model consumes:\n{consumed}\n"
            f"  Received: {provided}. Choose another data= or model=."
        )
    problems = [
        problem
        for split, arrays in (("train", dataset.train), ("test", dataset.test))
        for name, spec in specs.items()
        for problem in _array_problems(f"The {split} array {name!r}", arrays[name], spec)
    ]
    if dataset.stream is not None:
        problems += _range_problems(specs, dataset)
    if problems:
        raise DataSetError(*problems)


def _range_problems(specs: Mapping[str, ArraySpec], dataset: Dataset) -> Iterable[str]:
    """Yield a sentence for each array of a stream with values outside of the range that the model takes.

    The rows of a stream are not in memory, so the source gives the smallest and the largest value.
    """
    assert dataset.stream is not None
    for name, spec in specs.items():
        bounds = spec.dtypes.get(dataset.train[name].dtype.name)
        low, high = dataset.stream.ranges[name]
        if bounds is not None and not bounds[0] <= low <= high <= bounds[1]:
            yield f"The train array {name!r} must be {spec}. It holds {low:g} to {high:g}."


def _array_problems(name: str, array: npt.NDArray[Any], spec: ArraySpec) -> Iterable[str]:
    shape_fits = len(array.shape) == len(spec.shape) and all(
        size is None or size == actual for size, actual in zip(spec.shape, array.shape, strict=True)
    )
    if not shape_fits or array.dtype.name not in spec.dtypes:
        yield f"{name} must be {spec}. Received: {list(array.shape)} {array.dtype}."
        return
    bounds = spec.dtypes[array.dtype.name]
    if bounds is not None:
        outside = (array < bounds[0]) | (array > bounds[1])
        if outside.any():
            row = int(outside.nonzero()[0][0])
            yield f"{name} must be {spec}. Row {row} holds {array[outside].flat[0]}."
