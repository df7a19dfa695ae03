"""TF1 graphs: their signatures are placeholders and named tensors, their variables are a `Saver`'s.

The functions of a run's graph are imported into a `tf.Graph`, in which TF1 variables take the place of the
captured TF2 variables. The model's code is not needed.
See https://www.tensorflow.org/api_docs/python/tf/compat/v1/train/Saver.
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
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig

from pipeline import runtime
from pipeline.errors import DamagedError, UnsupportedError, first_line
from pipeline.graphs import allowed_operations
from pipeline.graphs.checkpoints import Graph, import_function, spec_of
from pipeline.graphs.signatures import SESSION_GRAPH, Signature, Spec, predicting

v1 = tf.compat.v1

DATASET_INIT = "dataset_init"
BATCH_SIZE = "batch_size_ph"
INIT_OP = "__saved_model_init_op"
"""Entry among the signatures of a SavedModel that is not one: it names the operation that initializes."""

Tensors = Mapping[str, Any]


@dataclass(frozen=True)
class SessionGraph:
    """A TF1 graph, and a session in which its variables have the values of a run's graph.

    Attributes:
        session: The session. Its graph holds every signature, under `signature/<name>/`.
        signature_defs: The `SignatureDef` of each signature, by name.
    """

    session: Any
    signature_defs: Mapping[str, Any]


class _Builder:
    """Builds a TF1 graph, in the graph that is TensorFlow's default one at the time."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.variables = {
            # Zeros, and not the values: as constants they would be in the graph a second time. `start` loads
            # the values. `variable=variable` binds the variable of this turn of the loop.
            name: v1.Variable(
                lambda variable=variable: tf.zeros(variable.shape, variable.dtype),
                name=f"weights/{name}",
                use_resource=True,
                trainable=False,
            )
            for name, variable in graph.weights.items()
        }
        self.tables = {
            id(table.restored.resource_handle): tf.lookup.StaticHashTable(
                tf.lookup.KeyValueTensorInitializer(tf.constant(table.keys), tf.constant(table.values)),
                # Each lookup states the value of an unknown key, so this one is never taken.
                np.zeros([], table.values.dtype) if table.values.dtype != object else "",
            )
            for table in graph.tables
        }

    def call(self, signature: Signature, inputs: Tensors, scope: str) -> Tensors:
        """Import the function of a signature into the graph.

        Args:
            signature: A signature of the run's graph.
            inputs: The tensor of the TF1 graph for each input, by name.
            scope: Prefix of the names of all imported operations.

        Returns:
            The outputs by name.

        Raises:
            UnsupportedError: The function uses a resource that is no variable and no table of the model.
        """
        of_capture = {id(variable.handle): name for name, variable in self.graph.weights.items()}

        def resource(name: str, captured: Any) -> Any:
            if id(captured) in of_capture:
                return self.variables[of_capture[id(captured)]].handle
            if id(captured) in self.tables:
                return self.tables[id(captured)].resource_handle
            raise UnsupportedError(
                "A TF1 graph can hold the model's variables, constants and lookup tables. "
                f"It also uses {name}. Add a table to BuiltModel.tables, or use export=saved_model."
            )

        return import_function(signature, inputs, resource, scope)

    def add_signature(self, name: str, signature: Signature) -> Any:
        """Add a signature with placeholders of its own, under `signature/<name>/`.

        Returns:
            Its `SignatureDef`.
        """
        scope = f"signature/{name}"
        inputs = {key: _placeholder(spec, f"{scope}/{key}") for key, spec in signature.inputs.items()}
        return _definition(inputs, self.call(signature, inputs, f"{scope}/function"))

    def add_session_graph(self, signature: Signature) -> Any:
        """Add a function whose inputs and outputs become tensors of exactly their names (`logits:0`).

        Returns:
            Its `SignatureDef`.

        Raises:
            UnsupportedError: An output has the name of an input.
        """
        inputs = {name: _placeholder(spec, name) for name, spec in signature.inputs.items()}
        outputs = self.call(signature, inputs, "function")
        _name(outputs)
        graph = tf.compat.v1.get_default_graph()
        return _definition(inputs, {name: graph.get_tensor_by_name(f"{name}:0") for name in outputs})

    def add_input_pipeline(self) -> None:
        """Add an input pipeline, and the outputs that are computed from each of its batches.

        A caller feeds whole arrays to the placeholders `<array>_data_ph` and a number to `batch_size_ph`, and
        runs `dataset_init`. Each run of an output then reads the next batch. The outputs are those of
        `evaluate` and those of the signature that predicts from the same arrays. Carried state is fed with
        each batch, to `<state>_ph`.

        Raises:
            UnsupportedError: An output has a name that is taken.
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
        session = new_session()
        # In one run: `Variable.load` takes one for each, and the session prepares its graph anew each time.
        initializers = {name: variable.initializer for name, variable in self.variables.items()}
        fed = {initializer.inputs[1]: values[name] for name, initializer in initializers.items()}
        session.run([*initializers.values(), v1.tables_initializer()], fed)
        return session


def _definition(inputs: Tensors, outputs: Tensors) -> Any:
    return v1.saved_model.build_signature_def(
        {key: v1.saved_model.build_tensor_info(tensor) for key, tensor in inputs.items()},
        {key: v1.saved_model.build_tensor_info(tensor) for key, tensor in outputs.items()},
        "tensorflow/serving/predict",
    )


def _placeholder(spec: Spec, name: str) -> Any:
    return v1.placeholder(spec.dtype, spec.shape, name=name)


def _zeros(spec: Spec, num_rows: int) -> np.ndarray:
    """Return rows of zeros, or of empty strings, that fit an input."""
    shape = [num_rows] + [size or 1 for size in (spec.shape or (None,))[1:]]
    return np.full(shape, b"") if spec.dtype == "string" else np.zeros(shape, spec.dtype)


def _convert(tensor: tf.Tensor, spec: Spec) -> tf.Tensor:
    """Return a tensor in the dtype of an input, as `Spec.convert` returns an array."""
    if tensor.dtype.is_integer and spec.dtype.startswith("float"):
        return tf.cast(tensor, spec.dtype) / tensor.dtype.max
    return tf.cast(tensor, spec.dtype)


def _name(outputs: Tensors) -> None:
    """Add each output once more, as a tensor of exactly its name.

    Raises:
        UnsupportedError: A name is taken, because an output has the name of an input, for instance.
    """
    for name, tensor in outputs.items():
        # TensorFlow does not refuse a name that is taken: it appends a number to it.
        if tf.identity(tensor, name=name).op.name != name:
            raise UnsupportedError(
                f"A TF1 graph must have one tensor {name}:0. An output and an input of the model have "
                "this name. State a BuiltModel.session_graph, or use export=saved_model."
            )


def new_session(graph: tf.Graph | None = None) -> Any:
    """Return a session that rewrites its graph as the functions of this process are rewritten.

    See `runtime.REWRITES`. By itself, a session does not take those settings over.

    Args:
        graph: The graph; the default one if it is not given.
    """
    config = v1.ConfigProto()
    options = tf.config.optimizer.get_experimental_options()
    for name in runtime.REWRITES:
        if not options.get(name, True):
            setattr(config.graph_options.rewrite_options, name, RewriterConfig.OFF)
    return v1.Session(graph=graph, config=config)


def build(graph: Graph, *, input_pipeline: bool) -> SessionGraph:
    """Build a TF1 graph from a run's graph, and start a session.

    Args:
        graph: The signatures, and the variables with their values.
        input_pipeline: Whether the tensors outside `signature/` are those of an input pipeline, even if the
            model has a `session_graph`. Without a `session_graph` they always are.

    Raises:
        UnsupportedError: A function uses a resource that is not a variable, or two tensors need one name.
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
    """Load a SavedModel into a session, as TensorFlow Serving does; return its signatures by name.

    For a small model, a call of such a signature takes a tenth of the time that a function from
    `tf.saved_model.load` takes.

    Raises:
        DamagedError: A file is missing or damaged.
        UntrustedError: The graph has an operation that is not allowed.
    """
    allowed_operations.check_saved_model(directory)
    try:
        session = new_session(tf.Graph())
        meta = v1.saved_model.load(session, [v1.saved_model.tag_constants.SERVING], str(directory))
        return signatures_of(session, meta.signature_def)
    except Exception as error:  # Damaged bytes may raise any type of exception in TensorFlow's loader.
        raise DamagedError(
            f"{directory} must be a whole SavedModel. Loading it failed: {first_line(error)}"
        ) from error


def signatures_of(session: Any, definitions: Mapping[str, Any]) -> dict[str, Signature]:
    """Return the signatures that a session's graph holds, by name.

    If the graph has an input pipeline, `evaluate` and the signature that predicts from the same arrays read
    their batch through it: the pipeline is part of the export, so its answers are to be compared, too.

    Args:
        session: A session whose variables have their values.
        definitions: The `SignatureDef` of each signature by name.
    """
    signatures = {
        name: _signature(session, definition) for name, definition in definitions.items() if name != INIT_OP
    }
    names = {operation.name for operation in session.graph.get_operations()}
    if DATASET_INIT in names:
        evaluate = signatures["evaluate"]
        lock = threading.Lock()  # Both signatures start the graph's only iterator anew.
        for name in {"evaluate", predicting(signatures, evaluate)} - {None}:
            inputs = signatures[str(name)].inputs
            # The pipeline takes arrays in the data's dtypes. A request of pixels in [0, 1] would lose its
            # fractions on the way through a pipeline of uint8.
            if all(spec.dtype == evaluate.inputs[key].dtype for key, spec in inputs.items()):
                signatures[str(name)] = _through_input_pipeline(
                    session, signatures[str(name)], evaluate, lock
                )
    return signatures


def _through_input_pipeline(
    session: Any, signature: Signature, evaluate: Signature, lock: threading.Lock
) -> Signature:
    """Return a signature that feeds its arrays to the input pipeline and reads them as one batch.

    Args:
        session: A session whose graph has an input pipeline.
        signature: `evaluate`, or the signature that predicts from the same arrays.
        evaluate: Says which arrays the pipeline takes.
        lock: Held while the iterator is started and read.
    """
    outputs = {name: f"{name}:0" for name in signature.outputs}

    def call(**arrays: Any) -> Tensors:
        given = {name: array for name, array in arrays.items() if name not in evaluate.carried}
        if not all(evaluate.inputs[name].accepts(np.shape(array)) for name, array in given.items()):
            # A prediction may take other lengths than the data have, which the pipeline does not.
            return signature.call(**arrays)
        num_rows = len(next(iter(given.values())))
        # The pipeline takes all arrays. A prediction has no labels, for instance: zeros stand for them.
        feeds = {
            f"{name}_data_ph:0": given[name] if name in given else _zeros(spec, num_rows)
            for name, spec in evaluate.inputs.items()
            if name not in evaluate.carried
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
        """Return a callable for these inputs and outputs; a call takes a tenth of the time of `Session.run`.

        Operations run one after another in the caller's thread (`inter_op_thread_pool=-1`), because to wake
        another thread takes longer than most operations of a small model. A single operation may still use
        several threads.
        """
        # A private method, but the one that Keras 2 called for its TF1 functions; there is no public one.
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
