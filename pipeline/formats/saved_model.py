"""`saved_model`: TensorFlow's SavedModel, in the directories that TensorFlow Serving watches.

The export is a copy of the run's graph, in which the variables of the chosen epoch replace the initial ones.
See https://www.tensorflow.org/guide/saved_model.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from pipeline.formats.base import ExportTask
from pipeline.graphs.signatures import Signature

# `fingerprint.pb` is TensorFlow's checksum of a SavedModel and its variables: for the copy it would be wrong.
NOT_COPIED = ("variables", "fingerprint.pb")


def write(task: ExportTask, directory: Path) -> Mapping[str, str]:
    """Copy the graph, and write the variables of the epoch to the place where a loader looks for them.

    Raises:
        DamagedError: The graph or the checkpoint is damaged.
        OSError: The disk does not take a file.
    """
    from pipeline.graphs import checkpoints

    shutil.copytree(
        task.run.graph,
        directory,
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns(*NOT_COPIED),
    )
    (directory / "variables").mkdir()
    # Under `weights` again: the graph finds its variables by the key that each has in a checkpoint.
    weights = task.graph().weights
    checkpoints.write_checkpoint(directory / "variables" / "variables", {"weights": weights})
    return {}


def open(directory: Path, epoch: int) -> Mapping[str, Signature]:
    """Load the SavedModel, whatever the epoch: an export has only one.

    Raises:
        DamagedError: A file is missing or damaged.
        UntrustedError: The graph has an operation that is not allowed.
    """
    from pipeline.graphs import sessions

    return sessions.load(directory)
