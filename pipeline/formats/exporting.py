"""The stage between training and verification: which epochs, in which formats, from what."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from pipeline.config.schema import Export, Verify
from pipeline.errors import ConfigError
from pipeline.formats import exports
from pipeline.formats.base import Requests, Source
from pipeline.graphs import checkpoints, examples
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import Row

if TYPE_CHECKING:
    from data.base import Dataset

NUM_CALIBRATION = 8
"""Requests made of training data, each of a batch, that value ranges are counted on."""

log = logging.getLogger("pipeline")


def rehearse(source: Source, before_each: Callable[[], None] = lambda: None) -> None:
    """Write, open and run the untrained model in each format that is not the run's own graph.

    What a format cannot hold is said, before any training.

    Args:
        source: What is exported.
        before_each: Called before each format; it may raise.

    Raises:
        ConfigError: With every format that cannot be verified, and why.
    """
    problems: list[str] = []
    made = [name for name in source.options.chosen if not exports.load(name).TRAITS.copied]
    for name in tqdm(made, desc="rehearse exports", unit="format", disable=None, leave=False):
        before_each()
        try:
            left_out = exports.rehearse(replace(source, rows=[]), name)
        except ConfigError as error:
            problems += error.problems
            continue
        for signature, reason in left_out.items():
            log.info("%s leaves out %s: %s. It is in saved_model.", name, signature, reason)
    if problems:
        raise ConfigError(problems)


def export(source: Source, before_each: Callable[[], None] = lambda: None) -> None:
    """Export the epochs of a source in each chosen format; `before_each` as in `rehearse`."""
    numbers = ", ".join(map(str, source.numbers))
    for name in tqdm(source.options.chosen, desc="export", unit="format", disable=None, leave=False):
        before_each()
        directory = exports.export(source, name)
        log.info("exported epoch%s %s: %s", "s" if len(source.numbers) > 1 else "", numbers, directory)


def record_answers(run: RunDirectory, rows: Sequence[Row]) -> None:
    """Write what the run's graph answers with the variables of each epoch, where the training did not."""
    missing = [row for row in rows if not run.answers(row.epoch).exists()]
    if missing:
        graph, requests = checkpoints.open_graph(run.graph), examples.read(run.requests)
        for row in missing:
            checkpoints.restore_row(run, row, {"weights": graph.weights})
            examples.write(run.answers(row.epoch), examples.answer(graph.functions, requests))


def source(
    run: RunDirectory, rows: Sequence[Row], options: Export, dataset: Dataset, verify: Verify
) -> Source:
    """Return what exports of the epochs of some rows of a run are written from."""
    return Source(
        run,
        sorted(rows, key=lambda row: row.epoch),
        options,
        examples.read(run.requests),
        functools.partial(_calibration, run, dataset),
        verify.quantized_tolerance or 0.0,
    )


def _calibration(run: RunDirectory, dataset: Dataset) -> list[Requests]:
    """Return requests made of training data; state is carried from each to the next, from its beginning."""
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
