"""Preparing a training: build the model, write its graph, and check now whatever would fail hours later."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from pipeline import runtime
from pipeline.errors import ConfigError, DataSetError, DiskFullError, first_line, unknown
from pipeline.graphs import checkpoints, examples
from pipeline.graphs.evaluation import initial_state
from pipeline.graphs.signatures import METRICS, Signature
from pipeline.runs.directory import INDEX, RunDirectory
from pipeline.runs.policy import Policy

if TYPE_CHECKING:
    from data.base import Dataset
    from models.base import BuiltModel, Model
from pipeline.training import initial
from pipeline.training.loop import Training, _functions
from pipeline.training.time_limits import TimeLimits

log = logging.getLogger("pipeline")


def batch_specs(dataset: Dataset) -> dict[str, tf.TensorSpec]:
    """Return the spec of each array of a batch by name; its first dimension, the batch, is free."""
    return {
        name: tf.TensorSpec([None, *array.shape[1:]], tf.as_dtype(array.dtype), name)
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
    built, signatures = _build(model, dataset, policy.train.precision)
    _check_signatures(signatures, set(dataset.train), metrics)
    _check_adds_up(signatures, dataset)
    steps_per_epoch = dataset.num_train // dataset.batch_size
    keras_optimizer = optimizer.build(steps_per_epoch * policy.train.epochs)
    if policy.train.precision == "mixed_float16":
        # As `keras.Model.compile` does: small gradients would be 0 in float16.
        keras_optimizer = keras.optimizers.LossScaleOptimizer(keras_optimizer, name="loss_scale_optimizer")
    # Before the first checkpoint: Keras otherwise makes the optimizer's variables during the first step.
    keras_optimizer.build(list(built.trainable.values()))
    use_xla = policy.train.compile == "xla"
    limits = TimeLimits(policy.train.max_seconds, policy.train.checkpoint_secs)
    training = Training(
        run, dataset, built, keras_optimizer, signatures, policy, seed, use_xla, stopped, limits
    )
    _check_room(training)
    if run.log.exists():
        _go_on(training, optimizer, overrides)
    else:
        _begin(training, config, overrides)
    return training


def _build(model: Model, dataset: Dataset, precision: str) -> tuple[BuiltModel, dict[str, Signature]]:
    """Build a model for a data set, and trace its signatures.

    Raises:
        ConfigError: The model cannot be made, does not fit the data, or does not compute with the precision.
    """
    if hasattr(model, "fit_preprocessing"):
        model.fit_preprocessing(dataset.train)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        try:
            built = model.build(batch_specs(dataset), dataset.metadata)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        functions = {name: function.get_concrete_function() for name, function in built.signatures.items()}
    except TypeError as error:
        if precision == "float32":
            raise
        # A model of raw operations mixes the outputs of its layers with float32.
        raise ConfigError(
            f"train.precision={precision} needs a model made for it, such as model=keras. "
            f"{type(model).__name__} is not: {first_line(error)} Use train.precision=float32."
        ) from error
    finally:
        # A layer keeps the policy with which it was made. Whatever is made later is none of the model.
        keras.config.set_dtype_policy(before)
    if precision != "float32" and not _computes_in(precision, functions.values()):
        half = precision.removeprefix("mixed_")
        raise ConfigError(
            f"train.precision={precision} must change what the model computes. {type(model).__name__} has no "
            f"operation in {half}: it does not follow Keras' dtype policy, or has one of its own. "
            "Use train.precision=float32, or model=keras with a function that makes the network."
        )
    return built, {name: checkpoints.signature_of(function) for name, function in functions.items()}


def _computes_in(precision: str, functions: Iterable[Any]) -> bool:
    """Return whether one of some traced functions has an operation in a half precision."""
    half = tf.as_dtype(precision.removeprefix("mixed_")).as_datatype_enum
    graphs = [function.graph.as_graph_def() for function in functions]
    nodes = [node for graph in graphs for node in graph.node]
    nodes += [node for graph in graphs for inner in graph.library.function for node in inner.node_def]
    return any(value.type == half for node in nodes for value in node.attr.values())


def _go_on(training: Training, optimizer: Any, overrides: Sequence[str]) -> None:
    """Check that a run can go on, and write what may differ, such as more epochs, into `run.json`."""
    run, dataset, epochs = training.run, training.dataset, training.policy.train.epochs
    steps_per_epoch = dataset.num_train // dataset.batch_size
    facts = run.read_facts()
    # More epochs are harmless for a constant learning rate only. So the optimizers are compared, as the
    # configurations that Keras gives of them.
    before = facts["config"]["train"]["epochs"]
    schedules = [optimizer.build(steps_per_epoch * number) for number in (before, epochs)]
    _check_same(run, facts, dataset, *(schedule.get_config() for schedule in schedules))
    facts["config"]["train"]["epochs"] = epochs
    for key in ("max_seconds", "checkpoint_secs"):
        facts["config"]["train"][key] = getattr(training.policy.train, key)
    run.write_facts({**facts, "overrides": list(overrides)})


def _begin(training: Training, config: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Write the files that all epochs of a new run share: the graph, the requests and `run.json`."""
    run, dataset, built = training.run, training.dataset, training.built
    if (source := training.policy.train.init_from) is not None:
        initial.begin_from(source, built)
    checkpoints.write_graph(run.graph, built)
    requests = examples.example_requests(_functions(built, training.signatures), dataset.test)
    for name, example in built.examples.items():
        requests[name] |= {key: np.asarray(value) for key, value in example.items()}
    if METRICS in training.signatures:
        # Zeros would say nothing: most metrics of nothing are 0 / 0.
        batch = {name: array[: dataset.batch_size] for name, array in dataset.test.items()}
        counted = training.signatures["evaluate"].call(**batch)
        specs = training.signatures[METRICS].inputs
        requests[METRICS] = {name: spec.cast(np.asarray(counted[name])) for name, spec in specs.items()}
    examples.write(run.requests, requests)
    run.write_facts(
        {
            "seed": training.seed,
            **runtime.describe(),
            "data": {
                "fingerprint": dataset.fingerprint(),
                "num_train": dataset.num_train,
                "num_test": dataset.num_test,
                "num_validation": dataset.num_validation,
                "metadata": dict(dataset.metadata),
            },
            "model": _facts_of_model(built),
            "sizes": {"graph_bytes": sum(f.stat().st_size for f in run.graph.rglob("*") if f.is_file())},
            "files": run.shared_files(),
            "overrides": list(overrides),
            "config": config,
        }
    )


def _facts_of_model(built: BuiltModel) -> dict[str, Any]:
    trained = built.trainable.keys()
    return {
        "parameters": sum(variable.shape.num_elements() for variable in built.variables.values()),
        "variables": {
            path: {"shape": v.shape.as_list(), "dtype": v.dtype.name, "trained": path in trained}
            for path, v in built.variables.items()
        },
    }


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


ADDS_UP = 0.4
"""How far the sums of a batch may be from those of its two halves, as a fraction.

Keras divides a masked loss by the number of values that count. So a sum depends a little on its batch. A mean
in place of a sum is off by a half.
"""


def _check_adds_up(signatures: Mapping[str, Signature], dataset: Dataset) -> None:
    """Check that the outputs of `evaluate` for a batch are the sums of those for its two halves.

    Raises:
        ConfigError: An output does not add up, such as a mean: the metrics of a split would be wrong.
    """
    half = min(dataset.batch_size, dataset.num_test) // 2
    if not half:
        return

    def sums(first: int, num_rows: int) -> Mapping[str, np.ndarray]:
        batch = {name: array[first : first + num_rows] for name, array in dataset.test.items()}
        outputs = signatures["evaluate"].call(**batch, **initial_state(signatures, num_rows))
        carried = signatures["evaluate"].carried
        return {key: np.asarray(value, np.float64) for key, value in outputs.items() if key not in carried}

    whole, first, second = sums(0, 2 * half), sums(0, half), sums(half, half)
    problems = []
    for name, value in whole.items():
        parts, size = first[name] + second[name], np.abs(first[name]) + np.abs(second[name])
        allowed = 0 if name == "count" else ADDS_UP * np.max(size, initial=0)
        if np.isfinite(value).all() and np.max(np.abs(value - parts), initial=0) > allowed:
            problems.append(
                f"The output {name} of evaluate must be a sum over the rows of the batch. For the first "
                f"{2 * half} rows of the test split it is {np.sum(value):.6g}; for their halves, "
                f"{np.sum(first[name]):.6g} and {np.sum(second[name]):.6g}, it is {np.sum(parts):.6g}. "
                "Return the sum, not the mean."
            )
    if problems:
        raise ConfigError(*problems)


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
    if train.checkpoint_secs is not None:
        num_kept += 1
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
        computed = signatures.get(METRICS, Signature({}, {}, dict))
        known = [name.removesuffix("_sum") for name in evaluate.outputs if name.endswith("_sum")]
        known = [*(name for name in known if name not in computed.inputs), *computed.outputs]
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
