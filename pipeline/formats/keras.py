"""`keras`: the network as a `.keras` file, to go on with in Keras.

The file holds the signatures whose inputs and outputs are those of the model's network. The architecture
comes from `network.json`, which was written with the run's graph, and the variables from the checkpoint of
the epoch. See https://keras.io/guides/serialization_and_saving.
"""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.formats import FORMATS
from pipeline.errors import DamagedError, UnsupportedError, first_line
from pipeline.formats.base import ExportTask
from pipeline.formats.manifest import read_manifest
from pipeline.graphs.signatures import Signature
from pipeline.runs.directory import NETWORK

MAX_FACTOR = 20
"""Largest allowed ratio of the size of an archive's contents to the size of the archive."""


def write(task: ExportTask, directory: Path) -> Mapping[str, str]:
    """Build the network from its description, assign the variables of the epoch, and save it.

    Raises:
        UnsupportedError: The model has no Keras network, or the network computes none of its signatures.
    """
    import keras

    path = task.run.graph.with_name(NETWORK)
    if not path.exists():
        raise UnsupportedError(
            "export=keras needs a model that states its Keras network (BuiltModel.network). "
            "This one does not. Use export=saved_model."
        )
    description = json.loads(path.read_text())
    try:
        network = keras.models.model_from_json(json.dumps(description["network"]))
    except Exception as error:  # A layer of the user's own may raise any type of exception.
        raise UnsupportedError(
            "export=keras needs a network that Keras can build without its code, or with layers registered "
            f"by keras.saving.register_keras_serializable. {first_line(error)}"
        ) from error
    graph = task.graph()
    for variable, name in zip(network.weights, description["weights"], strict=True):
        variable.assign(graph.weights[name].numpy())
    held = _names(network, graph.signatures)
    if not held:
        raise UnsupportedError(
            "export=keras needs a network whose inputs and outputs have the names, and the inputs the "
            f"dtypes, of a signature's. Received: {_shown(network)}. {_shown_signatures(graph.signatures)}"
        )
    with warnings.catch_warnings(action="ignore"):  # NumPy warns of the way in which Keras calls it.
        network.save(directory / FORMATS["keras"].path)
    reason = "a Keras file holds one network"
    return {name: reason for name in graph.signatures if name not in held}


def open(directory: Path, epoch: int) -> Mapping[str, Signature]:
    """Load the network and trace it.

    Raises:
        DamagedError: The file is missing or damaged, or is much larger inside than outside.
    """
    import keras
    import tensorflow as tf

    from pipeline.graphs.checkpoints import signature_of

    path = directory / FORMATS["keras"].path
    try:
        _check_size(path)
        # `safe_mode` refuses lambdas, which are Python code; `compile` would restore a loss and an optimizer.
        # Keras warns of a lookup layer that it comes upon again; the answers tell whether it was restored.
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            network = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Damaged bytes may raise any type of exception in Keras' loader.
        raise DamagedError(f"{path} must be a whole Keras file. Loading it failed: {error}") from error
    specs = {tensor.name: tf.TensorSpec(tensor.shape, tensor.dtype, tensor.name) for tensor in network.inputs}
    function = tf.function(lambda **inputs: network(inputs, training=False), autograph=False)
    signature = signature_of(function.get_concrete_function(**specs))
    return dict.fromkeys(read_manifest(directory).signatures, signature)


def _check_size(path: Path) -> None:
    """Check, before anything is unpacked, that an archive does not unpack to many times its size.

    Keras does not compress the variables, which are most of a file. So a large ratio is a sign of a file
    that was made to fill the memory or the disk.

    Raises:
        ValueError: The ratio is larger than `MAX_FACTOR`.
    """
    with zipfile.ZipFile(path) as archive:
        size = sum(info.file_size for info in archive.infolist())
    limit = MAX_FACTOR * path.stat().st_size
    if size > limit:
        raise ValueError(
            f"it unpacks to {size:,} bytes. At most {limit:,} are expected of a file of its size."
        )


def _names(network: Any, signatures: Mapping[str, Signature]) -> list[str]:
    """Return the names of the signatures that have the inputs and the outputs of the network."""
    inputs = {tensor.name: tensor.dtype for tensor in network.inputs}
    return [
        name
        for name, signature in signatures.items()
        if {key: spec.dtype for key, spec in signature.inputs.items()} == inputs
        and set(signature.outputs) == set(network.output)
    ]


def _shown(network: Any) -> str:
    inputs = ", ".join(f"{tensor.name} {tensor.dtype}" for tensor in network.inputs)
    return f"{inputs} -> {', '.join(sorted(network.output))}"


def _shown_signatures(signatures: Mapping[str, Signature]) -> str:
    return " ".join(
        f"{name}: {', '.join(f'{key} {spec.dtype}' for key, spec in signature.inputs.items())} -> "
        f"{', '.join(sorted(signature.outputs))}."
        for name, signature in signatures.items()
    )
