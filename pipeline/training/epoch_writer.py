"""What an epoch leaves behind, written in a thread of its own while the next one is trained.

Order is kept: the checkpoint first, then the row of the log, so that a row's checkpoint is always whole;
only then what is no longer needed is removed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Self

import tensorflow as tf

from pipeline.graphs import checkpoints
from pipeline.graphs.checkpoints import Groups
from pipeline.runs.directory import INDEX, RunDirectory
from pipeline.runs.log import Row
from pipeline.runs.policy import Policy
from pipeline.runs.progress import path_of_unfinished
from pipeline.training.summaries import EventWriter

log = logging.getLogger(__name__)


class EpochWriter:
    """Writes checkpoints, the log and the curves of a run. Use it as a context manager.

    One epoch at most is in flight: the next one waits for it, and raises what went wrong with it; so does
    the end.

    Attributes:
        events: The curves; safe to write to meanwhile.
        groups: The variables.
    """

    def __init__(self, run: RunDirectory, groups: Groups, policy: Policy, rows: Sequence[Row] = ()) -> None:
        """Prepare to write.

        Args:
            run: The run.
            groups: Variables by path, as `checkpoints.write_checkpoint` takes them.
            policy: Says which checkpoints are kept.
            rows: The log so far.
        """
        self.events = EventWriter(run.tensorboard)
        self._run = run
        self._policy = policy
        self._rows = list(rows)
        self.groups = groups
        self._copies = {
            group: {path: tf.Variable(variable, trainable=False) for path, variable in variables.items()}
            for group, variables in groups.items()
        }
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="epoch-writer")
        self._in_flight: Future[None] | None = None

    def write(self, row: Row) -> None:
        """Start to write an epoch, with the variables as they are now."""
        self.wait()
        for group, variables in self.groups.items():
            for path, variable in variables.items():
                self._copies[group][path].assign(variable)
        self._in_flight = self._executor.submit(self._write, row)

    def wait(self) -> None:
        """Wait for the epoch in flight.

        Raises:
            OSError: It could not be written.
        """
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is not None:
            in_flight.result()

    def _write(self, row: Row) -> None:
        files = checkpoints.write_checkpoint(self._run.checkpoint(row.epoch), self._copies)
        self._rows.append(replace(row, files=files))
        self._run.append_row(self._rows[-1])
        self._remove_what_is_not_kept()
        scalars = {f"test/{name}": value for name, value in row.test.items()}
        scalars |= {f"train/{name}": value for name, value in (row.train or {}).items()}
        self.events.scalars(row.step, scalars)

    def _remove_what_is_not_kept(self) -> None:
        path_of_unfinished(self._run).unlink(missing_ok=True)
        kept = {self._run.checkpoint(epoch).name for epoch in self._policy.kept(self._rows)}
        for index in self._run.graph.parent.glob(f"*-[0-9]*{INDEX}"):
            if index.stem not in kept:
                checkpoints.remove_checkpoint(index.with_suffix(""))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.wait()
        except OSError as other:
            if error is None:
                raise
            log.error("The epoch before could not be written: %s", other)
        finally:
            self._executor.shutdown()
            self.events.close()
