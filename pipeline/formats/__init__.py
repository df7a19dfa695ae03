"""Export formats, one a module, each with `write` and `open` side by side.

A format writes from a run directory alone: the graph and an epoch's variables, never the model's code.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from pipeline.binding import ConfigError
from pipeline.evaluation import Signature
from pipeline.run import RunDirectory, write_text

MANIFEST = "manifest.json"
RECEIPT = "verification.json"


class Format(Protocol):
    """What a module of this package provides."""

    FACTS: str
    """Folder inside an export for what is said about it: the manifest and the receipt."""

    def write(self, run: RunDirectory, epoch: int, directory: Path) -> None:
        """Write the export of an epoch into an empty directory."""

    def open(self, directory: Path) -> Mapping[str, Signature]:
        """Open an export with nothing but its own files; return its signatures by name."""


def load(name: str) -> Format:
    """Return the module of a format."""
    module: Any = importlib.import_module(f"pipeline.formats.{name}")
    return module


def export(run: RunDirectory, name: str, epoch: int) -> Path:
    """Export an epoch of a run in a format, as a new version; return its directory."""
    format = load(name)

    def write(directory: Path) -> None:
        format.write(run, epoch, directory)
        facts = directory / format.FACTS
        facts.mkdir(exist_ok=True)
        manifest = {"format": name, "epoch": epoch, "run": str(run.path)}
        write_text(facts / MANIFEST, json.dumps(manifest, indent=2) + "\n")

    return run.publish(name, write)


def exported_epoch(name: str, directory: Path) -> int:
    """Return the epoch that an export holds.

    Raises:
        ConfigError: Its manifest is missing or damaged.
    """
    path = directory / load(name).FACTS / MANIFEST
    try:
        return int(json.loads(path.read_text())["epoch"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError([f"{path} must state the epoch it holds: {error}."]) from error
