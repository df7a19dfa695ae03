"""Checks of the configuration that need neither TensorFlow nor a training step.

A model, a data source and an optimizer are named by `_target_`, and the signature of the class that
`_target_` names is their schema; the schema of the other sections is in `pipeline.config.schema`. All
problems are found before any is reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pipeline.config.binding import bind, construct
from pipeline.config.formats import FORMATS, lacks
from pipeline.config.schema import PARAMETERS, Best, Export, Settings, Sweep, Train, Verify, as_list
from pipeline.errors import ConfigError, unknown

EPOCHS = "all, best, last, a number, or a list such as [1,3]"


@dataclass(frozen=True, kw_only=True)
class _TopLevel:
    """The keys of the top level, without `model`, `data` and `optimizer`, whose schema is their class."""

    export: Export
    train: Train
    verify: Verify
    best: Best
    sweep: Sweep
    seed: Annotated[int, ">= 0", f"<= {2**31 - 1}"]
    epoch: Any
    trust: list[str]


def check(values: Mapping[str, Any]) -> Settings:
    """Check a whole configuration, and construct the model, the data source and the optimizer.

    Args:
        values: The composed configuration as plain values, with interpolations resolved.

    Raises:
        ConfigError: There are problems, with a sentence for each.
    """
    problems: list[str] = []
    components = {
        name: construct(values.get(name), name, problems) for name in ("model", "data", "optimizer")
    }
    sections = {key: value for key, value in values.items() if key not in components}
    bound = bind(_TopLevel, sections, "", problems)
    if bound.get("export") and bound.get("verify"):
        problems += check_export(bound["export"], bound["verify"])
    if bound.get("sweep"):
        problems += _check_sweep(bound["sweep"])
    if bound.get("train") and bound.get("export"):
        problems += check_epochs(bound["epoch"], bound["export"])
        problems += _too_late(bound["epoch"], bound["train"].epochs)
        problems += _check_train(bound["train"])
    # From the values, not from `bound`, which has no section `train` if any other key of it is wrong.
    if isinstance(train := values.get("train"), Mapping) and "keep" in train:
        problems += _check_keep(train["keep"], values.get("epoch"))
    if problems:
        raise ConfigError(*problems)
    return Settings(
        **{name: component for name, (component, _) in components.items() if component},
        **bound,
        resolved={
            **values,
            **{name: resolved for name, (_, resolved) in components.items()},
        },
    )


def check_export(export: Export, verify: Verify) -> Iterable[str]:
    """Yield a sentence for each problem with the chosen formats, such as a package that is not installed."""
    for name in export.formats:
        if name not in FORMATS:
            yield unknown("export", name, FORMATS)
    if not any(export.formats.values()):
        yield f"export.formats must have at least one of {', '.join(FORMATS)}. Received: none."
    for name in export.chosen:
        if problem := lacks(f"export={name}", name, FORMATS[name].packages):
            yield problem
    if export.quantization != "none" and verify.quantized_tolerance is None:
        yield (
            f"export.quantization={export.quantization} changes the metrics. Say by how much they may "
            "differ: verify.quantized_tolerance=0.01, for example."
        )


def check_epochs(epoch: Any, export: Export) -> Iterable[str]:
    """Yield a sentence for each problem with the epochs to export that shows without a log."""
    several = isinstance(epoch, list)
    # `isinstance(True, int)` holds, so the type itself is compared below.
    numbers = [number for number in (epoch if several else [epoch]) if number not in ("all", "best", "last")]
    if epoch == [] or any(type(number) is not int or number < 0 for number in numbers):
        yield f"epoch must be {EPOCHS}. Received: {epoch}."
        return
    many = [name for name, row in FORMATS.items() if row.many_epochs]
    one_epoch = [name for name in export.chosen if name not in many]
    if (epoch == "all" or several) and one_epoch:
        yield (
            f"epoch={epoch} needs a format that holds many epochs: {', '.join(many)}. "
            f"Received: {', '.join(one_epoch)}."
        )


def _check_sweep(sweep: Sweep) -> Iterable[str]:
    metrics, directions = as_list(sweep.metric), as_list(sweep.direction)
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


def _check_train(train: Train) -> Iterable[str]:
    if train.limit_batches is not None and train.overfit_batches is not None:
        yield (
            "train.overfit_batches says already how many batches there are: train.limit_batches must be "
            f"null. Received: {train.limit_batches}."
        )


def _too_late(epoch: Any, num_epochs: int) -> Iterable[str]:
    numbers = [number for number in (epoch if isinstance(epoch, list) else [epoch]) if type(number) is int]
    if any(number > num_epochs for number in numbers):
        yield f"epoch must be at most train.epochs ({num_epochs}). Received: {epoch}."
