"""`python -m pipeline`: train, export, then restore and evaluate in a fresh process, and compare."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from pipeline import command, composition, config, runtime
from pipeline.run import RunDirectory, select_rows

log = logging.getLogger("pipeline")


def check(cfg: DictConfig) -> config.Settings:
    """Check the configuration, and, where Hydra has not made it yet, that the run directory is free."""
    settings = config.check(composition.plain_values(cfg))
    if "hydra" in cfg:
        HydraConfig.instance().set_config(cfg)
        RunDirectory(Path(cfg.hydra.run.dir)).check_unused()
    return settings


def main(cfg: DictConfig) -> int:
    """Run the whole round trip; return the exit code."""
    settings = check(cfg)
    run = RunDirectory(Path(HydraConfig.get().runtime.output_dir))
    dataset = config.load(settings.data)
    config.check_batch(settings.model, dataset)
    run.claim()
    runtime.start_tensorflow(seed=settings.seed, deterministic=settings.train.deterministic)
    from pipeline import formats, training

    started = time.perf_counter()
    with command.stop_signals() as received:
        finished = training.prepare(
            run,
            settings.model,
            dataset,
            settings.optimizer,
            epochs=settings.train.epochs,
            seed=settings.seed,
            use_xla=settings.train.compile == "xla",
            config=settings.resolved,
            stopped=lambda: bool(received),
        ).fit()
        rows = run.read_rows()
        seconds = time.perf_counter() - started
        log.info("trained %d epochs in %.1f s: %s", rows[-1].epoch, seconds, run.path)
        if not finished and settings.train.on_interrupt == "stop":
            raise command.StopRequested(received[0])
        (row,) = select_rows(rows, settings.epoch if finished else "last")
        for name in settings.export:
            log.info("exported epoch %d: %s", row.epoch, formats.export(run, name, row.epoch))
    code = command.in_fresh_process("pipeline.evaluate", run_dir=run.path)
    if received:
        raise command.StopRequested(received[0])
    log.info("evaluate again:  python -m pipeline.evaluate run_dir=%s", run.path)
    log.info("see the curves:  tensorboard --logdir %s", run.tensorboard)
    return code


if __name__ == "__main__":
    command.run(main, config_name="config", check=check)
