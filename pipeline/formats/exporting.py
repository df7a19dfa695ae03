"""Exporting epochs of a run in several formats: a rehearsal before the training, the exports after it.

    left_out = rehearse(task_of(run, [], options, dataset, verify))  # Before training.
    task = task_of(run, rows, options, dataset, verify)
    export(replace(task, left_out=left_out))  # After training: RUN/export/<format>/<version>/

`left_out` has the signatures that a format cannot hold, so that `export` need not try them again.
"""

from __future__ import annotations

import functools
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from pipeline.config.formats import FORMATS
from pipeline.config.schema import Export, Verify
from pipeline.errors import RoundtripError, UnsupportedError
from pipeline.formats import base, opening
from pipeline.formats.base import ExportTask
from pipeline.formats.manifest import Manifest, write_manifest
from pipeline.graphs import checkpoints, examples
from pipeline.graphs.evaluation import initial_state
from pipeline.graphs.examples import Requests
from pipeline.graphs.signatures import INITIAL_STATE, SESSION_GRAPH
from pipeline.runs import checksums
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import Row

if TYPE_CHECKING:
    from data.base import Dataset

NUM_CALIBRATION = 8
"""Number of requests, each of a batch of training data, on which ranges of values are measured."""

log = logging.getLogger("pipeline")


def rehearse(
    task: ExportTask, before_each: Callable[[], None] = lambda: None
) -> tuple[dict[str, Mapping[str, str]], dict[str, Sequence[str]]]:
    """Export the untrained model in each chosen format that needs a conversion, and open the exports again.

    So the user learns before hours of training that a format cannot hold the model.

    Args:
        task: The task; its rows are not used.
        before_each: Called before each format; it may raise.

    Returns:
        By format, the signatures that the format cannot hold, each with the reason, for
        `ExportTask.left_out`; and by format, why it cannot hold the model, if it is skipped for that.

    Raises:
        UnsupportedError: Some formats cannot hold the model; a sentence for each says why.
    """
    problems: dict[str, Sequence[str]] = {}
    left_out: dict[str, Mapping[str, str]] = {}
    converted = [name for name in task.options.chosen if not FORMATS[name].copied]
    untrained = replace(task, rows=[])
    for name in tqdm(converted, desc="rehearse exports", unit="format", disable=None, leave=False):
        before_each()
        with tempfile.TemporaryDirectory() as folder:
            try:
                left_out[name] = _write(untrained, name, Path(folder))
            except RoundtripError as error:
                problems[name] = error.problems
    _raise_or_say(task, problems)
    return left_out, problems


def _raise_or_say(task: ExportTask, problems: Mapping[str, Sequence[str]]) -> None:
    """Say which formats are skipped, or raise if the user asked for each format by its name.

    Raises:
        UnsupportedError: Formats are not to be skipped, or none is left.
    """
    sentences = [sentence for of_format in problems.values() for sentence in of_format]
    if problems and (not task.options.skip_unsupported or not task.options.without(problems).chosen):
        raise UnsupportedError(*sentences)
    for name, of_format in problems.items():
        log.warning(
            "%s is skipped: %s Leave it out for good: export.formats.%s=false",
            name,
            " ".join(of_format),
            name,
        )


def export(task: ExportTask, before_each: Callable[[], None] = lambda: None) -> dict[str, Sequence[str]]:
    """Export the epochs of a task in each chosen format.

    If one format fails, none gets a new version, unless formats that cannot hold the model are skipped.

    Args:
        task: The task.
        before_each: Called before each format; it may raise.

    Returns:
        By format, why it cannot hold the model, if it was skipped for that.

    Raises:
        DamagedError: The graph or a checkpoint is damaged.
        OSError: The disk does not take a file.
        UnsupportedError: Some formats cannot hold the model; a sentence for each says why.
    """
    numbers = ", ".join(map(str, task.epochs))
    problems: dict[str, Sequence[str]] = {}
    # Versions get their names when the stack is left without an exception: all of them, or none.
    with ExitStack() as versions:
        directories = []
        for name in tqdm(task.options.chosen, desc="export", unit="format", disable=None, leave=False):
            before_each()
            try:
                with ExitStack() as version:
                    directory, staging = version.enter_context(task.run.new_version(name))
                    _write(task, name, staging)
                    versions.push(version.pop_all())
            except UnsupportedError as error:
                problems[name] = error.problems
            else:
                directories.append(directory)
        _raise_or_say(task, problems)
    for directory in directories:
        log.info("exported epoch%s %s: %s", "s" if len(task.epochs) > 1 else "", numbers, directory)
    return problems


def _write(task: ExportTask, name: str, directory: Path) -> Mapping[str, str]:
    """Write an export and its manifest; return the signatures that the format cannot hold, with reasons.

    Unless a rehearsal has done so, a converted export is then opened, to see that it can be evaluated.

    Raises:
        UnsupportedError: The format cannot hold the model, or cannot be evaluated.
    """
    left_out = base.load(name).write(task, directory)
    quantization = task.options.quantization_of(FORMATS[name])
    held = [key for key in task.requests if key != SESSION_GRAPH]
    manifest = Manifest(
        format=name,
        epochs=task.epochs,
        signatures=[key for key in held if key not in left_out],
        left_out=dict(left_out),
        run=str(task.run.path),
        quantization=quantization,
        quantized_tolerance=0.0 if quantization == "none" else task.quantized_tolerance,
        files=checksums.digests(directory, directory.rglob("*")),
        answers=checksums.digests(task.run.graph.parent, map(task.run.answers, task.epochs)),
    )
    write_manifest(directory, manifest)
    if name not in task.left_out and not FORMATS[name].copied:
        _, restored = opening.open(directory, task.epochs[-1] if task.epochs else 0)
        try:
            opening.evaluable(name, restored, task.graph)
        except UnsupportedError as error:
            reasons = [f"It leaves out {key}: {reason.rstrip('.')}." for key, reason in left_out.items()]
            raise UnsupportedError(*error.problems, *reasons) from error
    if name not in task.left_out:
        for signature, reason in left_out.items():
            log.info("%s leaves out %s: %s. It is in saved_model.", name, signature, reason)
    return left_out


def record_answers(run: RunDirectory, rows: Sequence[Row]) -> None:
    """Write the answers of the run's graph for each epoch that has none yet.

    Training writes answers only for the epochs that it exports.

    Raises:
        DamagedError: The graph, the requests or a checkpoint is damaged.
        UntrustedError: The graph has an operation that is not allowed.
    """
    missing = [row for row in rows if not run.answers(row.epoch).exists()]
    if missing:
        graph, requests = checkpoints.open_graph(run.graph), examples.read(run.requests)
        for row in missing:
            checkpoints.restore_row(run, row, {"weights": graph.weights})
            examples.write(run.answers(row.epoch), examples.answer(graph.functions, requests))


def task_of(
    run: RunDirectory, rows: Sequence[Row], options: Export, dataset: Dataset, verify: Verify
) -> ExportTask:
    """Return the task of exporting some epochs of a run.

    Args:
        run: The run.
        rows: The rows of the epochs; none for a rehearsal.
        options: The formats and their options.
        dataset: The data set of the run, for the calibration.
        verify: Has the tolerance for quantized exports.

    Raises:
        DamagedError: The requests are damaged.
    """
    requests = examples.read(run.requests)
    return ExportTask(
        run,
        sorted(rows, key=lambda row: row.epoch),
        options,
        {**requests, "evaluate": _batch(run, dataset, has_state=INITIAL_STATE in requests)},
        functools.partial(_calibration, run, dataset),
        verify.quantized_tolerance or 0.0,
    )


def _batch(run: RunDirectory, dataset: Dataset, *, has_state: bool) -> dict[str, Any]:
    """Return the first batch of the test split as a request to `evaluate`, with the initial state."""
    size = dataset.batch_size
    batch = {name: np.asarray(array[:size]) for name, array in dataset.test.items()}
    if not has_state:
        return batch
    state = initial_state(checkpoints.open_graph(run.graph).signatures, len(next(iter(batch.values()))))
    return {**batch, **{name: np.asarray(value) for name, value in state.items()}}


def _calibration(run: RunDirectory, dataset: Dataset) -> list[Requests]:
    """Return requests made of training data.

    A request carries the state that the one before left behind, so that the ranges of the state are those
    of real use, and not only those of its initial value.
    """
    signatures = checkpoints.open_graph(run.graph).signatures
    known = {
        name: signature
        for name, signature in signatures.items()
        if name != "evaluate"
        and signature.inputs
        and set(signature.inputs) <= {*dataset.train, *signature.carried}
    }
    states: dict[str, Any] = {
        name: signatures["initial_state"].call(batch_size=np.asarray(examples.BATCH_SIZE, np.int32))
        for name, signature in known.items()
        if signature.carried
    }
    requests: list[Requests] = []
    for start in range(0, min(dataset.num_train, NUM_CALIBRATION * examples.BATCH_SIZE), examples.BATCH_SIZE):
        arrays = {name: array[start:] for name, array in dataset.train.items()}
        batch = examples.example_requests(known, arrays)
        for name, signature in known.items():
            if signature.carried:
                batch[name] |= {key: np.asarray(states[name][key]) for key in signature.carried}
                states[name] = signature.call(**batch[name])
        requests.append(batch)
    return requests
