"""`saved_model`: TensorFlow's SavedModel in the layout that TensorFlow Serving watches.

The export is the run's graph to the byte, with the variables of the chosen epoch in place of the
initial ones. See https://www.tensorflow.org/guide/saved_model.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from pipeline.formats.base import ExportTask
from pipeline.graphs.signatures import Signature

# TensorFlow's own fingerprint of the graph's SavedModel covers the variables that are replaced.
NOT_COPIED = ("variables", "fingerprint.pb")


def write(task: ExportTask, directory: Path) -> Mapping[str, str]:
    """Copy the graph, and write the epoch's variables where it looks for them."""
    from pipeline.graphs import checkpoints

    shutil.copytree(
        task.run.graph,
        directory,
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns(*NOT_COPIED),
    )
    (directory / "variables").mkdir()
    weights = task.graph().weights
    checkpoints.write_checkpoint(directory / "variables" / "variables", {"weights": weights})
    return {}


def open(directory: Path, epoch: int) -> Mapping[str, Signature]:
    """Load the SavedModel.

    Raises:
        ConfigError: A file is missing or damaged.
    """
    from pipeline.graphs import sessions

    return sessions.load(directory)
