"""`python -m pipeline.evaluate run_dir=DIR`: restore the checkpoints and exports of a run, and verify them.

Nothing that this module imports imports a model. So the process proves that the files are enough.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from tqdm import tqdm

from pipeline.cli import command, composition
from pipeline.config.binding import parse
from pipeline.config.dataset_checks import load
from pipeline.config.formats import FORMATS
from pipeline.errors import ConfigError, DataSetError, RoundtripError, unknown
from pipeline.graphs import allowed_operations
from pipeline.runs import past_run
from pipeline.runs.log import Row
from pipeline.runs.past_run import Recorded
from pipeline.runs.policy import select_rows
from pipeline.sweeps.ledger import FINISHED, Ledger
from pipeline.verification import receipt as receipts
from pipeline.verification.receipt import VerifiedEpoch, verdict_of

if TYPE_CHECKING:
    from data.base import Dataset


@dataclass(frozen=True)
class RunToEvaluate:
    """A run that is to be evaluated.

    Attributes:
        recorded: The run and its configuration.
        rows: The rows whose checkpoints are to be restored.
        exports: The newest export of each format that is to be opened.
        trial: The number of the trial, if the run is one of a sweep.
    """

    recorded: Recorded
    rows: Sequence[Row]
    exports: Mapping[str, Path]
    trial: int | None = None

    def problem(self, sentence: str) -> str:
        """Return a sentence about this run, with the number of the trial in front, if it is one."""
        return sentence if self.trial is None else f"Trial {self.trial}: {sentence}"


@dataclass(frozen=True)
class RunsToEvaluate:
    """The runs that one command evaluates.

    Attributes:
        runs: One run, or the finished trials of a sweep.
        problems: A sentence for each problem for which another trial of the sweep cannot be evaluated.
    """

    runs: Sequence[RunToEvaluate]
    problems: Sequence[str]

    @property
    def is_sweep(self) -> bool:
        """Whether the runs are the trials of a sweep."""
        return self.runs[0].trial is not None


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """The keys of this command; `conf/evaluate.yaml` explains them."""

    run_dir: Path
    epochs: Any
    format: Any
    verify: dict[str, Any]
    data: dict[str, Any]
    trust: list[str]


def check(cfg: DictConfig) -> RunsToEvaluate:
    """Check the configuration of this command, and read the run, or each finished trial of the sweep.

    Raises:
        ConfigError: A key does not fit, there is no run, or no trial of the sweep can be evaluated.
        DamagedError: A file of the run is damaged.
    """
    values = parse(EvaluateSettings, composition.plain_values(cfg))
    ledger = Ledger(values.run_dir)
    if not ledger.path.exists():
        return RunsToEvaluate([_run(values, values.run_dir)], [])
    problems: list[str] = []
    runs = []
    for trial in ledger.latest():
        if trial.state in FINISHED:
            try:
                runs.append(_run(values, ledger.directory / str(trial.number), trial.number))
            except RoundtripError as error:
                problems += [f"Trial {trial.number}: {problem}" for problem in error.problems]
    if not runs:
        raise ConfigError(*(problems or [f"{ledger.path} must have a finished trial. It has none."]))
    return RunsToEvaluate(runs, problems)


def _run(values: EvaluateSettings, run_dir: Path, trial: int | None = None) -> RunToEvaluate:
    verify = past_run.given(values.verify)
    past = past_run.read(run_dir, data=values.data, verify=verify, trust=values.trust)
    exports = {name: path for name in FORMATS if (path := past.run.newest_export(name))}
    wanted = values.format if isinstance(values.format, list) else [values.format]
    if values.format is not None:
        written = ["checkpoint", *(name for name in exports if name != "checkpoint")]
        if unwritten := [name for name in wanted if name not in written]:
            raise ConfigError(unknown("format", ", ".join(map(str, unwritten)), written))
        exports = {name: path for name, path in exports.items() if name in wanted}
    rows = []
    if values.format is None or "checkpoint" in wanted:
        rows = select_rows(past.rows, values.epochs, past.best, past.kept)
    return RunToEvaluate(past, rows, exports, trial)


def evaluate(batch: RunsToEvaluate) -> int:
    """Restore and evaluate runs, compare them with their logs, print the tables, and write the receipts.

    Returns:
        The exit code.

    Raises:
        RoundtripError: A data set has changed, or a checkpoint or an export cannot be restored. It is raised
            at the end: everything else is evaluated, and the receipts are written, before.
    """
    problems = list(batch.problems)
    labelled: list[tuple[str, VerifiedEpoch]] = []
    conclusions: list[str] = []
    datasets: dict[str, Dataset] = {}
    for one in tqdm(batch.runs, desc="runs", unit="run", disable=None if batch.is_sweep else True):
        try:
            dataset = _dataset(one.recorded, datasets)
            restored, conclusion = _restore(one, dataset)
        except RoundtripError as error:
            problems += map(one.problem, error.problems)
            continue
        labelled += restored
        conclusions.append(conclusion)
        problems += [one.problem(problem) for _, verified in restored for problem in verified.problems]
    match = all(verified.match for _, verified in labelled)
    if labelled:
        _print_tables(labelled, is_sweep=batch.is_sweep)
        where = f"runs: {len(conclusions)}" if batch.is_sweep else conclusions[0]
        print(f"verdict: {verdict_of(match)}    {where}", flush=True)
    if problems:
        raise RoundtripError(*problems)
    return command.DONE if match else command.MISMATCH


def _dataset(past: Recorded, known: dict[str, Dataset]) -> Dataset:
    """Return the data set of a run.

    Args:
        past: The run.
        known: Data sets that were loaded, by fingerprint; runs that were trained on the same one share it.

    Raises:
        DataSetError: The data set cannot be loaded, or is not the one that the run was trained on.
    """
    wanted = past.facts["data"]["fingerprint"]
    if wanted not in known:
        dataset = load(past.source, past.train)
        if dataset.fingerprint() != wanted:
            raise DataSetError(
                f"The data must be what the run was trained on, SHA-256 {wanted}. "
                f"Received: {dataset.fingerprint()}. It has changed since; no metric would compare."
            )
        known[wanted] = dataset
    return known[wanted]


def _restore(one: RunToEvaluate, dataset: Dataset) -> tuple[list[tuple[str, VerifiedEpoch]], str]:
    """Restore a run and write its receipts.

    Returns:
        The verified epochs, each with its label in the tables; and a line with the path of the receipt.

    Raises:
        DamagedError: An export has no readable manifest, or holds an epoch that the log does not have.
    """
    past, run = one.recorded, one.recorded.run
    past.start_tensorflow()
    from pipeline.verification import page
    from pipeline.verification.verifier import Verifier

    verifier = Verifier(run, past.rows, dataset, past.verify)
    with allowed_operations.trusting(past.trust):
        rows = verifier.checkpoints(one.rows)
        exports = verifier.exports(one.exports.values())
    receipt = receipts.write(run, len(past.rows), rows, exports)
    page.write(run)
    labelled = [(str(row.epoch), row) for row in rows] + [(row.label, row) for row in exports]
    if one.trial is not None:
        labelled = [(f"{one.trial}/{label}", row) for label, row in labelled]
    conclusion = f"receipt: {run.verification}    page: {run.report}"
    if receipt.match != all(row.match for _, row in labelled):
        conclusion = f"with what was verified earlier: {receipt.verdict}    {conclusion}"
    return labelled, conclusion


def _print_tables(labelled: Sequence[tuple[str, VerifiedEpoch]], *, is_sweep: bool) -> None:
    from pipeline.verification import tables

    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    print(tables.metrics_table(labelled, columns=columns, heading="trial/epoch" if is_sweep else "epoch"))
    parity = tables.parity_table(labelled, columns=columns)
    if parity:
        print(f"\n{parity}\n")
    for _, verified in labelled:
        for sentence in (*verified.losses(), *verified.complaints()):
            print(sentence)


if __name__ == "__main__":
    command.run(evaluate, config_name="evaluate", check=check)
