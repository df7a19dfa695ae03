"""Reading and writing the graph of a run, and the checkpoint of each epoch.

The graph is a SavedModel, written once, before the first step. Together with the checkpoint of an epoch it
is the trained model: no code of the model is needed to run it.

A checkpoint is one of `tf.train.Checkpoint` (https://www.tensorflow.org/guide/checkpoint). It has the
model's variables under `weights` and the optimizer's under `optimizer`, each by its path.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from pipeline.errors import DamagedError, UnsupportedError, first_line
from pipeline.graphs import allowed_operations
from pipeline.graphs.signatures import SESSION_GRAPH, Signature, Spec
from pipeline.runs import checksums
from pipeline.runs.directory import DATA, INDEX, NETWORK, RunDirectory
from pipeline.runs.files import staged, sync, write_text
from pipeline.runs.log import Row

if TYPE_CHECKING:
    from models.base import BuiltModel

Groups = Mapping[str, Mapping[str, tf.Variable]]
"""The groups of a checkpoint, such as `weights` and `optimizer`: in each, its variables by path."""


@dataclass(frozen=True)
class Table:
    """A lookup table of a model: the value of each key. It cannot be changed, so no checkpoint has it.

    Attributes:
        restored: The table as `tf.saved_model.load` returns it.
        keys: The keys, `[N]`: strings or integers.
        values: The value of each key, `[N]`.
    """

    restored: Any
    keys: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Graph:
    """The functions and the variables of a loaded SavedModel.

    To have the model of an epoch, load the graph and assign a checkpoint to its variables:

        graph = open_graph(run.graph)
        restore_row(run, row, {"weights": graph.weights})
        graph.signatures["evaluate"].call(**batch)

    Attributes:
        signatures: The signatures by name; the `call` of each is a concrete function.
        weights: The model's variables by path.
        score: The function of that name in `models.base.BuiltModel`, if the model has it.
        session_graph: The function of that name in `models.base.BuiltModel`, if the model has it.
        tables: The lookup tables of `models.base.BuiltModel`.
    """

    signatures: Mapping[str, Signature]
    weights: Mapping[str, tf.Variable]
    score: Signature | None = None
    session_graph: Signature | None = None
    tables: Sequence[Table] = ()

    def table_of(self, handle: Any) -> Table | None:
        """Return the table whose resource a function captures; `None` if it is no table of the model."""
        return next((table for table in self.tables if table.restored.resource_handle is handle), None)

    @property
    def functions(self) -> Mapping[str, Signature]:
        """The signatures, and `session_graph` if the model has it, by name."""
        return askable(self.signatures, self.session_graph)


def askable(signatures: Mapping[str, Signature], session_graph: Signature | None) -> Mapping[str, Signature]:
    """Return the functions that get example requests: the signatures, and `session_graph` if any."""
    return signatures if session_graph is None else {**signatures, SESSION_GRAPH: session_graph}


def signature_of(function: Any) -> Signature:
    """Return a concrete function as a `Signature`.

    Args:
        function: A result of `get_concrete_function`, or a signature of a loaded SavedModel.
    """
    # A loaded SavedModel takes its inputs by name; `get_concrete_function` may take them by position.
    positional, by_name = function.structured_input_signature
    inputs = {**{spec.name: spec for spec in positional}, **by_name}
    return Signature(
        {name: spec_of(tensor) for name, tensor in inputs.items()},
        {name: spec_of(tensor) for name, tensor in function.structured_outputs.items()},
        function,
    )


def import_function(
    signature: Signature, inputs: Mapping[str, Any], resource: Callable[[str, Any], Any], scope: str
) -> dict[str, Any]:
    """Import the function of a signature into the graph that is the default one, constants included.

    Args:
        signature: A signature of a run's graph.
        inputs: The tensor of the default graph for each input, by name.
        resource: Takes the name of a resource and the resource that the function captures; returns the tensor
            of the default graph that takes its place.
        scope: Prefix of the names of all imported operations.

    Returns:
        The outputs by name.
    """
    function: Any = signature.call
    num_inputs = len(signature.inputs)
    specs = tf.nest.flatten(function.structured_input_signature)
    mapped = {
        tensor.name: inputs[spec.name]
        for tensor, spec in zip(function.graph.inputs[:num_inputs], specs, strict=True)
    }
    # After its own inputs, a concrete function takes its captures: handles of variables, and constants.
    for tensor, captured in zip(function.graph.inputs[num_inputs:], function.captured_inputs, strict=True):
        is_resource = captured.dtype == tf.resource
        mapped[tensor.name] = (
            resource(tensor.name, captured) if is_resource else tf.constant(captured.numpy())
        )
    graph_def = function.graph.as_graph_def()
    _shape_lookups(graph_def)
    outputs = tf.graph_util.import_graph_def(
        graph_def,
        input_map=mapped,
        return_elements=[tensor.name for tensor in function.graph.outputs],
        name=scope,
    )
    # A concrete function flattens a dictionary of outputs in the order of its sorted keys.
    return dict(zip(sorted(signature.outputs), outputs, strict=True))


def traced(
    signature: Signature,
    graph: Graph,
    finish: Callable[[str, Any], tuple[str, Any]] = lambda name, tensor: (name, tensor),
) -> Any:
    """Return a signature as a new `tf.function`, which holds the constants that the signature captures.

    Args:
        signature: A signature of the graph.
        graph: The run's graph, loaded.
        finish: Takes each output with its name in the signature, and returns both as they are to be.
    """
    variables = {id(variable.handle): variable for variable in graph.weights.values()}

    def resource(_: str, captured: tf.Tensor) -> tf.Tensor:
        into = tf.compat.v1.get_default_graph()
        if id(captured) in variables:
            # Converters turn the variables that a graph knows into constants.
            into.watch_variable(variables[id(captured)])
        return into.capture(captured)

    def function(*arrays: tf.Tensor) -> dict[str, tf.Tensor]:
        given = dict(zip(signature.inputs, arrays, strict=True))
        outputs = import_function(signature, given, resource, "function")
        return dict(finish(name, tensor) for name, tensor in outputs.items())

    specs = [tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in signature.inputs.items()]
    return tf.function(function, input_signature=specs, autograph=False)


def _shape_lookups(graph_def: Any) -> None:
    """Give the numbers that a lookup returns the shape of its keys.

    The operation itself does not say which shape its values have. LiteRT then takes them for a scalar until
    an input is resized.

    Args:
        graph_def: A `GraphDef`, which is changed with its functions.
    """
    functions = graph_def.library.function
    bodies = [graph_def.node, *(function.node_def for function in functions)]
    lookups = [any(_finds_numbers(node) for node in body) for body in bodies]
    if not any(lookups):
        return
    _shape_lookups_of(graph_def.node, "", "")
    # A function that is changed needs a name of its own.
    renamed = {function.signature.name: f"{function.signature.name}_shaped" for function in functions}
    for function in functions:
        function.signature.name = renamed[function.signature.name]
        # The body of a function names an output of a node by the output's own name.
        shaped = _shape_lookups_of(function.node_def, ":values:0", ":output:0")
        for node in function.node_def:
            node.input[:] = [shaped.get(name, name) for name in node.input]
        for key, name in function.ret.items():
            function.ret[key] = shaped.get(name, name)
    for node in itertools.chain(*bodies):
        node.op = renamed.get(node.op, node.op)
        for value in node.attr.values():
            for called in (value.func, *value.list.func):
                if called.name in renamed:
                    called.name = renamed[called.name]


def _finds_numbers(node: Any) -> bool:
    return node.op == "LookupTableFindV2" and node.attr["Tout"].type != tf.string.as_datatype_enum


def _shape_lookups_of(nodes: Any, values: str, output: str) -> dict[str, str]:
    """Put a reshaping behind each lookup.

    Args:
        nodes: The nodes of a graph, or of the body of a function.
        values: What follows the name of a lookup where its values are an input.
        output: What follows the names of other nodes.

    Returns:
        The names of the values of the lookups, each with that of what takes their place.
    """
    shaped = {}
    for node in [node for node in nodes if _finds_numbers(node)]:
        name, keys, dtypes = node.name, node.input[1], (node.attr["Tin"].type, node.attr["Tout"].type)
        node.name = f"{name}/unshaped"
        shape = nodes.add(op="Shape", name=f"{name}/shape", input=[keys])
        shape.attr["T"].type, shape.attr["out_type"].type = dtypes[0], tf.int32.as_datatype_enum
        reshape = nodes.add(op="Reshape", name=name, input=[node.name + values, shape.name + output])
        reshape.attr["T"].type, reshape.attr["Tshape"].type = dtypes[1], tf.int32.as_datatype_enum
        shaped[name + values] = name + output
    return shaped


def spec_of(tensor: Any) -> Spec:
    """Return the `Spec` of a tensor or of a `tf.TensorSpec`."""
    shape = None if tensor.shape.rank is None else tuple(tensor.shape.as_list())
    return Spec("string" if tensor.dtype == tf.string else tensor.dtype.name, shape)


def write_graph(path: Path, built: BuiltModel) -> None:
    """Write a model's signatures, with the present values of its variables, as a SavedModel.

    If the model has a Keras network, its architecture is written beside the SavedModel, to `network.json`,
    with the path of the variable for each of the network's weights.

    Args:
        path: The directory of the SavedModel; it must not exist.
        built: The model.

    Raises:
        OSError: The disk does not take a file.
        UnsupportedError: A signature uses a variable or a table that is not the model's.
        UntrustedError: The graph has an operation that is not allowed.
    """
    module = tf.Module()
    module.weights = built.variables
    if built.tables:
        # A table that nothing tracks is not saved, and the save fails.
        module.tables = list(built.tables)
    if built.score is not None:
        module.score = built.score
    if built.session_graph is not None:
        module.session_graph = built.session_graph
    if built.network is not None:
        # By identity: Keras gives its weights names of its own, which need not be the paths.
        names = {id(variable): name for name, variable in built.variables.items()}
        description = {
            "network": json.loads(built.network.to_json()),
            "weights": [names[id(variable.value)] for variable in built.network.weights],
        }
        write_text(path.with_name(NETWORK), json.dumps(description, indent=2) + "\n")
    with staged(path) as staging, writing(path):
        try:
            tf.saved_model.save(module, str(staging), signatures=dict(built.signatures))
        except AssertionError as error:
            variable = re.search(r"Trackable referencing this tensor = .*'([^']+)'", str(error))
            raise UnsupportedError(
                "The signatures must use the model's weights and tables, and nothing else that has state. "
                f"They also use {variable[1] if variable else first_line(error)}. Call a Keras network with "
                "training=False in a signature, since augmentation draws numbers otherwise; or add what is "
                "missing to BuiltModel.weights or BuiltModel.tables."
            ) from error
        # Every later stage makes this check. A user should learn of a failure before hours of training.
        allowed_operations.check_saved_model(staging)


def open_graph(path: Path) -> Graph:
    """Load a SavedModel, after a check of its operations.

    Raises:
        DamagedError: A file is missing or damaged.
        UntrustedError: The graph has an operation that is not allowed.
    """
    allowed_operations.check_saved_model(path)
    try:
        loaded = tf.saved_model.load(str(path))
        weights = dict(loaded.weights)
        tables = [table for table in map(_table, getattr(loaded, "tables", ())) if table is not None]
    except Exception as error:  # Damaged bytes may raise any type of exception in TensorFlow's loader.
        raise DamagedError(
            f"{path} must be a whole SavedModel. Loading it failed: {first_line(error)}"
        ) from error
    score, session_graph = (getattr(loaded, name, None) for name in ("score", "session_graph"))
    return Graph(
        {name: signature_of(function) for name, function in loaded.signatures.items()},
        weights,
        score and signature_of(score.concrete_functions[0]),
        session_graph and signature_of(session_graph.concrete_functions[0]),
        tables,
    )


def _table(restored: Any) -> Table | None:
    """Return a table of a loaded SavedModel with its content; `None` if its content can change."""
    # A restored table does not say of which dtypes its keys and values are; the operation that makes it does.
    (made_by,) = restored._create_resource.concrete_functions
    dtypes = [
        (node.attr["key_dtype"].type, node.attr["value_dtype"].type)
        for node in made_by.graph.as_graph_def().node
        if node.op == "HashTableV2"
    ]
    if len(dtypes) != 1:
        return None
    ((key_dtype, value_dtype),) = dtypes
    keys, values = tf.raw_ops.LookupTableExportV2(
        table_handle=restored.resource_handle, Tkeys=key_dtype, Tvalues=value_dtype
    )
    order = np.argsort(keys.numpy())  # By itself, the order is another in each process.
    return Table(restored, keys.numpy()[order], values.numpy()[order])


def write_checkpoint(prefix: Path, groups: Groups) -> dict[str, str]:
    """Write variables as the checkpoint `prefix.index` and `prefix.data-00000-of-00001`.

    Args:
        prefix: The path of the checkpoint without the suffixes of its files.
        groups: The variables by path in each group.

    Returns:
        The SHA-256 of each file by its name.

    Raises:
        OSError: The disk does not take a file.
    """
    checkpoint = tf.train.Checkpoint(**{name: dict(group) for name, group in groups.items()})
    staging = prefix.with_name(f".{prefix.name}.{os.getpid()}.staging")
    files = {}
    try:
        staging.mkdir()
        with writing(prefix):
            checkpoint.write(str(staging / prefix.name))
        # The index is renamed last, after the data are on the disk. So a process that is killed here leaves
        # no index, and a checkpoint that has an index is whole.
        for suffix in (DATA, INDEX):
            file = staging / (prefix.name + suffix)
            files[file.name] = checksums.digest(file)
            sync(file)
            file.rename(prefix.with_name(file.name))
        sync(prefix.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return files


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise TensorFlow's errors as `OSError`, so that callers catch one type for all failures to write.

    Args:
        path: The file or directory that is written, for the message.

    Raises:
        OSError: TensorFlow could not write, because the disk is full, for instance.
    """
    try:
        yield
    except tf.errors.OpError as error:
        raise OSError(f"{path}: {first_line(error)}") from error


def remove_checkpoint(prefix: Path) -> None:
    """Remove a checkpoint; the index goes first, so that no index is left without its data."""
    for suffix in (INDEX, DATA):
        prefix.with_name(prefix.name + suffix).unlink(missing_ok=True)


def restore_row(run: RunDirectory, row: Row, groups: Groups) -> None:
    """Assign to every variable its value after an epoch, if the checksums of the checkpoint are right.

    Args:
        run: The run.
        row: The epoch's row of the log, which has the SHA-256 of each file of the checkpoint.
        groups: The variables by path in each group.

    Raises:
        DamagedError: A file is missing or was changed, or a variable does not fit; see `restore`.
    """
    run.check_row(row)
    restore(run.checkpoint(row.epoch), groups)


def restore(prefix: Path, groups: Groups) -> None:
    """Assign to every variable of some groups its value in a checkpoint.

    Variables of the checkpoint that no group has are left alone.

    Raises:
        DamagedError: A file is missing or damaged, or a variable is missing or has another shape. The
            message names every such variable.
    """
    # `tf.train.Checkpoint.read` needs the same structure of objects as the program that wrote the checkpoint,
    # and does not name the variable that is wrong. A reader needs keys only.
    reader = _reader(prefix)
    shapes = reader.get_variable_to_shape_map()
    problems = []
    for group, variables in groups.items():
        for name, variable in variables.items():
            key = _key_in(shapes, group, name)
            if key not in shapes:
                problems.append(f"{prefix} must hold the variable {name!r}. It is missing.")
                continue
            if shapes[key] != variable.shape.as_list():
                problems.append(
                    f"{prefix} must hold {name!r} as {variable.shape.as_list()}. Received: {shapes[key]}."
                )
                continue
            try:
                variable.assign(reader.get_tensor(key))
            except Exception as error:  # Damaged bytes may raise any type of exception in the reader.
                problems.append(f"{prefix} is damaged at {name!r}: {first_line(error)}")
    if problems:
        raise DamagedError(*problems)


def _key_in(keys: Iterable[str], group: str, name: str) -> str:
    """Return the key of a variable among those of a checkpoint.

    A variable of the optimizer is found by its position where its name is another: earlier versions named it
    after the TensorFlow variable that it belongs to, not after the path.
    """
    key = variable_key(group, name)
    if group != "optimizer" or key in keys:
        return key
    start = variable_key(group, name.partition("/")[0] + "/").partition("/.ATTRIBUTES")[0]
    return next((other for other in keys if other.startswith(start)), key)


def read_group(prefix: Path, group: str, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Return values of one group of a checkpoint by name; their shapes are those of the checkpoint.

    Raises:
        DamagedError: A file is missing or damaged, or a value is missing.
    """
    reader = _reader(prefix)
    try:
        return {name: reader.get_tensor(variable_key(group, name)) for name in names}
    except Exception as error:  # Damaged bytes may raise any type of exception in the reader.
        raise DamagedError(f"{prefix} must hold {group}. Reading it failed: {first_line(error)}") from error


def shapes_of(prefix: Path, group: str) -> dict[str, list[int]]:
    """Return the shape of each variable of one group of a checkpoint, by path.

    Raises:
        DamagedError: A file is missing or damaged.
    """
    found = {}
    for key, shape in _reader(prefix).get_variable_to_shape_map().items():
        name, _, rest = key.partition("/")
        path, _, attribute = rest.partition("/.ATTRIBUTES/")
        if name == group and attribute == "VARIABLE_VALUE":
            # The inverse of `variable_key`.
            found["..".join(part.replace(".S", "/") for part in path.split("..")).replace("..", ".")] = shape
    return found


def _reader(prefix: Path) -> Any:
    try:
        return tf.train.load_checkpoint(str(prefix))
    except Exception as error:  # Damaged bytes may raise any type of exception in the reader.
        raise DamagedError(
            f"{prefix} must be a whole checkpoint. Opening it failed: {first_line(error)}"
        ) from error


def variable_key(group: str, path: str) -> str:
    """Return the key under which `tf.train.Checkpoint` stores a variable of a dictionary.

    A path is one name in such a key: TensorFlow escapes `/` as `.S`, and `.` as `..`.

    Args:
        group: The name of the dictionary, such as `weights`.
        path: The key of the variable in that dictionary.
    """
    return f"{group}/{path.replace('.', '..').replace('/', '.S')}/.ATTRIBUTES/VARIABLE_VALUE"
