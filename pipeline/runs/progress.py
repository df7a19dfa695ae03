"""How far a run is: its epochs with whole checkpoints, and an epoch that was stopped between two steps."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import DamagedError
from pipeline.runs import checksums
from pipeline.runs.directory import RunDirectory
from pipeline.runs.files import staged, write_text
from pipeline.runs.log import Row

log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class Unfinished:
    """An epoch that was stopped between two steps.

    Attributes:
        epoch: The epoch.
        num_steps: Number of its steps that were taken.
        checkpoint: Name of the checkpoint in `checkpoints/`. It has the variables, the losses of the steps
            that were taken, and the carried state.
        files: SHA-256 of each file of the checkpoint, by the file's name.
    """

    epoch: int
    num_steps: int
    checkpoint: str
    files: Mapping[str, str]


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        rows: The log up to the last epoch whose checkpoint is whole; empty for a new run.
        unfinished: The epoch after that, if it was stopped between two steps.
    """

    rows: Sequence[Row] = ()
    unfinished: Unfinished | None = None


def path_of_unfinished(run: RunDirectory) -> Path:
    """Return the path of the file that describes an unfinished epoch."""
    return run.graph.with_name("unfinished.json")


def write_unfinished(run: RunDirectory, unfinished: Unfinished) -> None:
    """Write the description of an unfinished epoch, after its checkpoint.

    Raises:
        OSError: The disk does not take the file.
    """
    write_text(
        path_of_unfinished(run), json.dumps(checksums.with_checksum(asdict(unfinished)), indent=2) + "\n"
    )


def find(run: RunDirectory) -> Progress:
    """Return how far a run is, and remove the rows after the last epoch whose checkpoint is whole.

    If a whole line is removed, a warning is logged, and the log as it was is kept as `metrics.jsonl.damaged`.

    Raises:
        ConfigError: There is a log but no `run.json`.
        DamagedError: No epoch has a whole checkpoint; or `run.json`, the graph or the requests are damaged.
    """
    lines = run.read_lines()
    if not lines:
        return Progress()
    if changed := checksums.problems(run.path, run.read_facts()["files"]):
        raise DamagedError(*changed)
    rows: list[Row] = []
    problems: list[str] = []
    for number, line in enumerate(lines):
        try:
            rows.append(run.parse_row(number, line))
        except DamagedError as error:
            problems += error.problems
            break
    # Checkpoints of older epochs may have been removed on purpose, so only the last row needs one.
    while rows:
        try:
            run.check_row(rows[-1])
            break
        except DamagedError as error:
            problems += error.problems
            rows.pop()
    if not rows:
        raise DamagedError(*problems, f"The run in {run.path} has no epoch to go on from. Start a new one.")
    if len(rows) < len(lines):
        damaged = run.log.with_name(f"{run.log.name}.damaged")
        with staged(damaged) as staging:
            shutil.copyfile(run.log, staging)
        log.warning(
            "going on from epoch %d: %s The log as it was: %s", rows[-1].epoch, " ".join(problems), damaged
        )
        # These epochs will be trained again. Their answers would be those of other weights.
        for epoch in range(len(rows), len(lines)):
            run.answers(epoch).unlink(missing_ok=True)
    run.rewrite_rows(rows)  # This also removes a last line that a crash cut short.
    return Progress(rows, _unfinished(run, rows[-1].epoch + 1))


def _unfinished(run: RunDirectory, epoch: int) -> Unfinished | None:
    """Return the unfinished epoch if it is this one and its checkpoint is whole, otherwise `None`."""
    path = path_of_unfinished(run)
    try:
        found = Unfinished(**checksums.checked(path.read_text()))
        problems = checksums.problems(path.parent, found.files)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        problems = [f"{path} must be as the run wrote it: {error}."]
    if problems:
        log.warning("going on from the beginning of epoch %d: %s", epoch, " ".join(problems))
        return None
    return found if found.epoch == epoch else None
