"""The ledger of a sweep: one line for each trial, rewritten whole at every change.

It lies in the sweep's directory, as `ledger.jsonl`. A trial is known by the hash of its configuration, so
that the same command with the same directory runs only what is missing.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.binding import ConfigError
from pipeline.run import write_text

DONE, MISMATCH, PRUNED = "done", "mismatch", "pruned"
FAILED, KILLED, TIMED_OUT, OUT_OF_MEMORY = "failed", "killed", "timed out", "out of memory"
RUNNING, INTERRUPTED = "running", "interrupted"

FINISHED = (DONE, MISMATCH, PRUNED)
"""States of a trial that is not run again."""


@dataclass(frozen=True)
class Trial:
    """A line of the ledger.

    Attributes:
        number: Counts up over the whole sweep; its run directory is named after it.
        overrides: What this trial changes.
        config_hash: SHA-256 of its resolved configuration.
        state: One of this module's states.
        run_dir: Its run directory.
        objective: The metric that the sweep looks at; `None` until there is one.
        verdict: That of its verification.
        epochs: Epochs trained.
        seconds: Wall time.
        pid: Its process.
        reason: Why it did not finish.
    """

    number: int
    overrides: Sequence[str]
    config_hash: str
    state: str
    run_dir: str
    objective: float | None = None
    verdict: str | None = None
    epochs: int = 0
    seconds: float | None = None
    pid: int | None = None
    reason: str | None = None


def config_hash(config: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a configuration's plain values."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class Ledger:
    """The ledger in a sweep's directory."""

    directory: Path

    @property
    def path(self) -> Path:
        """The file."""
        return self.directory / "ledger.jsonl"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from running the same sweep; a killed one keeps nobody.

        Raises:
            ConfigError: Another one does.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "ledger.lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = f"{self.directory} is in use by {file.read().strip()}"
                raise ConfigError([f"hydra.sweep.dir must be of one sweep at a time. {owner}."]) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield

    def read(self) -> list[Trial]:
        """Read every trial, in the order of their numbers.

        Raises:
            ConfigError: The file is damaged.
        """
        if not self.path.exists():
            return []
        try:
            return [Trial(**json.loads(line)) for line in self.path.read_text().splitlines()]
        except (ValueError, TypeError) as error:
            raise ConfigError([f"{self.path} must be a ledger. Reading it failed: {error}."]) from error

    def write(self, trial: Trial) -> None:
        """Add a trial, or replace its line."""
        trials = {known.number: known for known in self.read()} | {trial.number: trial}
        lines = (json.dumps(asdict(trials[number]), allow_nan=False) + "\n" for number in sorted(trials))
        write_text(self.path, "".join(lines))

    def finished(self, digest: str) -> Trial | None:
        """Return the trial with a configuration that need not run again, if there is one."""
        fitting = [trial for trial in self.read() if trial.config_hash == digest and trial.state in FINISHED]
        return fitting[-1] if fitting else None

    def next_number(self) -> int:
        """Return a number whose directory is not in use."""
        number = max((trial.number for trial in self.read()), default=-1) + 1
        while (self.directory / str(number)).exists():
            number += 1
        return number

    def close(self) -> None:
        """Call interrupted what still says that it runs."""
        for trial in self.read():
            if trial.state == RUNNING:
                self.write(replace(trial, state=INTERRUPTED))


def ranked(trials: Sequence[Trial], direction: str) -> list[Trial]:
    """Return the trials from best to worst.

    One that does not match comes behind all that do, one without an objective last.
    """
    sign = -1 if direction == "maximize" else 1

    def rank(trial: Trial) -> tuple[int, float, int]:
        if trial.objective is None:
            return 3, 0.0, trial.number
        group = 0 if trial.verdict == "match" else 1 if trial.state == PRUNED else 2
        return group, sign * trial.objective, trial.number

    return sorted(trials, key=rank)


def swept_keys(trials: Sequence[Trial]) -> list[str]:
    """Return the keys that differ between the trials."""
    values: dict[str, set[str]] = {}
    for trial in trials:
        for key, value in _values(trial).items():
            values.setdefault(key, set()).add(value)
    keys = [key for key, found in values.items() if len(found) > 1]
    return keys or list(values)


def _values(trial: Trial) -> dict[str, str]:
    pairs = (override.lstrip("+").partition("=") for override in trial.overrides)
    return {key: value for key, _, value in pairs}


def rows(trials: Sequence[Trial]) -> tuple[list[str], list[list[str]]]:
    """Return a header and a row for each trial, for a table or a file."""
    keys = swept_keys(trials)
    header = ["trial", *keys, "objective", "verdict", "state", "epochs", "seconds"]
    lines = []
    for trial in trials:
        values = _values(trial)
        lines.append(
            [
                str(trial.number),
                *(values.get(key, "") for key in keys),
                "" if trial.objective is None else f"{trial.objective:.6g}",
                trial.verdict or "",
                trial.state,
                str(trial.epochs),
                "" if trial.seconds is None else f"{trial.seconds:.1f}",
            ]
        )
    return header, lines


def write_leaderboard(ledger: Ledger, direction: str) -> Path:
    """Write `leaderboard.csv`, best first; return its path."""
    trials = ranked(ledger.read(), direction)
    header, lines = rows(trials)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*header, "run_dir", "reason"])
    for trial, line in zip(trials, lines, strict=True):
        writer.writerow([*line, trial.run_dir, trial.reason or ""])
    path = ledger.directory / "leaderboard.csv"
    write_text(path, text.getvalue())
    return path
