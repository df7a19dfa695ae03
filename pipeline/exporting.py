"""The stage between training and verification: which epochs, in which formats, from what."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tqdm import tqdm

from pipeline import checkpoints, formats, parity
from pipeline.binding import ConfigError
from pipeline.config import Export
from pipeline.formats.base import Requests, Source
from pipeline.run import Row, RunDirectory

if TYPE_CHECKING:
    from data.base import Dataset

NUM_CALIBRATION = 8
"""Requests made of training data, each of a batch, that value ranges are counted on."""

log = logging.getLogger("pipeline")


def rehearse(run: RunDirectory, options: Export, dataset: Dataset) -> None:
    """Convert, open and run the untrained model in each format that a converter writes.

    What a format cannot hold is said, before any training.

    Raises:
        ConfigError: With every format that cannot be verified, and why.
    """
    problems: list[str] = []
    source = _source(run, [], options, dataset)
    converted = [name for name in options.chosen if not formats.load(name).TRAITS.exact]
    for name in tqdm(converted, desc="rehearse exports", unit="format", disable=None, leave=False):
        try:
            left_out = formats.rehearse(source, name)
        except ConfigError as error:
            problems += error.problems
            continue
        for signature, reason in left_out.items():
            log.info("%s leaves out %s: %s. It is in saved_model.", name, signature, reason)
    if problems:
        raise ConfigError(problems)


def export(run: RunDirectory, rows: Sequence[Row], options: Export, dataset: Dataset) -> None:
    """Export epochs of a run in each chosen format."""
    source = _source(run, [row.epoch for row in rows], options, dataset)
    numbers = ", ".join(str(row.epoch) for row in rows)
    for name in tqdm(options.chosen, desc="export", unit="format", disable=None, leave=False):
        directory = formats.export(source, name)
        log.info("exported epoch%s %s: %s", "s" if len(rows) > 1 else "", numbers, directory)


def record_answers(run: RunDirectory, rows: Sequence[Row]) -> None:
    """Write what the run's graph answers with the variables of each epoch, where the training did not."""
    missing = [row.epoch for row in rows if not run.answers(row.epoch).exists()]
    if missing:
        graph, requests = checkpoints.open_graph(run.graph), parity.read(run.requests)
        for epoch in missing:
            checkpoints.restore(run.checkpoint(epoch), graph.weights)
            parity.write(run.answers(epoch), parity.answer(graph.signatures, requests))


def _source(run: RunDirectory, epochs: Sequence[int], options: Export, dataset: Dataset) -> Source:
    requests = parity.read(run.requests)

    def calibration() -> Sequence[Requests]:
        signatures = checkpoints.open_graph(run.graph).signatures
        starts = range(0, min(dataset.num_train, NUM_CALIBRATION * parity.BATCH_SIZE), parity.BATCH_SIZE)
        return [
            parity.example_requests(signatures, {n: a[start:] for n, a in dataset.train.items()})
            for start in starts
        ]

    return Source(run, epochs, options, requests, calibration)
