"""The graph of a run, and the variables of each epoch that are swapped into it.

A checkpoint is TensorFlow's own (`tf.train.Checkpoint`): the model's variables under `weights`, the
optimizer's under `optimizer`, each by its path. The graph is a SavedModel, written once before the
first step, which any epoch's variables bring to life again without the model's code.
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
"""Variables by path, by group: `weights`, `optimizer`."""


@dataclass(frozen=True)
class Graph:
    """A SavedModel's functions, and its variables by path.

    Attributes:
        signatures: The signatures by name; each `call` is a concrete function.
        weights: The variables.
        score: See `models.base.BuiltModel`.
        session_graph: See there.
    """

    signatures: Mapping[str, Signature]
    weights: Mapping[str, tf.Variable]
    score: Signature | None = None
    session_graph: Signature | None = None

    @property
    def functions(self) -> Mapping[str, Signature]:
        """The signatures, and `session_graph` where there is one."""
        return askable(self.signatures, self.session_graph)


def askable(signatures: Mapping[str, Signature], session_graph: Signature | None) -> Mapping[str, Signature]:
    """Return all that example requests are made for."""
    return signatures if session_graph is None else {**signatures, SESSION_GRAPH: session_graph}


def signature_of(function: Any) -> Signature:
    """Wrap a concrete function, as `get_concrete_function` or a loaded SavedModel gives it."""
    positional, by_name = function.structured_input_signature
    inputs = {**{spec.name: spec for spec in positional}, **by_name}
    return Signature(
        {name: spec_of(tensor) for name, tensor in inputs.items()},
        {name: spec_of(tensor) for name, tensor in function.structured_outputs.items()},
        function,
    )


def spec_of(tensor: Any) -> Spec:
    """Return the spec of a tensor, or of a TensorFlow one."""
    shape = None if tensor.shape.rank is None else tuple(tensor.shape.as_list())
    return Spec("string" if tensor.dtype == tf.string else tensor.dtype.name, shape)


def write_graph(path: Path, built: BuiltModel) -> None:
    """Write the signatures of a model, with its present variables, as a SavedModel.

    Where the model has a Keras network, its description is written beside it, as `network.json`.
    """
    module = tf.Module()
    module.weights = dict(built.weights)
    if built.score is not None:
        module.score = built.score
    if built.session_graph is not None:
        module.session_graph = built.session_graph
    if built.network is not None:
        names = {id(variable): name for name, variable in built.weights.items()}
        description = {
            "network": json.loads(built.network.to_json()),
            "weights": [names[id(variable.value)] for variable in built.network.weights],
        }
        write_text(path.with_name(NETWORK), json.dumps(description, indent=2) + "\n")
    with staged(path) as staging, writing(path):
        tf.saved_model.save(module, str(staging), signatures=dict(built.signatures))
        allowed_operations.check_saved_model(staging)  # Better now than when it is to be verified.


def open_graph(path: Path) -> Graph:
    """Load a SavedModel.

    Raises:
        ConfigError: It is missing or damaged, or has an operation that is not allowed.
    """
    allowed_operations.check_saved_model(path)
    try:
        loaded = tf.saved_model.load(str(path))
        weights = dict(loaded.weights)
    except Exception as error:  # The loader raises whatever the damaged bytes lead it into.
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

    The index is renamed into place last: where there is an index, the checkpoint is whole.

    Args:
        prefix: Path without suffix.
        groups: Variables by path, by group (`weights`, `optimizer`).

    Returns:
        The SHA-256 of each file by its name.

    Raises:
        OSError: It cannot be written.
    """
    checkpoint = tf.train.Checkpoint(**{name: dict(group) for name, group in groups.items()})
    staging = prefix.with_name(f".{prefix.name}.{os.getpid()}.staging")
    files = {}
    try:
        staging.mkdir()
        with writing(prefix):
            checkpoint.write(str(staging / prefix.name))
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
    """Say what TensorFlow says of a disk that does not take a file as Python says it.

    Raises:
        OSError: In place of TensorFlow's own.
    """
    try:
        yield
    except tf.errors.OpError as error:
        raise OSError(f"{path}: {first_line(error)}") from error


def remove_checkpoint(prefix: Path) -> None:
    """Remove a checkpoint, its index first."""
    for suffix in (INDEX, DATA):
        prefix.with_name(prefix.name + suffix).unlink(missing_ok=True)


def restore_row(run: RunDirectory, row: Row, groups: Groups) -> None:
    """Assign every variable its value after an epoch, once the checkpoint's files are found to be the row's.

    Raises:
        ConfigError: They are not, or see `restore`.
    """
    run.check_row(row)
    restore(run.checkpoint(row.epoch), groups)


def restore(prefix: Path, groups: Groups) -> None:
    """Assign every variable of some groups its value in a checkpoint.

    Raises:
        ConfigError: A file is missing or damaged, or a variable is missing or of another shape; the
            message names it.
    """
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
            except Exception as error:  # As above.
                problems.append(f"{prefix} is damaged at {name!r}: {first_line(error)}")
    if problems:
        raise DamagedError(*problems)


def read_group(prefix: Path, group: str, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Return values of a checkpoint's group by name, of any shape.

    Raises:
        ConfigError: A file is missing or damaged, or a value is missing.
    """
    reader = _reader(prefix)
    try:
        return {name: reader.get_tensor(variable_key(group, name)) for name in names}
    except Exception as error:  # As above.
        raise DamagedError(f"{prefix} must hold {group}. Reading it failed: {first_line(error)}") from error


def _reader(prefix: Path) -> Any:
    try:
        return tf.train.load_checkpoint(str(prefix))
    except Exception as error:  # As above.
        raise DamagedError(
            f"{prefix} must be a whole checkpoint. Opening it failed: {first_line(error)}"
        ) from error


def variable_key(group: str, path: str) -> str:
    """Return the key under which `tf.train.Checkpoint` stores a variable of a dictionary."""
    return f"{group}/{path.replace('.', '..').replace('/', '.S')}/.ATTRIBUTES/VARIABLE_VALUE"
