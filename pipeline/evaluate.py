"""`python -m pipeline.evaluate run_dir=DIR`: restore what a run wrote, evaluate it, hold it to its log.

It runs in a process that has never seen the model's code: nothing here, and nothing it imports, imports
a model.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from pipeline import binding, command, composition, config, runtime
from pipeline.binding import ConfigError
from pipeline.config import Verify
from pipeline.run import Row, RunDirectory, select_rows

if TYPE_CHECKING:
    from data.base import Source


@dataclass(frozen=True)
class Request:
    """What is to be evaluated, checked against what the run wrote.

    Attributes:
        run: The run's directory.
        facts: Its `run.json`.
        log: Every row of its log.
        rows: The rows whose checkpoints are to be restored.
        exports: The newest export of each format that is to be opened.
        source: The run's data source, constructed.
        tolerance: See `Verify`.
    """

    run: RunDirectory
    facts: Mapping[str, Any]
    log: Sequence[Row]
    rows: Sequence[Row]
    exports: Mapping[str, Path]
    source: Source
    tolerance: Verify


@dataclass(frozen=True, kw_only=True)
class _Sections:
    run_dir: Path
    epochs: Any
    format: Any
    verify: dict[str, Any]
    data: dict[str, Any]


def check(cfg: DictConfig) -> Request:
    """Check the configuration of this command, and read what the run says of itself.

    Raises:
        ConfigError: With what does not fit.
    """
    problems: list[str] = []
    bound = binding.bind(_Sections, composition.plain_values(cfg), "", problems)
    if problems:
        raise ConfigError(problems)
    values = _Sections(**bound)
    run = RunDirectory(values.run_dir)
    facts = run.read_facts()
    recorded = facts["config"]
    log = run.read_rows()
    exports = {name: path for name in config.FORMATS if (path := run.newest_export(name))}
    wanted = values.format if isinstance(values.format, list) else [values.format]
    if values.format is not None:
        written = ["checkpoint", *(name for name in exports if name != "checkpoint")]
        if unwritten := [name for name in wanted if name not in written]:
            raise ConfigError([binding.unknown("format", ", ".join(map(str, unwritten)), written)])
        exports = {name: path for name, path in exports.items() if name in wanted}
    rows = []
    if values.format is None or "checkpoint" in wanted:
        rows = select_rows(log, values.epochs, recorded["best"])
    given = {key: value for key, value in values.verify.items() if value is not None}
    tolerance = binding.bind(Verify, {**recorded["verify"], **given}, "verify.", problems)
    source, _ = binding.construct({**recorded["data"], **values.data}, "data", problems)
    if problems:
        raise ConfigError(problems)
    return Request(run, facts, log, rows, exports, source, Verify(**tolerance))


def evaluate(request: Request) -> int:
    """Restore, evaluate, compare; print the table, write the receipts; return the exit code.

    Raises:
        ConfigError: The data has changed, or something cannot be restored; then what can is evaluated first,
            and the receipts say so.
    """
    facts, run = request.facts, request.run
    dataset = config.load(request.source)
    if dataset.fingerprint() != facts["data"]["fingerprint"]:
        raise ConfigError(
            [
                f"The data must be what the run was trained on, SHA-256 {facts['data']['fingerprint']}. "
                f"Received: {dataset.fingerprint()}. It has changed since; no metric would compare."
            ]
        )
    runtime.start_tensorflow(seed=facts["seed"], deterministic=facts["config"]["train"]["deterministic"])
    from pipeline import receipts, report, verification

    epochs = verification.verify_checkpoints(run, request.rows, dataset, request.tolerance)
    exports = verification.verify_exports(run, request.exports, request.log, dataset, request.tolerance)
    receipt = receipts.write(run, len(request.log), epochs, exports)
    report.write(run)
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    print(receipts.metrics_table(epochs, exports, columns=columns))
    if parity := receipts.parity_table(exports, columns=columns):
        print(parity)
    restored = [*epochs, *exports]
    for verified in restored:
        for sentence in (*verified.losses(), *verified.complaints()):
            print(sentence)
    match = all(verified.match for verified in restored)
    verdict = "match" if match else "mismatch"
    if receipt["verdict"] != verdict:
        print(f"together with what was verified earlier: {receipt['verdict']}")
    print(f"verdict: {verdict}    receipt: {run.verification}    page: {run.report}", flush=True)
    if problems := [problem for verified in restored for problem in verified.problems]:
        raise ConfigError(problems)
    return command.DONE if match else command.MISMATCH


if __name__ == "__main__":
    command.run(evaluate, config_name="evaluate", check=check)
