"""`python -m pipeline.export run_dir=DIR export=onnx`: export epochs of an earlier run, and verify them.

The command needs the run directory and the data, but not the model's code.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from pipeline.cli import command, composition
from pipeline.cli.quoting import override
from pipeline.cli.stop import stop_signals
from pipeline.config import checks
from pipeline.config.binding import parse
from pipeline.config.dataset_checks import load
from pipeline.config.schema import Export
from pipeline.errors import ConfigError
from pipeline.graphs import allowed_operations
from pipeline.runs import past_run
from pipeline.runs.log import Row
from pipeline.runs.past_run import Recorded
from pipeline.runs.policy import select_rows


@dataclass(frozen=True)
class ExportRequest:
    """The epochs of a run that are to be exported, checked.

    Attributes:
        recorded: The run and its configuration.
        rows: The rows of the epochs to export.
        export: See `pipeline.config.schema.Export`.
        verification: The overrides for `pipeline.evaluate`, which verifies the exports, without `format`.
    """

    recorded: Recorded
    rows: Sequence[Row]
    export: Export
    verification: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """The keys of this command; `conf/export.yaml` explains them."""

    run_dir: Path
    epoch: Any
    export: Export
    best: dict[str, Any]
    verify: dict[str, Any]
    data: dict[str, Any]
    trust: list[str]


def check(cfg: DictConfig) -> ExportRequest:
    """Check the configuration of this command, and read the run.

    Raises:
        ConfigError: A key does not fit, there is no run, or the epoch is not in the log or not kept.
        DamagedError: A file of the run is damaged.
    """
    values = parse(ExportSettings, composition.plain_values(cfg))
    verify = past_run.given(values.verify)
    past = past_run.read(
        values.run_dir,
        data=values.data,
        verify=verify,
        best=past_run.given(values.best),
        trust=values.trust,
    )
    problems = [*checks.check_export(values.export, past.verify)]
    problems += checks.check_epochs(values.epoch, values.export)
    if problems:
        raise ConfigError(*problems)
    arguments = [
        override("run_dir", past.run.path),
        *(override(f"verify.{key}", value) for key, value in verify.items()),
        *(override(f"+data.{key}", value) for key, value in values.data.items()),
        *([f"trust=[{','.join(values.trust)}]"] if values.trust else []),
    ]
    rows = select_rows(past.rows, values.epoch, past.best, past.kept)
    return ExportRequest(past, rows, values.export, arguments)


def export(request: ExportRequest) -> int:
    """Export epochs of a run, and verify the exports in a fresh process.

    Returns:
        The exit code of the verification.

    Raises:
        RoundtripError: The data, the graph or a format cannot be used; see `exporting.export`.
        StopRequested: A signal was received.
    """
    past = request.recorded
    dataset = load(past.source, past.train)
    with stop_signals() as stop, allowed_operations.trusting(past.trust):
        past.start_tensorflow()
        from pipeline.formats import exporting

        task = exporting.task_of(past.run, request.rows, request.export, dataset, past.verify)
        exporting.record_answers(past.run, request.rows)
        skipped = exporting.export(task, stop.check)
        stop.check()
        written = [name for name in request.export.chosen if name not in skipped]
        arguments = [*request.verification, f"format=[{','.join(written)}]"]
        code = command.in_fresh_process("pipeline.evaluate", arguments, stop)
        stop.check()
    exporting.log.info("evaluate again:  python -m pipeline.evaluate %s", shlex.join(arguments))
    return code


if __name__ == "__main__":
    command.run(export, config_name="export", check=check)
