"""`checkpoint`: the graph beside the variables of one epoch, as TensorFlow checkpoint files.

graph/                     SavedModel: the signatures
epoch-0003.index, .data-…  the variables (and the optimizer's) after epoch 3
manifest.json              which epoch, which run
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from pipeline import checkpoints
from pipeline.binding import ConfigError
from pipeline.evaluation import Signature
from pipeline.run import RunDirectory

FACTS = "."
GRAPH = "graph"


def write(run: RunDirectory, epoch: int, directory: Path) -> None:
    """Copy the graph and the epoch's checkpoint."""
    shutil.copytree(run.graph, directory / GRAPH)
    prefix = run.checkpoint(epoch)
    for suffix in (checkpoints.INDEX, checkpoints.DATA):
        name = prefix.name + suffix
        shutil.copyfile(prefix.with_name(name), directory / name)


def open(directory: Path) -> Mapping[str, Signature]:
    """Load the graph and restore the checkpoint into it.

    Raises:
        ConfigError: A file is missing or damaged.
    """
    indices = list(directory.glob(f"epoch-*{checkpoints.INDEX}"))
    if len(indices) != 1:
        raise ConfigError(
            [f"{directory} must hold one checkpoint. Received: {[path.name for path in indices]}."]
        )
    graph = checkpoints.open_graph(directory / GRAPH)
    checkpoints.restore(indices[0].with_suffix(""), graph.weights)
    return graph.signatures
