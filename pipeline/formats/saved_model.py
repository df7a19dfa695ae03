"""`saved_model`: TensorFlow's SavedModel in the layout that TensorFlow Serving watches.

The export is the run's graph to the byte, with the variables of the chosen epoch in place of the
initial ones. See https://www.tensorflow.org/guide/saved_model.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from pipeline import checkpoints
from pipeline.evaluation import Signature
from pipeline.run import RunDirectory

FACTS = "assets.extra"

# TensorFlow's own fingerprint of the graph's SavedModel covers the variables that are replaced.
NOT_COPIED = ("variables", "fingerprint.pb")


def write(run: RunDirectory, epoch: int, directory: Path) -> None:
    """Copy the graph, and write the epoch's variables where it looks for them."""
    shutil.copytree(
        run.graph,
        directory,
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns(*NOT_COPIED),
    )
    graph = checkpoints.open_graph(run.graph)
    checkpoints.restore(run.checkpoint(epoch), graph.weights)
    (directory / "variables").mkdir()
    checkpoints.write_checkpoint(directory / "variables" / "variables", {"weights": graph.weights})


def open(directory: Path) -> Mapping[str, Signature]:
    """Load the SavedModel.

    Raises:
        ConfigError: A file is missing or damaged.
    """
    return checkpoints.open_graph(directory).signatures
