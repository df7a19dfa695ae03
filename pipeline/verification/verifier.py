"""Restoring checkpoints and exports, evaluating them, and comparing them with the log of the training.

    verifier = Verifier(run, run.read_rows(), dataset, verify)
    found = verifier.checkpoints(rows) + verifier.exports([run.newest_export("onnx")])
    all(epoch.match for epoch in found)

A verifier knows neither the model's code nor the training: it reads files, and calls signatures.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from pipeline.config.formats import FORMATS
from pipeline.config.schema import Verify
from pipeline.errors import DamagedError, RoundtripError, first_line
from pipeline.formats import opening
from pipeline.formats.manifest import MANIFEST, RECEIPT, Manifest, read_manifest
from pipeline.graphs import checkpoints, examples
from pipeline.graphs.checkpoints import Graph
from pipeline.graphs.evaluation import evaluate
from pipeline.graphs.signatures import Signature
from pipeline.runs import checksums
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import Metrics, Row
from pipeline.verification import answers
from pipeline.verification.answers import AnswerComparison
from pipeline.verification.comparison import Comparison, Tolerance, compare, tolerance_of
from pipeline.verification.receipt import VerifiedEpoch

if TYPE_CHECKING:
    from data.base import Dataset

NUM_PERTURBATIONS = 3
"""Number of random perturbations of all weights, from which the effect of rounding is estimated."""

ROUNDING = 2.0**-23
"""Relative distance of neighbouring float32 numbers, at most."""

NO_ANSWER = "the trained model did not take the example request; give one in BuiltModel.examples"


@dataclass(frozen=True)
class Verifier:
    """Restores the checkpoints and the exports of a run, and compares them with the run's log.

    Attributes:
        run: The run.
        log: All rows of its log.
        dataset: The data set that the run was trained on.
        verify: See `pipeline.config.schema.Verify`.
    """

    run: RunDirectory
    log: Sequence[Row]
    dataset: Dataset
    verify: Verify

    def checkpoints(self, rows: Sequence[Row]) -> list[VerifiedEpoch]:
        """Restore the checkpoint of each row, evaluate it, and compare its metrics with the row's.

        A checkpoint that cannot be restored is no exception: its result holds the problems.
        """
        # Opened once, but inside of the first result: a damaged graph is then a problem of every epoch.
        graph = functools.cache(lambda: checkpoints.open_graph(self.run.graph))
        return [
            _verified(
                row.epoch,
                "checkpoint",
                row.checkpoint,
                functools.partial(self._verify_checkpoint, row, graph),
            )
            for row in tqdm(rows, desc="restore and evaluate", unit="epoch", disable=None if rows else True)
        ]

    def _verify_checkpoint(self, row: Row, graph: Callable[[], Graph]) -> VerifiedEpoch:
        checkpoints.restore_row(self.run, row, {"weights": graph().weights})
        restored = self._evaluate(graph().signatures)
        metrics = compare(row, restored, tolerance_of(self.verify, exact=True))
        return VerifiedEpoch(row.epoch, "checkpoint", row.checkpoint, metrics)

    def exports(self, directories: Iterable[Path]) -> list[VerifiedEpoch]:
        """Open each export, evaluate each of its epochs, and compare metrics and answers.

        An export that cannot be opened is no exception: its result holds the problems.

        Raises:
            DamagedError: An export has no readable manifest, or holds an epoch that the log does not have.
        """
        held = []
        for directory in directories:
            manifest = read_manifest(directory)
            for epoch in manifest.epochs:
                if not 0 <= epoch < len(self.log):
                    raise DamagedError(f"{directory} holds epoch {epoch}, which the log does not have.")
                held.append((manifest, directory, epoch))
        return [
            _verified(
                epoch,
                manifest.format,
                str(directory.relative_to(self.run.path)),
                functools.partial(self._verify_export, manifest, directory, self.log[epoch]),
            )
            for manifest, directory, epoch in tqdm(held, desc="restore exports", unit="epoch", disable=None)
        ]

    def _verify_export(self, manifest: Manifest, directory: Path, row: Row) -> VerifiedEpoch:
        started = time.perf_counter()
        _, held = opening.open(directory, row.epoch)
        load_secs = time.perf_counter() - started
        if missing := set(manifest.signatures) - set(held):
            raise DamagedError(f"{directory} must hold {', '.join(sorted(missing))}. Held: {sorted(held)}.")
        # The export is measured by these answers: whoever could change them could make any export match.
        if problems := checksums.problems(self.run.graph.parent, manifest.answers):
            raise DamagedError(*problems)
        metrics = self._compare_metrics(manifest, held, row)
        compared = self._compare_answers(manifest, held, row)
        return VerifiedEpoch(
            row.epoch,
            manifest.format,
            str(directory.relative_to(self.run.path)),
            metrics=metrics,
            signatures=compared,
            not_compared={name: NO_ANSWER for name in held if name not in (*compared, "evaluate")},
            left_out=manifest.left_out,
            quantization=manifest.quantization,
            size_bytes=_size_bytes(directory),
            load_secs=load_secs,
        )

    def _compare_answers(
        self, manifest: Manifest, held: Mapping[str, Signature], row: Row
    ) -> dict[str, AnswerComparison]:
        """Compare the answers of each signature for which the trained model's answer is recorded."""
        tolerance = tolerance_of(self.verify, exact=FORMATS[manifest.format].exact)
        if manifest.quantization != "none":
            # The answers of a quantized export differ by design. The receipt reports by how much, and the
            # metrics alone decide whether the export matches.
            tolerance = Tolerance(math.inf)
        requests = examples.read(self.run.requests)
        expected = examples.read(self.run.answers(row.epoch))
        return {
            name: answers.compare(
                signature,
                requests[name],
                expected[name],
                abs_tolerance=tolerance.absolute,
                rel_tolerance=tolerance.relative,
                # All epochs of an export run the same graph, so one measurement is enough.
                latency=row.epoch == manifest.epochs[-1],
            )
            for name, signature in held.items()
            if name in expected
        }

    def _compare_metrics(
        self, manifest: Manifest, held: Mapping[str, Signature], row: Row
    ) -> dict[str, Comparison]:
        """Evaluate an export, and compare its metrics with the logged ones.

        For a converted export, the effect of rounding is added to the tolerance; see `_spread`.
        """
        # Only called if needed: an exact format, or one that holds `evaluate`, does without the run's graph.
        graph = functools.cache(functools.partial(self._graph, row))
        restored = self._evaluate(opening.evaluable(manifest.format, held, graph))
        if manifest.quantization != "none":
            accepted = self.verify.quantized_tolerance
            accepted = manifest.quantized_tolerance if accepted is None else accepted
            return compare(row, restored, Tolerance(accepted))
        exact = FORMATS[manifest.format].exact
        found = compare(row, restored, tolerance_of(self.verify, exact=exact))
        if exact or all(comparison.match for comparison in found.values()):
            return found
        spread = self._spread(graph(), row)
        return {
            name: replace(comparison, tolerance=comparison.tolerance + spread[name])
            for name, comparison in found.items()
        }

    def _graph(self, row: Row) -> Graph:
        """Return the run's graph with the variables of an epoch: a loss may have regularizers of them."""
        graph = checkpoints.open_graph(self.run.graph)
        checkpoints.restore_row(self.run, row, {"weights": graph.weights})
        return graph

    def _spread(self, graph: Graph, row: Row) -> Metrics:
        """Return the largest change of each metric when every weight changes by one unit in its last place.

        A metric that is a small difference of large numbers, such as the loss of a regression that has
        converged, moves by far more than a relative 1e-5 when the same sums are rounded in another order.
        """
        # The run's own graph is perturbed, and not the export, whose weights most runtimes do not give away.
        weights = {name: variable.numpy() for name, variable in graph.weights.items()}
        generator = np.random.default_rng(0)
        spread = dict.fromkeys(row.test, 0.0)
        for _ in range(NUM_PERTURBATIONS):
            for name, variable in graph.weights.items():
                if variable.dtype.is_floating:
                    signs = generator.choice([-1.0, 1.0], variable.shape)
                    variable.assign(weights[name] * (1 + ROUNDING * signs))
            for name, value in self._evaluate(graph.signatures).items():
                spread[name] = max(spread[name], abs(value - row.test[name]))
        return spread

    def _evaluate(self, signatures: Mapping[str, Signature]) -> Metrics:
        return evaluate(signatures, self.dataset.test, batch_size=self.dataset.batch_size)


def _size_bytes(directory: Path) -> int:
    """Return the size of an export in bytes, without its manifest and its receipt."""
    files = (path for path in directory.rglob("*") if path.is_file() and path.name not in (MANIFEST, RECEIPT))
    return sum(path.stat().st_size for path in files)


def _verified(epoch: int, format: str, artifact: str, restored: Callable[[], VerifiedEpoch]) -> VerifiedEpoch:
    """Return the result of restoring an epoch, or, if that fails, a result with the problems.

    Args:
        epoch: The epoch.
        format: The name of the artifact's format.
        artifact: The path of the artifact, relative to the run directory.
        restored: Restores and compares; returns the result.
    """
    try:
        return restored()
    except RoundtripError as error:
        return VerifiedEpoch(epoch, format, artifact, problems=error.problems)
    except Exception as error:  # The runtimes have no common type of exception; other artifacts must go on.
        problem = f"{artifact}, epoch {epoch}, cannot be evaluated: {first_line(error)}"
        return VerifiedEpoch(epoch, format, artifact, problems=[problem])
