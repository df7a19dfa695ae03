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
from typing import Any

from omegaconf import DictConfig

from pipeline import binding, command, composition, config, recorded, runtime
from pipeline.binding import ConfigError
from pipeline.recorded import Recorded
from pipeline.run import Row, select_rows


@dataclass(frozen=True)
class Request:
    """What is to be evaluated, checked against what the run wrote.

    Attributes:
        recorded: The run.
        rows: The rows whose checkpoints are to be restored.
        exports: The newest export of each format that is to be opened.
    """

    recorded: Recorded
    rows: Sequence[Row]
    exports: Mapping[str, Path]


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
    past = recorded.read(values.run_dir, data=values.data, verify=recorded.given(values.verify))
    exports = {name: path for name in config.FORMATS if (path := past.run.newest_export(name))}
    wanted = values.format if isinstance(values.format, list) else [values.format]
    if values.format is not None:
        written = ["checkpoint", *(name for name in exports if name != "checkpoint")]
        if unwritten := [name for name in wanted if name not in written]:
            raise ConfigError([binding.unknown("format", ", ".join(map(str, unwritten)), written)])
        exports = {name: path for name, path in exports.items() if name in wanted}
    rows = []
    if values.format is None or "checkpoint" in wanted:
        rows = select_rows(past.rows, values.epochs, vars(past.best))
    return Request(past, rows, exports)


def evaluate(request: Request) -> int:
    """Restore, evaluate, compare; print the table, write the receipts; return the exit code.

    Raises:
        ConfigError: The data has changed, or something cannot be restored; then what can is evaluated first,
            and the receipts say so.
    """
    past, run = request.recorded, request.recorded.run
    dataset = config.load(past.source)
    recorded_data = past.facts["data"]["fingerprint"]
    if dataset.fingerprint() != recorded_data:
        raise ConfigError(
            [
                f"The data must be what the run was trained on, SHA-256 {recorded_data}. "
                f"Received: {dataset.fingerprint()}. It has changed since; no metric would compare."
            ]
        )
    runtime.start_tensorflow(seed=past.seed, deterministic=past.deterministic)
    from pipeline import receipts, report, verification

    epochs = verification.verify_checkpoints(run, request.rows, dataset, past.verify)
    exports = verification.verify_exports(run, request.exports, past.rows, dataset, past.verify)
    receipt = receipts.write(run, len(past.rows), epochs, exports)
    report.write(run)
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    print(receipts.metrics_table(epochs, exports, columns=columns))
    if parity := receipts.parity_table(exports, columns=columns):
        print(f"\n{parity}\n")
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
