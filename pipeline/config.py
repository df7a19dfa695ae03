"""The configuration: its schema, and every check that needs neither TensorFlow nor a training step.

A model, a data source and an optimizer are named by `_target_`, their schema is their own signature; that
of the other sections is here. All problems are found before any is reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pipeline.binding import ConfigError, bind, construct, unknown

if TYPE_CHECKING:
    import numpy.typing as npt

    from data.base import Dataset, Source
    from models.base import ArraySpec, Model

FORMATS = ("saved_model", "checkpoint")


@dataclass(frozen=True, kw_only=True)
class Train:
    """The section `train`.

    Attributes:
        epochs: Passes over the training split.
        compile: What compiles a training step: TensorFlow's graph executor, or XLA.
        deterministic: Whether the same command gives the same bits, at some cost in speed.
        on_interrupt: What Ctrl-C and SIGTERM do once training has stopped: only `stop`, or go on to
            `export` the last whole epoch.
    """

    epochs: Annotated[int, ">= 0"]
    compile: Literal["graph", "xla"]
    deterministic: bool
    on_interrupt: Literal["stop", "export"]


@dataclass(frozen=True, kw_only=True)
class Verify:
    """The section `verify`: how far a restored metric may be from the logged one.

    A metric matches if |restored - logged| <= abs_tolerance + rel_tolerance x |logged|.
    """

    abs_tolerance: Annotated[float, ">= 0"]
    rel_tolerance: Annotated[float, ">= 0"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A whole configuration, checked.

    Attributes:
        model: The model, constructed.
        data: The data source, constructed.
        optimizer: The optimizer's configuration, constructed.
        export: Options of each format to export.
        train: See `Train`.
        verify: See `Verify`.
        seed: Seeds the initial weights and the order of the examples.
        epoch: The epoch to export: `last`, `best`, or a number.
        resolved: The configuration as plain JSON values, paths made absolute.
    """

    model: Model
    data: Source
    optimizer: Any
    export: Mapping[str, Mapping[str, Any]]
    train: Train
    verify: Verify
    seed: int
    epoch: int | str
    resolved: Mapping[str, Any]


# What the configuration's top level may hold besides the three components.
@dataclass(frozen=True, kw_only=True)
class _Sections:
    export: dict[str, Any]
    train: Train
    verify: Verify
    seed: Annotated[int, ">= 0", f"<= {2**31 - 1}"]
    epoch: int | str


def check(values: Mapping[str, Any]) -> Settings:
    """Check a whole configuration and construct what it names.

    Args:
        values: The composed configuration as plain values, interpolations resolved.

    Raises:
        ConfigError: With every problem found.
    """
    problems: list[str] = []
    components = {
        name: construct(values.get(name), name, problems) for name in ("model", "data", "optimizer")
    }
    sections = {key: value for key, value in values.items() if key not in components}
    bound = bind(_Sections, sections, "", problems)
    formats = bound.get("export") or {}
    for name, options in formats.items():
        if name not in FORMATS:
            problems.append(unknown("export", name, FORMATS))
        problems += [unknown(f"export.{name}.{key}", key, (), what="key") for key in options or {}]
    if not problems:
        problems += _conflicts(bound["train"], bound["epoch"])
    if problems:
        raise ConfigError(problems)
    return Settings(
        **{name: component for name, (component, _) in components.items() if component},
        **bound,
        resolved={
            **values,
            **{name: resolved for name, (_, resolved) in components.items()},
        },
    )


def _conflicts(train: Train, epoch: int | str) -> Iterable[str]:
    """Check what concerns several sections at once."""
    known = 0 <= epoch <= train.epochs if isinstance(epoch, int) else epoch in ("last", "best")
    if not known:
        yield (f"epoch must be last, best, or of 0 to train.epochs ({train.epochs}). Received: {epoch}.")


def load(source: Source) -> Dataset:
    """Load the data.

    Raises:
        ConfigError: The source says that it cannot.
    """
    try:
        return source.load()
    except (ValueError, OSError) as error:
        raise ConfigError([str(error)]) from error


def check_batch(model: Model, dataset: Dataset) -> None:
    """Check that a data set provides what a model consumes: names, shapes, dtypes and ranges.

    Raises:
        ConfigError: With every array that is missing, left over or out of range.
    """
    try:
        specs = model.arrays(dataset.metadata)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    consumed = "\n".join(f"    {name}: {spec}" for name, spec in specs.items())
    if set(specs) != set(dataset.train):
        provided = ", ".join(f"{name} {list(a.shape)} {a.dtype}" for name, a in dataset.train.items())
        raise ConfigError(
            [
                f"The data must provide the arrays that the model consumes:\n{consumed}\n"
                f"  Received: {provided}. Choose another data= or model=."
            ]
        )
    problems = [
        problem
        for split, arrays in (("train", dataset.train), ("test", dataset.test))
        for name, spec in specs.items()
        for problem in _array_problems(f"The {split} array {name!r}", arrays[name], spec)
    ]
    if problems:
        raise ConfigError(problems)


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
