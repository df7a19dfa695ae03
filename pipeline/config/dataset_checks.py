"""Loading a data set, and checking that it has the arrays that a model takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline import runtime
from pipeline.errors import DataSetError

if TYPE_CHECKING:
    import numpy.typing as npt

    from data.base import Arrays, Dataset, Source
    from models.base import ArraySpec, Model
    from pipeline.config.schema import Train


def load(source: Source, train: Train | None = None) -> Dataset:
    """Load a data set.

    Args:
        source: The data source.
        train: The section `train` of the run, which may cut the data set to some of its batches.

    Raises:
        DataSetError: The source cannot load it, or it cannot be cut so.
    """
    # Not by the source itself: what TensorFlow reads when it is imported is the pipeline's to set.
    if getattr(source, "needs_tensorflow", False):
        runtime.import_tensorflow()
    # `DataError`, which a source raises, is a `ValueError`; a source of a user's own may raise either type.
    try:
        dataset = source.load()
    except (ValueError, OSError) as error:
        raise DataSetError(str(error)) from error
    if train is not None and train.validation_fraction:
        dataset = _with_validation(dataset, train.validation_fraction)
    if train is not None and train.overfit_batches is not None:
        return _overfitted(dataset, train.overfit_batches)
    if train is not None and train.limit_batches is not None:
        return _limited(dataset, train.limit_batches)
    return dataset


def _with_validation(dataset: Dataset, fraction: float) -> Dataset:
    """Return a data set of which some training rows, drawn at random, are the validation split.

    Ordered data is cut instead: its last whole batches are the validation split.

    Raises:
        DataSetError: The training split is in shards, or too few rows would be left.
    """
    if dataset.stream is not None:
        raise DataSetError(
            "train.validation_fraction needs a training split that is in memory. Received: one in shards. "
            "Write the shards with the validation rows as their test split."
        )
    size = dataset.batch_size if dataset.ordered else 1
    num_held_out = max(1, round(dataset.num_train * fraction / size)) * size
    if dataset.num_train - num_held_out < dataset.batch_size:
        raise DataSetError(
            f"train.validation_fraction must leave a batch of {dataset.batch_size} rows to train on. "
            f"Received: {fraction} of {dataset.num_train} rows."
        )
    import numpy as np  # Not above: a mistyped key need not wait for it.

    rows = np.arange(dataset.num_train)
    if not dataset.ordered:
        rows = np.random.default_rng(0).permutation(rows)
    kept, held_out = np.sort(rows[:-num_held_out]), np.sort(rows[-num_held_out:])
    return replace(
        dataset,
        train={name: array[kept] for name, array in dataset.train.items()},
        validation={name: array[held_out] for name, array in dataset.train.items()},
    )


def _limited(dataset: Dataset, num_batches: int) -> Dataset:
    """Return a data set with at most so many batches in each split."""
    num_rows, whole = num_batches * dataset.batch_size, dataset.stream
    test = _first(dataset.test, num_rows)
    if dataset.validation is not None:
        dataset = replace(dataset, validation=_first(dataset.validation, num_rows))
    if whole is None:
        return replace(dataset, train=_first(dataset.train, num_rows), test=test)
    if whole.num_rows <= num_rows:
        return replace(dataset, test=test)
    stream = replace(
        whole,
        num_rows=num_rows,
        # The first of an epoch's own order, since only reading all shards would find the same rows again.
        batches=lambda seed, epoch: whole.batches(seed, epoch).take(num_batches),
        digest=f"{whole.digest}: {num_batches} batches",
    )
    return replace(dataset, test=test, stream=stream)


def _overfitted(dataset: Dataset, num_batches: int) -> Dataset:
    """Return a data set whose first batches are both of its splits, in their order.

    Raises:
        DataSetError: The batches are in shards, and not among the rows that are in memory.
    """
    size = dataset.batch_size
    num_rows = min(num_batches, dataset.num_train // size) * size
    first = _first(dataset.train, num_rows)
    in_memory = len(next(iter(first.values())))
    if in_memory < num_rows:
        raise DataSetError(
            f"train.overfit_batches must be at most {in_memory // size}: of data in shards, the first "
            f"{in_memory} rows are in memory, and a batch has {size}. Received: {num_batches}."
        )
    return replace(dataset, train=first, test=first, ordered=True, stream=None, validation=None)


def _first(arrays: Arrays, num_rows: int) -> Arrays:
    return {name: array[:num_rows] for name, array in arrays.items()}


def check_batch(model: Model, dataset: Dataset) -> None:
    """Check that the arrays of a data set have the names, shapes, dtypes and ranges that a model takes.

    A model that states none, since only its network knows them, checks the arrays when it is built.

    Raises:
        DataSetError: Arrays are missing, left over or do not fit, with a sentence for each.
    """
    try:
        specs = model.arrays(dataset.metadata)
    except ValueError as error:
        raise DataSetError(str(error)) from error
    if specs is None:
        return
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
        if bounds is None:  # Text, for one, has no range.
            continue
        low, high = dataset.stream.ranges[name]
        if not bounds[0] <= low <= high <= bounds[1]:
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
