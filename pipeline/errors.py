"""The errors of this project, and sentences that several of them need.

    RoundtripError               something that the user can mend; exit code 2
    ├── ConfigError              a key, a value or a choice of the configuration
    ├── DataSetError             data that cannot be read, does not fit the model, or has changed
    ├── DamagedError             a file of a run or an export that is missing, changed or unreadable
    ├── UntrustedError           a file that could do more than compute, or an export that is not verified
    ├── UnsupportedError         a model that a format or a compiler cannot hold
    ├── BusyError                a directory that another process works in
    └── DiskFullError            a disk without room for what is to be written

Outside of this hierarchy stand `pipeline.cli.stop.StopRequested` (a signal),
`pipeline.training.loop.NonFiniteLoss` (a training that diverged), `pipeline.predictor.RequestError` (a
request to an export) and `data.base.DataError`, which a data source raises and
`pipeline.config.dataset_checks.load` turns into `DataSetError`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

NO_REASON = ("Graph execution error", "Detected at node", "Node:")
"""Beginnings of those lines of TensorFlow's messages that say where an error was, not which."""


class RoundtripError(ValueError):
    """Something that the user can mend.

    Attributes:
        problems: A sentence for each problem: the constraint, what was received, and the remedy.
    """

    def __init__(self, *problems: str) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class ConfigError(RoundtripError):
    """A configuration that cannot be run, with every problem that was found in it."""


class DataSetError(RoundtripError):
    """A data set that cannot be read, does not fit the model, or is not the one that a run was trained on."""


class DamagedError(RoundtripError):
    """A file of a run or an export that is missing, was changed after it was written, or cannot be read."""


class UntrustedError(RoundtripError):
    """A graph, a class or an export that must be trusted by name before it is used."""


class UnsupportedError(RoundtripError):
    """A model that an export format or a compiler cannot hold."""


class BusyError(RoundtripError):
    """A directory that another process works in."""


class DiskFullError(RoundtripError):
    """A disk that has no room for what is to be written."""


def unknown(key: str, value: object, known: Iterable[object], *, what: str = "choice") -> str:
    """Return a sentence about a name that does not exist: which names do, and which one may be meant.

    Args:
        key: The key of the configuration that holds the name.
        value: The name that was received.
        known: The names that exist.
        what: `choice` if the name is a value of the key, `key` if the key itself does not exist.
    """
    names = [str(name) for name in known]
    close = difflib.get_close_matches(str(value), names, n=1)
    meant = f" Did you mean {close[0]}?" if close else ""
    listed = ", ".join(names) or "none"
    if what == "key":
        return f"{key} is not a key. Known here: {listed}.{meant}"
    return f"{key} must be one of {listed}. Received: {value}.{meant}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that gives the reason; the error's type if none does.

    TensorFlow's messages begin with the place of the error in the graph; the reason follows.
    """
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith(NO_REASON)]
    failed = [line for line in lines if "assertion failed" in line]
    said = (failed or lines or [type(error).__name__])[0].strip()
    return re.sub(r"^\{\{.*?\}\} | \[Op:\w+\]$", "", said)
