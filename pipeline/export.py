"""`python -m pipeline.export run_dir=DIR export=onnx`: export any epoch of a run, later, and verify it.

It works from the run directory and the data, without the model's code.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from pipeline import binding, command, composition, config, runtime
from pipeline.binding import ConfigError
from pipeline.config import Best, Export, Verify
from pipeline.run import Row, RunDirectory, select_rows

if TYPE_CHECKING:
    from data.base import Source


@dataclass(frozen=True)
class Request:
    """What is to be exported, checked against what the run wrote.

    Attributes:
        run: The run's directory.
        rows: The rows of the epochs to export.
        export: See `Export`.
        source: The run's data source, constructed.
        seed: The run's seed.
        deterministic: Whether the run's operations were.
        verify: See `Verify`.
        verification: The arguments of the command that verifies what is written.
    """

    run: RunDirectory
    rows: Sequence[Row]
    export: Export
    source: Source
    seed: int
    deterministic: bool
    verify: Verify
    verification: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class _Sections:
    run_dir: Path
    epoch: Any
    export: Export
    best: dict[str, Any]
    verify: dict[str, Any]
    data: dict[str, Any]


def check(cfg: DictConfig) -> Request:
    """Check the configuration of this command, and read what the run says of itself.

    Raises:
        ConfigError: With what does not fit.
    """
    problems: list[str] = []
    values = binding.bind(_Sections, composition.plain_values(cfg), "", problems)
    if problems:
        raise ConfigError(problems)
    sections = _Sections(**values)
    run = RunDirectory(sections.run_dir)
    facts = run.read_facts()
    recorded = facts["config"]
    verify = binding.bind(Verify, recorded["verify"] | _given(sections.verify), "verify.", problems)
    best = binding.bind(Best, recorded["best"] | _given(sections.best), "best.", problems)
    source, _ = binding.construct(recorded["data"] | sections.data, "data", problems)
    if not problems:
        problems += config.check_export(sections.export, Verify(**verify))
        problems += config.check_epochs(sections.epoch, sections.export)
    if problems:
        raise ConfigError(problems)
    rows = select_rows(run.read_rows(), sections.epoch, best)
    arguments = [
        command.override("run_dir", run.path),
        f"format=[{','.join(sections.export.chosen)}]",
        *(command.override(f"verify.{key}", value) for key, value in _given(sections.verify).items()),
        *(command.override(f"+data.{key}", value) for key, value in sections.data.items()),
    ]
    return Request(
        run,
        rows,
        sections.export,
        source,
        facts["seed"],
        recorded["train"]["deterministic"],
        Verify(**verify),
        arguments,
    )


def _given(section: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if value is not None}


def export(request: Request) -> int:
    """Export, and verify in a fresh process; return the exit code."""
    dataset = config.load(request.source)
    with command.stop_signals() as received:
        runtime.start_tensorflow(seed=request.seed, deterministic=request.deterministic)
        from pipeline import exporting

        epochs = [row.epoch for row in request.rows]
        source = exporting.source(request.run, epochs, request.export, dataset, request.verify)
        exporting.rehearse(source)
        exporting.record_answers(request.run, epochs)
        exporting.export(source)
        code = command.in_fresh_process("pipeline.evaluate", request.verification, received)
        if received:
            raise command.StopRequested(received[0])
    exporting.log.info("evaluate again:  python -m pipeline.evaluate %s", shlex.join(request.verification))
    return code


if __name__ == "__main__":
    command.run(export, config_name="export", check=check)
