"""The loop that keeps the trials of a sweep running, and sweeps whose trials are listed."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from pipeline.cli.command import DONE, FAILED, MISMATCH, Job, Result
from pipeline.cli.composition import plain_values
from pipeline.cli.stop import stop_signals
from pipeline.config.binding import parse
from pipeline.config.schema import paired
from pipeline.errors import ConfigError, RoundtripError
from pipeline.sweeps import leaderboard, page
from pipeline.sweeps import ledger as ledgers
from pipeline.sweeps.leaderboard import LeaderboardFile
from pipeline.sweeps.ledger import Ledger, Objectives, Trial
from pipeline.sweeps.trials import Limits, Pool, Task

COMPILED = ".compiled"
"""Directory in a sweep's for what XLA compiles, while it runs."""

log = logging.getLogger(__name__)


class Next(NamedTuple):
    """A trial that is to run: its composed configuration, and its number in a study if it is of one."""

    config: DictConfig
    study_trial: int | None = None


class Plan(ABC):
    """Which trials a sweep consists of.

    Attributes:
        total: How many there are.
    """

    total: int

    @property
    @abstractmethod
    def num_ended(self) -> int:
        """How many of them have ended, here or elsewhere."""

    @abstractmethod
    def next(self) -> Next | None:
        """Return the trial that is to run next; `None` where there is none now."""

    @abstractmethod
    def is_complete(self) -> bool:
        """Return whether there will not be another one, either."""

    @abstractmethod
    def ended(self, trial: Trial) -> None:
        """Take note of what became of a trial."""

    def started(self, trial: Trial) -> None:  # noqa: B027 - most plans need not do it
        """Take note of a trial that runs."""

    def tick(self) -> None:  # noqa: B027 - most plans need not do it
        """Do what has to be done from time to time: called after each look at the trials."""

    def decide(self, number: int, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Return whether a trial, known by the number in its ledger, is to stop after an epoch."""
        return False


def objectives_of(config: DictConfig) -> Objectives:
    """Return the metrics that a sweep looks at, each with its direction.

    Args:
        config: The composed configuration of any command, with the section `sweep` if it has objectives.
    """
    section = OmegaConf.select(config, "sweep", default=OmegaConf.create({}))
    values: Any = OmegaConf.to_container(section, resolve=True)
    return paired(values.get("metric", "objective"), values.get("direction", "minimize"))


def run(plan: Plan, task: Task, ledger: Ledger, limits: Limits, objectives: Objectives) -> None:
    """Run the trials of a plan, each in a process of its own, and write down what becomes of them.

    Args:
        plan: The trials.
        task: See `Pool.submit`.
        ledger: Where they are written down; this process has locked it.
        limits: Of the trials.
        objectives: See `objectives_of`.

    Raises:
        StopRequested: A signal was received. The trials that ran are called interrupted.
    """
    bar = tqdm(total=plan.total, desc="trials", unit="trial", disable=None)
    table = LeaderboardFile(ledger, objectives)
    compiled = ledger.directory / COMPILED
    shutil.rmtree(compiled, ignore_errors=True)  # A sweep that was killed may have left half of a file.
    compiled.mkdir()
    with stop_signals() as stop, bar:
        pool = Pool(ledger, limits, plan.decide, stop, compiled)
        try:
            while pool.running or not plan.is_complete():
                while not (pool.is_full or stop.requested) and (following := plan.next()) is not None:
                    plan.started(pool.submit(task, following.config, following.study_trial))
                for trial in pool.wait():
                    if trial.state != ledgers.INTERRUPTED:
                        plan.ended(trial)
                    table.update()
                    if not bar.disable:
                        bar.write(_line(trial, objectives), file=sys.stderr)
                _show(bar, plan, ledger, objectives)
                plan.tick()
                stop.check()
        except BaseException:
            pool.end_all()
            raise
        finally:
            shutil.rmtree(compiled, ignore_errors=True)
            _write_tables(table, ledger, objectives)


def _write_tables(table: LeaderboardFile, ledger: Ledger, objectives: Objectives) -> None:
    """Write the leaderboard and the page; that one cannot be written does not hide how the sweep ended."""
    try:
        table.write()
        page.write(ledger, objectives)
    except (OSError, RoundtripError) as error:
        log.error("the tables of the sweep cannot be written: %s", error)


def _line(trial: Trial, objectives: Objectives) -> str:
    """Return what became of a trial, as a line."""
    values = "  ".join(f"{key}={leaderboard.shortened(value)}" for key, value in trial.values.items())
    found = "" if trial.objective is None else f"{objectives[0][0]} {trial.objective:.6g}"
    words = [
        f"trial {trial.number}",
        values,
        found,
        trial.state,
        trial.reason or "",
        f"{trial.seconds:.1f} s",
    ]
    return "  ".join(word for word in words if word)


def _show(bar: Any, plan: Plan, ledger: Ledger, objectives: Objectives) -> None:
    if bar.disable or bar.n == plan.num_ended:
        return
    bar.n = plan.num_ended
    best = leaderboard.best(ledger.latest(), objectives)
    if best is not None:
        bar.set_postfix_str(f"best {best.objective:.4g} (trial {best.number})", refresh=False)
    bar.refresh()


def limits_of(config: DictConfig) -> Limits:
    """Return what `hydra.launcher` says; where it does not say how many, a trial for each core runs.

    Raises:
        ConfigError: With what it may not say.
    """
    values = {str(key): value for key, value in config.hydra.launcher.items() if not str(key).startswith("_")}
    if values.get("n_jobs") is None:
        values["n_jobs"] = len(os.sched_getaffinity(0))
    return parse(Limits, values, "hydra.launcher.")


class _Listed(Plan):
    """Trials that are all known before the first runs."""

    def __init__(self, ledger: Ledger, configs: Sequence[DictConfig]) -> None:
        self.total = len(configs)
        self.trials: dict[str, Trial] = {}
        self._ledger = ledger
        self._hashes = [ledgers.config_hash(plain_values(config)) for config in configs]
        self._waiting = dict(zip(self._hashes, configs, strict=True))

    @property
    def num_ended(self) -> int:
        return sum(digest in self.trials for digest in self._hashes)

    def next(self) -> Next | None:
        while self._waiting:
            digest = next(iter(self._waiting))
            config = self._waiting.pop(digest)
            known = self._ledger.finished(digest)
            if known is None:
                return Next(config)
            self.trials[digest] = known
        return None

    def is_complete(self) -> bool:
        return not self._waiting

    def ended(self, trial: Trial) -> None:
        self.trials[trial.config_hash] = trial

    def returns(self) -> list[JobReturn]:
        return [job_return(self.trials[digest]) for digest in self._hashes]


def launch(task: Task, configs: Sequence[DictConfig], limits: Limits) -> list[JobReturn]:
    """Run jobs in processes of their own; those that an earlier sweep has finished are not run again.

    Args:
        task: See `Pool.submit`.
        configs: The composed configuration of each job, all of one sweep directory.
        limits: Of the jobs.

    Raises:
        ConfigError: The configuration of some job does not hold; then none is run.
    """
    check_all(task, configs)
    ledger = ledger_of(configs[0])
    with ledger.locked():
        listed = _Listed(ledger, configs)
        run(listed, task, ledger, limits, objectives_of(configs[0]))
    leaderboard.show(ledger, objectives_of(configs[0]))
    return listed.returns()


def check_all(task: Task, configs: Sequence[DictConfig]) -> None:
    """Check the configuration of every trial before any is run.

    Raises:
        ConfigError: With all problems of all of them.
    """
    if not isinstance(task, Job):
        return
    problems: dict[str, None] = {}
    for config in configs:
        try:
            task.check(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))
        except RoundtripError as error:
            where = " ".join(config.hydra.overrides.task)
            problems |= dict.fromkeys(f"{problem} ({where})" for problem in error.problems)
    if problems:
        raise ConfigError(*problems)


def ledger_of(config: DictConfig) -> Ledger:
    """Return the ledger in the sweep directory of a composed configuration."""
    return Ledger(Path(str(config.hydra.sweep.dir)).absolute())


def job_return(trial: Trial) -> JobReturn:
    """Return what Hydra is to know of a trial."""
    codes = {ledgers.DONE: DONE, ledgers.PRUNED: DONE, ledgers.MISMATCH: MISMATCH}
    objective = float("nan") if trial.objective is None else trial.objective
    code = codes.get(trial.state, FAILED)
    pruned = trial.state == ledgers.PRUNED
    done = JobReturn(overrides=list(trial.overrides), working_dir=trial.run_dir, task_name="pipeline")
    done.status = JobStatus.COMPLETED
    done.return_value = Result(objective, code, trial.verdict, trial.epochs, pruned, trial.further)
    return done
