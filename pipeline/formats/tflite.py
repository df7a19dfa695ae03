"""`tflite`: one LiteRT file with every signature that the runtime can run.

The batch size is free. `export.quantization` stores float16 weights, or int8 weights and activations whose
ranges are counted on training data; `evaluate` is then left out, since a quantized loss says nothing:
the predictions are scored outside. See https://ai.google.dev/edge/litert.
"""

from __future__ import annotations

import re
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ConfigError, first_line
from pipeline.formats.base import Source, Traits
from pipeline.graphs.signatures import Signature, Spec
from pipeline.runtime import held_back_stderr

TRAITS = Traits(facts=".", exact=False)
FILE = "model.tflite"


def write(source: Source, directory: Path) -> Mapping[str, str]:
    """Convert all signatures that can be; one that cannot, or cannot be run, is left out.

    Raises:
        ConfigError: None can be.
    """
    import tensorflow as tf

    graph = source.graph()
    left_out: dict[str, str] = {}
    if source.options.quantization != "none":
        left_out["evaluate"] = "a quantized loss says nothing; its predictions are scored outside"
    with tempfile.TemporaryDirectory() as folder:
        module = tf.Module()
        module.weights = dict(graph.weights)
        functions = {name: signature.call for name, signature in graph.signatures.items()}
        with held_back_stderr(show_on_error=False):
            tf.saved_model.save(module, folder, signatures=functions)
        if source.options.quantization == "int8":
            known = {name for requests in source.calibration() for name in requests}
            unknown = "int8 needs the value ranges of its inputs, which are no arrays of the data"
            left_out |= {name: unknown for name in graph.signatures if name not in {*known, *left_out}}
        candidates = [name for name in graph.signatures if name not in left_out]
        for name in candidates:
            reason = _reason(source, folder, name)
            if reason is not None:
                left_out[name] = reason
        held = [name for name in candidates if name not in left_out]
        if not held:
            raise ConfigError([f"export=tflite can hold no signature of the model. {left_out}"])
        (directory / FILE).write_bytes(_convert(source, folder, held))
    return left_out


def _reason(source: Source, folder: str, name: str) -> str | None:
    """Return why a signature cannot be converted and run, or `None` if it can."""
    try:
        converted = _convert(source, folder, [name])
    except Exception as error:  # Whatever the converter runs into.
        operations = sorted(set(re.findall(r"'tf\.(\w+)' op is neither", str(error))))
        if operations:
            return f"LiteRT has no operation {', '.join(operations)}"
        return f"LiteRT cannot express it: {first_line(error)}"
    try:
        signature = _signatures(_interpreter(model_content=converted))[name]
        if name in source.requests:
            signature.call(**source.requests[name])
    except (RuntimeError, ValueError) as error:
        return f"LiteRT cannot run it: {first_line(error)}"
    return None


def _convert(source: Source, folder: str, names: Sequence[str]) -> bytes:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(names))
    if source.options.quantization != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if source.options.quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if source.options.quantization == "int8":
        requests = source.calibration()

        def representative() -> Iterator[tuple[str, dict[str, Any]]]:
            for request in requests:
                for name in names:
                    if name in request:
                        yield name, dict(request[name])

        converter.representative_dataset = representative
    with held_back_stderr(show_on_error=False), warnings.catch_warnings(action="ignore"):
        return bytes(converter.convert())


def open(directory: Path, epoch: int) -> Mapping[str, Signature]:
    """Load the file into the LiteRT interpreter.

    Raises:
        ConfigError: The file is missing or damaged.
    """
    path = directory / FILE
    try:
        return _signatures(_interpreter(model_content=path.read_bytes()))
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError([f"{path} must be a whole LiteRT file. Loading it failed: {error}"]) from error


def _interpreter(**arguments: Any) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    with held_back_stderr(show_on_error=False):
        interpreter = Interpreter(**arguments)
        interpreter.allocate_tensors()
    return interpreter


def _signatures(interpreter: Any) -> dict[str, Signature]:
    lock = threading.Lock()  # An interpreter has one set of tensors.
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
    return Spec(np.dtype(detail["dtype"]).name, shape)
