"""`onnx`: an ONNX file for each signature, `model.onnx` for `serving_default`.

Inputs and outputs keep their names, the batch size is free. ONNX has one name for one value, so that
an output that is carried, such as `state_c`, is called `next_state_c`. The opset is `export.opset`.
See https://onnx.ai/onnx/repo-docs/IR.html.
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
    """Convert each signature that ONNX can hold and ONNX Runtime can run, each into a file of its own.

    Raises:
        UnsupportedError: ONNX can hold none.
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
    """Write a signature's file, and run it; where that fails, return the reason and leave no file."""
    if reason := _name_taken(name, signature):
        return reason
    path = _path(directory, name)
    reason = _convert(signature, path, task.options.opset) or _cannot_run(path, task.requests.get(name))
    if reason is not None:
        path.unlink(missing_ok=True)
    return reason


def _name_taken(name: str, signature: Signature) -> str | None:
    """Return which name of a signature has another meaning in this format."""
    if name == DEFAULT_STEM:
        return (
            f"{DEFAULT_STEM}.onnx is the file of {DEFAULT_SIGNATURE}; another name for the signature will do"
        )
    carried = {NEXT + key for key in signature.inputs}
    if taken := sorted(carried.intersection(signature.outputs)):
        return f"an output named {taken[0]} would be the carried input's; another name for it will do"
    return None


def _convert(signature: Signature, path: Path, opset: int) -> str | None:
    """Write a signature as an ONNX file; return why that cannot be, or `None`."""
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
            del traced
            gc.collect()  # The converter's remains complain on the standard error when they are collected.
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # Whatever the converter runs into.
        return f"ONNX cannot express it: {first_line(error)}"
    path.write_bytes(model.SerializeToString(deterministic=True))
    return None


def _operations(signature: Signature) -> set[str]:
    """Return the operations of a signature, and of the functions it calls."""
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
    """Load each file into ONNX Runtime.

    Raises:
        ConfigError: A file is missing or damaged.
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
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {node.name: _spec(node) for node in session.get_inputs()}
    outputs = {node.name: _spec(node) for node in session.get_outputs()}
    run, names = session.run, list(outputs)
    keys = [name.removeprefix(NEXT) if name.removeprefix(NEXT) in inputs else name for name in names]

    def call(**arrays: Any) -> dict[str, Any]:
        return dict(zip(keys, run(names, arrays), strict=True))

    return Signature(inputs, dict(zip(keys, outputs.values(), strict=True)), call)


def _spec(node: Any) -> Spec:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    return Spec(DTYPES.get(kind, kind), shape)
