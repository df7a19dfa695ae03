"""Example requests to every signature, and the trained model's answers to them.

An export is proven by its answers: they must equal those that the model gave when it was trained.
"""

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
"""The arrays of a request, by name, for each signature."""

BATCH_SIZE = 32
"""Rows of an example request."""

SIZE = 8
"""Size of every other free dimension, and value of every input that is a single integer."""


def example_requests(signatures: Mapping[str, Signature], arrays: Mapping[str, Any]) -> dict[str, Arrays]:
    """Return a request for each signature, except for `evaluate`: verification compares its metrics.

    Args:
        signatures: The signatures by name.
        arrays: A split of the data set. Inputs named like one of its arrays get its first rows.
    """
    return {
        name: {key: _example(key, spec, arrays) for key, spec in signature.inputs.items()}
        for name, signature in signatures.items()
        if name != "evaluate"
    }


def _example(name: str, spec: Spec, arrays: Mapping[str, Any]) -> np.ndarray:
    """Return an example of an input: rows of the data if they have an array of this name and rank.

    Otherwise floats are random numbers in [0, 1), texts are empty, arrays of integers are 0, which is a
    valid index for every table, and a single integer is 8, which is a valid size.
    """
    shape = [SIZE if size is None else size for size in spec.shape or ()]
    if spec.batched:
        shape[0] = BATCH_SIZE
    if name in arrays and spec.batched and np.ndim(arrays[name]) == len(shape):
        rows = np.arange(BATCH_SIZE) % len(arrays[name])
        return spec.convert(np.asarray(arrays[name])[rows])
    if spec.dtype == "string":
        return np.full(shape, b"", "S1")  # NumPy has no bytes of length 0.
    if spec.dtype.startswith("float"):
        return np.random.default_rng(0).random(shape).astype(spec.dtype)
    return np.full(shape, 0 if shape else SIZE, spec.dtype)


def answer(signatures: Mapping[str, Signature], requests: Requests) -> dict[str, Arrays]:
    """Return the answer of each signature to its request.

    A signature that raises has no answer, and is not compared later: requests are guesses, and a model may
    have reasons to refuse them.
    """
    answers = {}
    for name, request in requests.items():
        try:
            answers[name] = call(signatures[name], request)
        except Exception:  # A model may raise any type of exception on a request that makes no sense.
            continue
    return answers


def call(signature: Signature, request: Mapping[str, Any]) -> Arrays:
    """Return the answer of a signature to a request, as arrays."""
    outputs = {name: np.asarray(value) for name, value in signature.call(**request).items()}
    # Strings come as arrays of objects, which a NumPy archive can hold only with pickle.
    return {
        name: value.astype("S") if value.dtype == object else value for name, value in sorted(outputs.items())
    }


def write(path: Path, arrays: Mapping[str, Arrays]) -> None:
    """Write requests or answers as a NumPy archive; its arrays are named `<signature>:<name>`."""
    flat: dict[str, Any] = {
        f"{signature}:{name}": array for signature, of in arrays.items() for name, array in of.items()
    }
    with staged(path) as staging, staging.open("wb") as file:
        np.savez(file, **flat)


def read(path: Path) -> dict[str, Arrays]:
    """Return the requests or answers in a NumPy archive, by signature and name.

    Raises:
        DamagedError: The file is missing or damaged.
    """
    found: dict[str, Arrays] = {}
    try:
        with np.load(path) as archive:
            for key in archive.files:
                signature, _, name = key.partition(":")
                found.setdefault(signature, {})[name] = archive[key]
    except Exception as error:  # Damaged bytes may raise any type of exception in NumPy's reader.
        raise DamagedError(f"{path} must be a whole NumPy archive. Reading it failed: {error}") from error
    return found
