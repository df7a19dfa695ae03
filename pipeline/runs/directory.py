"""A run directory: the paths of a run's files, and writing them in an order in which a crash loses nothing.

    run.json            configuration, versions, device, data, sizes, and the SHA-256 of the graph's files
    metrics.jsonl       the log: one line for each epoch, with the SHA-256 of its checkpoint's files
    checkpoints/        graph/ and epoch-0000, epoch-0001, ...; requests, and answers of exported epochs;
                        unfinished.json and step-00000007 while an epoch is unfinished
    export/             <format>/<version>/
    verification.json   the receipt
    report.html         the page
    tensorboard/        event files
    .lock               the process that writes here

JSON objects contain their own checksum (`pipeline.runs.checksums`), so that a changed file is noticed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, DamagedError
from pipeline.runs import checksums, locks
from pipeline.runs.files import naming, remove_leftovers, staged, sync, write_text
from pipeline.runs.log import Row, from_line, to_line

WRITTEN = ("checkpoints", "export", "metrics.jsonl", "run.json")
"""Files and folders that only a run writes: a directory that has one of them has been used for a run."""

BEGINNING = re.compile(r"graph|network\.json|requests\.npz|epoch-0000\..*|\..*\.staging")
"""Names in `checkpoints/` of the files that a run writes before the first line of its log."""

REQUIRED_FACTS: Mapping[str, type] = {
    "seed": int,
    "data.fingerprint": str,
    "config.data": dict,
    "config.verify": dict,
    "config.best": dict,
    "config.train": dict,
    "overrides": list,
    "files": dict,
}
"""Keys of `run.json` that later commands need, each with the type of its value."""

NETWORK = "network.json"
"""The file beside the graph that describes the model's Keras network, if it has one."""

INDEX, DATA = ".index", ".data-00000-of-00001"
"""Suffixes of a checkpoint's files."""

PATTERN_CHARACTERS = frozenset("*?[\\")
"""Characters in a path that TensorFlow takes for a pattern of several paths."""


@dataclass(frozen=True)
class RunDirectory:
    """The paths and files of one run.

        run = RunDirectory(Path("outputs/2026-11-25/12-00-00-gru-saved_model"))
        run.read_rows()[-1].test["loss"]
        run.newest_export("onnx")

    Attributes:
        path: The directory, which need not exist.
    """

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
        """The path of the run's receipt."""
        return self.path / "verification.json"

    @property
    def report(self) -> Path:
        """The path of the run's page."""
        return self.path / "report.html"

    @property
    def requests(self) -> Path:
        """The path of the example requests to every signature."""
        return self.path / "checkpoints" / "requests.npz"

    def answers(self, epoch: int) -> Path:
        """Return the path of the trained model's answers to the requests after an epoch."""
        return self.path / "checkpoints" / f"answers-{epoch:04d}.npz"

    @property
    def log(self) -> Path:
        """The path of the log."""
        return self.path / "metrics.jsonl"

    def check_usable(self) -> None:
        """Check that a run can start or go on in this directory.

        Raises:
            BusyError: Another process writes to the directory.
            ConfigError: The directory has files of something else, or of a run without a log; or TensorFlow
                would take its path for a pattern of paths.
            DamagedError: The log cannot be read.
        """
        self._check_path("hydra.run.dir")
        if not self.read_lines() and (found := list(self._found())):
            listed = ", ".join(found[:3]) + (f", {len(found) - 3} more" if len(found) > 3 else "")
            raise ConfigError(
                f"hydra.run.dir must be new, or hold a run that can go on. {self.path} holds "
                f"{listed} and no log of it; it is left as it was. Choose another directory."
            )
        locks.check_free(self.path / locks.NAME, locks.ONE_RUN)

    def _found(self) -> Iterator[str]:
        """Yield the names of files that a new run would overwrite and that are not known to be leftovers.

        A run that ended before the first line of its log leaves files behind that are worth nothing. They are
        recognized by their names, and by the lock file that every run makes first.
        """
        was_claimed = (self.path / locks.NAME).exists()
        for name in WRITTEN:
            path = self.path / name
            if was_claimed and name == "checkpoints" and path.is_dir():
                entries = sorted(entry.name for entry in path.iterdir())
                yield from (f"{name}/{entry}" for entry in entries if not BEGINNING.fullmatch(entry))
            elif path.exists() and not (was_claimed and name in ("run.json", "metrics.jsonl")):
                yield name

    def _check_path(self, key: str) -> None:
        if set(str(self.path.absolute())) & PATTERN_CHARACTERS:
            raise ConfigError(f"{key} must have none of {' '.join(sorted(PATTERN_CHARACTERS))}: {self.path}.")

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the directory for a run in the `with` block; of two processes that try, one succeeds.

        The files of a run that logged no epoch are removed, before and after.

        Raises:
            BusyError: See `check_usable`.
            ConfigError: See `check_usable`.
            DamagedError: See `check_usable`.
        """
        self.check_usable()
        self.path.mkdir(parents=True, exist_ok=True)
        with locks.locked(self.path / locks.NAME, locks.ONE_RUN):
            try:
                self._clean()
                (self.path / "checkpoints").mkdir(exist_ok=True)
                yield
            finally:
                self._clean()

    def _clean(self) -> None:
        for folder in (self.path, self.path / "checkpoints", *(self.path / "export").glob("*")):
            remove_leftovers(folder)
        if not self.read_lines():
            shutil.rmtree(self.path / "checkpoints", ignore_errors=True)
            self.log.unlink(missing_ok=True)
            (self.path / "run.json").unlink(missing_ok=True)

    def checkpoint(self, epoch: int) -> Path:
        """Return the path of the checkpoint after an epoch, without the suffixes of its files."""
        return self.path / "checkpoints" / f"epoch-{epoch:04d}"

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Write `run.json` with its checksum.

        Raises:
            OSError: The disk does not take the file.
        """
        write_text(self.path / "run.json", json.dumps(checksums.with_checksum(facts), indent=2) + "\n")

    def read_facts(self) -> dict[str, Any]:
        """Return the content of `run.json`.

        Raises:
            ConfigError: The directory has no `run.json`, so it is not a run directory.
            DamagedError: The file was changed, or lacks a key.
        """
        path = self.path / "run.json"
        self._check_path("run_dir")
        try:
            facts = checksums.checked(path.read_text())
        except OSError as error:
            raise ConfigError(
                f"run_dir must be a directory that a run has written. {path}: {error.strerror}."
            ) from None
        except ValueError as error:
            raise DamagedError(f"{path} must be as the run wrote it. Reading it failed: {error}.") from error
        for keys, kind in REQUIRED_FACTS.items():
            node: Any = facts
            for key in keys.split("."):
                node = node.get(key) if isinstance(node, dict) else None
            if not isinstance(node, kind):
                raise DamagedError(f"{path} must hold {keys}. It does not: it is damaged.")
        return facts

    def shared_files(self) -> dict[str, str]:
        """Return the SHA-256 of the files that all epochs share: the graph, `network.json`, the requests."""
        folder = self.graph.parent
        return checksums.digests(self.path, [*self.graph.rglob("*"), folder / NETWORK, self.requests])

    def append_row(self, row: Row) -> None:
        """Append a row to the log; after the return, the line survives a crash of the machine.

        Raises:
            OSError: The disk does not take the line.
        """
        is_new = not self.log.exists()
        with naming(self.log), self.log.open("a") as file:
            file.write(to_line(row))
            file.flush()
            os.fsync(file.fileno())
        if is_new:  # The name of a new file is in its directory, which must reach the disk, too.
            sync(self.path)

    def rewrite_rows(self, rows: Sequence[Row]) -> None:
        """Replace all rows of the log."""
        write_text(self.log, "".join(map(to_line, rows)))

    def read_rows(self) -> list[Row]:
        """Return the rows of the log, without a last line that a crash cut short.

        Raises:
            ConfigError: There is no log, or it has no whole line.
            DamagedError: The log cannot be read, or a line is damaged.
        """
        lines = self.read_lines()
        if not lines:
            raise ConfigError(f"{self.log} must have a row. The run stopped before its first evaluation.")
        return [self.parse_row(number, line) for number, line in enumerate(lines)]

    def read_lines(self) -> list[str]:
        """Return the whole lines of the log; none if there is no log.

        Raises:
            DamagedError: The log cannot be read.
        """
        try:
            # Whatever follows the last line feed is a line that a crash cut short, or empty.
            *lines, _ = self.log.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise DamagedError(f"{self.log} must be a file. Reading it failed: {error}.") from error
        return [line.decode(errors="replace") for line in lines]

    def parse_row(self, epoch: int, line: str) -> Row:
        """Return the row in a line of the log.

        Args:
            epoch: The epoch that the line must have: the row of epoch e is line e of the log, from 0.
            line: The line.

        Raises:
            DamagedError: The line is not the row of that epoch, or its checksum is wrong.
        """
        expected = str(self.checkpoint(epoch).relative_to(self.path))
        try:
            row = from_line(line)
            if (row.epoch, row.checkpoint) != (epoch, expected):
                raise ValueError(f"epoch {row.epoch} with {row.checkpoint}")
        except (ValueError, TypeError, AttributeError) as error:
            raise DamagedError(
                f"Line {epoch + 1} of {self.log} must be the row of epoch {epoch} "
                f"with {expected}. Received: {error}."
            ) from error
        return row

    def check_row(self, row: Row) -> None:
        """Check the checksums of the files of an epoch's checkpoint.

        Raises:
            DamagedError: A file is missing or was changed; or the row has no checksums of the files.
        """
        prefix = self.checkpoint(row.epoch)
        if set(row.files) != {prefix.name + suffix for suffix in (INDEX, DATA)}:
            raise DamagedError(
                f"The row of epoch {row.epoch} must have digests of its checkpoint. "
                f"Received: {list(row.files)}."
            )
        if problems := checksums.problems(prefix.parent, row.files):
            raise DamagedError(*[f"Epoch {row.epoch}: {problem}" for problem in problems])

    def newest_export(self, format: str) -> Path | None:
        """Return the directory of the newest export in a format, or `None` without one."""
        versions = self._versions(format)
        return versions[-1] if versions else None

    @contextmanager
    def new_version(self, format: str) -> Iterator[tuple[Path, Path]]:
        """Yield the directory of a new version of an export, and an empty directory for its files.

        At the end of the `with` block the files are synced, and their directory gets the name of the version.
        So every version is whole. After an exception there is no new version.

        Args:
            format: Name of the format.
        """
        parent = self.path / "export" / format
        versions = self._versions(format)
        # TensorFlow Serving loads the largest number, so it must grow even if the clock is set back.
        version = max(int(time.time()), int(versions[-1].name) + 1 if versions else 0)
        with staged(parent / str(version)) as staging:
            staging.mkdir(parents=True)
            yield parent / str(version), staging

    def _versions(self, format: str) -> list[Path]:
        parent = self.path / "export" / format
        found = [path for path in parent.glob("*") if path.name.isdecimal()]
        return sorted(found, key=lambda path: int(path.name))
