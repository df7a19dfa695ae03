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

from pipeline.errors import ConfigError
from pipeline.runs.files import write_text

DONE, MISMATCH, PRUNED = "done", "mismatch", "pruned"
FAILED, KILLED, TIMED_OUT, OUT_OF_MEMORY = "failed", "killed", "timed out", "out of memory"
RUNNING, INTERRUPTED = "running", "interrupted"

Objectives = Sequence[tuple[str, str]]
"""The metrics that a sweep looks at, each with its direction, `minimize` or `maximize`."""

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
        objective: The first metric that the sweep looks at; `None` until there is one.
        further: The other metrics that it looks at, in the order of `sweep.metric`.
        verdict: That of its verification.
        epochs: Epochs trained.
        seconds: Wall time.
        pid: Its process.
        reason: Why it did not finish.
        study_trial: Its number in the study of a search, which other sweeps may share.
    """

    number: int
    overrides: Sequence[str]
    config_hash: str
    state: str
    run_dir: str
    objective: float | None = None
    further: Sequence[float] = ()
    verdict: str | None = None
    epochs: int = 0
    seconds: float | None = None
    pid: int | None = None
    reason: str | None = None
    study_trial: int | None = None

    @property
    def values(self) -> dict[str, str]:
        """What this trial changes, by key."""
        pairs = (override.lstrip("+").partition("=") for override in self.overrides)
        return {key: value for key, _, value in pairs}


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

    @property
    def page(self) -> Path:
        """The page that shows the sweep."""
        return self.directory / "sweep.html"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from running the same sweep; a killed one keeps nobody.

        What an earlier process left running is called interrupted.

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
                raise ConfigError(f"hydra.sweep.dir must be of one sweep at a time. {owner}.") from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            for trial in self.read():
                if trial.state == RUNNING:  # Its process has ended with the one that held the lock.
                    self.write(replace(trial, state=INTERRUPTED))
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
            raise ConfigError(f"{self.path} must be a ledger. Reading it failed: {error}.") from error

    def latest(self) -> list[Trial]:
        """Return of each configuration the last trial: one that was repeated counts no longer."""
        return sorted(
            {trial.config_hash: trial for trial in self.read()}.values(), key=lambda one: one.number
        )

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


def ranked(trials: Sequence[Trial], objectives: Objectives) -> list[Trial]:
    """Return the trials from best to worst by the first objective.

    One that does not match comes behind all that do, one without an objective last.
    """
    sign = -1 if objectives[0][1] == "maximize" else 1

    def rank(trial: Trial) -> tuple[int, float, int]:
        if trial.objective is None:
            return 3, 0.0, trial.number
        group = 0 if trial.verdict == "match" else 1 if trial.state == PRUNED else 2
        return group, sign * trial.objective, trial.number

    return sorted(trials, key=rank)


def best(trials: Sequence[Trial], objectives: Objectives) -> Trial | None:
    """Return the best trial of those whose verification says match, if there is one."""
    matching = [trial for trial in trials if trial.verdict == "match" and trial.objective is not None]
    return ranked(matching, objectives)[0] if matching else None


def shortened(value: str) -> str:
    """Return a number with four significant digits at most, any other text as it is."""
    try:
        return value if float(value) == int(float(value)) else f"{float(value):.4g}"
    except (ValueError, OverflowError):
        return value


def swept_keys(trials: Sequence[Trial]) -> list[str]:
    """Return the keys that differ between the trials."""
    values: dict[str, set[str]] = {}
    for trial in trials:
        for key, value in trial.values.items():
            values.setdefault(key, set()).add(value)
    keys = [key for key, found in values.items() if len(found) > 1]
    return keys or list(values)


def rows(trials: Sequence[Trial], objectives: Objectives) -> tuple[list[str], list[list[str]]]:
    """Return a header and a row for each trial, for a table or a file."""
    keys = swept_keys(trials)
    metrics = [name for name, _ in objectives]
    header = ["trial", *keys, *metrics, "verdict", "state", "epochs", "seconds"]
    lines = []
    for trial in trials:
        values = trial.values
        found = [] if trial.objective is None else [trial.objective, *trial.further]
        lines.append(
            [
                str(trial.number),
                *(values.get(key, "") for key in keys),
                *(repr(number) for number in found),
                *[""] * (len(metrics) - len(found)),
                trial.verdict or "",
                trial.state,
                str(trial.epochs),
                "" if trial.seconds is None else f"{trial.seconds:.1f}",
            ]
        )
    return header, lines


def write_leaderboard(ledger: Ledger, objectives: Objectives) -> Path:
    """Write `leaderboard.csv`, best first; return its path."""
    trials = ranked(ledger.latest(), objectives)
    header, lines = rows(trials, objectives)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*header, "run_dir", "reason"])
    for trial, line in zip(trials, lines, strict=True):
        writer.writerow([*line, trial.run_dir, trial.reason or ""])
    path = ledger.directory / "leaderboard.csv"
    write_text(path, text.getvalue())
    return path
