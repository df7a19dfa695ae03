"""Verification: what was written is restored, evaluated and held against the log."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from pipeline import checkpoints, formats, parity, sealed
from pipeline.binding import ConfigError, first_line
from pipeline.config import Verify
from pipeline.evaluation import Signature, evaluate
from pipeline.formats.base import MANIFEST, Manifest, read_manifest
from pipeline.parity import Parity
from pipeline.run import Metrics, Row, RunDirectory

if TYPE_CHECKING:
    from data.base import Dataset

CONVERTED_TOLERANCE = 1e-5
"""Relative tolerance of a format that a converter has written."""

NUM_PERTURBATIONS = 3

NO_ANSWER = "the trained model did not take the example request; give one in BuiltModel.examples"

ROUNDING = 2.0**-23
"""Relative distance of neighbouring float32 numbers."""


@dataclass(frozen=True)
class Tolerance:
    """|restored - logged| <= absolute + relative x |logged|."""

    absolute: float = 0.0
    relative: float = 0.0

    def of(self, logged: float) -> float:
        """Return the largest difference from a value that is accepted."""
        return self.absolute + self.relative * abs(logged)


def tolerance_of(verify: Verify, *, exact: bool) -> Tolerance:
    """Return the tolerance of a format: its own, or what was given if that is more."""
    own = 0.0 if exact else CONVERTED_TOLERANCE
    return Tolerance(verify.abs_tolerance or 0.0, max(verify.rel_tolerance or 0.0, own))


@dataclass(frozen=True)
class Comparison:
    """A metric as it was logged in training and as the restored model gives it."""

    logged: float
    restored: float
    tolerance: float

    @property
    def difference(self) -> float:
        """Restored minus logged."""
        return self.restored - self.logged

    @property
    def match(self) -> bool:
        """Whether the difference is within the tolerance; a value that is no number never is."""
        return abs(self.difference) <= self.tolerance

    def as_json(self) -> dict[str, Any]:
        """Return what the receipt says of it."""
        return {
            "logged": self.logged,
            "restored": _json_number(self.restored),
            "difference": _json_number(self.difference),
            "tolerance": self.tolerance,
            "match": self.match,
        }


@dataclass(frozen=True)
class Verified:
    """An epoch that was restored from an artifact, with each metric compared.

    Attributes:
        epoch: The epoch.
        format: Name of the artifact's format.
        artifact: Its path relative to the run directory.
        metrics: Comparisons by the metric's name, such as `loss`.
        signatures: Of an export, the answers of its signatures to the recorded requests.
        not_compared: Of an export, the signatures whose answers are not known, each with the reason.
        left_out: Of an export, the signatures that its format cannot hold, each with the reason.
        quantization: What its weights are stored as, or `none`.
        size_bytes: Of an export, the size of its files.
        load_secs: Of an export, the time to open it.
        problems: Why it could not be restored; then there is nothing else.
    """

    epoch: int
    format: str
    artifact: str
    metrics: Mapping[str, Comparison] = field(default_factory=dict)
    signatures: Mapping[str, Parity] = field(default_factory=dict)
    not_compared: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    quantization: str = "none"
    size_bytes: int | None = None
    load_secs: float | None = None
    problems: Sequence[str] = ()

    @property
    def match(self) -> bool:
        """Whether it was restored, and all metrics and answers match, `serving_default`'s among them."""
        good = all(comparison.match for comparison in self.metrics.values())
        answered = all(found.match for found in self.signatures.values())
        return bool(self.metrics) and good and answered and formats.DEFAULT not in self.not_compared

    @property
    def label(self) -> str:
        """How tables call an export, such as `tflite int8@3`."""
        quantization = "" if self.quantization == "none" else f" {self.quantization}"
        return f"{self.format}{quantization}@{self.epoch}"

    def as_json(self) -> dict[str, Any]:
        """Return what the receipt says of it."""
        row: dict[str, Any] = {
            "epoch": self.epoch,
            "format": self.format,
            "artifact": self.artifact,
            "metrics": {f"test/{name}": c.as_json() for name, c in self.metrics.items()},
        }
        if self.size_bytes is not None:
            row["signatures"] = {
                name: {
                    "max_abs_error": _json_number(found.max_abs_error),
                    "argmax_flips": found.argmax_flips,
                    "match": found.match,
                    "latency_ms": {str(size): value for size, value in found.latency_ms.items()},
                }
                for name, found in self.signatures.items()
            }
            row["not_compared"] = dict(self.not_compared)
            row["left_out"] = dict(self.left_out)
            row["quantization"] = self.quantization
            row["size_bytes"] = self.size_bytes
            row["load_secs"] = self.load_secs
        if self.problems:
            row["problems"] = list(self.problems)
        return row

    def losses(self) -> list[str]:
        """Return a sentence for each metric of a quantized export: what the quantization costs."""
        return [
            f"{self.label}: test/{name} {c.logged:.6g} -> {c.restored:.6g}, {c.difference:+.3g} "
            f"(accepted: {c.tolerance:g})"
            for name, c in self.metrics.items()
            if self.quantization != "none"
        ]

    def complaints(self) -> list[str]:
        """Return a sentence for each metric and each signature that does not match."""
        where = f"{self.artifact}, epoch {self.epoch}"
        metrics = [
            f"{where}: test/{name} must be {c.logged!r} as logged. "
            f"Restored: {c.restored!r}, {c.difference:+.3g} (tolerance {c.tolerance:g})."
            for name, c in self.metrics.items()
            if not c.match
        ]
        metrics += [
            f"{where}: {name} is not compared: {reason}." for name, reason in self.not_compared.items()
        ]
        return metrics + [
            f"{where}: {name} must answer as the trained model did. "
            f"Largest difference: {found.max_abs_error:.3g}, argmax flips: {found.argmax_flips}."
            for name, found in self.signatures.items()
            if not found.match
        ]


def compare(row: Row, restored: Metrics, tolerance: Tolerance) -> dict[str, Comparison]:
    """Hold restored metrics against a row of the log.

    Raises:
        ConfigError: They are not the same metrics.
    """
    if row.test.keys() != restored.keys():
        raise ConfigError(
            [
                f"Epoch {row.epoch} of the log must have the metrics {sorted(restored)}. "
                f"Received: {sorted(row.test)}."
            ]
        )
    return {
        name: Comparison(logged, restored[name], tolerance.of(logged)) for name, logged in row.test.items()
    }


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
    format = formats.load(manifest.format)
    started = time.perf_counter()
    _, held = formats.open(directory, row.epoch)
    load_secs = time.perf_counter() - started
    if missing := set(manifest.signatures) - set(held):
        raise ConfigError([f"{directory} must hold {', '.join(sorted(missing))}. Held: {sorted(held)}."])
    if problems := sealed.problems(run.graph.parent, manifest.answers):
        raise ConfigError(problems)
    quantized = manifest.quantization != "none"
    metrics = _metrics(run, manifest, held, row, dataset, verify)
    # The answers of a quantized export differ by design: by how much is reported, and the metrics decide.
    of_answers = Tolerance(math.inf) if quantized else tolerance_of(verify, exact=format.TRAITS.exact)
    requests, answers = parity.read(run.requests), parity.read(run.answers(row.epoch))
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
    restored = _evaluate(formats.evaluable(manifest.format, held, graph), dataset)
    if manifest.quantization != "none":
        accepted = verify.quantized_tolerance
        return compare(
            row, restored, Tolerance(manifest.quantized_tolerance if accepted is None else accepted)
        )
    exact = formats.load(manifest.format).TRAITS.exact
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
    said = (MANIFEST, formats.RECEIPT)
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


def _json_number(value: float) -> float | str:
    """JSON has no word for infinities and not-a-number: they are written as strings."""
    return value if math.isfinite(value) else str(value)
