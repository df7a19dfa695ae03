"""Verification: what was written is restored, evaluated and held against the log."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from pipeline import checkpoints, formats, parity
from pipeline.binding import ConfigError
from pipeline.config import Verify
from pipeline.evaluation import Signature, evaluate
from pipeline.formats.base import MANIFEST, Manifest, read_manifest
from pipeline.parity import Parity
from pipeline.run import Metrics, Row, RunDirectory

if TYPE_CHECKING:
    from data.base import Dataset

CONVERTED_TOLERANCE = 1e-5
"""Relative tolerance of a format that a converter has written."""

FLOAT32_RESOLUTION = 2.0**-23


@dataclass(frozen=True)
class Tolerance:
    """|restored - logged| <= absolute + relative x |logged| + of_scale x the metric's scale.

    The scale of a metric is its largest value in the log. An error of a millionth of what it was before
    training is rounding in the outputs it is the difference of: another order of the same float32
    operations gives another one.
    """

    absolute: float = 0.0
    relative: float = 0.0
    of_scale: float = 0.0

    def of(self, logged: float, scale: float) -> float:
        """Return the largest difference from a value that is accepted."""
        return self.absolute + self.relative * abs(logged) + self.of_scale * scale


def tolerance_of(verify: Verify, *, exact: bool) -> Tolerance:
    """Return the tolerance that was given, or else that of a format."""
    if verify.abs_tolerance is not None or verify.rel_tolerance is not None:
        return Tolerance(verify.abs_tolerance or 0.0, verify.rel_tolerance or 0.0)
    return Tolerance() if exact else Tolerance(0.0, CONVERTED_TOLERANCE, FLOAT32_RESOLUTION)


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
    left_out: Mapping[str, str] = field(default_factory=dict)
    quantization: str = "none"
    size_bytes: int | None = None
    load_secs: float | None = None
    problems: Sequence[str] = ()

    @property
    def match(self) -> bool:
        """Whether it was restored, and every metric and every answer matches."""
        good = all(comparison.match for comparison in self.metrics.values())
        return bool(self.metrics) and good and all(parity.match for parity in self.signatures.values())

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
        return metrics + [
            f"{where}: {name} must answer as the trained model did. "
            f"Largest difference: {found.max_abs_error:.3g}, argmax flips: {found.argmax_flips}."
            for name, found in self.signatures.items()
            if not found.match
        ]


def compare(
    row: Row, restored: Metrics, tolerance: Tolerance, log: Sequence[Row] = ()
) -> dict[str, Comparison]:
    """Hold restored metrics against a row of the log.

    Args:
        row: The row.
        restored: Metrics by name.
        tolerance: How far they may be off.
        log: Every row, for the metrics' scales.

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
    scales = {name: max((abs(other.test.get(name, 0.0)) for other in log), default=0.0) for name in restored}
    return {
        name: Comparison(logged, restored[name], tolerance.of(logged, scales[name]))
        for name, logged in row.test.items()
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
        checkpoints.restore(run.path / row.checkpoint, opened.weights)
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
            functools.partial(_verify_export, run, manifest, directory, log, epoch, dataset, verify),
        )
        for manifest, directory, epoch in tqdm(held, desc="restore exports", unit="epoch", disable=None)
    ]


def _verify_export(
    run: RunDirectory,
    manifest: Manifest,
    directory: Path,
    log: Sequence[Row],
    epoch: int,
    dataset: Dataset,
    verify: Verify,
) -> Verified:
    row = log[epoch]
    format = formats.load(manifest.format)
    tolerance = tolerance_of(verify, exact=format.TRAITS.exact)
    of_answers = tolerance
    if manifest.quantization != "none":
        # Its answers differ by design; how much is reported, and the metrics decide.
        tolerance, of_answers = Tolerance(verify.quantized_tolerance or 0.0), Tolerance(math.inf)
    started = time.perf_counter()
    held = format.open(directory, row.epoch)
    load_secs = time.perf_counter() - started
    signatures = held
    if "evaluate" not in held:
        signatures = formats.evaluable(manifest.format, held, checkpoints.open_graph(run.graph))
    requests, answers = parity.read(run.requests), parity.read(run.answers(row.epoch))
    if missing := set(manifest.signatures) - set(held):
        raise ConfigError([f"{directory} must hold {', '.join(sorted(missing))}. Held: {sorted(held)}."])
    return Verified(
        row.epoch,
        manifest.format,
        str(directory.relative_to(run.path)),
        metrics=compare(row, _evaluate(signatures, dataset), tolerance, log),
        signatures={
            name: parity.compare(
                held[name],
                requests[name],
                answers[name],
                abs_tolerance=of_answers.absolute,
                rel_tolerance=of_answers.relative,
                latency=row.epoch == manifest.epochs[-1],
            )
            for name in manifest.signatures
            if name in answers
        },
        left_out=manifest.left_out,
        quantization=manifest.quantization,
        size_bytes=_size_bytes(directory),
        load_secs=load_secs,
    )


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


def _evaluate(signatures: Mapping[str, Signature], dataset: Dataset) -> Metrics:
    return evaluate(signatures, dataset.test, batch_size=dataset.batch_size)


def _json_number(value: float) -> float | str:
    """JSON has no word for infinities and not-a-number: they are written as strings."""
    return value if math.isfinite(value) else str(value)
