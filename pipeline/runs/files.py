"""Writing a file or a directory in one step: under another name first, then synced, then renamed.

So a reader, also one after a crash, finds the old file, the new file or none, but never a part of one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yield a path beside `target`; at the end, sync what the caller wrote there and rename it to `target`.

    The caller makes a file or a directory at that path. After an exception it is removed.

    Args:
        target: The file or directory to write.

    Raises:
        OSError: The disk does not take it; the error names `target`.
    """
    # Beside it, because a rename is one step only inside of a file system. The number of the process lets
    # `remove_leftovers` find what a process that was killed left behind.
    staging = target.with_name(f".{target.name}.{os.getpid()}.staging")
    try:
        with naming(target):
            yield staging
        for path in [staging, *staging.rglob("*")] if staging.is_dir() else [staging]:
            sync(path)
        staging.rename(target)
        # A rename changes the directory: without this, a crash of the machine may undo it.
        sync(target.parent)
    except BaseException:
        _remove(staging)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the path to an `OSError` that has none.

    `write` raises such errors: "No space left on device" does not say on which one.

    Args:
        path: The file that is written.

    Raises:
        OSError: With the path.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step: a reader of `path` finds the old text or the new one.

    Raises:
        OSError: The disk does not take it.
    """
    with staged(path) as staging:
        staging.write_text(text)


def remove_leftovers(folder: Path) -> None:
    """Remove the staging files of processes that no longer exist from a folder.

    A process of another machine counts as one that no longer exists. That is right while this process holds
    the lock of the run directory (`pipeline.runs.locks`), because then nobody else writes there.
    """
    for left in folder.glob(".*.staging"):
        pid = left.name.split(".")[-2]
        # This process, too, stages nothing at the moment: a file with its number is that of an older process.
        is_alive = pid.isdecimal() and int(pid) != os.getpid() and Path(f"/proc/{pid}").exists()
        if not is_alive:
            _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until the contents of a file, or the entries of a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
