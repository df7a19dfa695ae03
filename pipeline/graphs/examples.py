"""Example requests to every signature, and the answers that the trained model gives to them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import DamagedError
from pipeline.graphs.signatures import Signature, Spec
from pipeline.runs.files import staged

Arrays = dict[str, np.ndarray]

Requests = Mapping[str, Arrays]

BATCH_SIZE = 32
"""Rows of a request."""

SIZE = 8
"""Any other dimension that is free, and any single integer that is no array of the data."""


def example_requests(signatures: Mapping[str, Signature], arrays: Mapping[str, Any]) -> dict[str, Arrays]:
    """Return a request for each signature but `evaluate`, whose metrics are compared.

    Args:
        signatures: The signatures.
        arrays: Rows of a data set, of which the first are taken.
    """
    return {
        name: {key: _example(key, spec, arrays) for key, spec in signature.inputs.items()}
        for name, signature in signatures.items()
        if name != "evaluate"
    }


def _example(name: str, spec: Spec, arrays: Mapping[str, Any]) -> np.ndarray:
    """Return rows of the data, or else random numbers in [0, 1), a size of 8, indices of 0, an empty text."""
    shape = [SIZE if size is None else size for size in spec.shape or ()]
    if spec.batched:
        shape[0] = BATCH_SIZE
    if name in arrays and spec.batched and np.ndim(arrays[name]) == len(shape):
        rows = np.arange(BATCH_SIZE) % len(arrays[name])
        return spec.convert(np.asarray(arrays[name])[rows])
    if spec.dtype == "string":
        return np.full(shape, b"", "S1")
    if spec.dtype.startswith("float"):
        return np.random.default_rng(0).random(shape).astype(spec.dtype)
    return np.full(shape, 0 if shape else SIZE, spec.dtype)


def answer(signatures: Mapping[str, Signature], requests: Requests) -> dict[str, Arrays]:
    """Return what each signature answers; one that does not take its request is left out."""
    answers = {}
    for name, request in requests.items():
        try:
            answers[name] = _call(signatures[name], request)
        except Exception:  # The request is a guess: whether it makes sense is the signature's to say.
            continue
    return answers


def _call(signature: Signature, request: Arrays) -> Arrays:
    outputs = {name: np.asarray(value) for name, value in signature.call(**request).items()}
    return {
        name: value.astype("S") if value.dtype == object else value for name, value in sorted(outputs.items())
    }


def write(path: Path, arrays: Mapping[str, Arrays]) -> None:
    """Write requests or answers as a NumPy archive."""
    flat: dict[str, Any] = {
        f"{signature}:{name}": array for signature, of in arrays.items() for name, array in of.items()
    }
    with staged(path) as staging, staging.open("wb") as file:
        np.savez(file, **flat)


def read(path: Path) -> dict[str, Arrays]:
    """Read requests or answers.

    Raises:
        ConfigError: The file is missing or damaged.
    """
    found: dict[str, Arrays] = {}
    try:
        with np.load(path) as archive:
            for key in archive.files:
                signature, _, name = key.partition(":")
                found.setdefault(signature, {})[name] = archive[key]
    except Exception as error:  # Whatever the damaged bytes lead the reader into.
        raise DamagedError(f"{path} must be a whole NumPy archive. Reading it failed: {error}") from error
    return found
