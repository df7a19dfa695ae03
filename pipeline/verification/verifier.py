"""Verification: what was written is restored, evaluated and held against the log."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from pipeline.config.schema import Verify
from pipeline.errors import ConfigError, first_line
from pipeline.formats import exports
from pipeline.formats.base import MANIFEST, Manifest, read_manifest
from pipeline.graphs import checkpoints, examples
from pipeline.graphs.evaluation import evaluate
from pipeline.graphs.signatures import Signature
from pipeline.runs import checksums
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import Metrics, Row
from pipeline.verification import parity

if TYPE_CHECKING:
    from data.base import Dataset
from pipeline.verification.comparison import Comparison, Tolerance, Verified, compare, tolerance_of

NUM_PERTURBATIONS = 3


NO_ANSWER = "the trained model did not take the example request; give one in BuiltModel.examples"


ROUNDING = 2.0**-23


"""Relative distance of neighbouring float32 numbers."""


def verify_checkpoints(
    run: RunDirectory, rows: Sequence[Row], dataset: Dataset, verify: Verify
) -> list[Verified]:
    """Restore the checkpoint of each row into the run's graph, evaluate it, and compare."""
    if not rows:
        return []
    tolerance = tolerance_of(verify, exact=True)
    opened: checkpoints.Graph | ConfigError
    try:
        opened = checkpoints.open_graph(run.graph)
    except ConfigError as error:
        opened = error

    def restored(row: Row) -> Verified:
        if isinstance(opened, ConfigError):
            raise opened
        checkpoints.restore_row(run, row, {"weights": opened.weights})
        metrics = compare(row, _evaluate(opened.signatures, dataset), tolerance)
        return Verified(row.epoch, "checkpoint", row.checkpoint, metrics)

    return [
        _verified(row.epoch, "checkpoint", row.checkpoint, functools.partial(restored, row))
        for row in tqdm(rows, desc="restore and evaluate", unit="epoch", disable=None)
    ]


def verify_exports(
    run: RunDirectory,
    exports: Mapping[str, Path],
    log: Sequence[Row],
    dataset: Dataset,
    verify: Verify,
) -> list[Verified]:
    """Open each export, evaluate each epoch it holds, and compare metrics and answers.

    Raises:
        ConfigError: An export does not say which epochs it holds, or the log lacks one.
    """
    held = []
    for directory in exports.values():
        manifest = read_manifest(directory)
        for epoch in manifest.epochs:
            if not 0 <= epoch < len(log):
                raise ConfigError([f"{directory} holds epoch {epoch}, which the log does not have."])
            held.append((manifest, directory, epoch))
    return [
        _verified(
            epoch,
            manifest.format,
            str(directory.relative_to(run.path)),
            functools.partial(_verify_export, run, manifest, directory, log[epoch], dataset, verify),
        )
        for manifest, directory, epoch in tqdm(held, desc="restore exports", unit="epoch", disable=None)
    ]


def _verify_export(
    run: RunDirectory, manifest: Manifest, directory: Path, row: Row, dataset: Dataset, verify: Verify
) -> Verified:
    format = exports.load(manifest.format)
    started = time.perf_counter()
    _, held = exports.open(directory, row.epoch)
    load_secs = time.perf_counter() - started
    if missing := set(manifest.signatures) - set(held):
        raise ConfigError([f"{directory} must hold {', '.join(sorted(missing))}. Held: {sorted(held)}."])
    if problems := checksums.problems(run.graph.parent, manifest.answers):
        raise ConfigError(problems)
    quantized = manifest.quantization != "none"
    metrics = _metrics(run, manifest, held, row, dataset, verify)
    # The answers of a quantized export differ by design: by how much is reported, and the metrics decide.
    of_answers = Tolerance(math.inf) if quantized else tolerance_of(verify, exact=format.TRAITS.exact)
    requests, answers = examples.read(run.requests), examples.read(run.answers(row.epoch))
    asked = [name for name in held if name in answers]
    return Verified(
        row.epoch,
        manifest.format,
        str(directory.relative_to(run.path)),
        metrics=metrics,
        signatures={
            name: parity.compare(
                held[name],
                requests[name],
                answers[name],
                abs_tolerance=of_answers.absolute,
                rel_tolerance=of_answers.relative,
                latency=row.epoch == manifest.epochs[-1],
            )
            for name in asked
        },
        not_compared={name: NO_ANSWER for name in held if name not in (*asked, "evaluate")},
        left_out=manifest.left_out,
        quantization=manifest.quantization,
        size_bytes=_size_bytes(directory),
        load_secs=load_secs,
    )


def _metrics(
    run: RunDirectory,
    manifest: Manifest,
    held: Mapping[str, Signature],
    row: Row,
    dataset: Dataset,
    verify: Verify,
) -> dict[str, Comparison]:
    """Evaluate an export and compare its metrics with the logged ones.

    Those of a converted export may in addition be off by what rounding makes of them: see `_spread`.
    """
    graph = functools.cache(lambda: checkpoints.open_graph(run.graph))  # Some formats need none.
    restored = _evaluate(exports.evaluable(manifest.format, held, graph), dataset)
    if manifest.quantization != "none":
        accepted = verify.quantized_tolerance
        return compare(
            row, restored, Tolerance(manifest.quantized_tolerance if accepted is None else accepted)
        )
    exact = exports.load(manifest.format).TRAITS.exact
    found = compare(row, restored, tolerance_of(verify, exact=exact))
    if exact or all(comparison.match for comparison in found.values()):
        return found
    spread = _spread(run, graph(), row, dataset)
    return {
        name: replace(comparison, tolerance=comparison.tolerance + spread[name])
        for name, comparison in found.items()
    }


def _spread(run: RunDirectory, graph: checkpoints.Graph, row: Row, dataset: Dataset) -> Metrics:
    """Return how far each metric moves when every weight is changed by one unit in its last place.

    A metric that is a small difference of large numbers, such as the loss of a regression that has converged,
    moves by far more than a relative 1e-5 when the same sums are rounded in another order.
    """
    checkpoints.restore_row(run, row, {"weights": graph.weights})
    weights = {name: variable.numpy() for name, variable in graph.weights.items()}
    generator = np.random.default_rng(0)
    spread = dict.fromkeys(row.test, 0.0)
    for _ in range(NUM_PERTURBATIONS):
        for name, variable in graph.weights.items():
            if variable.dtype.is_floating:
                signs = generator.choice([-1.0, 1.0], variable.shape)
                variable.assign(weights[name] * (1 + ROUNDING * signs))
        for name, value in _evaluate(graph.signatures, dataset).items():
            spread[name] = max(spread[name], abs(value - row.test[name]))
    return spread


def _size_bytes(directory: Path) -> int:
    """Return the size of an export without what is said about it, which grows when it is verified."""
    said = (MANIFEST, exports.RECEIPT)
    files = (path for path in directory.rglob("*") if path.is_file() and path.name not in said)
    return sum(path.stat().st_size for path in files)


def _verified(epoch: int, format: str, artifact: str, restored: Callable[[], Verified]) -> Verified:
    """Return what was restored; where that fails, the problems are the result."""
    try:
        return restored()
    except ConfigError as error:
        return Verified(epoch, format, artifact, problems=error.problems)
    except Exception as error:  # Each runtime has errors of its own, and the other artifacts are to come.
        problem = f"{artifact}, epoch {epoch}, cannot be evaluated: {first_line(error)}"
        return Verified(epoch, format, artifact, problems=[problem])


def _evaluate(signatures: Mapping[str, Signature], dataset: Dataset) -> Metrics:
    return evaluate(signatures, dataset.test, batch_size=dataset.batch_size)
