"""`tflite`: one LiteRT file with every signature that the runtime can run.

The batch size is free. With `export.quantization` the file has float16 weights, or int8 weights and
activations, whose ranges are measured on training data. A quantized file leaves `evaluate` out, because the
loss would be quantized, too, and of no use. Its predictions are scored by the run's graph instead.
See https://ai.google.dev/edge/litert.
"""

from __future__ import annotations

import re
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config.formats import FORMATS
from pipeline.config.schema import Export
from pipeline.errors import DamagedError, UnsupportedError, first_line
from pipeline.formats.base import ExportTask, disagreement
from pipeline.graphs.examples import Requests
from pipeline.graphs.signatures import Signature, Spec
from pipeline.runtime import held_back_stderr

if TYPE_CHECKING:
    from pipeline.graphs.checkpoints import Graph


def write(task: ExportTask, directory: Path) -> Mapping[str, str]:
    """Write one file with every signature that LiteRT can hold and run.

    Raises:
        UnsupportedError: There is no such signature.
    """
    graph = task.graph()
    requests = task.calibration() if task.options.quantization == "int8" else []
    left_out = dict(task.left_out.get("tflite") or _not_quantizable(graph, task.options, requests))
    with tempfile.TemporaryDirectory() as folder:
        _save(graph, folder)

        def convert(names: Sequence[str]) -> bytes:
            return _convert(folder, names, task.options, requests)

        # The converter does not say which signature made it fail. So all are tried together first, which is
        # enough for most models; only if that fails, each is tried alone.
        held = [name for name in graph.signatures if name not in left_out]
        if "tflite" not in task.left_out and (len(held) == 1 or _reason(convert, held, graph, task)):
            reasons = {name: _reason(convert, [name], graph, task) for name in held}
            left_out |= {name: reason for name, reason in reasons.items() if reason is not None}
            held = [name for name in held if name not in left_out]
        if not held:
            raise UnsupportedError(f"export=tflite can hold no signature of the model. {left_out}")
        (directory / FORMATS["tflite"].path).write_bytes(convert(held))
    return left_out


def _save(graph: Graph, folder: str) -> None:
    """Write the signatures as a SavedModel, for the converter to read."""
    import tensorflow as tf

    module = tf.Module()
    module.weights = dict(graph.weights)
    module.tables = [table.restored for table in graph.tables]
    functions: dict[str, Any] = {name: signature.call for name, signature in graph.signatures.items()}
    if graph.tables:
        from pipeline.graphs import checkpoints

        signatures = graph.signatures.items()
        functions = {name: checkpoints.traced(signature, graph) for name, signature in signatures}
    with held_back_stderr(show_on_error=False):
        tf.saved_model.save(module, folder, signatures=functions)


def _not_quantizable(graph: Graph, options: Export, requests: Sequence[Requests]) -> dict[str, str]:
    """Return the signatures that cannot be quantized, each with the reason."""
    if options.quantization == "none":
        return {}
    left_out = {"evaluate": "a quantized loss says nothing; its predictions are scored outside"}
    if options.quantization == "int8":
        counted = {name for request in requests for name in request}
        reason = "int8 needs the value ranges of its inputs, which are no arrays of the data"
        left_out |= {name: reason for name in graph.signatures if name not in {*counted, *left_out}}
    return left_out


def _reason(
    convert: Callable[[Sequence[str]], bytes], names: Sequence[str], graph: Graph, task: ExportTask
) -> str | None:
    """Return the reason if some signatures cannot be converted into one file and run, otherwise `None`."""
    try:
        converted = convert(names)
    except Exception as error:  # The converter's errors share no type.
        operations = sorted(set(re.findall(r"'tf\.(\w+)' op is neither", str(error))))
        if operations:
            return f"LiteRT has no operation {', '.join(operations)}"
        return f"LiteRT cannot express it: {first_line(error)}"
    try:
        signatures = _signatures(_interpreter(model_content=converted))
        for name in names:
            if name not in task.requests:
                continue
            if task.options.quantization != "none":  # Its answers differ by design.
                signatures[name].call(**task.requests[name])
            elif difference := disagreement(signatures[name], graph.signatures[name], task.requests[name]):
                return f"LiteRT computes something else: {difference}"
    except (RuntimeError, ValueError) as error:
        return f"LiteRT cannot run it: {first_line(error)}"
    return None


def _convert(folder: str, names: Sequence[str], options: Export, requests: Sequence[Requests]) -> bytes:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(names))
    if options.quantization != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if options.quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if options.quantization == "int8":

        def representative() -> Iterator[tuple[str, dict[str, Any]]]:
            for request in requests:
                for name in names:
                    if name in request:
                        yield name, dict(request[name])

        converter.representative_dataset = representative
    with held_back_stderr(show_on_error=False), warnings.catch_warnings(action="ignore"):
        return bytes(converter.convert())


def open(directory: Path, epoch: int) -> Mapping[str, Signature]:
    """Load the file into the LiteRT interpreter, whatever the epoch: an export has only one.

    Raises:
        DamagedError: The file is missing or damaged.
    """
    path = directory / FORMATS["tflite"].path
    try:
        return _signatures(_interpreter(model_content=path.read_bytes()))
    except (OSError, ValueError, RuntimeError) as error:
        raise DamagedError(f"{path} must be a whole LiteRT file. Loading it failed: {error}") from error


def _interpreter(**arguments: Any) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    with held_back_stderr(show_on_error=False):
        interpreter = Interpreter(**arguments)
        interpreter.allocate_tensors()
    return interpreter


def _signatures(interpreter: Any) -> dict[str, Signature]:
    lock = threading.Lock()  # All signatures of an interpreter write to the same tensors.
    return {name: _signature(interpreter, name, lock) for name in interpreter.get_signature_list()}


def _signature(interpreter: Any, name: str, lock: threading.Lock) -> Signature:
    run = interpreter.get_signature_runner(name)

    def call(**arrays: Any) -> Mapping[str, Any]:
        with lock:
            return run(**arrays)

    return Signature(
        {key: _spec(detail) for key, detail in run.get_input_details().items()},
        {key: _spec(detail) for key, detail in run.get_output_details().items()},
        call,
    )


def _spec(detail: Mapping[str, Any]) -> Spec:
    shape = tuple(None if size < 0 else int(size) for size in detail["shape_signature"])
    dtype = np.dtype(detail["dtype"])
    return Spec("string" if dtype.kind == "S" else dtype.name, shape)
