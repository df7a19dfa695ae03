"""Trials: jobs of a sweep, each in a fresh process of its own, watched, and written down in the ledger."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig, open_dict

from pipeline.cli import processes
from pipeline.cli.command import DONE, MISMATCH, Job, Result, register_resolvers
from pipeline.cli.composition import plain_values
from pipeline.cli.stop import Stop
from pipeline.sweeps import ledger as ledgers
from pipeline.sweeps.ledger import Ledger, Trial

POLL_SECS = 0.2
GRACE_SECS = 10.0
"""How long a trial that is told to stop may take."""

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
OUTPUT = "output.log"

Task = Callable[[DictConfig], Any]

Decision = Callable[[int, int, Mapping[str, float]], bool]
"""(number of the trial, epoch, its metrics) -> whether the trial is to stop."""


@dataclass
class _Running:
    trial: Trial
    process: BaseProcess
    connection: Connection
    started: float
    result: Result | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Limits:
    """What trials may take.

    Attributes:
        n_jobs: How many run at a time.
        timeout_secs: Time after which a trial is ended; `None` is none.
        memory_limit_mb: Memory (resident) of one of its processes beyond which a trial is ended; `None` is
            none.
    """

    n_jobs: Annotated[int, ">= 1"]
    timeout_secs: Annotated[float, "> 0"] | None = None
    memory_limit_mb: Annotated[float, "> 0"] | None = None


@dataclass
class Pool:
    """Runs trials, a few at a time.

    Attributes:
        ledger: Where they are written down.
        limits: What they may take.
        decide: Asked after every epoch of a trial.
        stop: The signals received: a trial that ends without a result then was interrupted.
        compiled: A directory for what XLA compiles: trials whose steps are the same compile once.
    """

    ledger: Ledger
    limits: Limits
    decide: Decision
    stop: Stop
    compiled: Path
    running: list[_Running] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """Whether no other trial can start now."""
        return len(self.running) >= self.limits.n_jobs

    def submit(self, task: Task, config: DictConfig, study_trial: int | None = None) -> Trial:
        """Start a trial; its number names its directory.

        Args:
            task: Can be pickled; a `Job` reports its epochs.
            config: The composed configuration, with the `hydra` section.
            study_trial: Its number in a study.
        """
        number = self.ledger.next_number()
        with open_dict(config):
            config.hydra.job.id = str(number)
            config.hydra.job.num = number
        run_dir = self.ledger.directory / str(number)
        overrides = list(config.hydra.overrides.task)
        digest = ledgers.config_hash(plain_values(config))
        trial = Trial(number, overrides, digest, ledgers.RUNNING, str(run_dir), study_trial=study_trial)
        self.ledger.write(trial)
        ours, theirs = Pipe()
        process = processes.start(run_trial, theirs, task, config, str(run_dir), str(self.compiled), spares=1)
        theirs.close()
        trial = replace(trial, pid=process.pid)
        self.ledger.write(trial)
        self.running.append(_Running(trial, process, ours, time.monotonic()))
        return trial

    def wait(self) -> list[Trial]:
        """Wait a moment; return the trials that have ended, as written down."""
        handles = [item for one in self.running for item in (one.connection, one.process.sentinel)]
        wait(handles, POLL_SECS)
        ended: list[Trial] = []
        for one in list(self.running):
            self._receive(one)
            state = self._overdue(one)
            if state is not None:
                self._end(one)
            if state is not None or not one.process.is_alive():
                self._receive(one)
                ended.append(self._finish(one, state))
        return ended

    def _receive(self, one: _Running) -> None:
        with contextlib.suppress(EOFError, OSError):
            while one.connection.poll():
                kind, *values = one.connection.recv()
                if kind == "epoch":
                    one.connection.send(self.decide(one.trial.number, *values))
                elif kind == "result":
                    (one.result,) = values
                else:
                    (one.reason,) = values

    def _overdue(self, one: _Running) -> str | None:
        """Return the state of a trial that has to be ended, or `None`."""
        if not one.process.is_alive():
            return None
        if self.limits.timeout_secs is not None and time.monotonic() - one.started > self.limits.timeout_secs:
            return ledgers.TIMED_OUT
        if (
            self.limits.memory_limit_mb is not None
            and _resident_mb(one.process.pid) > self.limits.memory_limit_mb
        ):
            return ledgers.OUT_OF_MEMORY
        return None

    def _finish(self, one: _Running, state: str | None) -> Trial:
        one.process.join()
        self.running.remove(one)
        one.connection.close()
        trial = replace(one.trial, seconds=round(time.monotonic() - one.started, 3))
        result, code = one.result, one.process.exitcode or 0
        reason = one.reason
        if state == ledgers.TIMED_OUT:
            reason = f"longer than {self.limits.timeout_secs:g} s"
        elif state == ledgers.OUT_OF_MEMORY:
            reason = f"more than {self.limits.memory_limit_mb:g} MB"
        elif result is None and self.stop.requested:
            state = ledgers.INTERRUPTED
        elif result is None and code < 0:
            state, reason = ledgers.KILLED, signal.Signals(-code).name
        elif result is None or result.code not in (DONE, MISMATCH):
            state, reason = ledgers.FAILED, reason or f"exit code {result.code if result else code}"
        else:
            state = ledgers.MISMATCH if result.code == MISMATCH else ledgers.DONE
            state = ledgers.PRUNED if result.pruned else state
            trial = replace(
                trial,
                objective=None if result != result else float(result),
                further=result.further,
                verdict=result.verdict,
                epochs=result.epochs,
            )
        trial = replace(trial, state=state, reason=reason)
        self.ledger.write(trial)
        return trial

    def _end(self, one: _Running) -> None:
        """End a trial's process: by SIGTERM, and if that does not help, by SIGKILL."""
        one.process.terminate()
        one.process.join(GRACE_SECS)
        if one.process.is_alive():
            one.process.kill()
            one.process.join()

    def end_all(self) -> None:
        """End every trial that runs; the ledger calls them interrupted."""
        for one in self.running:
            one.process.terminate()
        ended = list(self.running)
        for one in ended:
            self._end(one)
        self.running.clear()
        for one in ended:
            seconds = round(time.monotonic() - one.started, 3)
            self.ledger.write(replace(one.trial, state=ledgers.INTERRUPTED, seconds=seconds))


def _resident_mb(pid: object) -> float:
    """Return the memory of a process, or of one of those it started if that is more."""
    try:
        mine = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES / 1e6
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (OSError, IndexError):
        return 0.0
    return max([mine, *map(_resident_mb, children)])


def run_trial(
    connection: Connection,
    task: Task,
    config: DictConfig,
    run_dir: str,
    compiled: str,
) -> None:
    """Run a trial in this process, whose output goes to a file in the trial's directory.

    TensorFlow reads the flags of XLA when it starts; the fork server has only imported it.
    """
    from hydra import version
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import run_job, setup_globals

    from pipeline.cli.hydra_internals import job_context
    from pipeline.errors import RoundtripError

    Path(run_dir).mkdir(parents=True, exist_ok=True)
    output = os.open(Path(run_dir) / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(output, 1)
    os.dup2(output, 2)
    cache = f"--tf_xla_persistent_cache_directory={compiled}"
    os.environ["TF_XLA_FLAGS"] = f"{os.environ.get('TF_XLA_FLAGS', '')} {cache}".lstrip()
    version.setbase("1.3")  # Of this process, too: without, Hydra changes the working directory.
    setup_globals()
    register_resolvers()
    HydraConfig.instance().set_config(config)

    def on_epoch(epoch: int, metrics: Mapping[str, float]) -> bool:
        connection.send(("epoch", epoch, dict(metrics)))
        return bool(connection.recv())

    if isinstance(task, Job):
        task = replace(task, on_epoch=on_epoch)
    done = run_job(
        task_function=task,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        hydra_context=job_context(config),
    )
    try:
        value = done.return_value
    except RoundtripError as error:
        connection.send(("reason", " ".join(error.problems)))
        sys.exit(2)
    except Exception as error:
        import traceback

        traceback.print_exception(error)
        connection.send(("reason", f"{type(error).__name__}: {error}"))
        sys.exit(1)
    result = value if isinstance(value, Result) else Result(float("nan") if value is None else value)
    connection.send(("result", result))
