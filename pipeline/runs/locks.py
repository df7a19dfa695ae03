"""Locks of files and directories that one process works in at a time: a run's, a sweep's, a receipt's.

The operating system holds a lock (`flock`), so that it is gone with its process, however that ended; the
file only says whose it is.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from pipeline.errors import BusyError
from pipeline.runs.files import naming

NAME = ".lock"

ONE_RUN = "A run directory must be used by one process at a time."

ENOTSUPP = 524
"""What Linux lets through from some network file systems; `errno` does not know it."""

NO_LOCKS = (
    errno.ENOLCK,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EBADF,
    ENOTSUPP,
)
"""Errors that say that a file system has no locks, not that this one is taken."""

_unlockable: set[Path] = set()
"""Directories that this process has warned of."""

log = logging.getLogger(__name__)


@contextmanager
def locked(path: Path, constraint: str) -> Iterator[None]:
    """Hold the lock of a directory. Where its file system has no locks, warn and go on.

    Args:
        path: The lock's file in the directory, made if there is none.
        constraint: What must be of one process at a time, as a sentence.

    Raises:
        BusyError: Another process holds it; the message names the process.
    """
    # Opened for writing: NFS turns `flock` into a lock of bytes, which asks for it.
    with path.open("a+") as file:
        _take(path, constraint, file)
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}) + "\n")
        file.flush()
        yield


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """Wait for the turn to change a file that others change, too, and keep it meanwhile."""
    lock = path.with_name(f".{path.name}.lock")
    with lock.open("a") as file:
        _flock(lock, file, fcntl.LOCK_EX)
        yield


def check_free(path: Path, constraint: str) -> None:
    """Check that no process holds a lock now.

    Args:
        path: See `locked`; it is not made.
        constraint: See `locked`.

    Raises:
        BusyError: One does; the message names it.
    """
    try:
        file = path.open("r+")
    except OSError:
        return
    with file:
        _take(path, constraint, file)


def _take(path: Path, constraint: str, file: TextIO) -> None:
    try:
        _flock(path, file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise BusyError(
            f"{constraint} {path.parent} is in use by {_holder(file.read())}. "
            "Wait for it, or choose another directory."
        ) from None


def _flock(path: Path, file: TextIO, operation: int) -> None:
    try:
        with naming(path):
            fcntl.flock(file, operation)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        if path.parent not in _unlockable:
            _unlockable.add(path.parent)
            reason = error.strerror
            log.warning("%s cannot be locked: %s. Do not start another process on it.", path.parent, reason)


def _holder(text: str) -> str:
    if re.fullmatch(r"process \d+ on \S+", text):  # As earlier versions wrote it in a sweep's directory.
        return text
    try:
        return "process {pid} on {host}".format(**json.loads(text))
    except (ValueError, KeyError, TypeError):
        return "another process"
