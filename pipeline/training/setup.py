"""Preparing a training: build the model, write its graph, and check now whatever would fail hours later."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from pipeline import runtime
from pipeline.errors import ConfigError, DataSetError, DiskFullError, unknown
from pipeline.graphs import checkpoints, examples
from pipeline.graphs.signatures import Signature
from pipeline.runs.directory import INDEX, RunDirectory
from pipeline.runs.policy import Policy

if TYPE_CHECKING:
    from data.base import Dataset
    from models.base import Model
from pipeline.training.loop import Training, _functions

log = logging.getLogger("pipeline")


def batch_specs(dataset: Dataset) -> dict[str, tf.TensorSpec]:
    """Return the spec of each array of a batch by name; its first dimension, the batch, is free."""
    return {
        name: tf.TensorSpec([None, *array.shape[1:]], array.dtype, name)
        for name, array in dataset.train.items()
    }


def prepare(
    run: RunDirectory,
    model: Model,
    dataset: Dataset,
    optimizer: Any,
    *,
    policy: Policy,
    seed: int,
    metrics: Sequence[str],
    config: Mapping[str, Any],
    stopped: Callable[[], bool],
    overrides: Sequence[str] = (),
) -> Training:
    """Build a model and its optimizer, and return the training, ready to `fit`.

    For a new run, the graph, the requests and `run.json` are written. For a run that goes on, `run.json`
    gets the new number of epochs.

    Args:
        run: A directory that this process has claimed.
        model: See `models.base.Model`.
        dataset: The arrays of a batch are those that the model takes.
        optimizer: Has `build(num_steps)`, which returns a Keras optimizer.
        policy: How many epochs are trained, with which compiler, and which checkpoints are kept.
        seed: Seeds the order of the rows, and the random numbers of the loss.
        metrics: Metrics that `evaluate` must return, because other parts of the configuration name them.
        config: The whole configuration as JSON values, for `run.json`.
        stopped: Returns whether to stop; called between chunks of steps.
        overrides: The overrides of the command line, for `run.json`.

    Raises:
        ConfigError: The model's `evaluate` is missing or does not fit the data; or the run cannot go on,
            because the schedule of the learning rate would not be the same.
        DataSetError: The run cannot go on, because the data has changed.
        DamagedError: `run.json` of a run that goes on is damaged.
        DiskFullError: The disk has no room for the checkpoints.
        OSError: The disk does not take a file.
        UntrustedError: The model's graph has an operation that is not allowed.
    """
    built = model.build(batch_specs(dataset), dataset.metadata)
    signatures = {
        name: checkpoints.signature_of(function.get_concrete_function())
        for name, function in built.signatures.items()
    }
    _check_signatures(signatures, set(dataset.train), metrics)
    steps_per_epoch = dataset.num_train // dataset.batch_size
    keras_optimizer = optimizer.build(steps_per_epoch * policy.train.epochs)
    # Before the first checkpoint: Keras otherwise makes the optimizer's variables during the first step.
    keras_optimizer.build([variable for variable in built.weights.values() if variable.trainable])
    use_xla = policy.train.compile == "xla"
    training = Training(run, dataset, built, keras_optimizer, signatures, policy, seed, use_xla, stopped)
    _check_room(training)
    if run.log.exists():
        _go_on(training, optimizer, overrides)
    else:
        _begin(training, config, overrides)
    return training


def _go_on(training: Training, optimizer: Any, overrides: Sequence[str]) -> None:
    """Check that a run can go on, and write the new number of epochs into `run.json`."""
    run, dataset, epochs = training.run, training.dataset, training.policy.train.epochs
    steps_per_epoch = dataset.num_train // dataset.batch_size
    facts = run.read_facts()
    # More epochs are harmless for a constant learning rate only. So the optimizers are compared, as the
    # configurations that Keras gives of them.
    before = facts["config"]["train"]["epochs"]
    schedules = [optimizer.build(steps_per_epoch * number) for number in (before, epochs)]
    _check_same(run, facts, dataset, *(schedule.get_config() for schedule in schedules))
    facts["config"]["train"]["epochs"] = epochs
    run.write_facts({**facts, "overrides": list(overrides)})


def _begin(training: Training, config: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Write the files that all epochs of a new run share: the graph, the requests and `run.json`."""
    run, dataset, built = training.run, training.dataset, training.built
    checkpoints.write_graph(run.graph, built)
    requests = examples.example_requests(_functions(built, training.signatures), dataset.test)
    for name, example in built.examples.items():
        requests[name] |= {key: np.asarray(value) for key, value in example.items()}
    examples.write(run.requests, requests)
    run.write_facts(
        {
            "seed": training.seed,
            **runtime.describe(),
            "data": {
                "fingerprint": dataset.fingerprint(),
                "num_train": dataset.num_train,
                "num_test": dataset.num_test,
                "metadata": dict(dataset.metadata),
            },
            "model": {
                "parameters": sum(variable.shape.num_elements() for variable in built.weights.values())
            },
            "sizes": {"graph_bytes": sum(f.stat().st_size for f in run.graph.rglob("*") if f.is_file())},
            "files": run.shared_files(),
            "overrides": list(overrides),
            "config": config,
        }
    )


def _check_same(run: RunDirectory, facts: Mapping[str, Any], dataset: Dataset, before: Any, now: Any) -> None:
    """Check that a run goes on with the same data and with the same learning rate for every step.

    Other versions or another device are no error, but they may compute other bits: the log warns of them.

    Args:
        run: The run.
        facts: The content of its `run.json`.
        dataset: The data set now.
        before: Configuration of the optimizer for the recorded number of epochs.
        now: Configuration of the optimizer for the requested number of epochs.

    Raises:
        ConfigError: The data or the schedule of the learning rate is another.
    """
    problems = []
    wanted, received = facts["data"]["fingerprint"], dataset.fingerprint()
    if received != wanted:
        problems.append(
            f"The data must be what the run in {run.path} was begun with, SHA-256 {wanted}. "
            f"Received: {received}."
        )
    if before != now:
        problems.append(
            "train.epochs cannot be raised: the learning rate follows a schedule over all epochs, which "
            "would be another from the first step on. Start a new run."
        )
    if problems:
        raise (ConfigError if before != now else DataSetError)(*problems)
    here = runtime.describe()
    for what, known in (("versions", ("tensorflow", "keras", "numpy")), ("device", here["device"])):
        for key in known:
            if (recorded := facts[what].get(key)) != here[what][key]:
                log.warning(
                    "going on with %s %s, begun with %s: the bits may differ", key, here[what][key], recorded
                )


def _check_room(training: Training) -> None:
    """Check that the disk has room for all checkpoints that will be kept, and for one more.

    A new checkpoint is written before an old one is removed, hence the one more.

    Raises:
        DiskFullError: The disk has less room.
    """
    train, path = training.policy.train, training.run.path
    size = sum(
        variable.shape.num_elements() * variable.dtype.size
        for group in training.variables.values()
        for variable in group.values()
    )
    num_kept = {"all": train.epochs + 1, "best": 2}.get(train.keep) or train.keep + 1
    num_there = len(list(training.run.graph.parent.glob(f"epoch-*{INDEX}")))
    needed, free = size * max(0, num_kept + 1 - num_there), shutil.disk_usage(path).free
    if needed > free:
        raise DiskFullError(
            f"{path} must have room for {num_kept} checkpoints of {size / 1e6:,.1f} MB: "
            f"{needed / 1e6:,.0f} MB. Free: {free / 1e6:,.0f} MB. Make room, choose another "
            "hydra.run.dir, or keep fewer: train.keep=1."
        )


def _check_signatures(signatures: Mapping[str, Signature], arrays: set[str], metrics: Sequence[str]) -> None:
    """Check that a model can be evaluated.

    Args:
        signatures: The model's signatures by name.
        arrays: Names of the arrays of a batch.
        metrics: Metrics that `evaluate` must return.

    Raises:
        ConfigError: The signature `evaluate` is missing, does not take a batch, or does not return
            `loss_sum`, `count` and the metrics; or the model carries state without an `initial_state`.
    """
    problems = []
    if "evaluate" not in signatures:
        problems.append(f"The model must have the signature evaluate. Received: {sorted(signatures)}.")
    else:
        evaluate = signatures["evaluate"]
        if not {"loss_sum", "count"} <= set(evaluate.outputs):
            problems.append(
                f"The model's evaluate must return loss_sum and count. Received: {sorted(evaluate.outputs)}."
            )
        known = [name.removesuffix("_sum") for name in evaluate.outputs if name.endswith("_sum")]
        problems += [unknown("A metric", name, known) for name in sorted(set(metrics) - set(known))]
        if set(evaluate.inputs) - set(evaluate.carried) != arrays:
            problems.append(
                f"The model's evaluate must take a batch, {sorted(arrays)}, and the state it carries. "
                f"Received: {sorted(evaluate.inputs)}."
            )
        if evaluate.carried and "initial_state" not in signatures:
            problems.append(
                f"The model carries {', '.join(evaluate.carried)}: it must have the signature "
                f"initial_state. Received: {sorted(signatures)}."
            )
    if problems:
        raise ConfigError(*problems)
