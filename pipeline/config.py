"""The configuration: its schema, and every check that needs neither TensorFlow nor a training step.

The schema of a section is the signature of the class that takes it: types, and constraints as strings
in `Annotated`, such as `Annotated[int, ">= 1"]`. The same holds for a model, a data source and an
optimizer, which the configuration names by `_target_`. All problems are found before any is reported.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import operator
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

if TYPE_CHECKING:
    import numpy.typing as npt

    from data.base import Dataset, Source
    from models.base import ArraySpec, Model

COMPARISONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
FORMATS = ("saved_model", "checkpoint")
TYPE_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}


class ConfigError(ValueError):
    """A configuration that cannot be run.

    Attributes:
        problems: Every problem found, each a sentence of constraint, evidence and remedy.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


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
    problems += [unknown("export", name, FORMATS) for name in formats if name not in FORMATS]
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
    if epoch not in ("last", "best", *range(train.epochs + 1)):
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


def construct(values: Any, name: str, problems: list[str]) -> tuple[Any, Mapping[str, Any]]:
    """Construct the component that `values` names by `_target_`, with the rest as its arguments.

    Returns:
        The component, and its values with paths made absolute; appends to `problems` instead of raising.
    """
    if not isinstance(values, Mapping) or not isinstance(values.get("_target_"), str):
        problems.append(f"{name}._target_ must name a class. Received: {values!r}.")
        return None, {}
    target = values["_target_"]
    module_name, _, class_name = target.rpartition(".")
    try:
        constructor = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        problems.append(
            f"{name}._target_ must name a class that can be imported. Received: {target}: {error}."
        )
        return None, {}
    arguments = {key: value for key, value in values.items() if key != "_target_"}
    known_problems = len(problems)
    bound = bind(constructor, arguments, f"{name}.", problems)
    if len(problems) > known_problems:
        return None, {}
    resolved = {key: str(value) if isinstance(value, Path) else value for key, value in bound.items()}
    try:
        return constructor(**bound), {"_target_": target, **resolved}
    except (ValueError, TypeError, ImportError) as error:
        problems.append(str(error))
        return None, {}


def bind(
    constructor: Callable[..., Any], values: Mapping[str, Any], prefix: str, problems: list[str]
) -> dict[str, Any]:
    """Bind values to the keyword parameters of a constructor, checking each against its annotation.

    Args:
        constructor: A class whose `__init__` is annotated.
        values: Values by parameter name.
        prefix: The key that the values stand under, with its dot, for messages.
        problems: Receives a sentence for each value that is missing, unknown or out of range.
    """
    parameters = dict(inspect.signature(constructor).parameters)
    hints = typing.get_type_hints(
        constructor if is_dataclass(constructor) else constructor.__init__, include_extras=True
    )
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    parameters = {
        name: p for name, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    }
    problems += [
        unknown(f"{prefix}{key}", key, parameters, what="key")
        for key in values
        if key not in parameters and not takes_any
    ]
    bound = {key: value for key, value in values.items() if key not in parameters and takes_any}
    for name, parameter in parameters.items():
        value = values.get(name, parameter.default)
        if value is inspect.Parameter.empty or (isinstance(value, str) and value == "???"):
            problems.append(f"{prefix}{name} must be given. Add {prefix}{name}=... to the command.")
        else:
            bound[name] = _convert(value, hints.get(name, Any), f"{prefix}{name}", problems)
    return bound


def _convert(value: Any, hint: Any, key: str, problems: list[str]) -> Any:
    """Return `value` as the type that `hint` states; append to `problems` where it is none."""
    if typing.get_origin(hint) is Annotated:
        kind, *constraints = typing.get_args(hint)
        known_problems = len(problems)
        value = _convert(value, kind, key, problems)
        if len(problems) == known_problems:
            problems += [
                f"{key} must be {constraint}. Received: {value}."
                for constraint in constraints
                if not _holds(value, constraint)
            ]
        return value
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            problems.append(f"{key} must be a section. Received: {value!r}.")
            return None
        known_problems = len(problems)
        bound = bind(hint, value, f"{key}.", problems)
        return hint(**bound) if len(problems) == known_problems else None
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        hints = [option for option in options if option is not type(None)]
        hint = next((h for h in hints if isinstance(h, type) and isinstance(value, h)), hints[0])
        return _convert(value, hint, key, problems)
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            problems.append(unknown(key, value, choices))
        return value
    return _convert_plain(value, hint, key, problems)


def _convert_plain(value: Any, hint: Any, key: str, problems: list[str]) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int and is_number and value == int(value):
        return int(value)
    if hint is float and is_number:
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value).expanduser().absolute()
    if hint in (bool, str) and isinstance(value, hint):
        return value
    if hint in (int, float, bool, str, Path):
        problems.append(f"{key} must be {TYPE_NAMES.get(hint, 'a path')}. Received: {value!r}.")
    # Any other annotation is the constructor's own business.
    return value


def _holds(value: Any, constraint: str) -> bool:
    comparison, _, bound = constraint.partition(" ")
    return bool(COMPARISONS[comparison](value, float(bound)))


def unknown(key: str, value: Any, known: Iterable[Any], *, what: str = "choice") -> str:
    """Say that a key or one of its values does not exist, which do, and which may have been meant."""
    names = [str(name) for name in known]
    close = difflib.get_close_matches(str(value), names, n=1)
    meant = f" Did you mean {close[0]}?" if close else ""
    listed = ", ".join(names) or "none"
    if what == "key":
        return f"{key} is not a key. Known here: {listed}.{meant}"
    return f"{key} must be one of {listed}. Received: {value}.{meant}"


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
