"""The lock of a run directory: one process at a time writes there.

It is an `flock` (https://docs.python.org/3/library/fcntl.html). The operating system releases it when the
process ends, also after a crash. So the existence of the file `.lock` means nothing; its text only names the
process that took the lock last.
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
"""Errors of a file system that has no locks, such as some network file systems."""

log = logging.getLogger(__name__)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory in the `with` block.

    Raises:
        BusyError: Another process holds the lock; the message names it.
    """
    # "a+" and not "w": the text of the process that holds the lock is needed for the message.
    with (directory / NAME).open("a+") as file:
        _lock(directory, file)
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}) + "\n")
        file.flush()
        yield


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """Hold the lock of a file in the `with` block, after waiting for other processes that hold it.

    For a file that several processes read, change and write again: each must see the others' changes.

    Args:
        path: The file. The lock is on a file beside it, because writing replaces the file itself.
    """
    with path.with_name(f".{path.name}.lock").open("a") as file:
        _flock(file, fcntl.LOCK_EX)
        yield


def check_free(directory: Path) -> None:
    """Check that no process holds the lock of a directory at this moment.

    Raises:
        BusyError: A process holds it; the message names it.
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
    """Lock a file; return the reason if its file system has no locks, otherwise `None`."""
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
