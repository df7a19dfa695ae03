"""Checksums: JSON objects that contain their own SHA-256, and the SHA-256 of files.

They detect a file that was damaged or edited. They do not detect a forger, who can compute a checksum, too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

CHECKSUM = "sha256"
"""The key of a JSON object's own checksum."""


def with_checksum(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object with its checksum added under `sha256`; `checked` is the inverse.

    Raises:
        ValueError: A number is infinite or not a number, which JSON cannot hold.
    """
    # Through JSON and back, because the checksum must be that of the object which a reader will get: tuples
    # become lists, and keys become strings.
    plain = json.loads(json.dumps(facts, allow_nan=False))
    return {**plain, CHECKSUM: _digest(plain)}


def checked(text: str) -> dict[str, Any]:
    """Return the object in a JSON text, without its checksum.

    Raises:
        ValueError: The text is not a JSON object, or the checksum is missing or wrong.
    """
    try:
        facts = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(facts, dict):
        raise ValueError("it is no JSON object")
    if facts.pop(CHECKSUM, None) != _digest(facts):
        raise ValueError("its checksum does not fit: it was changed after it was written")
    return facts


def _digest(facts: Mapping[str, Any]) -> str:
    # One text for one object, whatever its order of keys and its white space in the file.
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(directory: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Return the SHA-256 of each file by its path relative to a directory; what is no file is left out."""
    return {str(path.relative_to(directory)): digest(path) for path in sorted(paths) if path.is_file()}


def problems(directory: Path, files: Mapping[str, str]) -> list[str]:
    """Return a sentence for each file that is missing or whose SHA-256 is another.

    Args:
        directory: The directory of the files. No file outside of it is opened, whatever a path says.
        files: The SHA-256 by path, as `digests` returns them.
    """
    found: list[str] = []
    for name, expected in files.items():
        try:
            found += _problem(directory, name, expected)
        except (OSError, ValueError) as error:  # ValueError: the path has a null character, for instance.
            found.append(f"{directory} must hold {name!r}. Reading it failed: {error}.")
    return found


def _problem(directory: Path, name: str, expected: str) -> Iterator[str]:
    path = directory / name
    # The list of files may come from a stranger: `../../` or a link must not lead out of the directory.
    if not path.resolve().is_relative_to(directory.resolve()):
        yield f"{path} must be inside of {directory}. It leads to {path.resolve()}."
    elif not path.is_file():
        yield f"{path} must be there. It is missing."
    elif (received := digest(path)) != expected:
        yield f"{path} must have the SHA-256 {expected}. Received: {received}. It was changed."
