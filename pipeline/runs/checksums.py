"""Seals: JSON objects that carry the SHA-256 of what they say, and files held against theirs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

SEAL = "sha256"


def seal(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object with its seal; `unseal` undoes it."""
    plain = json.loads(json.dumps(facts, allow_nan=False))
    return {**plain, SEAL: _digest(plain)}


def unseal(text: str) -> dict[str, Any]:
    """Return the object that a JSON text holds.

    Raises:
        ValueError: It holds none, or not the one that was sealed.
    """
    try:
        facts = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(facts, dict):
        raise ValueError("it is no JSON object")
    if facts.pop(SEAL, None) != _digest(facts):
        raise ValueError("its seal is broken: it was changed after it was written")
    return facts


def _digest(facts: Mapping[str, Any]) -> str:
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(directory: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Return the digest of each file by its path relative to a directory."""
    return {str(path.relative_to(directory)): digest(path) for path in sorted(paths) if path.is_file()}


def problems(directory: Path, files: Mapping[str, str]) -> list[str]:
    """Return a sentence for each file that is not as it was when its digest was taken.

    Args:
        directory: No file outside of it is opened.
        files: Digests, as `digests` gives them.
    """
    found: list[str] = []
    for name, expected in files.items():
        try:
            found += _problem(directory, name, expected)
        except (OSError, ValueError) as error:  # The name, too, may be anything.
            found.append(f"{directory} must hold {name!r}. Reading it failed: {error}.")
    return found


def _problem(directory: Path, name: str, expected: str) -> Iterator[str]:
    path = directory / name
    if not path.resolve().is_relative_to(directory.resolve()):
        yield f"{path} must be inside of {directory}. It leads to {path.resolve()}."
    elif not path.is_file():
        yield f"{path} must be there. It is missing."
    elif (received := digest(path)) != expected:
        yield f"{path} must have the SHA-256 {expected}. Received: {received}. It was changed."
