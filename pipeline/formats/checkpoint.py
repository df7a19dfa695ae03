"""`checkpoint`: the graph beside the variables of one epoch, as TensorFlow checkpoint files.

graph/                     SavedModel: the signatures
epoch-0003.index, .data-…  the variables (and the optimizer's) after epoch 3
manifest.json              which epoch, which run
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from pipeline.config.formats import FORMATS
from pipeline.formats.base import ExportTask
from pipeline.graphs.signatures import Signature

GRAPH = "graph"


def write(task: ExportTask, directory: Path) -> Mapping[str, str]:
    """Copy the graph and each epoch's checkpoint."""
    shutil.copytree(task.run.graph, directory / GRAPH)
    for row in task.rows:
        task.run.check_row(row)
        for name in row.files:
            shutil.copyfile(task.run.graph.with_name(name), directory / name)
    return {}


def open(directory: Path, epoch: int) -> Mapping[str, Signature]:
    """Load the graph and restore the checkpoint into it.

    Raises:
        ConfigError: A file is missing or damaged.
    """
    from pipeline.graphs import checkpoints

    graph = checkpoints.open_graph(directory / GRAPH)
    checkpoints.restore(directory / FORMATS["checkpoint"].path_of(epoch=epoch), {"weights": graph.weights})
    return graph.signatures
