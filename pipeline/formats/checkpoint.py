"""`checkpoint`: the run's graph, and the checkpoints of some epochs beside it.

    graph/                     SavedModel: the signatures
    epoch-0003.index, .data-…  the variables of the model and of the optimizer after epoch 3
    manifest.json              the epochs, the run, the checksums

The files are copies of the run's own. So an export with the optimizer's variables can be trained on.
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
    """Copy the graph and the checkpoint of each epoch.

    Raises:
        DamagedError: A file of a checkpoint is missing or was changed.
    """
    shutil.copytree(task.run.graph, directory / GRAPH)
    for row in task.rows:
        task.run.check_row(row)
        for name in row.files:
            shutil.copyfile(task.run.graph.with_name(name), directory / name)
    return {}


def open(directory: Path, epoch: int) -> Mapping[str, Signature]:
    """Load the graph and assign the checkpoint of an epoch to its variables.

    Raises:
        DamagedError: A file is missing or damaged.
        UntrustedError: The graph has an operation that is not allowed.
    """
    from pipeline.graphs import checkpoints

    graph = checkpoints.open_graph(directory / GRAPH)
    checkpoints.restore(directory / FORMATS["checkpoint"].path_of(epoch=epoch), {"weights": graph.weights})
    return graph.signatures
