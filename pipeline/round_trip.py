"""The main job: train, export, then restore and evaluate in a fresh process, and compare."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from pipeline import command, composition, config, processes, runtime
from pipeline.run import Row, RunDirectory, select_rows

if TYPE_CHECKING:
    from data.base import Dataset
    from pipeline.training import OnEpoch

log = logging.getLogger("pipeline")


def check(cfg: DictConfig) -> config.Settings:
    """Check the configuration, and, where Hydra has not made it yet, that the run directory is free."""
    settings = config.check(composition.plain_values(cfg))
    if "hydra" in cfg:
        HydraConfig.instance().set_config(cfg)
        RunDirectory(Path(cfg.hydra.run.dir)).check_unused()
    return settings


def round_trip(settings: config.Settings, on_epoch: OnEpoch | None = None) -> command.Result:
    """Run the whole round trip.

    Args:
        settings: The configuration, checked.
        on_epoch: Called with an epoch and its metrics after each; returns whether the run is not worth
            to go on with: then nothing is exported.
    """
    processes.start_server()  # Its imports are done when the training is.
    run = RunDirectory(Path(HydraConfig.get().runtime.output_dir))
    dataset = config.load(settings.data)
    config.check_batch(settings.model, dataset)
    with command.stop_signals() as received, run.claimed():
        exported = train_and_export(settings, dataset, run, received, on_epoch)
        rows = run.read_rows()
        objective, *further = _objectives(rows, run, settings.sweep)
        if not exported:
            return command.Result(objective, epochs=rows[-1].epoch, pruned=True, further=further)
        arguments = [command.override("run_dir", run.path)]
        code = command.in_fresh_process("pipeline.evaluate", arguments, received)
        if received:
            raise command.StopRequested(received[0])
    log.info("evaluate again:  python -m pipeline.evaluate %s", shlex.join(arguments))
    log.info("see the curves:  tensorboard --logdir %s", shlex.quote(str(run.tensorboard)))
    verdict = {command.DONE: "match", command.MISMATCH: "mismatch"}.get(code)
    return command.Result(objective, code, verdict, rows[-1].epoch, further=further)


def _objectives(rows: Sequence[Row], run: RunDirectory, sweep: config.Sweep) -> list[float]:
    (metric, direction), *_ = sweep.objectives
    (row,) = select_rows(rows, sweep.epoch, {"metric": metric, "direction": direction})
    known = {config.PARAMETERS: float(run.read_facts()["model"]["parameters"]), **row.test}
    return [known[name] for name, _ in sweep.objectives]


def _metrics(sweep: config.Sweep) -> list[str]:
    return [name for name, _ in sweep.objectives if name != config.PARAMETERS]


def train_and_export(
    settings: config.Settings,
    dataset: Dataset,
    run: RunDirectory,
    received: Sequence[int],
    on_epoch: OnEpoch | None,
) -> bool:
    """Train, and export the epochs asked for.

    Returns:
        Whether it was exported; not if `on_epoch` stopped the training.

    Raises:
        StopRequested: A signal was received, and the configuration says to stop at that.
    """
    runtime.start_tensorflow(seed=settings.seed, deterministic=settings.train.deterministic)
    from pipeline import exporting, training

    prepared = training.prepare(
        run,
        settings.model,
        dataset,
        settings.optimizer,
        epochs=settings.train.epochs,
        seed=settings.seed,
        use_xla=settings.train.compile == "xla",
        metrics=[settings.best.metric, *_metrics(settings.sweep)],
        config=settings.resolved,
        stopped=lambda: bool(received),
    )
    exporting.rehearse(exporting.source(run, [], settings.export, dataset, settings.verify))
    started = time.perf_counter()
    finished = prepared.fit(on_epoch)
    rows = run.read_rows()
    seconds = time.perf_counter() - started
    log.info("trained %d epochs in %.1f s: %s", rows[-1].epoch, seconds, run.path)
    if received and settings.train.on_interrupt == "stop":
        raise command.StopRequested(received[0])
    if not finished and not received:
        return False
    chosen = select_rows(rows, settings.epoch if finished else "last", settings.resolved["best"])
    for row in chosen:
        prepared.record_answers(row.epoch)
    epochs = [row.epoch for row in chosen]
    exporting.export(exporting.source(run, epochs, settings.export, dataset, settings.verify))
    return True
