"""The errors of this project, and sentences that more than one of them needs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

NO_REASON = ("Graph execution error", "Detected at node", "Node:")


class ConfigError(ValueError):
    """A configuration that cannot be run.

    Attributes:
        problems: Every problem found, each a sentence of constraint, evidence and remedy.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


def unknown(key: str, value: Any, known: Iterable[Any], *, what: str = "choice") -> str:
    """Say that a key or one of its values does not exist, which do, and which may have been meant."""
    names = [str(name) for name in known]
    close = difflib.get_close_matches(str(value), names, n=1)
    meant = f" Did you mean {close[0]}?" if close else ""
    listed = ", ".join(names) or "none"
    if what == "key":
        return f"{key} is not a key. Known here: {listed}.{meant}"
    return f"{key} must be one of {listed}. Received: {value}.{meant}"


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says that says something, or else its type.

    TensorFlow's begin with where, and only then say what.
    """
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith(NO_REASON)]
    failed = [line for line in lines if "assertion failed" in line]
    said = (failed or lines or [type(error).__name__])[0].strip()
    return re.sub(r"^\{\{.*?\}\} | \[Op:\w+\]$", "", said)
