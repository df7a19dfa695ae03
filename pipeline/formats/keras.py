"""`keras`: the network as a `.keras` file, for whoever goes on with Keras.

It holds one signature: that whose inputs and outputs the model's network shares. The network's
description was written with the run's graph; its variables are those of the epoch.
See https://keras.io/guides/serialization_and_saving.
"""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.formats import FORMATS
from pipeline.errors import DamagedError, UnsupportedError
from pipeline.formats.base import ExportTask
from pipeline.formats.manifest import read_manifest
from pipeline.graphs.signatures import Signature
from pipeline.runs.directory import NETWORK

MAX_FACTOR = 20
"""How many times its size a file may unpack to."""


def write(task: ExportTask, directory: Path) -> Mapping[str, str]:
    """Make the network anew, give it the epoch's variables, and save it.

    Raises:
        ConfigError: The model has no Keras network.
    """
    import keras

    path = task.run.graph.with_name(NETWORK)
    if not path.exists():
        raise UnsupportedError(
            "export=keras needs a model that states its Keras network (BuiltModel.network). "
            "This one does not. Use export=saved_model."
        )
    description = json.loads(path.read_text())
    network = keras.models.model_from_json(json.dumps(description["network"]))
    graph = task.graph()
    for variable, name in zip(network.weights, description["weights"], strict=True):
        variable.assign(graph.weights[name].numpy())
    held = _names(network, graph.signatures)
    if not held:
        raise UnsupportedError(
            "export=keras needs a network whose inputs and outputs are named as a signature's. Received: "
            f"{sorted(tensor.name for tensor in network.inputs)} -> {sorted(network.output)}."
        )
    with warnings.catch_warnings(action="ignore"):  # NumPy's, of how Keras uses it.
        network.save(directory / FORMATS["keras"].path)
    reason = "a Keras file holds one network"
    return {name: reason for name in graph.signatures if name not in held}


def open(directory: Path, epoch: int) -> Mapping[str, Signature]:
    """Load the network and compile it.

    Raises:
        ConfigError: The file is missing or damaged.
    """
    import keras
    import tensorflow as tf

    from pipeline.graphs.checkpoints import signature_of

    path = directory / FORMATS["keras"].path
    try:
        _check_size(path)
        network = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Whatever the damaged bytes lead the loader into.
        raise DamagedError(f"{path} must be a whole Keras file. Loading it failed: {error}") from error
    specs = {tensor.name: tf.TensorSpec(tensor.shape, tensor.dtype, tensor.name) for tensor in network.inputs}
    function = tf.function(lambda **inputs: network(inputs), autograph=False)
    signature = signature_of(function.get_concrete_function(**specs))
    return dict.fromkeys(read_manifest(directory).signatures, signature)


def _check_size(path: Path) -> None:
    """Check, before anything is unpacked, that the archive is no larger inside than its file lets expect.

    Raises:
        ValueError: It is: Keras stores the variables, which are most of it, as they are.
    """
    with zipfile.ZipFile(path) as archive:
        size = sum(info.file_size for info in archive.infolist())
    limit = MAX_FACTOR * path.stat().st_size
    if size > limit:
        raise ValueError(
            f"it unpacks to {size:,} bytes. At most {limit:,} are expected of a file of its size."
        )


def _names(network: Any, signatures: Mapping[str, Signature]) -> list[str]:
    """Return the names of the signatures that the network computes."""
    inputs = {tensor.name: tensor.dtype for tensor in network.inputs}
    return [
        name
        for name, signature in signatures.items()
        if {key: spec.dtype for key, spec in signature.inputs.items()} == inputs
        and set(signature.outputs) == set(network.output)
    ]
