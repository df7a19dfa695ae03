"""`simple_save`: a TF1 SavedModel with its input pipeline inside.

Feed the placeholders `<array>_data_ph` and `batch_size_ph`, run `dataset_init`, then read outputs such as
`logits:0` until OutOfRange: a batch each time. State that is carried from batch to batch is fed through
`<state>_ph`. Every signature is there too, as in any SavedModel.
See https://www.tensorflow.org/api_docs/python/tf/compat/v1/saved_model/simple_save.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from pipeline import sessions
from pipeline.binding import ConfigError
from pipeline.evaluation import Signature
from pipeline.formats.base import Source, Traits

v1 = tf.compat.v1

TRAITS = Traits(facts="assets.extra", exact=True)


def write(source: Source, directory: Path) -> Mapping[str, str]:
    """Write the graph, its input pipeline and the variables."""
    ((_, graph),) = source.epochs()
    built = sessions.build(graph, input_pipeline=True)
    with built.session as session, session.graph.as_default():
        builder = v1.saved_model.Builder(str(directory))
        builder.add_meta_graph_and_variables(
            session, [v1.saved_model.tag_constants.SERVING], signature_def_map=dict(built.signature_defs)
        )
        builder.save()
    return {}


def open(directory: Path, epoch: int) -> Mapping[str, Signature]:
    """Load the SavedModel; its `evaluate` reads each batch through the input pipeline.

    Raises:
        ConfigError: A file is missing or damaged.
    """
    try:
        session = v1.Session(graph=tf.Graph())
        meta = v1.saved_model.load(session, [v1.saved_model.tag_constants.SERVING], str(directory))
        signatures = sessions.signatures_of(session, meta.signature_def)
        evaluate = _through_input_pipeline(session, signatures["evaluate"])
    except Exception as error:  # Whatever the damaged bytes lead the loader into.
        raise ConfigError([f"{directory} must be whole. Loading it failed: {error}"]) from error
    return {**signatures, "evaluate": evaluate}


def _through_input_pipeline(session: Any, evaluate: Signature) -> Signature:
    outputs = {name: f"{name}:0" for name in evaluate.outputs}

    def call(**arrays: Any) -> Mapping[str, Any]:
        batch = {name: array for name, array in arrays.items() if name not in evaluate.carried}
        state = {f"{name}_ph:0": arrays[name] for name in evaluate.carried}
        feeds = {f"{name}_data_ph:0": array for name, array in batch.items()}
        num_rows = len(next(iter(batch.values())))
        session.run(sessions.DATASET_INIT, {**feeds, f"{sessions.BATCH_SIZE}:0": num_rows})
        return session.run(outputs, state)

    return Signature(evaluate.inputs, evaluate.outputs, call)
