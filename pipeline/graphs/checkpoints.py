"""Reading and writing the graph of a run, and the checkpoint of each epoch.

The graph is a SavedModel, written once, before the first step. Together with the checkpoint of an epoch it
is the trained model: no code of the model is needed to run it.

A checkpoint is one of `tf.train.Checkpoint` (https://www.tensorflow.org/guide/checkpoint). It has the
model's variables under `weights` and the optimizer's under `optimizer`, each by its path.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from pipeline.errors import DamagedError, first_line
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
    """

    signatures: Mapping[str, Signature]
    weights: Mapping[str, tf.Variable]
    score: Signature | None = None
    session_graph: Signature | None = None

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
        UntrustedError: The graph has an operation that is not allowed.
    """
    module = tf.Module()
    module.weights = dict(built.weights)
    if built.score is not None:
        module.score = built.score
    if built.session_graph is not None:
        module.session_graph = built.session_graph
    if built.network is not None:
        # By identity: Keras gives its weights names of its own, which need not be the paths.
        names = {id(variable): name for name, variable in built.weights.items()}
        description = {
            "network": json.loads(built.network.to_json()),
            "weights": [names[id(variable.value)] for variable in built.network.weights],
        }
        write_text(path.with_name(NETWORK), json.dumps(description, indent=2) + "\n")
    with staged(path) as staging, writing(path):
        tf.saved_model.save(module, str(staging), signatures=dict(built.signatures))
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
    except Exception as error:  # Damaged bytes may raise any type of exception in TensorFlow's loader.
        raise DamagedError(
            f"{path} must be a whole SavedModel. Loading it failed: {first_line(error)}"
        ) from error
    functions = [getattr(loaded, name, None) for name in ("score", "session_graph")]
    return Graph(
        {name: signature_of(function) for name, function in loaded.signatures.items()},
        weights,
        *(function and signature_of(function.concrete_functions[0]) for function in functions),
    )


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
            key = variable_key(group, name)
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
