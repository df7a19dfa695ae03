"""`simple_save`: a TF1 SavedModel with its input pipeline inside.

Feed the placeholders `<array>_data_ph` and `batch_size_ph`, run `dataset_init`, then read outputs such as
`logits:0` until OutOfRange: a batch each time. State that is carried from batch to batch is fed through
`<state>_ph`. Every signature is there too, as in any SavedModel.
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
    """Write the graph, its input pipeline and the variables."""
    ((_, graph),) = task.graphs()
    built = sessions.build(graph, input_pipeline=True)
    with built.session as session, session.graph.as_default(), writing(directory):
        builder = v1.saved_model.Builder(str(directory))
        builder.add_meta_graph_and_variables(
            session, [v1.saved_model.tag_constants.SERVING], signature_def_map=dict(built.signature_defs)
        )
        builder.save()
    return {}


def open(directory: Path, epoch: int) -> Mapping[str, Signature]:
    """Load the SavedModel; what it evaluates and predicts of a batch is read through the input pipeline.

    Raises:
        ConfigError: A file is missing or damaged.
    """
    return sessions.load(directory)
