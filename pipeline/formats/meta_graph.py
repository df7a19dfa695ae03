"""`meta_graph`: files of TF1's `Saver`, for programs that find tensors by their names.

    epoch-3.meta                                  the graph, with its signatures
    epoch-3.index, epoch-3.data-00000-of-00001    the variables after epoch 3
    checkpoint                                    the list of checkpoints, as a `Saver` writes it
    manifest.json, verification.json

If the model has lookup tables, run `tf.compat.v1.tables_initializer()` after the `Saver` has restored.

The tensors have the names of the model's `session_graph`. If the model has none, they have those of an input
pipeline, as in the format `simple_save`. In both cases every signature is there under `signature/<name>/`.
See https://www.tensorflow.org/api_docs/python/tf/compat/v1/train/import_meta_graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf

from pipeline.config.formats import FORMATS
from pipeline.errors import DamagedError, RoundtripError
from pipeline.formats.base import ExportTask
from pipeline.graphs import allowed_operations, sessions
from pipeline.graphs.checkpoints import Graph, writing
from pipeline.graphs.signatures import Signature

v1 = tf.compat.v1


def write(task: ExportTask, directory: Path) -> Mapping[str, str]:
    """Write the graph and the variables of each epoch.

    Raises:
        OSError: The disk does not take a file.
        UnsupportedError: A TF1 graph cannot hold the model.
    """
    prefixes = []
    for epoch, graph in task.graphs():
        prefixes.append(FORMATS["meta_graph"].path_of(epoch=epoch))
        _write_epoch(graph, directory / prefixes[-1])
    v1.train.update_checkpoint_state(str(directory), prefixes[-1], prefixes)
    return {}


def _write_epoch(graph: Graph, prefix: Path) -> None:
    built = sessions.build(graph, input_pipeline=False)
    with built.session as session, session.graph.as_default(), writing(prefix):
        # The saver writes no meta graph itself: it would have no signatures, and the names of devices.
        saver = v1.train.Saver(v1.global_variables())
        saver.save(session, str(prefix), write_meta_graph=False, write_state=False)
        meta = saver.export_meta_graph(clear_devices=True)
        for name, definition in built.signature_defs.items():
            meta.signature_def[name].CopyFrom(definition)
        prefix.with_name(f"{prefix.name}.meta").write_bytes(meta.SerializeToString(deterministic=True))


def open(directory: Path, epoch: int) -> Mapping[str, Signature]:
    """Import the meta graph and restore the variables of an epoch.

    Raises:
        DamagedError: A file is missing or damaged.
        UntrustedError: The graph has an operation that is not allowed.
    """
    prefix = directory / FORMATS["meta_graph"].path_of(epoch=epoch)
    meta = v1.MetaGraphDef()
    try:
        path = prefix.with_name(f"{prefix.name}.meta")
        meta.ParseFromString(path.read_bytes())
        allowed_operations.check_meta_graph(meta, path)
        session = sessions.new_session(tf.Graph())
        with session.graph.as_default():
            saver = v1.train.import_meta_graph(meta)
            saver.restore(session, str(prefix))
            session.run(v1.tables_initializer())
        return sessions.signatures_of(session, meta.signature_def)
    except RoundtripError:
        raise
    except Exception as error:  # Damaged bytes may raise any type of exception in TensorFlow's loader.
        raise DamagedError(f"{prefix} must be whole. Restoring it failed: {error}") from error
