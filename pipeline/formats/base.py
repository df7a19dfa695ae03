"""The contract of a format's module: `write` and `open`, side by side.

    module = load("onnx")
    left_out = module.write(task, directory)       # ExportTask -> files in an empty directory
    signatures = module.open(directory, epoch=3)   # files -> functions of named arrays

A format writes from the run's directory alone: the graph, the checkpoint of an epoch, the requests. It never
needs the model's code. The facts about a format, such as the names of its files, are in its row of
`pipeline.config.formats`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline.config.schema import Export
from pipeline.graphs import examples
from pipeline.graphs.examples import Requests
from pipeline.graphs.signatures import Signature
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import Row

if TYPE_CHECKING:
    from pipeline.graphs.checkpoints import Graph

GROSS = 0.01
"""Relative difference between a converted signature and the model's own that no rounding explains."""


@dataclass(frozen=True)
class ExportTask:
    """The epochs of a run that are to be exported, and everything that a format needs to do it.

    Attributes:
        run: The run.
        rows: The rows of the epochs. A rehearsal has none; it exports the variables before training.
        options: See `pipeline.config.schema.Export`.
        requests: Example requests to every signature, `evaluate` included.
        calibration: Returns requests made of training data, on which int8 quantization measures the ranges of
            values. They cover the signatures whose inputs are arrays of the data or carried state.
        quantized_tolerance: Largest difference of a quantized export's metric from the logged one.
        left_out: By format, the signatures that the format could not hold in a rehearsal, each with the
            reason. A format that is not listed must try every signature.
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
        """The numbers of the epochs."""
        return [row.epoch for row in self.rows]

    def graph(self) -> Graph:
        """Return the run's graph with the variables of the only epoch of this task.

        Raises:
            DamagedError: The graph or the checkpoint is damaged.
            UntrustedError: The graph has an operation that is not allowed.
        """
        ((_, graph),) = self.graphs()
        return graph

    def graphs(self) -> Iterator[tuple[int, Graph]]:
        """Yield each epoch with the run's graph, whose variables have the values of that epoch.

        It is one graph, to which the next epoch is assigned: use it before taking the next.

        Raises:
            DamagedError: The graph or a checkpoint is damaged.
            UntrustedError: The graph has an operation that is not allowed.
        """
        from pipeline.graphs import checkpoints

        graph = self._opened
        if not self.rows:
            yield 0, graph
        for row in self.rows:
            checkpoints.restore_row(self.run, row, {"weights": graph.weights})
            yield row.epoch, graph

    @functools.cached_property
    def _opened(self) -> Graph:
        """The run's graph, loaded once for all formats: of a deep network, that takes a second."""
        # Here, and not above: formats that are not TensorFlow's are opened without importing it.
        from pipeline.graphs import checkpoints

        return checkpoints.open_graph(self.run.graph)


class FormatModule(Protocol):
    """The functions that every module of a format has."""

    def write(self, task: ExportTask, directory: Path) -> Mapping[str, str]:
        """Write an export into an empty directory.

        Returns:
            The signatures that the format cannot hold, each with the reason.

        Raises:
            UnsupportedError: The format cannot hold the model at all.
        """

    def open(self, directory: Path, epoch: int) -> Mapping[str, Signature]:
        """Return the signatures of an export by name, from nothing but its own files.

        Raises:
            DamagedError: A file is missing or damaged.
            UntrustedError: A graph has an operation that is not allowed.
        """


def disagreement(restored: Signature, signature: Signature, request: Mapping[str, Any]) -> str | None:
    """Return a sentence if a converted signature answers otherwise than the run's graph, or `None`.

    A rehearsal asks this. The bound is wide: how exact an answer must be is the verification's to say. What a
    converter gets wrong, such as NaN for a loss, is far beyond it.

    Args:
        restored: The signature in the runtime of the format.
        signature: The signature of the run's graph.
        request: The inputs by name.
    """
    answers = restored.call(**request)
    try:
        model = examples.call(signature, request)
    except Exception:  # A request is a guess, which the model may refuse with any type of exception.
        return None
    for name, expected in model.items():
        answer = np.asarray(answers[name])
        if expected.dtype.kind != "f":
            continue
        scale = np.max(np.abs(expected[np.isfinite(expected)]), initial=0.0)
        if not np.allclose(answer, expected, rtol=GROSS, atol=GROSS * scale, equal_nan=True):
            return f"its {name} is {_shown(answer)}, that of the model {_shown(expected)}"
    return None


def _shown(array: np.ndarray) -> str:
    return f"{array.flat[0]:.6g}" if array.size == 1 else np.array2string(array.ravel()[:3], precision=4)


def load(name: str) -> FormatModule:
    """Import the module of a format, and with it the packages that the format needs."""
    module: Any = importlib.import_module(f"pipeline.formats.{name}")
    return module
