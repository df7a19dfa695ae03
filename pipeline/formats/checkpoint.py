"""`checkpoint`: the graph beside the variables of one epoch, as TensorFlow checkpoint files.

graph/                     SavedModel: the signatures
epoch-0003.index, .data-…  the variables (and the optimizer's) after epoch 3
manifest.json              which epoch, which run
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from pipeline.formats.base import Source, Traits
from pipeline.graphs.signatures import Signature

TRAITS = Traits(facts=".", exact=True, copied=True)
GRAPH = "graph"


def write(source: Source, directory: Path) -> Mapping[str, str]:
    """Copy the graph and each epoch's checkpoint."""
    shutil.copytree(source.run.graph, directory / GRAPH)
    for row in source.rows:
        source.run.check_row(row)
        for name in row.files:
            shutil.copyfile(source.run.graph.with_name(name), directory / name)
    return {}


def open(directory: Path, epoch: int) -> Mapping[str, Signature]:
    """Load the graph and restore the checkpoint into it.

    Raises:
        ConfigError: A file is missing or damaged.
    """
    from pipeline.graphs import checkpoints

    graph = checkpoints.open_graph(directory / GRAPH)
    checkpoints.restore(directory / f"epoch-{epoch:04d}", {"weights": graph.weights})
    return graph.signatures
