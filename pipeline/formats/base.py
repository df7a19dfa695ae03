"""The contract of a format's module: what it is written from, and what it says of itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.config.binding import bind
from pipeline.config.formats import FORMATS
from pipeline.config.schema import Export
from pipeline.errors import ConfigError, unknown
from pipeline.graphs.signatures import Signature
from pipeline.runs import checksums
from pipeline.runs.directory import RunDirectory
from pipeline.runs.files import write_text
from pipeline.runs.log import Row

if TYPE_CHECKING:
    from pipeline.graphs.checkpoints import Graph

MANIFEST = "manifest.json"
FACTS = (".", "assets.extra")
"""Folders inside an export, one of which has the manifest and the receipt."""

Requests = Mapping[str, Mapping[str, Any]]
"""Example inputs by name, by signature."""


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a format says of itself.

    Attributes:
        facts: Folder inside an export for what is said about it: the manifest and the receipt.
        exact: Whether what is restored must give the same bits: no converter has been at work.
        copied: Whether it is the run's own graph, copied, so that nothing needs to be rehearsed.
    """

    facts: str
    exact: bool
    copied: bool = False


@dataclass(frozen=True)
class Source:
    """What an export is written from: a run's directory alone, never the model's code.

    Attributes:
        run: The run.
        rows: The rows of the epochs; none for a rehearsal, with the variables as they were before training.
        options: See `Export`.
        requests: Example inputs for every signature.
        calibration: Returns requests made of training data, for a format that counts value ranges; of the
            signatures all of whose inputs are arrays of the data, or state.
        quantized_tolerance: How far a metric of a quantized export may be from the logged one.
    """

    run: RunDirectory
    rows: Sequence[Row]
    options: Export
    requests: Requests
    calibration: Callable[[], Sequence[Requests]]
    quantized_tolerance: float = 0.0

    @property
    def numbers(self) -> list[int]:
        """The epochs."""
        return [row.epoch for row in self.rows]

    def graph(self) -> Graph:
        """Open the run's graph with the variables of the one epoch that is to be exported."""
        ((_, graph),) = self.epochs()
        return graph

    def epochs(self) -> Iterator[tuple[int, Graph]]:
        """Yield each epoch with the run's graph, whose variables are then that epoch's."""
        from pipeline.graphs import checkpoints

        graph = checkpoints.open_graph(self.run.graph)
        if not self.rows:
            yield 0, graph
        for row in self.rows:
            checkpoints.restore_row(self.run, row, {"weights": graph.weights})
            yield row.epoch, graph


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is written into every export about it.

    Attributes:
        format: Name of the format.
        epochs: The epochs it holds; empty in a rehearsal.
        signatures: Names of the signatures it holds.
        left_out: The other ones, with the reason.
        run: The run's directory when it was exported.
        quantization: See `Export`.
        quantized_tolerance: See `Verify`; 0 where nothing is quantized.
        files: SHA-256 of each file of the export.
        answers: SHA-256 of each file in the run's `checkpoints/` with the answers it is held to.
    """

    format: str
    epochs: list[int]
    signatures: list[str]
    left_out: dict[str, str]
    run: str
    quantization: str
    quantized_tolerance: float
    files: dict[str, str]
    answers: dict[str, str]


def write_manifest(directory: Path, traits: Traits, manifest: Manifest) -> None:
    """Write the manifest, sealed, into an export."""
    facts = directory / traits.facts
    facts.mkdir(exist_ok=True)
    write_text(facts / MANIFEST, json.dumps(checksums.seal(asdict(manifest)), indent=2) + "\n")


def has_manifest(directory: Path) -> bool:
    """Return whether a directory is an export."""
    return any((directory / facts / MANIFEST).is_file() for facts in FACTS)


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of an export.

    Raises:
        ConfigError: It is missing or damaged.
    """
    facts = next((facts for facts in FACTS if (directory / facts / MANIFEST).is_file()), FACTS[0])
    path = directory / facts / MANIFEST
    problems: list[str] = []
    try:
        values = bind(Manifest, checksums.unseal(path.read_text()), "", problems)
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError([f"{path} must say what the export holds: {error}."]) from error
    if not problems and values["format"] not in FORMATS:
        problems.append(unknown("format", values["format"], FORMATS))
    if problems:
        raise ConfigError([f"{path} must say what the export holds. It is damaged: {problems[0]}"])
    return Manifest(**values)


class Format(Protocol):
    """What a module of this package provides."""

    TRAITS: Traits

    def write(self, source: Source, directory: Path) -> Mapping[str, str]:
        """Write an export into an empty directory.

        Returns:
            The signatures that the format cannot hold, each with the reason.
        """

    def open(self, directory: Path, epoch: int) -> Mapping[str, Signature]:
        """Open an export with nothing but its own files; return its signatures by name.

        Raises:
            ConfigError: A file is missing or damaged.
        """
