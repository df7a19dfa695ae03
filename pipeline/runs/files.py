"""Files written in one step: beside their name, synced, renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Give a path beside `target` to write to; sync and rename it to `target` if all goes well.

    The path is a file's or a directory's, as the caller makes it. On an exception it is removed.
    """
    staging = target.with_name(f".{target.name}.{os.getpid()}.staging")
    try:
        with naming(target):
            yield staging
        for path in [staging, *staging.rglob("*")] if staging.is_dir() else [staging]:
            sync(path)
        staging.rename(target)
        sync(target.parent)
    except BaseException:
        _remove(staging)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in an error that says only what is wrong with it, such as a disk that is full."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step: whoever reads `path` finds the old text or the new."""
    with staged(path) as staging:
        staging.write_text(text)


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that no longer exists had staged in a folder.

    A process of another machine counts as gone: a run directory has one writer at a time
    (`pipeline.runs.locks`).
    """
    for left in folder.glob(".*.staging"):
        pid = left.name.split(".")[-2]
        is_alive = pid.isdecimal() and int(pid) != os.getpid() and Path(f"/proc/{pid}").exists()
        if not is_alive:
            _remove(left)


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
