"""Sweeps: which trials there are, which are still to run, and the tables at the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from pipeline import ledger as ledgers
from pipeline.binding import ConfigError
from pipeline.command import DONE, FAILED, MISMATCH, Job, Result, StopRequested, stop_signals
from pipeline.composition import plain_values
from pipeline.ledger import Ledger, Trial
from pipeline.trials import Pool


def launch(
    task: Callable[[DictConfig], Any],
    configs: Sequence[DictConfig],
    n_jobs: int | None,
    timeout_secs: float | None,
    memory_limit_mb: float | None,
) -> list[JobReturn]:
    """Run jobs in processes of their own; those that an earlier sweep has finished are not run again.

    Args:
        task: See `Pool.submit`.
        configs: The composed configuration of each job, all of one sweep directory.
        n_jobs: See `hydra.launcher`.
        timeout_secs: See there.
        memory_limit_mb: See there.
    """
    if isinstance(task, Job):
        _check_all(task, configs)
    ledger, direction = _ledger_and_direction(configs[0])
    pool = Pool(ledger, n_jobs or default_jobs(), timeout_secs, memory_limit_mb)
    trials: dict[int, Trial] = {}
    bar = tqdm(total=len(configs), desc="trials", unit="trial", disable=None)
    with ledger.locked(), stop_signals() as received, bar:
        ledger.close()
        waiting = list(enumerate(configs))
        indices: dict[int, int] = {}
        try:
            while waiting or pool.running:
                while waiting and not pool.is_full:
                    index, config = waiting.pop(0)
                    known = ledger.finished(ledgers.config_hash(plain_values(config)))
                    if known is not None:
                        trials[index] = known
                        bar.update()
                    else:
                        indices[pool.submit(task, config).number] = index
                for trial in pool.wait(lambda: bool(received)):
                    trials[indices[trial.number]] = trial
                    ledgers.write_leaderboard(ledger, direction)
                    bar.update()
                    _show_best(bar, ledger, direction)
                if received:
                    raise StopRequested(received[0])
        except BaseException:
            pool.stop()
            raise
        finally:
            ledgers.write_leaderboard(ledger, direction)
    return [_job_return(trials[index], config) for index, config in enumerate(configs)]


def _check_all(job: Job, configs: Sequence[DictConfig]) -> None:
    """Check the configuration of every trial before any is run.

    Raises:
        ConfigError: With all problems of all of them.
    """
    problems: dict[str, None] = {}
    for config in configs:
        try:
            job.check(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))
        except ConfigError as error:
            where = " ".join(config.hydra.overrides.task)
            problems |= dict.fromkeys(f"{problem} ({where})" for problem in error.problems)
    if problems:
        raise ConfigError(problems)


def _ledger_and_direction(config: DictConfig) -> tuple[Ledger, str]:
    ledger = Ledger(Path(str(config.hydra.sweep.dir)).absolute())
    return ledger, str(OmegaConf.select(config, "sweep.direction", default="minimize"))


def default_jobs() -> int:
    """Return how many trials run at a time if nobody says: one for two cores, which TensorFlow fills."""
    return max(1, len(os.sched_getaffinity(0)) // 2)


def _show_best(bar: Any, ledger: Ledger, direction: str) -> None:
    best = ledgers.ranked(ledger.read(), direction)[0]
    if best.objective is not None:
        bar.set_postfix_str(f"best {best.objective:.4g} (trial {best.number})")


def _job_return(trial: Trial, config: DictConfig) -> JobReturn:
    codes = {ledgers.DONE: DONE, ledgers.PRUNED: DONE, ledgers.MISMATCH: MISMATCH}
    objective = float("nan") if trial.objective is None else trial.objective
    code = codes.get(trial.state, FAILED)
    result = Result(objective, code, trial.verdict, trial.epochs, trial.state == ledgers.PRUNED)
    done = JobReturn(overrides=list(trial.overrides), working_dir=trial.run_dir, task_name="pipeline")
    done.cfg, done.status = config, JobStatus.COMPLETED
    done.return_value = result
    return done


def summary(config: DictConfig, *, columns: int) -> str:
    """Return the leaderboard as an aligned table, and a sentence for each trial that did not finish.

    Args:
        config: The composed configuration of any of the sweep's jobs.
        columns: The table is not to be wider, if that can be.
    """
    ledger, direction = _ledger_and_direction(config)
    trials = ledgers.ranked(ledger.read(), direction)
    header, lines = ledgers.rows(trials)
    if columns < sum(max(map(len, column)) + 2 for column in zip(header, *lines, strict=True)):
        shown = [i for i, name in enumerate(header) if name not in ("epochs", "seconds")]
        header, *lines = [[line[i] for i in shown] for line in [header, *lines]]
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    table = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in [header, *lines]
    ]
    unfinished = [trial for trial in trials if trial.state not in ledgers.FINISHED]
    table += [
        f"trial {trial.number} {trial.state}: {trial.reason or 'no reason'} ({trial.run_dir})"
        for trial in unfinished
    ]
    return "\n".join([*table, f"ledger: {ledger.path}"])
