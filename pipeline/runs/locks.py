"""The lock of a run directory: one process writes to it at a time.

The operating system holds it (`flock`), so that it is gone with its process, however that ended; the
file only says whose it is.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from pipeline.errors import BusyError

NAME = ".lock"
NOT_SUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)

log = logging.getLogger(__name__)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory.

    Raises:
        ConfigError: Another process does; the message names it.
    """
    with (directory / NAME).open("a+") as file:
        _lock(directory, file)
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}) + "\n")
        file.flush()
        yield


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """Wait for the turn to change a file that others change, too, and keep it meanwhile."""
    with path.with_name(f".{path.name}.lock").open("a") as file:
        _flock(file, fcntl.LOCK_EX)
        yield


def check_free(directory: Path) -> None:
    """Check that no process holds the lock of a directory now.

    Raises:
        ConfigError: One does; the message names it.
    """
    try:
        file = (directory / NAME).open("r")
    except OSError:
        return
    with file:
        _lock(directory, file)


def _lock(directory: Path, file: TextIO) -> None:
    try:
        reason = _flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise BusyError(
            f"A run directory must be used by one process at a time. {directory} is, by "
            f"{_holder(file.read())}. Wait for it, or choose another directory."
        ) from None
    if reason is not None:
        log.warning("%s cannot be locked: %s. Do not start another process on it.", directory, reason)


def _flock(file: TextIO, operation: int) -> str | None:
    """Lock a file; return why its file system cannot, if it cannot."""
    try:
        fcntl.flock(file, operation)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        return error.strerror
    return None


def _holder(text: str) -> str:
    try:
        return "process {pid} on {host}".format(**json.loads(text))
    except (ValueError, KeyError, TypeError):
        return "another process"
