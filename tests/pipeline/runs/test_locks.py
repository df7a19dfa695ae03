"""Locks: of a run and of a sweep, on file systems that have none, and as earlier versions wrote them."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import BusyError
from pipeline.runs import locks
from pipeline.runs.directory import RunDirectory
from pipeline.sweeps.ledger import ONE_SWEEP, Ledger

Subject = Callable[[Path], AbstractContextManager[None]]

SUBJECTS: dict[str, Subject] = {
    "run": lambda directory: RunDirectory(directory).claimed(),
    "sweep": lambda directory: Ledger(directory).locked(),
}


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> Subject:
    return SUBJECTS[request.param]


def refuse(number: int) -> Callable[[Any, int], None]:
    def flock(file: Any, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    return flock


@pytest.mark.parametrize("number", locks.NO_LOCKS)
def test_a_file_system_without_locks_is_warned_of_once(
    subject: Subject,
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("fcntl.flock", refuse(number))
    for _ in range(2):
        with subject(tmp_path):
            pass
    with locks.turn(tmp_path / "verification.json"):
        pass
    (warning,) = caplog.messages
    assert warning == (
        f"{tmp_path} cannot be locked: {os.strerror(number)}. Do not start another process on it."
    )


def test_another_error_is_none_of_these(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcntl.flock", refuse(errno.EIO))
    with pytest.raises(OSError, match=r"Input/output.*lock"), subject(tmp_path):
        pass


def test_the_file_is_open_for_writing(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []
    flock = fcntl.flock

    def see(file: Any, operation: int) -> None:
        modes.append(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE)
        flock(file, operation)

    monkeypatch.setattr("fcntl.flock", see)
    for _ in range(2):
        with subject(tmp_path), locks.turn(tmp_path / "verification.json"):
            pass
    assert os.O_RDONLY not in modes


@pytest.mark.parametrize(
    ("text", "holder"),
    [
        ("process 12 on here", "process 12 on here"),
        ('{"pid": 12, "host": "here"}', "process 12 on here"),
        ("", "another process"),
        ("[]", "another process"),
    ],
)
def test_who_holds_it(tmp_path: Path, text: str, holder: str) -> None:
    path = tmp_path / "ledger.lock"
    with locks.locked(path, ONE_SWEEP):
        path.write_text(text)
        with pytest.raises(BusyError, match=f"one sweep at a time. {tmp_path} is in use by {holder}. Wait"):
            locks.check_free(path, ONE_SWEEP)
