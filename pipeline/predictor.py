"""Predicting with an export of any format: NumPy arrays in, NumPy arrays out.

    predictor = pipeline.predictor.open("outputs/.../export/onnx")
    predictor(images=images)["class_id"]
    predictor.signatures["generate"](prompt="ROMEO:", length=600, temperature=0.8, seed=[1, 2])["text"]

The names, dtypes and shapes of a request are checked against the signature. TensorFlow is imported only for
formats that need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import runtime
from pipeline.config.formats import DEFAULT_SIGNATURE, FORMATS
from pipeline.errors import ConfigError, DamagedError, UntrustedError, first_line, unknown
from pipeline.formats import opening
from pipeline.formats.manifest import Manifest, has_manifest, read_manifest
from pipeline.graphs import allowed_operations
from pipeline.graphs.signatures import Signature, Spec
from pipeline.verification import receipt as receipts

Arrays = Mapping[str, np.ndarray]


class RequestError(ValueError):
    """A request that does not fit its signature, or that the runtime refuses; the message says why."""


@dataclass(frozen=True)
class Served:
    """A signature of an open export, which checks its requests.

    Attributes:
        inputs: The spec of each input by name.
        outputs: The spec of each output by name.
        answer: Takes arrays by name, or values that NumPy can convert to arrays; returns arrays by name.
        check: Takes the same; returns the inputs as arrays. Raises `RequestError` with all problems.
    """

    inputs: Mapping[str, Spec]
    outputs: Mapping[str, Spec]
    answer: Callable[[Mapping[str, Any]], Arrays]
    check: Callable[[Mapping[str, Any]], Arrays]

    def __call__(self, /, **inputs: Any) -> Arrays:
        """Answer a request.

        Raises:
            RequestError: A name, a dtype or a shape is wrong, or the runtime refuses the values.
        """
        return self.answer(inputs)


@dataclass(frozen=True)
class Predictor:
    """An open export.

    Attributes:
        directory: The version that was opened.
        format: Name of its format.
        epoch: The epoch whose weights the signatures have.
        signatures: Every signature of the export by name.
    """

    directory: Path
    format: str
    epoch: int
    signatures: Mapping[str, Served]

    def __call__(self, /, **inputs: Any) -> Arrays:
        """Answer a request to `serving_default`.

        Raises:
            RequestError: The export has no such signature, or the request does not fit it.
        """
        default = self.signatures.get(DEFAULT_SIGNATURE)
        if default is None:
            raise RequestError(unknown("signature", DEFAULT_SIGNATURE, self.signatures))
        return default.answer(inputs)


def open(
    export_dir: str | Path,
    *,
    epoch: int | None = None,
    allow_unverified: bool = False,
    trust: Iterable[str] = (),
) -> Predictor:
    """Open an export, which may come from a stranger.

    Args:
        export_dir: The directory of a version of an export; or the folder of its versions, such as
            `RUN/export/onnx`, of which the newest version is opened.
        epoch: The epoch to open, if the export holds several; `None` is the last one.
        allow_unverified: Whether to open an export without a receipt that says `match`.
        trust: Further operations that the graph may have, besides those that compute.

    Raises:
        ConfigError: There is no export in the directory, or it does not hold the epoch.
        DamagedError: A file of the export is missing, was changed or was added since it was written.
        UntrustedError: The receipt is missing, says `mismatch`, or is about other files; or the graph has an
            operation that is not allowed.
    """
    directory = _newest_version(Path(export_dir))
    manifest = read_manifest(directory)
    found = None if allow_unverified else _doubt(directory, manifest)
    if found is not None:
        raise UntrustedError(
            f"An export must be verified before it predicts. {found}: {directory}. Verify it with "
            f"python -m pipeline.evaluate run_dir={manifest.run}, or allow it with allow_unverified."
        )
    if FORMATS[manifest.format].needs_tensorflow:
        runtime.import_tensorflow()
    if not manifest.epochs:
        raise DamagedError(f"{directory} must hold an epoch. It says that it holds none.")
    if epoch is None:
        epoch = manifest.epochs[-1]
    if epoch not in manifest.epochs:
        raise ConfigError(unknown("epoch", epoch, manifest.epochs))
    with allowed_operations.trusting(trust):
        _, signatures = opening.open(directory, epoch)
    return Predictor(
        directory,
        manifest.format,
        epoch,
        {name: _served(name, signature) for name, signature in signatures.items()},
    )


def _doubt(directory: Path, manifest: Manifest) -> str | None:
    """Return the reason if an export is not proven, otherwise `None`."""
    receipt = receipts.read_of_export(directory)
    if receipt is None:
        return "There is no receipt"
    if not receipt.match:
        return "The receipt says mismatch"
    return None if receipt.files == manifest.files else "The receipt is of other files"


def _newest_version(path: Path) -> Path:
    if has_manifest(path):
        return path
    versions = [found for found in path.glob("*") if found.name.isdecimal() and has_manifest(found)]
    if not versions:
        raise ConfigError(
            f"export_dir must be an export, or a folder of its versions such as RUN/export/onnx: {path}."
        )
    return max(versions, key=lambda found: int(found.name))


def _served(name: str, signature: Signature) -> Served:
    """Return a signature with its checks, which take about a microsecond for a correct request."""
    # Everything that is the same for all requests is computed here, once: for a small model, a few look-ups
    # of attributes would be a noticeable part of the time of a call.
    run = signature.call
    ndarray = np.ndarray
    expected = [
        (
            key,
            np.dtype(object if spec.dtype == "string" else spec.dtype),
            len(spec.shape or ()),
            spec.batched,
            (spec.shape or ())[spec.batched :],
            spec,
        )
        for key, spec in signature.inputs.items()
    ]

    def fits(inputs: Mapping[str, Any]) -> bool:
        """Return whether a request is arrays of the right dtypes and shapes, so that no conversion is needed.

        A `False` is not an error yet: `_checked` converts what can be converted, and reports the rest.
        """
        if len(inputs) != len(expected):
            return False
        num_rows = None
        for key, dtype, rank, batched, sizes, spec in expected:
            value = inputs.get(key)
            if type(value) is not ndarray or value.dtype is not dtype:
                return False
            shape = value.shape
            if len(shape) != rank or (shape[batched:] != sizes and not spec.accepts(shape)):
                return False
            if batched:
                if num_rows is None:
                    num_rows = shape[0]
                elif num_rows != shape[0]:
                    return False
        return True

    def answer(inputs: Mapping[str, Any]) -> Arrays:
        arrays = inputs if fits(inputs) else _checked(name, signature.inputs, inputs)
        try:
            outputs = run(**arrays)
        except Exception as error:  # The runtimes have no common type of exception.
            raise RequestError(f"{name} cannot answer this request: {first_line(error)}") from error
        for value in outputs.values():
            if type(value) is not ndarray:
                return {key: np.asarray(value) for key, value in outputs.items()}
        return outputs

    def check(inputs: Mapping[str, Any]) -> Arrays:
        return _checked(name, signature.inputs, inputs)

    return Served(signature.inputs, signature.outputs, answer, check)


def _checked(name: str, specs: Mapping[str, Spec], inputs: Mapping[str, Any]) -> Arrays:
    """Return the inputs of a request as arrays.

    Args:
        name: The name of the signature, for messages.
        specs: The spec of each input by name.
        inputs: The request.

    Raises:
        RequestError: Inputs are missing, unknown or do not fit; the message has a sentence for each.
    """
    problems = [
        f"{name} takes {', '.join(specs) or 'nothing'}. Received also: {key}."
        for key in inputs
        if key not in specs
    ]
    problems += [f"{key} must be given: {spec}." for key, spec in specs.items() if key not in inputs]
    arrays: dict[str, np.ndarray] = {}
    for key, spec in specs.items():
        if key in inputs:
            try:
                arrays[key] = _array(inputs[key], spec)
            except (ValueError, TypeError, OverflowError) as error:
                problems.append(f"{key} must be {spec}. {error}")
    sizes = {key: array.shape[0] for key, array in arrays.items() if specs[key].batched}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{key} {size}" for key, size in sizes.items())
        problems.append(f"All inputs must have the same number of rows. Received: {listed}.")
    if problems:
        raise RequestError(" ".join(problems))
    return arrays


def _array(value: Any, spec: Spec) -> np.ndarray:
    """Return a value as an array that fits a spec.

    Raises:
        ValueError: The value does not fit; the message says what was received.
    """
    # Texts as Python objects: NumPy's own strings have a fixed length, and drop null characters at the end.
    if isinstance(value, np.ndarray):
        array = value
    else:
        array = np.array(value, dtype=object) if spec.dtype == "string" else np.array(value)
    if spec.dtype == "string":
        if not all(isinstance(item, str | bytes) for item in array.ravel()):
            raise ValueError(f"Received: {value!r}.")
        array = np.array([_encoded(item) for item in array.ravel()], dtype=object).reshape(array.shape)
    elif array.dtype != spec.dtype:
        array = _converted(value, array, np.dtype(spec.dtype))
    if not spec.accepts(array.shape):
        raise ValueError(f"Received the shape {list(array.shape)}.")
    return array


def _encoded(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _converted(value: Any, array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Return plain numbers as an array of a dtype, if no number loses more than its last digits.

    A list of Python numbers has no dtype, so it is converted. An array has one that its owner has chosen, so
    another dtype is more likely a mistake.

    Raises:
        ValueError: The value is an array of another dtype, or has numbers that the dtype cannot hold.
    """
    if isinstance(value, np.ndarray | np.generic):
        raise ValueError(f"Received: {array.dtype}. Convert it with .astype({dtype.name!r}).")
    if array.size == 0 and array.dtype.kind == "f":
        return array.astype(dtype)
    if array.dtype.kind not in {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}.get(dtype.kind, ""):
        raise ValueError(f"Received: {array.dtype.name} {value!r}.")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if array.size and (array.min() < limits.min or array.max() > limits.max):
            raise ValueError(f"Received a number outside {limits.min} to {limits.max}.")
    with np.errstate(over="ignore"):  # A number too large for float32 becomes infinite, which is valid input.
        return array.astype(dtype)
