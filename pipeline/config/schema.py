"""The schema of the configuration: a dataclass for each section, with the type and the range of each key.

Constraints are strings in `Annotated`, which `pipeline.config.binding` reads. The values are in `conf/`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pipeline.config.formats import FORMATS, ExportFormat

if TYPE_CHECKING:
    from data.base import Source
    from models.base import Model

PARAMETERS = "parameters"
"""The name that stands for the number of parameters among the objectives of a sweep."""


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
        init_from: A run, a checkpoint of a run, or a `.keras` file, whose weights a new run begins with.
        keep: Which checkpoints are kept: `all`, the `best` and the last, or a number of the last and the
            best. Those of epochs that are to be exported by their number are kept in any case.
        early_stopping: See `EarlyStopping`.
        compile: What compiles a training step: TensorFlow's graph executor, or XLA.
        deterministic: Whether the same command gives the same bits, at some cost in speed.
        on_interrupt: What Ctrl-C and SIGTERM do once training has stopped: only `stop`, or go on to
            `export` the last whole epoch.
        validation_fraction: Which fraction of the training rows is held out as a validation split: `best`,
            early stopping, pruning and sweeps then look at it, and no choice is made by the test split.
        limit_batches: An epoch trains on at most so many batches and is evaluated on at most so many, to
            try things out; `None` is no limit.
        max_seconds: Training stops after so many seconds of this command, and the last whole epoch is
            exported; `train.resume` goes on from the step. `None` is no limit.
        checkpoint_secs: Within an epoch, the run is written every so many seconds, so that a kill loses no
            more; `None` is after each epoch only.
        precision: The dtype policy of Keras with which the model is built. The mixed ones compute in half
            precision, and their weights stay float32; `mixed_float16` scales the loss, too.
        overfit_batches: The first so many batches, in their order, are the training split and the test
            split, too: what a model must be able to learn by heart. `None` is off.
    """

    epochs: Annotated[int, ">= 0"]
    resume: Path | None
    keep: Any
    early_stopping: EarlyStopping
    compile: Literal["graph", "xla"]
    deterministic: bool
    on_interrupt: Literal["stop", "export"]
    # Runs of earlier versions did not record these. Their defaults are what such runs did.
    limit_batches: Annotated[int, ">= 1"] | None = None
    overfit_batches: Annotated[int, ">= 1"] | None = None
    max_seconds: Annotated[float, "> 0"] | None = None
    checkpoint_secs: Annotated[float, "> 0"] | None = None
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    init_from: Path | None = None
    validation_fraction: Annotated[float, ">= 0", "< 1"] = 0.0


@dataclass(frozen=True, kw_only=True)
class Export:
    """The section `export`.

    Attributes:
        formats: Whether to write each format.
        quantization: What LiteRT's weights are stored as; `none` is float32, `int8` concerns the
            activations, too.
        opset: The version of ONNX's operator set.
        skip_unsupported: Whether a format that cannot hold the model is left out, and the log says so.
            Otherwise it is an error before the training.
    """

    formats: dict[str, bool]
    quantization: Literal["none", "float16", "int8"] = "none"
    opset: Annotated[int, ">= 13"] = 18
    skip_unsupported: bool = False

    def without(self, names: Collection[str]) -> Export:
        """Return the section without some formats."""
        return replace(self, formats={name: on and name not in names for name, on in self.formats.items()})

    @property
    def chosen(self) -> list[str]:
        """The names of the formats to write, in the order in which they are written."""
        return [name for name in FORMATS if self.formats.get(name)]

    def quantization_of(self, format: ExportFormat) -> str:
        """Return the quantization for a format: `none` unless the format can be quantized."""
        return self.quantization if format.quantizable else "none"


@dataclass(frozen=True, kw_only=True)
class Best:
    """The section `best`: what makes an epoch the best.

    Attributes:
        metric: A metric such as `loss`, of the validation split if there is one, or else of the test split.
        direction: Whether the best has the smallest or the largest value.
    """

    metric: str
    direction: Literal["minimize", "maximize"]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The section `sweep`: what the jobs of a sweep are judged by.

    Attributes:
        metric: A metric, as in `Best`, or a list of them. Behind the first, `parameters` may stand for the
            number of parameters.
        direction: Whether the best has the smallest or the largest value; as many as there are metrics.
        epoch: Of which epoch they are taken: the one where the first is best, or the last.
    """

    metric: Any
    direction: Any
    epoch: Literal["best", "last"]

    @property
    def objectives(self) -> list[tuple[str, Any]]:
        """Each metric of the sweep with its direction."""
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
        trust: Operations that the model's graph may have besides those that compute.
        resolved: The configuration as plain JSON values, paths made absolute.
        run_dir: The run's directory; `None` while a sweep checks its trials before any of them has one.
        overrides: The overrides of the command line, for `run.json`.
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
    run_dir: Path | None = None
    overrides: Sequence[str] = ()


def paired(metric: Any, direction: Any) -> list[tuple[str, Any]]:
    """Return pairs of a metric and its direction.

    Args:
        metric: A metric, or a list of them.
        direction: A direction, or a list of as many.
    """
    return list(zip(as_list(metric), as_list(direction), strict=False))


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, and any other value as a list of one."""
    return value if isinstance(value, list) else [value]
