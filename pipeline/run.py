"""A run directory: where everything about a run is, and how it is written so that a crash loses nothing.

run.json         what was run: configuration, versions, device, data, sizes
metrics.jsonl    the log, a line per epoch
checkpoints/     graph/ and epoch-0000, epoch-0001, ...; requests, and answers of exported epochs
export/          <format>/<version>/
verification.json  the receipt
report.html      all of it as a page
tensorboard/     event files
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.binding import ConfigError, unknown

Metrics = dict[str, float]

WRITTEN = ("checkpoints", "export", "metrics.jsonl", "run.json")
"""What shows that a run was in a directory."""

REQUIRED_FACTS = (
    "seed",
    "data.fingerprint",
    "config.data",
    "config.verify",
    "config.best.metric",
    "config.best.direction",
    "config.train.deterministic",
)
"""What of `run.json` is needed to evaluate the run again."""

PATTERN_CHARACTERS = frozenset("*?[\\")
"""Characters that TensorFlow's file system reads as a pattern."""


@dataclass(frozen=True)
class Row:
    """A line of the log: the metrics after an epoch, and the checkpoint that holds its weights.

    Attributes:
        epoch: Epochs trained; 0 is before the first step.
        step: Optimizer steps taken.
        train: Mean of the training batches' losses over the epoch; `None` for epoch 0.
        test: Metrics of the held-out split.
        checkpoint: Path of the checkpoint, relative to the run directory, without its suffix.
    """

    epoch: int
    step: int
    train: Metrics | None
    test: Metrics
    checkpoint: str


@dataclass(frozen=True)
class RunDirectory:
    """The paths and files of one run."""

    path: Path

    @property
    def graph(self) -> Path:
        """The SavedModel that holds the signatures of every epoch."""
        return self.path / "checkpoints" / "graph"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard event files."""
        return self.path / "tensorboard"

    @property
    def verification(self) -> Path:
        """The receipt."""
        return self.path / "verification.json"

    @property
    def report(self) -> Path:
        """The page that shows all of it."""
        return self.path / "report.html"

    @property
    def requests(self) -> Path:
        """Example inputs for every signature, to which answers are recorded."""
        return self.path / "checkpoints" / "requests.npz"

    def answers(self, epoch: int) -> Path:
        """Return the path of what the trained model answered after an epoch."""
        return self.path / "checkpoints" / f"answers-{epoch:04d}.npz"

    def check_unused(self) -> None:
        """Check that no run has been here, and that TensorFlow can write here.

        Raises:
            ConfigError: There is one, and it is left as it was; or TensorFlow would take the path for a
                pattern of paths.
        """
        if any((self.path / name).exists() for name in WRITTEN):
            raise ConfigError([_taken(self.path)])
        self._check_path("hydra.run.dir")

    def _check_path(self, key: str) -> None:
        if set(str(self.path.absolute())) & PATTERN_CHARACTERS:
            raise ConfigError(
                [f"{key} must have none of {' '.join(sorted(PATTERN_CHARACTERS))}: {self.path}."]
            )

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Take the directory for a new run; of two processes that try, one succeeds.

        A claim under which no epoch was logged is given back, with all that was written.

        Raises:
            ConfigError: Another run was, or is, here.
        """
        self.check_unused()
        checkpoints = self.path / "checkpoints"
        try:
            checkpoints.mkdir(parents=True)
        except FileExistsError:
            raise ConfigError([_taken(self.path)]) from None
        try:
            yield
        finally:
            if not (self.path / "metrics.jsonl").exists():
                shutil.rmtree(checkpoints, ignore_errors=True)
                (self.path / "run.json").unlink(missing_ok=True)

    def checkpoint(self, epoch: int) -> Path:
        """Return the prefix of the checkpoint after an epoch."""
        return self.path / "checkpoints" / f"epoch-{epoch:04d}"

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Write `run.json`."""
        write_text(self.path / "run.json", json.dumps(facts, indent=2) + "\n")

    def read_facts(self) -> dict[str, Any]:
        """Read `run.json`.

        Raises:
            ConfigError: This is no run directory, or the file is damaged.
        """
        path = self.path / "run.json"
        self._check_path("run_dir")
        try:
            facts = json.loads(path.read_text())
        except OSError as error:
            raise ConfigError(
                [f"run_dir must be a directory that a run has written. {path}: {error.strerror}."]
            ) from None
        except ValueError as error:
            raise ConfigError([f"{path} must be a JSON object. Reading it failed: {error}."]) from error
        for keys in REQUIRED_FACTS:
            node = facts
            for key in keys.split("."):
                node = node.get(key) if isinstance(node, dict) else None
            if node is None:
                raise ConfigError([f"{path} must hold {keys}. It does not: it is damaged."])
        assert isinstance(facts, dict)
        return facts

    def append_row(self, row: Row) -> None:
        """Append a line to the log; once this returns, no crash loses it."""
        path = self.path / "metrics.jsonl"
        is_new = not path.exists()
        with path.open("a") as file:
            file.write(json.dumps(asdict(row), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync(self.path)

    def read_rows(self) -> list[Row]:
        """Read the log. A last line that a crash cut short is left out.

        Raises:
            ConfigError: There is no log, or a line of it is damaged.
        """
        path = self.path / "metrics.jsonl"
        try:
            *lines, _ = path.read_text().split("\n")
        except FileNotFoundError:
            lines = []
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError([f"{path} must be a text file. Reading it failed: {error}."]) from error
        if not lines:
            raise ConfigError([f"{path} must have a row. The run stopped before its first evaluation."])
        return [self._parse_row(number, line) for number, line in enumerate(lines)]

    def _parse_row(self, epoch: int, line: str) -> Row:
        """Return a line of the log as a row.

        Raises:
            ConfigError: It is not what this project writes as the line of that epoch.
        """
        expected = str(self.checkpoint(epoch).relative_to(self.path))
        try:
            row = Row(**json.loads(line))
            if (row.epoch, row.checkpoint) != (epoch, expected):
                raise ValueError(f"epoch {row.epoch} with {row.checkpoint}")
            numbers = [*row.test.values(), *(row.train or {}).values()]
            if not all(isinstance(number, float) and math.isfinite(number) for number in numbers):
                raise ValueError(f"metrics that are no finite numbers: {numbers}")
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(
                [
                    f"Line {epoch + 1} of {self.path / 'metrics.jsonl'} must be the row of epoch {epoch} "
                    f"with {expected}. Received: {error}."
                ]
            ) from error
        return row

    def newest_export(self, format: str) -> Path | None:
        """Return the newest version of an export, if there is one."""
        versions = self._versions(format)
        return versions[-1] if versions else None

    def publish(self, format: str, write: Callable[[Path], None]) -> Path:
        """Export a new version: written beside, synced, then renamed, so that what is there is whole.

        Args:
            format: Name of the format.
            write: Writes the files of the export into the empty directory it is given.

        Returns:
            The directory of the version, whose name is the Unix time in seconds, or one more than the
            newest version's if that is later.
        """
        parent = self.path / "export" / format
        versions = self._versions(format)
        version = max(int(time.time()), int(versions[-1].name) + 1 if versions else 0)
        with staged(parent / str(version)) as staging:
            staging.mkdir(parents=True)
            write(staging)
        return parent / str(version)

    def _versions(self, format: str) -> list[Path]:
        parent = self.path / "export" / format
        found = [path for path in parent.glob("*") if path.name.isdecimal()]
        return sorted(found, key=lambda path: int(path.name))


def _taken(path: Path) -> str:
    return (
        f"hydra.run.dir must not hold a run already. {path} does, and it is left as it was. "
        "Choose another directory."
    )


def select_rows(rows: Sequence[Row], epochs: Any, best: Mapping[str, Any]) -> list[Row]:
    """Return the rows of some epochs.

    Args:
        rows: The log: at least one row, that of epoch e at position e.
        epochs: `all`, `last`, `best`, an epoch, or a list of epochs.
        best: The `metric` and the `direction` that make an epoch the best; of equals, the first.

    Raises:
        ConfigError: An epoch is not in the log, or `epochs` is none of these.
    """
    if epochs == "all":
        return list(rows)
    if epochs == "last":
        return [rows[-1]]
    if epochs == "best":
        metric, sign = best["metric"], -1 if best["direction"] == "maximize" else 1
        if metric not in rows[0].test:
            raise ConfigError([unknown("best.metric", metric, rows[0].test)])
        return [min(rows, key=lambda row: sign * row.test[metric])]
    wanted = list(epochs) if isinstance(epochs, list | tuple) else [epochs]
    missing = [epoch for epoch in wanted if type(epoch) is not int or not 0 <= epoch < len(rows)]
    if missing or not wanted:
        raise ConfigError(
            [
                f"The epoch must be all, best, last, or of the log's 0 to {len(rows) - 1}. "
                f"Received: {', '.join(map(str, missing)) or 'none'}."
            ]
        )
    return [rows[epoch] for epoch in wanted]


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Give a path beside `target` to write to; sync and rename it to `target` if all goes well.

    The path is a file's or a directory's, as the caller makes it. On an exception it is removed.
    """
    staging = target.with_name(f".{target.name}.{os.getpid()}.staging")
    try:
        yield staging
        for path in [staging, *staging.rglob("*")] if staging.is_dir() else [staging]:
            sync(path)
        staging.rename(target)
        sync(target.parent)
    except BaseException:
        _remove(staging)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step: whoever reads `path` finds the old text or the new."""
    with staged(path) as staging:
        staging.write_text(text)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file's contents, or a directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
