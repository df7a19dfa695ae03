"""The main job: train, export, then restore and evaluate in a fresh process, and compare."""

from __future__ import annotations

import functools
import logging
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from pipeline import resume, runtime
from pipeline.cli import command, composition, processes
from pipeline.cli.quoting import override
from pipeline.cli.stop import Stop, stop_signals
from pipeline.config import checks
from pipeline.config.dataset_checks import check_batch, load
from pipeline.config.schema import PARAMETERS, Best, Settings, Sweep
from pipeline.graphs import allowed_operations
from pipeline.runs import past_run
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import Row
from pipeline.runs.policy import Policy, select_rows
from pipeline.runs.progress import Progress, find

if TYPE_CHECKING:
    from data.base import Dataset
    from pipeline.training.loop import OnEpoch

CODES = {"match": command.DONE, "mismatch": command.MISMATCH}
"""The exit code for each verdict."""

log = logging.getLogger("pipeline")


def check(cfg: DictConfig) -> Settings:
    """Check the configuration, and that the run can start or go on in its directory.

    For a single job this happens before Hydra writes to the directory.

    Raises:
        BusyError: Another process writes to the directory.
        ConfigError: The configuration has problems, or the directory cannot be used.
        DamagedError: The directory has a run that is damaged.
    """
    settings = checks.check(composition.plain_values(cfg))
    job = composition.job_of(cfg)
    if job is not None:
        settings = replace(settings, run_dir=job.output_dir, overrides=job.overrides)
        resume.check(RunDirectory(job.output_dir), settings)
    return settings


def round_trip(settings: Settings, on_epoch: OnEpoch | None = None) -> command.Result:
    """Train, export, and verify in a fresh process; skip whatever an earlier command has finished.

    Args:
        settings: The configuration, checked.
        on_epoch: Called after each epoch with its number and its metrics; returns whether to give the run up.
            Then nothing is exported.

    Returns:
        The objective of a sweep, with the exit code and the verdict.

    Raises:
        RoundtripError: Something that the user can mend; see `pipeline.errors`.
        StopRequested: A signal was received.
    """
    assert settings.run_dir is not None
    run = RunDirectory(settings.run_dir)
    with stop_signals() as stop, allowed_operations.trusting(settings.trust), run.claimed():
        progress = find(run)
        verdict = resume.verdict(run, settings, progress.rows)
        if verdict is not None:
            log.info("nothing is left to do: %s, verdict: %s", run.path, verdict)
            return _result(settings, run, progress.rows, CODES[verdict])
        # The server of the verifying process imports TensorFlow while this process loads the data and trains.
        processes.start_server()
        dataset = load(settings.data, settings.train)
        check_batch(settings.model, dataset)
        exported = train_and_export(settings, dataset, run, progress, stop, on_epoch)
        rows = run.read_rows()
        if not exported:
            return _result(settings, run, rows, pruned=True)
        arguments = [override("run_dir", run.path)]
        # Code of the user's own is trusted in this command. The verifying process reads its name from
        # `run.json`, which it does not trust, so it must be told.
        own = [type(settings.data).__module__.partition(".")[0], *getattr(settings.data, "packages", ())]
        trusted = list(dict.fromkeys([*own, *settings.trust]))
        if trusted != [*past_run.TRUSTED]:
            arguments.append(f"trust=[{','.join(trusted)}]")
        _stop_if_told(run, settings, stop)
        code = command.in_fresh_process("pipeline.evaluate", arguments, stop)
        stop.check()
    log.info("evaluate again:  python -m pipeline.evaluate %s", shlex.join(arguments))
    log.info("see the curves:  tensorboard --logdir %s", shlex.quote(str(run.tensorboard)))
    return _result(settings, run, rows, code)


def _result(
    settings: Settings,
    run: RunDirectory,
    rows: Sequence[Row],
    code: int = command.DONE,
    *,
    pruned: bool = False,
) -> command.Result:
    objective, *further = _objectives(rows, run, settings.sweep)
    verdict = None if pruned else next((name for name, its in CODES.items() if its == code), None)
    return command.Result(objective, code, verdict, rows[-1].epoch, pruned, further)


def _objectives(rows: Sequence[Row], run: RunDirectory, sweep: Sweep) -> list[float]:
    (metric, direction), *_ = sweep.objectives
    (row,) = select_rows(rows, sweep.epoch, Best(metric=metric, direction=direction))
    known = {PARAMETERS: float(run.read_facts()["model"]["parameters"]), **row.judged}
    return [known[name] for name, _ in sweep.objectives]


def _metrics(sweep: Sweep) -> list[str]:
    return [name for name, _ in sweep.objectives if name != PARAMETERS]


def train_and_export(
    settings: Settings,
    dataset: Dataset,
    run: RunDirectory,
    progress: Progress,
    stop: Stop,
    on_epoch: OnEpoch | None,
) -> bool:
    """Train the epochs that are left to train, and write the exports that are left to write.

    Returns:
        Whether exports were written; `False` if `on_epoch` stopped the training.

    Raises:
        RoundtripError: See `setup.prepare`, `Training.fit` and `exporting.export`.
        StopRequested: A signal was received, and `train.on_interrupt` is `stop`.
    """
    _start_tensorflow(settings, run)
    from pipeline.formats import exporting
    from pipeline.training import setup

    policy = Policy(settings.train, settings.best, settings.epoch)
    prepared = setup.prepare(
        run,
        settings.model,
        dataset,
        settings.optimizer,
        policy=policy,
        seed=settings.seed,
        metrics=[settings.best.metric, *_metrics(settings.sweep)],
        config=settings.resolved,
        overrides=settings.overrides,
        stopped=lambda: stop.requested,
    )
    stop_if_told = functools.partial(_stop_if_told, run, settings, stop)
    left_out: Mapping[str, Mapping[str, str]] = {}
    if not progress.rows or not policy.is_complete(progress.rows):
        task = exporting.task_of(run, [], settings.export, dataset, settings.verify)
        left_out, skipped = exporting.rehearse(task, stop_if_told)
        run.write_facts({**run.read_facts(), "skipped": skipped})
    started, before = time.perf_counter(), progress.rows[-1].epoch if progress.rows else 0
    finished = prepared.fit(progress, on_epoch)
    rows = run.read_rows()
    seconds, trained = time.perf_counter() - started, rows[-1].epoch - before
    of_all = f" of {rows[-1].epoch}" if before else ""
    log.info("trained %d epochs%s in %.1f s: %s", trained, of_all, seconds, run.path)
    stop_if_told()
    if not finished and not stop.requested and not prepared.limits.over:
        return False
    wanted = settings.epoch if finished else _wanted_of_unfinished(settings, rows, over=prepared.limits.over)
    chosen = select_rows(rows, wanted, settings.best, policy.kept(rows))
    for row in chosen:
        # Exports of an earlier command are verified with the answers of that time, so these stay.
        if not run.answers(row.epoch).exists():
            prepared.record_answers(row)
    left = resume.unexported(run, chosen, settings.export)
    task = exporting.task_of(run, chosen, left, dataset, settings.verify)
    if left.chosen:
        exporting.export(replace(task, left_out=left_out), stop_if_told)
    return True


def _wanted_of_unfinished(settings: Settings, rows: Sequence[Row], *, over: bool) -> Any:
    """Return the epochs to export of a run that has not all of its epochs; say so if its time was over."""
    if not over:
        return "last"
    assert settings.run_dir is not None
    log.warning(
        "train.max_seconds ended the training after epoch %d%s. Go on with:  python -m pipeline %s",
        rows[-1].epoch,
        ", before a first epoch was whole: the model is not trained" if len(rows) == 1 else "",
        resume.arguments(settings.run_dir, settings),
    )
    # An epoch by its number may not be there yet.
    return settings.epoch if settings.epoch in ("all", "best") else "last"


def _start_tensorflow(settings: Settings, run: RunDirectory) -> None:
    """Start TensorFlow; for a run that goes on, as it was started when the run began."""
    began = run.read_facts() if run.log.exists() else {"rewrites": False}
    runtime.start_tensorflow(
        seed=settings.seed,
        deterministic=settings.train.deterministic,
        rewrites=bool(began.get("rewrites", True)),
    )


def _stop_if_told(run: RunDirectory, settings: Settings, stop: Stop) -> None:
    """Stop if a signal was received and `train.on_interrupt` is `stop`; log the command to go on with.

    Raises:
        StopRequested: A signal was received.
    """
    if stop.requested and settings.train.on_interrupt == "stop":
        if run.read_lines():
            log.info("go on with:  python -m pipeline %s", resume.arguments(run.path, settings))
        stop.check()
