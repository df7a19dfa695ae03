"""Receipts: the verdict on a run and on each of its exports, as JSON files that carry their own checksum.

    receipt = read(run.verification)
    receipt.match, receipt.complaints()

A receipt holds numbers; whether they match is computed from them whenever the receipt is read. The terminal,
the JSON file, the page, the exit code and the predictor all take the verdict from here.
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
    """Return the word for a comparison's result."""
    return MATCH if match else MISMATCH


@dataclass(frozen=True)
class VerifiedEpoch:
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
    signatures: Mapping[str, AnswerComparison] = field(default_factory=dict)
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
        return bool(self.metrics) and good and answered and DEFAULT_SIGNATURE not in self.not_compared

    @property
    def label(self) -> str:
        """How tables call an export, such as `tflite int8@3`."""
        quantization = "" if self.quantization == "none" else f" {self.quantization}"
        return f"{self.format}{quantization}@{self.epoch}"

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        """Return an epoch as a receipt holds it.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: A receipt would not hold it so.
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


@dataclass(frozen=True)
class Receipt:
    """What the verification of a run, or of one export, has found.

    Attributes:
        format: The format of the export; in a run's receipt, that of the newest export.
        artifact: The path of the export, relative to the run.
        epochs: The epochs that were restored; in a run's receipt, from its checkpoints.
        exports: Of a run, the receipt of each export.
        files: Of an export, the SHA-256 of the files that were verified.
    """

    format: str
    artifact: str
    epochs: Sequence[VerifiedEpoch]
    exports: Sequence[Receipt] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def match(self) -> bool:
        """Whether every epoch matches, and the newest export of every format; older exports are history."""
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
        """Return a sentence for everything that was not restored or does not match."""
        return [
            sentence
            for found in (*self.epochs, *self.exported)
            for sentence in (*found.problems, *found.complaints())
        ]

    def _version(self) -> int:
        return int(self.artifact.rpartition("/")[2])

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        """Return a receipt from JSON values.

        Raises:
            ValueError: They are none, or their verdict does not follow from their numbers.
        """
        try:
            receipt = cls(
                _text(facts["format"]),
                _text(facts["artifact"]),
                [VerifiedEpoch.from_json(row) for row in facts["epochs"]],
                [Receipt.from_json(export) for export in facts.get("exports", [])],
                {str(name): _text(digest) for name, digest in facts.get("files", {}).items()},
            )
            verdict = receipt.verdict
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
    """Read the receipt in a file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds no receipt, or was changed.
    """
    return Receipt.from_json(checksums.unseal(path.read_text()))


def read_if_whole(path: Path) -> Receipt | None:
    """Return the receipt in a file, or `None` where the file is missing, damaged or none."""
    with contextlib.suppress(OSError, ValueError):
        return read(path)
    return None


def read_of_export(directory: Path) -> Receipt | None:
    """Return the receipt inside an export, or `None` if there is none that can be read."""
    found = (read_if_whole(directory / folder / RECEIPT) for folder in FOLDERS)
    return next((receipt for receipt in found if receipt is not None), None)


def write(
    run: RunDirectory, num_epochs: int, epochs: Sequence[VerifiedEpoch], exports: Sequence[VerifiedEpoch]
) -> Receipt:
    """Write the run's receipt, and each export's into the export; return the run's.

    The results of an earlier verification stay in the run's receipt, for other epochs and for exports that
    still
    exist: to verify one epoch again proves nothing of the rest, for better or worse.

    Args:
        run: The run.
        num_epochs: Number of rows of its log.
        epochs: Results for checkpoints.
        exports: Results for exports.
    """
    with locks.turn(run.verification):
        before = read_if_whole(run.verification) or Receipt("", "", [])
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
    write_text(path, json.dumps(checksums.seal(receipt.to_json()), indent=2) + "\n")
