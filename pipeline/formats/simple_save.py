"""`simple_save`: a TF1 SavedModel that includes an input pipeline.

Feed the placeholders `<array>_data_ph` and `batch_size_ph`, and run `dataset_init`. Then run outputs such as
`logits:0`: each run reads a batch, until `OutOfRangeError`. Feed carried state to `<state>_ph` each time.
The signatures are there too, as in any SavedModel.
See https://www.tensorflow.org/api_docs/python/tf/compat/v1/saved_model/simple_save.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf

from pipeline.formats.base import ExportTask
from pipeline.graphs import sessions
from pipeline.graphs.checkpoints import writing
from pipeline.graphs.signatures import Signature

v1 = tf.compat.v1


def write(task: ExportTask, directory: Path) -> Mapping[str, str]:
    """Write the graph, its input pipeline and the variables of the epoch.

    Raises:
        OSError: The disk does not take a file.
        UnsupportedError: A TF1 graph cannot hold the model.
    """
    ((_, graph),) = task.graphs()
    built = sessions.build(graph, input_pipeline=True)
    with built.session as session, session.graph.as_default(), writing(directory):
        builder = v1.saved_model.Builder(str(directory))
        builder.add_meta_graph_and_variables(
            session,
            [v1.saved_model.tag_constants.SERVING],
            signature_def_map=dict(built.signature_defs),
            # A loader runs it after it has restored the variables.
            main_op=v1.tables_initializer(),
        )
        builder.save()
    return {}


def open(directory: Path, epoch: int) -> Mapping[str, Signature]:
    """Load the SavedModel; `evaluate` and the signature that predicts read through its input pipeline.

    Raises:
        DamagedError: A file is missing or damaged.
        UntrustedError: The graph has an operation that is not allowed.
    """
    return sessions.load(directory)
