"""`onnx`: an ONNX file for each signature, `model.onnx` for `serving_default`.

Inputs and outputs keep their names, and the batch size is free. In ONNX an output cannot have the name of an
input. So a carried output, such as `state_c`, gets the name `next_state_c` in the file, and its own name
again in `open`. The opset is `export.opset`. See https://onnx.ai/onnx/repo-docs/IR.html.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.formats import DEFAULT_SIGNATURE, FORMATS
from pipeline.errors import DamagedError, UnsupportedError, first_line
from pipeline.formats.base import ExportTask
from pipeline.graphs.signatures import Signature, Spec
from pipeline.runtime import held_back_stderr

DEFAULT_STEM = FORMATS["onnx"].default_stem
NEXT = "next_"
STRING = "tensor(string)"
DTYPES = {"float": "float32", "double": "float64", "float16": "float16", "bool": "bool", "string": "string"}


def write(task: ExportTask, directory: Path) -> Mapping[str, str]:
    """Write a file for each signature that ONNX can hold and that ONNX Runtime can run.

    Raises:
        UnsupportedError: There is no such signature.
    """
    graph = task.graph()
    left_out = dict(task.left_out.get("onnx", {}))
    for name, signature in graph.signatures.items():
        if name not in left_out and (reason := _reason(name, signature, directory, task)):
            left_out[name] = reason
    if len(left_out) == len(graph.signatures):
        raise UnsupportedError(f"export=onnx can hold no signature of the model. {left_out}")
    return left_out


def _path(directory: Path, name: str) -> Path:
    return directory / FORMATS["onnx"].path_of(signature=name)


def _reason(name: str, signature: Signature, directory: Path, task: ExportTask) -> str | None:
    """Write the file of a signature and run it; if that fails, remove the file and return the reason."""
    if reason := _name_taken(name, signature):
        return reason
    path = _path(directory, name)
    reason = _convert(signature, path, task.options.opset) or _cannot_run(path, task.requests.get(name))
    if reason is not None:
        path.unlink(missing_ok=True)
    return reason


def _name_taken(name: str, signature: Signature) -> str | None:
    """Return a sentence about a name of a signature that has another meaning in this format, if any."""
    if name == DEFAULT_STEM:
        return (
            f"{DEFAULT_STEM}.onnx is the file of {DEFAULT_SIGNATURE}; another name for the signature will do"
        )
    carried = {NEXT + key for key in signature.inputs}
    if taken := sorted(carried.intersection(signature.outputs)):
        return f"an output named {taken[0]} would be the carried input's; another name for it will do"
    return None


def _convert(signature: Signature, path: Path, opset: int) -> str | None:
    """Write a signature as an ONNX file; return the reason if ONNX cannot hold it, otherwise `None`."""
    specs = {**signature.inputs, **signature.outputs}
    if strings := [name for name, spec in specs.items() if spec.dtype == "string"]:
        return f"ONNX has no operations on strings, as {', '.join(strings)} would need"
    if any("Dataset" in operation for operation in _operations(signature)):
        return "ONNX has no input pipelines, such as its tf.data one"
    import onnx
    import tensorflow as tf
    import tf2onnx

    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    inputs = [tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in signature.inputs.items()]

    def function(*arrays: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = signature.call(**dict(zip(signature.inputs, arrays, strict=True)))
        return {_output(signature, name): tensor for name, tensor in outputs.items()}

    try:
        with held_back_stderr(show_on_error=False):
            traced = tf.function(function, input_signature=inputs, autograph=False)
            model, _ = tf2onnx.convert.from_function(traced, input_signature=inputs, opset=opset)
            # Objects of the converter write to the standard error when they are collected. They shall do so
            # while it is held back.
            del traced
            gc.collect()
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # The converter may raise any type of exception.
        return f"ONNX cannot express it: {first_line(error)}"
    path.write_bytes(model.SerializeToString(deterministic=True))
    return None


def _operations(signature: Signature) -> set[str]:
    """Return the operations of a signature and of the functions that it calls."""
    function: Any = signature.call
    graph = function.graph.as_graph_def()
    bodies = [graph.node, *(function.node_def for function in graph.library.function)]
    return {node.op for body in bodies for node in body}


def _output(signature: Signature, name: str) -> str:
    return NEXT + name if name in signature.inputs else name


def _cannot_run(path: Path, request: Mapping[str, Any] | None) -> str | None:
    try:
        signature = _signature(path)
        if request is not None:
            signature.call(**request)
    except Exception as error:  # The runtime's errors share no type.
        return f"ONNX Runtime cannot run it: {first_line(error)}"
    return None


def open(directory: Path, epoch: int) -> Mapping[str, Signature]:
    """Load each file into ONNX Runtime, whatever the epoch: an export has only one.

    Raises:
        DamagedError: A file is damaged.
    """
    paths = sorted(directory.glob("*.onnx"))
    try:
        signatures = {path.stem: _signature(path) for path in paths}
    except Exception as error:  # The runtime's errors share no type.
        raise DamagedError(f"{directory} must hold whole ONNX files: {error}") from error
    if DEFAULT_STEM in signatures:
        signatures[DEFAULT_SIGNATURE] = signatures.pop(DEFAULT_STEM)
    return signatures


def _signature(path: Path) -> Signature:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # Errors only.
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {node.name: _spec(node) for node in session.get_inputs()}
    outputs = {node.name: _spec(node) for node in session.get_outputs()}
    # Names are looked up here, once: for a small model, that is a noticeable part of the time of a call.
    run, names = session.run, list(outputs)
    keys = [name.removeprefix(NEXT) if name.removeprefix(NEXT) in inputs else name for name in names]

    def call(**arrays: Any) -> dict[str, Any]:
        return dict(zip(keys, run(names, arrays), strict=True))

    return Signature(inputs, dict(zip(keys, outputs.values(), strict=True)), call)


def _spec(node: Any) -> Spec:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    return Spec(DTYPES.get(kind, kind), shape)
