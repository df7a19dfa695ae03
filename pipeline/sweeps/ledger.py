"""The ledger of a sweep: what became of each trial, in `ledger.jsonl` of the sweep's directory.

    ledger = Ledger(Path("outputs/sweeps/gru"))
    ledger.read()               # by any process, at any time
    with ledger.locked():       # by the one that runs the sweep
        ledger.write(trial)

A trial is known by the hash of its configuration, so that the same command with the same directory runs only
what is missing.

The file is a journal: a change is a line at its end, and of the lines of a trial the last one counts. Each
line carries its checksum (`pipeline.runs.checksums`). Whoever takes or gives back the lock leaves one line
per trial.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.errors import DamagedError
from pipeline.runs import checksums, locks
from pipeline.runs.files import naming, write_text

DONE, MISMATCH, PRUNED = "done", "mismatch", "pruned"
FAILED, KILLED, TIMED_OUT, OUT_OF_MEMORY = "failed", "killed", "timed out", "out of memory"
RUNNING, INTERRUPTED = "running", "interrupted"

ONE_SWEEP = "hydra.sweep.dir must be of one sweep at a time. {directory} is in use by {holder}."

Objectives = Sequence[tuple[str, str]]
"""The metrics that a sweep looks at, each with its direction, `minimize` or `maximize`."""

FINISHED = (DONE, MISMATCH, PRUNED)
"""States of a trial that is not run again."""

log = logging.getLogger(__name__)


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


class _Index:
    """Trials by number, and the numbers of each configuration, so that no question goes through all."""

    def __init__(self, trials: Iterable[Trial] = ()) -> None:
        self.trials: dict[int, Trial] = {}
        self.highest = -1
        self._numbers: dict[str, set[int]] = {}
        for trial in trials:
            self.put(trial)

    def put(self, trial: Trial) -> None:
        """Add a trial, or replace it."""
        known = self.trials.get(trial.number)
        if known is not None:
            self._numbers[known.config_hash].discard(trial.number)
        self.trials[trial.number] = trial
        self._numbers.setdefault(trial.config_hash, set()).add(trial.number)
        self.highest = max(self.highest, trial.number)

    def sorted(self) -> list[Trial]:
        """Return every trial, in the order of their numbers."""
        return [self.trials[number] for number in sorted(self.trials)]

    def latest(self) -> list[Trial]:
        """Return the last trial of each configuration, in the order of their numbers."""
        return [self.trials[number] for number in sorted(map(max, filter(None, self._numbers.values())))]

    def finished(self, digest: str) -> Trial | None:
        """Return the last finished trial of a configuration, if there is one."""
        numbers = sorted(self._numbers.get(digest, ()), reverse=True)
        found = (self.trials[number] for number in numbers)
        return next((trial for trial in found if trial.state in FINISHED), None)


@dataclass
class Ledger:
    """The ledger in a sweep's directory.

    Attributes:
        directory: The sweep's.
    """

    directory: Path
    _held: _Index | None = field(default=None, repr=False, compare=False)
    _num_lines: int = field(default=0, repr=False, compare=False)
    _is_journal: bool = field(default=False, repr=False, compare=False)

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

        What an earlier process left running is called interrupted. Until the lock is given back, this object
        answers from memory: nobody else changes the file.

        Raises:
            BusyError: Another process runs it.
            DamagedError: The file is damaged.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with locks.locked(self.directory / "ledger.lock", ONE_SWEEP):
            self._take()
            try:
                yield
            finally:
                self._give_back()

    def _take(self) -> None:
        lines, is_whole = _lines(self.path)
        index = _Index(_parsed(self.path, lines))
        left = [trial for trial in index.trials.values() if trial.state == RUNNING]
        for trial in left:  # Its process has ended with the one that held the lock.
            index.put(replace(trial, state=INTERRUPTED))
        is_current = is_whole and (not lines or _is_sealed(lines))
        if left or not is_current or len(lines) > len(index.trials):
            self._rewrite(index)
        self._held, self._num_lines, self._is_journal = index, len(index.trials), True

    def _give_back(self) -> None:
        index, self._held = self._held, None
        assert index is not None
        if self._is_journal and self._num_lines == len(index.trials):
            return
        try:
            self._rewrite(index)
        except OSError as error:  # It does not hide how the sweep ended; the journal says the same.
            log.warning("%s cannot be rewritten: %s", self.path, error)

    def read(self) -> list[Trial]:
        """Return every trial, in the order of their numbers. Readers of the file need no lock.

        Raises:
            DamagedError: The file is damaged.
        """
        return self._index().sorted()

    def latest(self) -> list[Trial]:
        """Return of each configuration the last trial: one that was repeated counts no longer.

        Raises:
            DamagedError: The file is damaged.
        """
        return self._index().latest()

    def finished(self, digest: str) -> Trial | None:
        """Return the trial with a configuration that need not run again, if there is one."""
        return self._index().finished(digest)

    def next_number(self) -> int:
        """Return a number whose directory is not in use."""
        number = self._index().highest + 1
        while (self.directory / str(number)).exists():
            number += 1
        return number

    def write(self, trial: Trial) -> None:
        """Add a trial, or replace what was written of it; once this returns, no crash loses it."""
        index = self._index()
        index.put(trial)
        if self._held is None or not self._is_journal or not self.path.exists():
            # The first line is renamed into place: a file without a whole line is then always damaged.
            self._rewrite(index)
        else:
            self._append(trial)

    def _append(self, trial: Trial) -> None:
        self._is_journal = False  # An append that fails may leave half of a line, which the next would join.
        with naming(self.path), self.path.open("a") as file:
            file.write(_line(trial))
            file.flush()
            os.fsync(file.fileno())
        self._num_lines += 1
        self._is_journal = True

    def _rewrite(self, index: _Index) -> None:
        write_text(self.path, "".join(map(_line, index.sorted())))
        self._num_lines, self._is_journal = len(index.trials), True

    def _index(self) -> _Index:
        return _Index(_parsed(self.path, _lines(self.path)[0])) if self._held is None else self._held


def _line(trial: Trial) -> str:
    return json.dumps(checksums.with_checksum(vars(trial) | {"overrides": list(trial.overrides)})) + "\n"


def _lines(path: Path) -> tuple[list[str], bool]:
    """Return the lines of a ledger, and whether the last one was written to its end.

    Half of a line is left out, where the lines before have checksums: its process died, or is writing it now.
    Earlier versions replaced the whole file, so that half of a line is damage there.
    """
    try:
        *lines, rest = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], True
    texts = [line.decode(errors="replace") for line in lines]
    tail = rest.decode(errors="replace")
    if tail and (_begins_with_a_value(tail) or not _is_sealed(texts)):
        texts.append(tail)
    return texts, not rest


def _begins_with_a_value(text: str) -> bool:
    """Return whether a text begins with a whole JSON value, as no beginning of an object does.

    Such a last line lost only its end: it counts, and where something else stands there, it is damaged.
    """
    try:
        json.JSONDecoder().raw_decode(text)
    except ValueError:
        return False
    except RecursionError:
        return True
    return True


def _is_sealed(lines: Sequence[str]) -> bool:
    """Return whether a line has a checksum; lines that earlier versions wrote have none."""
    return any(f'"{checksums.CHECKSUM}"' in line for line in lines)


def _parsed(path: Path, lines: Sequence[str]) -> Iterator[Trial]:
    """Yield the trial of each line.

    Raises:
        DamagedError: A line is not as it was written. Lines without a checksum, as earlier versions wrote
            them, are taken only where no line has one: a checksum cannot be lost by accident.
    """
    is_sealed = _is_sealed(lines)
    for number, line in enumerate(lines, 1):
        try:
            yield Trial(**(checksums.checked(line) if is_sealed else json.loads(line)))
        except (ValueError, TypeError, RecursionError) as error:
            raise DamagedError(f"{path} must be a ledger. Reading line {number} failed: {error}.") from error
