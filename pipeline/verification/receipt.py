"""Receipts: the verdict on a run and on each of its exports, as JSON files that carry their own checksum.

    receipt = read(run.verification)
    receipt.match, receipt.complaints()

A receipt holds numbers. Whether they match is computed whenever a receipt is read. The terminal, the JSON
file, the page, the exit code and the predictor all take the verdict from here, so they cannot disagree.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pipeline.config.formats import DEFAULT_SIGNATURE, FORMATS
from pipeline.formats.manifest import FOLDERS, RECEIPT, read_manifest
from pipeline.runs import checksums, locks
from pipeline.runs.directory import RunDirectory
from pipeline.runs.files import write_text
from pipeline.verification.answers import AnswerComparison
from pipeline.verification.comparison import Comparison, number

MATCH, MISMATCH = "match", "mismatch"
"""The verdicts."""

TEST = "test/"
"""Prefix of the metrics of the held-out split in a receipt."""


def verdict_of(match: bool) -> str:
    """Return the verdict for the result of comparisons."""
    return MATCH if match else MISMATCH


@dataclass(frozen=True)
class VerifiedEpoch:
    """The result of restoring one epoch from a checkpoint or an export (an artifact).

    Attributes:
        epoch: The epoch.
        format: The name of the artifact's format.
        artifact: The path of the artifact, relative to the run directory.
        metrics: The comparison of each metric, by a name such as `loss`.
        signatures: For an export, the comparison of the answers of each signature.
        not_compared: For an export, the signatures without a recorded answer, each with the reason.
        left_out: For an export, the signatures that its format cannot hold, each with the reason.
        quantization: The quantization of the weights, or `none`.
        size_bytes: For an export, the size of its files.
        load_secs: For an export, the time that it took to open it.
        problems: Why the epoch could not be restored. If there are any, the other results are empty.
    """

    epoch: int
    format: str
    artifact: str
    metrics: Mapping[str, Comparison] = field(default_factory=dict)
    signatures: Mapping[str, AnswerComparison] = field(default_factory=dict)
    not_compared: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    quantization: str = "none"
    size_bytes: int | None = None
    load_secs: float | None = None
    problems: Sequence[str] = ()

    @property
    def match(self) -> bool:
        """Whether the epoch was restored, and all metrics and all answers match.

        An export whose `serving_default` has no recorded answer does not match: its main purpose is unproven.
        """
        good = all(comparison.match for comparison in self.metrics.values())
        answered = all(found.match for found in self.signatures.values())
        return bool(self.metrics) and good and answered and DEFAULT_SIGNATURE not in self.not_compared

    @property
    def label(self) -> str:
        """The name of an export in tables, such as `tflite int8@3`."""
        quantization = "" if self.quantization == "none" else f" {self.quantization}"
        return f"{self.format}{quantization}@{self.epoch}"

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        """Return an epoch from the JSON values of a receipt.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: The values are not those of an epoch.
        """
        metrics = {str(name): Comparison.from_json(one) for name, one in facts["metrics"].items()}
        answers = facts.get("signatures", {})
        return cls(
            _integer(facts["epoch"]),
            _text(facts["format"]),
            _text(facts["artifact"]),
            {name.removeprefix(TEST): one for name, one in metrics.items()},
            {str(name): AnswerComparison.from_json(one) for name, one in answers.items()},
            {str(name): _text(reason) for name, reason in facts.get("not_compared", {}).items()},
            {str(name): _text(reason) for name, reason in facts.get("left_out", {}).items()},
            _text(facts.get("quantization", "none")),
            None if facts.get("size_bytes") is None else _integer(facts["size_bytes"]),
            None if facts.get("load_secs") is None else number(facts["load_secs"]),
            [_text(problem) for problem in facts.get("problems", [])],
        )

    @property
    def where(self) -> str:
        """The beginning of a sentence about this epoch."""
        return f"{self.artifact}, epoch {self.epoch}: "

    def to_json(self) -> dict[str, Any]:
        """Return the epoch as JSON values."""
        facts: dict[str, Any] = {
            "epoch": self.epoch,
            "format": self.format,
            "artifact": self.artifact,
            "metrics": {TEST + name: comparison.to_json() for name, comparison in self.metrics.items()},
        }
        if self.size_bytes is not None:
            facts["signatures"] = {name: found.to_json() for name, found in self.signatures.items()}
            facts["not_compared"] = dict(self.not_compared)
            facts["left_out"] = dict(self.left_out)
            facts["quantization"] = self.quantization
            facts["size_bytes"] = self.size_bytes
            facts["load_secs"] = self.load_secs
        if self.problems:
            facts["problems"] = list(self.problems)
        return facts

    def losses(self) -> list[str]:
        """Return a sentence for each metric of a quantized export, with the loss by the quantization."""
        return [
            f"{self.label}: test/{name} {c.logged:.6g} -> {c.restored:.6g}, {c.difference:+.3g} "
            f"(accepted: {c.tolerance:g})"
            for name, c in self.metrics.items()
            if self.quantization != "none"
        ]

    def complaints(self) -> list[str]:
        """Return a sentence for each metric and each signature that does not match or is not compared."""
        metrics = [
            f"{self.where}test/{name} must be {c.logged!r} as logged. "
            f"Restored: {c.restored!r}, {c.difference:+.3g} (tolerance {c.tolerance:g})."
            for name, c in self.metrics.items()
            if not c.match
        ]
        metrics += [
            f"{self.where}{name} is not compared: {reason}." for name, reason in self.not_compared.items()
        ]
        return metrics + [
            f"{self.where}{name} must answer as the trained model did. "
            f"Largest difference: {found.max_abs_error:.3g}, argmax flips: {found.argmax_flips}."
            for name, found in self.signatures.items()
            if not found.match
        ]


@dataclass(frozen=True)
class Receipt:
    """The results of the verification of a run, or of one export.

    Attributes:
        format: The format of the export; in the receipt of a run, that of the newest export.
        artifact: The path of that export, relative to the run directory.
        epochs: The result for each epoch; in the receipt of a run, for each checkpoint.
        exports: In the receipt of a run, the receipts of its exports.
        files: In the receipt of an export, the SHA-256 of each file that was verified. The predictor compares
            them with the manifest, so a receipt cannot be copied to another export.
    """

    format: str
    artifact: str
    epochs: Sequence[VerifiedEpoch]
    exports: Sequence[Receipt] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def match(self) -> bool:
        """Whether every epoch and the newest export of every format match.

        Older exports do not count: a new export is how a user mends one that does not match.
        """
        newest = {export.format: export for export in sorted(self.exports, key=Receipt._version)}
        results = [found.match for found in self.epochs] + [export.match for export in newest.values()]
        return bool(results) and all(results)

    @property
    def verdict(self) -> str:
        """`match` or `mismatch`."""
        return verdict_of(self.match)

    @property
    def exported(self) -> list[VerifiedEpoch]:
        """The epochs of all exports."""
        return [found for export in self.exports for found in export.epochs]

    def complaints(self) -> list[str]:
        """Return a sentence for each problem and each mismatch, those of exports included."""
        return [
            sentence
            for found in (*self.epochs, *self.exported)
            for sentence in (*(found.where + problem for problem in found.problems), *found.complaints())
        ]

    def _version(self) -> int:
        return int(self.artifact.rpartition("/")[2])

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        """Return a receipt from JSON values.

        Raises:
            ValueError: The values are not a receipt, or the verdict does not follow from the numbers.
        """
        try:
            receipt = cls(
                _text(facts["format"]),
                _text(facts["artifact"]),
                [VerifiedEpoch.from_json(row) for row in facts["epochs"]],
                [Receipt.from_json(export) for export in facts.get("exports", [])],
                {str(name): _text(digest) for name, digest in facts.get("files", {}).items()},
            )
            verdict = receipt.verdict  # Inside of `try`: it reads the version in each artifact's path.
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is no receipt: {error!r}") from error
        if facts.get("verdict") != verdict:
            raise ValueError(f"its numbers say {verdict}, its verdict says {facts.get('verdict')}")
        return receipt

    def to_json(self) -> dict[str, Any]:
        """Return the receipt as JSON values."""
        facts: dict[str, Any] = {
            "verdict": self.verdict,
            "format": self.format,
            "artifact": self.artifact,
            "epochs": [found.to_json() for found in self.epochs],
        }
        if self.exports:
            facts["exports"] = [export.to_json() for export in self.exports]
        if self.files:
            facts["files"] = dict(self.files)
        return facts


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r} is no integer")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def read(path: Path) -> Receipt:
    """Return the receipt in a file.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file does not hold a receipt, or was changed.
    """
    return Receipt.from_json(checksums.checked(path.read_text()))


def read_if_whole(path: Path) -> Receipt | None:
    """Return the receipt in a file; `None` if the file is missing, damaged or not a receipt."""
    with contextlib.suppress(OSError, ValueError):
        return read(path)
    return None


def read_of_export(directory: Path) -> Receipt | None:
    """Return the receipt inside an export; `None` if there is none that can be read."""
    found = (read_if_whole(directory / folder / RECEIPT) for folder in FOLDERS)
    return next((receipt for receipt in found if receipt is not None), None)


def write(
    run: RunDirectory, num_epochs: int, epochs: Sequence[VerifiedEpoch], exports: Sequence[VerifiedEpoch]
) -> Receipt:
    """Write the receipt of a run, and a receipt into each export that was verified.

    Earlier results stay in the receipt of the run, for other epochs and for exports that still exist: to
    verify one epoch again proves nothing of the rest, for better or worse.

    Args:
        run: The run.
        num_epochs: The number of rows of its log.
        epochs: The results for checkpoints.
        exports: The results for exports.

    Returns:
        The receipt of the run.

    Raises:
        DamagedError: The manifest of an export cannot be read.
        OSError: The disk does not take a file.
    """
    # Two verifications may end at the same time, and each must keep the results of the other.
    with locks.turn(run.verification):
        before = read_if_whole(run.verification) or Receipt("", "", [])
        # A run that goes on after damage may have fewer epochs than when it was verified.
        rows = {found.epoch: found for found in before.epochs if found.epoch < num_epochs}
        rows |= {found.epoch: found for found in epochs}
        receipts = {one.artifact: one for one in before.exports if (run.path / one.artifact).is_dir()}
        for artifact in dict.fromkeys(found.artifact for found in exports):
            held = [found for found in exports if found.artifact == artifact]
            files = read_manifest(run.path / artifact).files
            receipts[artifact] = Receipt(held[0].format, artifact, held, files=files)
            folder = run.path / artifact / FORMATS[held[0].format].facts
            _write(folder / RECEIPT, receipts[artifact])
        latest = list(receipts.values())[-1] if receipts else Receipt("checkpoint", "checkpoints", [])
        receipt = Receipt(
            latest.format, latest.artifact, [rows[epoch] for epoch in sorted(rows)], list(receipts.values())
        )
        _write(run.verification, receipt)
    return receipt


def _write(path: Path, receipt: Receipt) -> None:
    write_text(path, json.dumps(checksums.with_checksum(receipt.to_json()), indent=2) + "\n")
