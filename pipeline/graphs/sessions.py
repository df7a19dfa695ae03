"""TF1 graphs: signatures as placeholders and named tensors, variables that a `Saver` keeps.

The functions of a run's graph are imported into a `tf.Graph`, their variables mapped to TF1 variables; the
model's code is not needed. See https://www.tensorflow.org/api_docs/python/tf/compat/v1/train/Saver.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf.config_pb2 import CallableOptions, RunOptions

from pipeline.errors import DamagedError, UnsupportedError, first_line
from pipeline.graphs import allowed_operations
from pipeline.graphs.checkpoints import Graph, spec_of
from pipeline.graphs.signatures import SESSION_GRAPH, Signature, Spec, predicting

v1 = tf.compat.v1

DATASET_INIT = "dataset_init"
BATCH_SIZE = "batch_size_ph"
INIT_OP = "__saved_model_init_op"
"""What TensorFlow keeps among the signatures of a SavedModel without being one."""

Tensors = Mapping[str, Any]


@dataclass(frozen=True)
class SessionGraph:
    """A TF1 graph with a session whose variables have the values of a run's graph.

    Attributes:
        session: Its graph holds every signature, under `signature/<name>/`.
        signature_defs: The tensors of each signature, by its name.
    """

    session: Any
    signature_defs: Mapping[str, Any]


class _Builder:
    """A TF1 graph under construction, in the default graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.variables = {
            name: v1.Variable(
                lambda variable=variable: tf.zeros(variable.shape, variable.dtype),
                name=f"weights/{name}",
                use_resource=True,
                trainable=False,
            )
            for name, variable in graph.weights.items()
        }

    def call(self, signature: Signature, inputs: Tensors, scope: str) -> Tensors:
        """Import the function of a signature; return its outputs.

        Raises:
            ConfigError: It uses a resource that is no variable of the model.
        """
        function: Any = signature.call
        of_capture = {id(variable.handle): name for name, variable in self.graph.weights.items()}
        num_inputs = len(signature.inputs)
        mapped = {
            tensor.name: inputs[spec.name]
            for tensor, spec in zip(
                function.graph.inputs[:num_inputs],
                tf.nest.flatten(function.structured_input_signature),
                strict=True,
            )
        }
        for tensor, captured in zip(
            function.graph.inputs[num_inputs:], function.captured_inputs, strict=True
        ):
            if id(captured) in of_capture:
                mapped[tensor.name] = self.variables[of_capture[id(captured)]].handle
            elif captured.dtype != tf.resource:
                mapped[tensor.name] = tf.constant(captured.numpy())
            else:
                raise UnsupportedError(
                    "A TF1 graph can hold the model's variables and constants. "
                    f"It also uses {tensor.name}. Use export=saved_model."
                )
        names = [tensor.name for tensor in function.graph.outputs]
        outputs = tf.graph_util.import_graph_def(
            function.graph.as_graph_def(), input_map=mapped, return_elements=names, name=scope
        )
        return dict(zip(sorted(signature.outputs), outputs, strict=True))

    def add_signature(self, name: str, signature: Signature) -> Any:
        """Add a signature under placeholders of its own; return its definition."""
        scope = f"signature/{name}"
        inputs = {key: _placeholder(spec, f"{scope}/{key}") for key, spec in signature.inputs.items()}
        return _definition(inputs, self.call(signature, inputs, f"{scope}/function"))

    def add_session_graph(self, signature: Signature) -> Any:
        """Add a function whose inputs and outputs are tensors of the same names; return its definition."""
        inputs = {name: _placeholder(spec, name) for name, spec in signature.inputs.items()}
        outputs = self.call(signature, inputs, "function")
        _name(outputs)
        graph = tf.compat.v1.get_default_graph()
        return _definition(inputs, {name: graph.get_tensor_by_name(f"{name}:0") for name in outputs})

    def add_input_pipeline(self) -> None:
        """Add `<array>_data_ph`, `batch_size_ph`, `dataset_init`, and what is computed of each batch.

        The outputs are those of `evaluate` and of the signature that predicts from the same arrays.
        Carried state has a placeholder, `<state>_ph`.
        """
        signatures = self.graph.signatures
        evaluate = signatures["evaluate"]
        arrays = {
            name: _placeholder(spec, f"{name}_data_ph")
            for name, spec in evaluate.inputs.items()
            if name not in evaluate.carried
        }
        batch_size = v1.placeholder(tf.int64, [], name=BATCH_SIZE)
        dataset = v1.data.Dataset.from_tensor_slices(arrays).batch(batch_size)
        iterator = v1.data.Iterator.from_structure(
            v1.data.get_output_types(dataset), v1.data.get_output_shapes(dataset)
        )
        iterator.make_initializer(dataset, name=DATASET_INIT)
        state = {name: _placeholder(evaluate.inputs[name], f"{name}_ph") for name in evaluate.carried}
        batch = {**iterator.get_next(), **state}
        outputs = dict(self.call(evaluate, batch, "input_pipeline/evaluate"))
        predict = predicting(signatures, evaluate)
        if predict is not None:
            inputs = {name: _convert(batch[name], spec) for name, spec in signatures[predict].inputs.items()}
            predicted = self.call(signatures[predict], inputs, "input_pipeline/predict")
            outputs = {**predicted, **outputs}
        _name(outputs)

    def start(self, values: Mapping[str, Any]) -> Any:
        """Return a session in which every variable has its value."""
        session = v1.Session()
        for name, variable in self.variables.items():
            variable.load(values[name], session)
        return session


def _definition(inputs: Tensors, outputs: Tensors) -> Any:
    return v1.saved_model.build_signature_def(
        {key: v1.saved_model.build_tensor_info(tensor) for key, tensor in inputs.items()},
        {key: v1.saved_model.build_tensor_info(tensor) for key, tensor in outputs.items()},
        "tensorflow/serving/predict",
    )


def _placeholder(spec: Spec, name: str) -> Any:
    return v1.placeholder(spec.dtype, spec.shape, name=name)


def _convert(tensor: tf.Tensor, spec: Spec) -> tf.Tensor:
    """As `Spec.convert` does for arrays."""
    if tensor.dtype.is_integer and spec.dtype.startswith("float"):
        return tf.cast(tensor, spec.dtype) / tensor.dtype.max
    return tf.cast(tensor, spec.dtype)


def _name(outputs: Tensors) -> None:
    """Give tensors their names.

    Raises:
        ConfigError: A name is taken: an output is named like an input, for instance.
    """
    for name, tensor in outputs.items():
        if tf.identity(tensor, name=name).op.name != name:
            raise UnsupportedError(
                f"A TF1 graph must have one tensor {name}:0. An output and an input of the model have "
                "this name. State a BuiltModel.session_graph, or use export=saved_model."
            )


def build(graph: Graph, *, input_pipeline: bool) -> SessionGraph:
    """Build the TF1 graph of a run's graph, and start a session.

    Args:
        graph: The signatures, and the variables with the values to have.
        input_pipeline: Whether the names outside `signature/` are those of an input pipeline; otherwise
            they are the model's `session_graph`'s, if it has one.
    """
    values = {name: variable.numpy() for name, variable in graph.weights.items()}
    with tf.Graph().as_default():
        builder = _Builder(graph)
        definitions = {}
        if input_pipeline or graph.session_graph is None:
            builder.add_input_pipeline()
        else:
            definitions[SESSION_GRAPH] = builder.add_session_graph(graph.session_graph)
        for name, signature in graph.signatures.items():
            definitions[name] = builder.add_signature(name, signature)
        return SessionGraph(builder.start(values), definitions)


def load(directory: Path) -> dict[str, Signature]:
    """Load a SavedModel into a session, the way that TensorFlow Serving takes; return its signatures.

    For a small model, calling one takes a tenth of the time of a function of `tf.saved_model.load`.

    Raises:
        ConfigError: A file is missing or damaged, or there is an operation that is not allowed.
    """
    allowed_operations.check_saved_model(directory)
    try:
        session = v1.Session(graph=tf.Graph())
        meta = v1.saved_model.load(session, [v1.saved_model.tag_constants.SERVING], str(directory))
        return signatures_of(session, meta.signature_def)
    except Exception as error:  # The loader raises whatever the damaged bytes lead it into.
        raise DamagedError(
            f"{directory} must be a whole SavedModel. Loading it failed: {first_line(error)}"
        ) from error


def signatures_of(session: Any, definitions: Mapping[str, Any]) -> dict[str, Signature]:
    """Return the signatures that a session's graph holds, by their definitions.

    Where it has an input pipeline, `evaluate` and the signature that predicts from its arrays go through
    that; where its tensors have names of their own, they are the signature `session_graph`.
    """
    signatures = {
        name: _signature(session, definition) for name, definition in definitions.items() if name != INIT_OP
    }
    names = {operation.name for operation in session.graph.get_operations()}
    if DATASET_INIT in names:
        evaluate = signatures["evaluate"]
        lock = threading.Lock()  # The graph has one iterator.
        for name in {"evaluate", predicting(signatures, evaluate)} - {None}:
            signatures[str(name)] = _through_input_pipeline(session, signatures[str(name)], evaluate, lock)
    return signatures


def _through_input_pipeline(
    session: Any, signature: Signature, evaluate: Signature, lock: threading.Lock
) -> Signature:
    """Return a signature that reads its batch through the input pipeline."""
    outputs = {name: f"{name}:0" for name in signature.outputs}

    def call(**arrays: Any) -> Tensors:
        given = {name: array for name, array in arrays.items() if name not in evaluate.carried}
        num_rows = len(next(iter(given.values())))
        feeds = {
            f"{name}_data_ph:0": given.get(name, np.zeros([num_rows] + [n or 1 for n in spec.shape[1:]]))
            for name, spec in evaluate.inputs.items()
            if name not in evaluate.carried and spec.shape is not None
        }
        state = {f"{name}_ph:0": arrays[name] for name in evaluate.carried}
        with lock:
            session.run(DATASET_INIT, {**feeds, f"{BATCH_SIZE}:0": num_rows})
            return session.run(outputs, state)

    return Signature(signature.inputs, signature.outputs, call)


def _signature(session: Any, definition: Any) -> Signature:
    inputs = {key: session.graph.get_tensor_by_name(info.name) for key, info in definition.inputs.items()}
    outputs = {key: session.graph.get_tensor_by_name(info.name) for key, info in definition.outputs.items()}
    dtypes = {key: tensor.dtype.as_numpy_dtype for key, tensor in inputs.items()}

    @functools.cache
    def program() -> Any:
        """Return the pruned and optimized graph, ready to run: a tenth of the time of `Session.run`.

        Operations follow one another in the caller's thread, each with as many threads as it wants: to wake
        another thread for an operation takes longer than most of them.
        """
        options = CallableOptions(
            feed=[tensor.name for tensor in inputs.values()],
            fetch=[tensor.name for tensor in outputs.values()],
            run_options=RunOptions(inter_op_thread_pool=-1),
        )
        return session._make_callable_from_options(options)

    def call(**arrays: Any) -> Tensors:
        values = program()(*[np.asarray(arrays[key], dtype) for key, dtype in dtypes.items()])
        return dict(zip(outputs, values, strict=True))

    return Signature(
        {key: spec_of(tensor) for key, tensor in inputs.items()},
        {key: spec_of(tensor) for key, tensor in outputs.items()},
        call,
    )
