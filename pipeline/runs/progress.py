"""How far a run is: its log as far as it is whole, and the epoch that was stopped in good order."""

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
        num_steps: Steps taken of it.
        checkpoint: Name of the checkpoint, in `checkpoints/`, of the variables, the losses of the epoch's
            steps and the state that is carried to the next.
        files: SHA-256 of each of its files.
    """

    epoch: int
    num_steps: int
    checkpoint: str
    files: Mapping[str, str]


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        rows: Its log, up to an epoch whose checkpoint is whole; empty for a new run.
        unfinished: The epoch after that, if it was begun and stopped in good order.
    """

    rows: Sequence[Row] = ()
    unfinished: Unfinished | None = None


def path_of_unfinished(run: RunDirectory) -> Path:
    """Return the path of what is said of an unfinished epoch."""
    return run.graph.with_name("unfinished.json")


def write_unfinished(run: RunDirectory, unfinished: Unfinished) -> None:
    """Say that an epoch is unfinished; its checkpoint is there already."""
    write_text(path_of_unfinished(run), json.dumps(checksums.seal(asdict(unfinished)), indent=2) + "\n")


def find(run: RunDirectory) -> Progress:
    """Return how far a run is; what follows the newest epoch that is whole is dropped, and that is said.

    A log of which more is dropped than a last line that was cut short is kept as `metrics.jsonl.damaged`.

    Raises:
        ConfigError: No epoch is whole, or what all of them need is not.
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
        for epoch in range(len(rows), len(lines)):
            run.answers(epoch).unlink(missing_ok=True)
    run.rewrite_rows(rows)  # Without a last line that was cut short, too.
    return Progress(rows, _unfinished(run, rows[-1].epoch + 1))


def _unfinished(run: RunDirectory, epoch: int) -> Unfinished | None:
    """Return what there is of an epoch, if it is whole."""
    path = path_of_unfinished(run)
    try:
        found = Unfinished(**checksums.unseal(path.read_text()))
        problems = checksums.problems(path.parent, found.files)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        problems = [f"{path} must be as the run wrote it: {error}."]
    if problems:
        log.warning("going on from the beginning of epoch %d: %s", epoch, " ".join(problems))
        return None
    return found if found.epoch == epoch else None
