"""The configuration: its schema, and every check that needs neither TensorFlow nor a training step.

A model, a data source and an optimizer are named by `_target_`, their schema is their own signature; that
of the other sections is here. All problems are found before any is reported.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pipeline.binding import ConfigError, bind, construct, unknown

if TYPE_CHECKING:
    import numpy.typing as npt

    from data.base import Dataset, Source
    from models.base import ArraySpec, Model

FORMATS = ("saved_model", "checkpoint", "meta_graph", "simple_save", "keras", "tflite", "onnx")
"""Every export format, in the order in which they are written."""

EXTRAS = {
    "tflite": ("ai_edge_litert",),
    "onnx": ("tf2onnx", "onnx", "onnxruntime"),
    "sweep": ("optuna", "cmaes"),
}
"""The packages of an extra; a format's has the name of the format."""

MANY_EPOCHS = ("checkpoint", "meta_graph")
"""Formats whose exports hold any number of epochs."""

PARAMETERS = "parameters"
"""What stands for the number of parameters among the objectives of a sweep."""

EPOCHS = "all, best, last, a number, or a list such as [1,3]"


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """The section `train.early_stopping`.

    Attributes:
        patience: Epochs without an improvement of `best.metric` after which training stops; `None` is never.
        min_delta: By how much an epoch must be better than all before it to be an improvement.
    """

    patience: Annotated[int, ">= 1"] | None
    min_delta: Annotated[float, ">= 0"]


@dataclass(frozen=True, kw_only=True)
class Train:
    """The section `train`.

    Attributes:
        epochs: Passes over the training split.
        resume: A run that is to go on, with the configuration that it recorded.
        keep: Which checkpoints are kept: `all`, the `best` and the last, or a number of the last and the
            best. Those of epochs that are to be exported by their number are kept in any case.
        early_stopping: See `EarlyStopping`.
        compile: What compiles a training step: TensorFlow's graph executor, or XLA.
        deterministic: Whether the same command gives the same bits, at some cost in speed.
        on_interrupt: What Ctrl-C and SIGTERM do once training has stopped: only `stop`, or go on to
            `export` the last whole epoch.
    """

    epochs: Annotated[int, ">= 0"]
    resume: Path | None
    keep: Any
    early_stopping: EarlyStopping
    compile: Literal["graph", "xla"]
    deterministic: bool
    on_interrupt: Literal["stop", "export"]


@dataclass(frozen=True, kw_only=True)
class Export:
    """The section `export`.

    Attributes:
        formats: Whether to write each format.
        quantization: What LiteRT's weights are stored as; `none` is float32, `int8` concerns the
            activations, too.
        opset: The version of ONNX's operator set.
    """

    formats: dict[str, bool]
    quantization: Literal["none", "float16", "int8"] = "none"
    opset: Annotated[int, ">= 13"] = 18

    @property
    def chosen(self) -> list[str]:
        """The formats to write, in the order in which they are written."""
        return [name for name in FORMATS if self.formats.get(name)]


@dataclass(frozen=True, kw_only=True)
class Best:
    """The section `best`: what makes an epoch the best.

    Attributes:
        metric: A metric of the test split, such as `loss`.
        direction: Whether the best has the smallest or the largest value.
    """

    metric: str
    direction: Literal["minimize", "maximize"]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The section `sweep`: what the jobs of a sweep are judged by.

    Attributes:
        metric: A metric of the test split, or a list of them. Behind the first, `parameters` may stand for
            the number of parameters.
        direction: Whether the best has the smallest or the largest value; as many as there are metrics.
        epoch: Of which epoch they are taken: the one where the first is best, or the last.
    """

    metric: Any
    direction: Any
    epoch: Literal["best", "last"]

    @property
    def objectives(self) -> list[tuple[str, Any]]:
        """Each metric with its direction."""
        return paired(self.metric, self.direction)


@dataclass(frozen=True, kw_only=True)
class Verify:
    """The section `verify`: how far what is restored may be from what was logged.

    A value matches if |restored - logged| <= abs_tolerance + rel_tolerance x |logged|. Where neither is
    given, they are 0 for a format that keeps the bits, and 1e-5 relative for a converted one.

    Attributes:
        abs_tolerance: Absolute tolerance.
        rel_tolerance: Relative tolerance.
        quantized_tolerance: How far a metric of a quantized export may be from the logged one.
    """

    abs_tolerance: Annotated[float, ">= 0"] | None
    rel_tolerance: Annotated[float, ">= 0"] | None
    quantized_tolerance: Annotated[float, ">= 0"] | None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A whole configuration, checked.

    Attributes:
        model: The model, constructed.
        data: The data source, constructed.
        optimizer: The optimizer's configuration, constructed.
        export: See `Export`.
        train: See `Train`.
        verify: See `Verify`.
        best: See `Best`.
        sweep: See `Sweep`.
        seed: Seeds the initial weights and the order of the examples.
        epoch: The epochs to export: `last`, `best`, `all`, a number, or a list of numbers.
        trust: What a graph may have besides the operations that compute.
        resolved: The configuration as plain JSON values, paths made absolute.
    """

    model: Model
    data: Source
    optimizer: Any
    export: Export
    train: Train
    verify: Verify
    best: Best
    sweep: Sweep
    seed: int
    epoch: Any
    trust: Sequence[str]
    resolved: Mapping[str, Any]


# What the configuration's top level may hold besides the three components.
@dataclass(frozen=True, kw_only=True)
class _Sections:
    export: Export
    train: Train
    verify: Verify
    best: Best
    sweep: Sweep
    seed: Annotated[int, ">= 0", f"<= {2**31 - 1}"]
    epoch: Any
    trust: list[str]


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
    if bound.get("export") and bound.get("verify"):
        problems += check_export(bound["export"], bound["verify"])
    if bound.get("sweep"):
        problems += _check_sweep(bound["sweep"])
    if bound.get("train") and bound.get("export"):
        problems += check_epochs(bound["epoch"], bound["export"])
        problems += _too_late(bound["epoch"], bound["train"].epochs)
    if isinstance(train := values.get("train"), Mapping) and "keep" in train:  # Whatever else is wrong there.
        problems += _check_keep(train["keep"], values.get("epoch"))
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


def check_export(export: Export, verify: Verify) -> Iterable[str]:
    """Yield what is wrong with the formats chosen, packages that they need included."""
    for name in export.formats:
        if name not in FORMATS:
            yield unknown("export", name, FORMATS)
    if not any(export.formats.values()):
        yield f"export.formats must have at least one of {', '.join(FORMATS)}. Received: none."
    for name in export.chosen:
        if problem := lacks(f"export={name}", name):
            yield problem
    if export.quantization != "none" and verify.quantized_tolerance is None:
        yield (
            f"export.quantization={export.quantization} changes the metrics. Say by how much they may "
            "differ: verify.quantized_tolerance=0.01, for example."
        )


def lacks(choice: str, extra: str) -> str | None:
    """Return what a choice needs and what is not installed, in a sentence; `None` if nothing is missing."""
    missing = [module for module in EXTRAS.get(extra, ()) if importlib.util.find_spec(module) is None]
    if not missing:
        return None
    return (
        f"{choice} needs {', '.join(missing)}. Not installed. "
        f"Install the extra: pip install 'roundtrip[{extra}]'."
    )


def check_epochs(epoch: Any, export: Export) -> Iterable[str]:
    """Yield what is wrong with the epochs to export, whether or not the log has them."""
    several = isinstance(epoch, list)
    numbers = [number for number in (epoch if several else [epoch]) if number not in ("all", "best", "last")]
    if epoch == [] or any(type(number) is not int or number < 0 for number in numbers):
        yield f"epoch must be {EPOCHS}. Received: {epoch}."
        return
    one_epoch = [name for name in export.chosen if name not in MANY_EPOCHS]
    if (epoch == "all" or several) and one_epoch:
        yield (
            f"epoch={epoch} needs a format that holds many epochs: {', '.join(MANY_EPOCHS)}. "
            f"Received: {', '.join(one_epoch)}."
        )


def paired(metric: Any, direction: Any) -> list[tuple[str, Any]]:
    """Return each metric with its direction, of one or of a list of each."""
    return list(zip(_listed(metric), _listed(direction), strict=False))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _check_sweep(sweep: Sweep) -> Iterable[str]:
    metrics, directions = _listed(sweep.metric), _listed(sweep.direction)
    if not metrics or not all(isinstance(name, str) for name in metrics) or metrics[0] == PARAMETERS:
        yield f"sweep.metric must be a metric, or a list that begins with one. Received: {sweep.metric}."
    for direction in directions:
        if direction not in ("minimize", "maximize"):
            yield unknown("sweep.direction", direction, ("minimize", "maximize"))
    if len(metrics) != len(directions):
        yield (
            f"sweep.direction must be given for each of {len(metrics)} metrics. Received: {sweep.direction}."
        )


def _check_keep(keep: Any, epoch: Any) -> Iterable[str]:
    if keep not in ("all", "best") and (type(keep) is not int or keep < 1):
        yield f"train.keep must be all, best or a number >= 1. Received: {keep}."
    elif keep != "all" and epoch == "all":
        yield f"epoch=all needs the checkpoint of every epoch: train.keep=all. Received: train.keep={keep}."


def _too_late(epoch: Any, num_epochs: int) -> Iterable[str]:
    numbers = [number for number in (epoch if isinstance(epoch, list) else [epoch]) if type(number) is int]
    if any(number > num_epochs for number in numbers):
        yield f"epoch must be at most train.epochs ({num_epochs}). Received: {epoch}."


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
    if dataset.stream is not None:
        problems += _range_problems(specs, dataset)
    if problems:
        raise ConfigError(problems)


def _range_problems(specs: Mapping[str, ArraySpec], dataset: Dataset) -> Iterable[str]:
    """Yield which arrays of a stream have values outside of what the model takes."""
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
