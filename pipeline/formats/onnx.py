"""`onnx`: an ONNX file for each signature, `model.onnx` for `serving_default`.

Inputs and outputs keep their names, and the batch size is free. In ONNX an output cannot have the name of an
input. So a carried output, such as `state_c`, gets the name `next_state_c` in the file, and its own name
again in `open`. The opset is `export.opset`. See https://onnx.ai/onnx/repo-docs/IR.html.
"""

from __future__ import annotations

import functools
import gc
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config.formats import DEFAULT_SIGNATURE, FORMATS
from pipeline.errors import DamagedError, UnsupportedError, first_line
from pipeline.formats.base import ExportTask, disagreement
from pipeline.graphs.signatures import Signature, Spec
from pipeline.runtime import held_back_stderr

if TYPE_CHECKING:
    from pipeline.graphs.checkpoints import Graph, Table

DEFAULT_STEM = FORMATS["onnx"].default_stem
NEXT = "next_"
DTYPES = {"float": "float32", "double": "float64", "float16": "float16", "bool": "bool", "string": "string"}


def write(task: ExportTask, directory: Path) -> Mapping[str, str]:
    """Write a file for each signature that ONNX can hold and that ONNX Runtime can run.

    Raises:
        UnsupportedError: There is no such signature.
    """
    graph = task.graph()
    left_out = dict(task.left_out.get("onnx", {}))
    for name in graph.signatures:
        if name not in left_out and (reason := _reason(name, graph, directory, task)):
            left_out[name] = reason
    if len(left_out) == len(graph.signatures):
        raise UnsupportedError(f"export=onnx can hold no signature of the model. {left_out}")
    return left_out


def _path(directory: Path, name: str) -> Path:
    return directory / FORMATS["onnx"].path_of(signature=name)


def _reason(name: str, graph: Graph, directory: Path, task: ExportTask) -> str | None:
    """Write the file of a signature and run it; if that fails, remove the file and return the reason."""
    signature = graph.signatures[name]
    if reason := _name_taken(name, signature):
        return reason
    path = _path(directory, name)
    reason = _convert(signature, graph, path, task.options.opset) or _cannot_run(
        path, signature, task.requests.get(name)
    )
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


def _convert(signature: Signature, graph: Graph, path: Path, opset: int) -> str | None:
    """Write a signature as an ONNX file; return the reason if ONNX cannot hold it, otherwise `None`."""
    if any("Dataset" in operation for operation in _operations(signature)):
        return "ONNX has no input pipelines, such as its tf.data one"
    import onnx
    import tf2onnx

    from pipeline.graphs import checkpoints

    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    problems: list[str] = []
    try:
        with held_back_stderr(show_on_error=False):
            # Not the signature itself: the converter would take the constants that it captures for inputs.
            traced = checkpoints.traced(signature, graph, functools.partial(_output, signature))
            model, _ = tf2onnx.convert.from_function(
                traced,
                input_signature=traced.input_signature,
                opset=opset,
                custom_op_handlers=_handlers(_tables(traced, graph), problems),
            )
            # Objects of the converter write to the standard error when they are collected. They shall do so
            # while it is held back.
            del traced
            gc.collect()
        if not problems:
            onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # The converter may raise any type of exception.
        problems.append(first_line(error))
    if problems:
        return f"ONNX cannot express it: {problems[0]}"
    path.write_bytes(model.SerializeToString(deterministic=True))
    return None


def _tables(traced: Any, graph: Graph) -> dict[str, Table | None]:
    """Return the lookup table behind each placeholder of a traced signature, by the placeholder's name."""
    captures = traced.get_concrete_function().graph.captures
    return {
        internal.op.name: graph.table_of(captured)
        for captured, internal in captures
        if captured.dtype.name == "resource"
    }


def _handlers(tables: Mapping[str, Table | None], problems: list[str]) -> dict[str, Any]:
    """Return what converts operations that tf2onnx does not know, by their name in TensorFlow.

    See https://github.com/onnx/tensorflow-onnx#custom_op_handlers.

    Args:
        tables: The lookup table behind each placeholder of the graph, by the placeholder's name.
        problems: Takes a sentence for each operation that ONNX cannot hold. The converter logs what a handler
            raises, and goes on.
    """

    def look_up(context: Any, node: Any, name: str, _: Any) -> None:
        table = tables.get(node.inputs[0].name)
        if table is None or not node.inputs[2].is_const():
            problems.append(f"{name} needs a table that does not change, and a constant for unknown keys")
            return
        default = node.inputs[2].get_tensor_value()
        attributes = {
            f"keys_{_kind(table.keys)}": table.keys.tolist(),
            f"values_{_kind(table.values)}": table.values.tolist(),
            f"default_{_kind(table.values).removesuffix('s')}": default,
        }
        # A table has one value for each key, which TensorFlow does not say of it.
        context.set_shape(node.output[0], context.get_shape(node.input[1]))
        _replace(context, node, "LabelEncoder", [node.input[1]], domain="ai.onnx.ml", attr=attributes)

    def erfc(context: Any, node: Any, name: str, _: Any) -> None:
        one = context.make_const(f"{name}/one", np.ones([], np.float32)).output[0]
        erf = context.make_node("Erf", [node.input[0]]).output[0]
        _replace(context, node, "Sub", [one, erf])

    def log1p(context: Any, node: Any, name: str, _: Any) -> None:
        one = context.make_const(f"{name}/one", np.ones([], np.float32)).output[0]
        _replace(context, node, "Log", [context.make_node("Add", [node.input[0], one]).output[0]])

    return {"LookupTableFindV2": (look_up, []), "Erfc": (erfc, []), "Log1p": (log1p, [])}


def _kind(array: np.ndarray) -> str:
    """Return the name of a dtype among the attributes of ONNX's LabelEncoder."""
    return {"O": "strings", "i": "int64s", "f": "floats"}[array.dtype.kind]


def _replace(context: Any, node: Any, operation: str, inputs: list[str], **changes: Any) -> None:
    """Put an operation of ONNX in the place of a node; its output keeps its name, shape and dtype."""
    outputs = list(node.output)
    shapes = [context.get_shape(output) for output in outputs]
    dtypes = [context.get_dtype(output) for output in outputs]
    context.remove_node(node.name)
    context.make_node(
        operation, inputs, outputs=outputs, name=node.name, shapes=shapes, dtypes=dtypes, **changes
    )


def _operations(signature: Signature) -> set[str]:
    """Return the operations of a signature and of the functions that it calls."""
    function: Any = signature.call
    graph = function.graph.as_graph_def()
    bodies = [graph.node, *(function.node_def for function in graph.library.function)]
    return {node.op for body in bodies for node in body}


def _output(signature: Signature, name: str, tensor: Any) -> tuple[str, Any]:
    """Return an output with its name in the file, and with a shape, which a lookup of text does not state."""
    import tensorflow as tf

    shape = signature.outputs[name].shape
    if tensor.shape.rank is None and shape is not None:
        tensor = tf.ensure_shape(tensor, shape)
    return NEXT + name if name in signature.inputs else name, tensor


def _cannot_run(path: Path, signature: Signature, request: Mapping[str, Any] | None) -> str | None:
    try:
        restored = _signature(path)
        if request is not None and (difference := disagreement(restored, signature, request)):
            return f"ONNX Runtime computes something else: {difference}"
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

    def call_with_strings(**arrays: Any) -> dict[str, Any]:
        given = {
            key: _text(value) if inputs[key].dtype == "string" else value for key, value in arrays.items()
        }
        answer = call(**given)
        return {
            key: np.char.encode(value.astype("U")) if value.dtype == object else value
            for key, value in answer.items()
        }

    has_strings = any(spec.dtype == "string" for spec in (*inputs.values(), *outputs.values()))
    function = call_with_strings if has_strings else call
    return Signature(inputs, dict(zip(keys, outputs.values(), strict=True)), function)


def _text(array: Any) -> np.ndarray:
    """Return an array of bytes as one of `str` objects, as ONNX Runtime takes it."""
    array = np.asarray(array)
    return (np.char.decode(array.astype("S"), "utf-8") if array.dtype.kind in "SO" else array).astype(object)


def _spec(node: Any) -> Spec:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    return Spec(DTYPES.get(kind, kind), shape)
