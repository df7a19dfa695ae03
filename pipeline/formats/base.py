"""The contract of a format's module: `write` and `open`, side by side.

    module = load("onnx")
    left_out = module.write(task, directory)       # ExportTask -> files in an empty directory
    signatures = module.open(directory, epoch=3)   # files -> functions of named arrays

A format writes from the run's directory alone: the graph, an epoch's variables, the requests. It never needs
the model's code. What else there is to know of a format stands in its row of `pipeline.config.formats`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.config.schema import Export
from pipeline.graphs.examples import Requests
from pipeline.graphs.signatures import Signature
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import Row

if TYPE_CHECKING:
    from pipeline.graphs.checkpoints import Graph


@dataclass(frozen=True)
class ExportTask:
    """Epochs of a run that are to be exported, and everything that a format may need for it.

    Attributes:
        run: The run.
        rows: The rows of the epochs; none for a rehearsal, which takes the variables before training.
        options: See `pipeline.config.schema.Export`.
        requests: Example inputs for every signature.
        calibration: Returns requests made of training data, for a format that counts the ranges of values.
            They cover the signatures whose inputs are arrays of the data, or carried state.
        quantized_tolerance: How far a metric of a quantized export may be from the logged one.
        left_out: By format, the signatures that a rehearsal found the format cannot hold, each with the
            reason. A format that is not in it has to find out.
    """

    run: RunDirectory
    rows: Sequence[Row]
    options: Export
    requests: Requests
    calibration: Callable[[], Sequence[Requests]]
    quantized_tolerance: float = 0.0
    left_out: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def epochs(self) -> list[int]:
        """The epochs' numbers."""
        return [row.epoch for row in self.rows]

    def graph(self) -> Graph:
        """Open the run's graph with the variables of the one epoch that is to be exported."""
        ((_, graph),) = self.graphs()
        return graph

    def graphs(self) -> Iterator[tuple[int, Graph]]:
        """Yield each epoch with the run's graph, whose variables are then that epoch's."""
        from pipeline.graphs import checkpoints

        graph = checkpoints.open_graph(self.run.graph)
        if not self.rows:
            yield 0, graph
        for row in self.rows:
            checkpoints.restore_row(self.run, row, {"weights": graph.weights})
            yield row.epoch, graph


class FormatModule(Protocol):
    """The functions of a module of this package that is a format."""

    def write(self, task: ExportTask, directory: Path) -> Mapping[str, str]:
        """Write an export into an empty directory.

        Returns:
            The signatures that the format cannot hold, each with the reason.

        Raises:
            UnsupportedError: The format cannot hold the model at all.
        """

    def open(self, directory: Path, epoch: int) -> Mapping[str, Signature]:
        """Open an export with nothing but its own files; return its signatures by name.

        Raises:
            DamagedError: A file is missing or damaged.
        """


def load(name: str) -> FormatModule:
    """Import the module of a format, and with it the packages that the format needs."""
    module: Any = importlib.import_module(f"pipeline.formats.{name}")
    return module
