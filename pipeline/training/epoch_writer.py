"""Writing the checkpoint, the log and the curves of an epoch, in a thread, while the next epoch is trained.

The order matters. The checkpoint is written before its row of the log, so every row has a whole checkpoint.
Old checkpoints are removed after that, so at every moment there is an epoch from which the run can go on.
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
    """Writes the checkpoints, the log and the curves of a run.

        with EpochWriter(run, groups, policy) as writer:
            writer.write(row)  # Returns at once.
            ...                # Train the next epoch.

    At most one epoch is being written. `write` waits for the epoch before, and so does the end of the `with`
    block; both raise the `OSError` of that epoch, if it could not be written.

    Attributes:
        events: The curves. Any thread may write to them at any time.
        groups: The variables, by path in each group.
    """

    def __init__(self, run: RunDirectory, groups: Groups, policy: Policy, rows: Sequence[Row] = ()) -> None:
        """Copy the variables, and start the thread.

        Args:
            run: The run.
            groups: The variables, by path in each group, as `checkpoints.write_checkpoint` takes them.
            policy: Decides which checkpoints are kept.
            rows: The rows that the log already has.
        """
        self.events = EventWriter(run.tensorboard)
        self._run = run
        self._policy = policy
        self._rows = list(rows)
        self.groups = groups
        # The thread writes copies, because the next epoch changes the variables meanwhile. They take as much
        # memory as the model and its optimizer.
        self._copies = {
            group: {path: tf.Variable(variable, trainable=False) for path, variable in variables.items()}
            for group, variables in groups.items()
        }
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="epoch-writer")
        self._in_flight: Future[None] | None = None

    def write(self, row: Row) -> None:
        """Start to write an epoch, with the present values of the variables.

        Args:
            row: The epoch's row, still without the checksums of its checkpoint.

        Raises:
            OSError: The epoch before could not be written.
        """
        self.wait()
        for group, variables in self.groups.items():
            for path, variable in variables.items():
                self._copies[group][path].assign(variable)
        self._in_flight = self._executor.submit(self._write, row)

    def wait(self) -> None:
        """Wait until the epoch that is being written is on the disk.

        Raises:
            OSError: The epoch could not be written.
        """
        # Forgotten before it is awaited: an error is raised once, not again at the end of the `with` block.
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is not None:
            in_flight.result()

    def _write(self, row: Row) -> None:
        files = checkpoints.write_checkpoint(self._run.checkpoint(row.epoch), self._copies)
        self._rows.append(replace(row, files=files))
        self._run.append_row(self._rows[-1])
        self._remove_what_is_not_kept()
        scalars = {f"test/{name}": value for name, value in row.test.items()}
        scalars |= {f"validation/{name}": value for name, value in (row.validation or {}).items()}
        scalars |= {f"train/{name}": value for name, value in (row.train or {}).items()}
        self.events.scalars(row.step, scalars)

    def _remove_what_is_not_kept(self) -> None:
        # An epoch that was stopped is behind this one now. Without `unfinished.json` nothing refers to its
        # checkpoint, `step-*`, which the pattern below finds, too.
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
            # The error in the `with` block goes on to the caller; this one must not hide it.
            log.error("The epoch before could not be written: %s", other)
        finally:
            self._executor.shutdown()
            self.events.close()
