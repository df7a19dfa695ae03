"""Trials that the tests of sweeps write down, and jobs that they run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from omegaconf import DictConfig, OmegaConf

from pipeline.cli.command import Result
from pipeline.errors import ConfigError
from pipeline.sweeps import ledger as ledgers
from pipeline.sweeps import runner
from pipeline.sweeps.ledger import Ledger, Trial
from pipeline.sweeps.trials import Limits

LOSS = [("loss", "minimize")]


def trial(number: int, **changes: Any) -> Trial:
    values: dict[str, Any] = {
        "overrides": ["model=gru", f"seed={number}"],
        "config_hash": f"hash{number}",
        "state": ledgers.DONE,
        "run_dir": f"sweep/{number}",
        "objective": float(number),
        "further": [],
        "verdict": "match",
        "epochs": 2,
        "seconds": 1.5,
    }
    return Trial(number, **{**values, **changes})


def configuration(directory: Path, **values: Any) -> DictConfig:
    """Return a composed configuration, with as much of the `hydra` section as a trial needs."""
    hydra = {
        "sweep": {"dir": str(directory), "subdir": "${hydra.job.num}"},
        "job": {"chdir": False, "name": "test"},
        "overrides": {"task": [f"{key}={value}" for key, value in values.items()]},
        "job_logging": {"version": 1, "root": None},
        "output_subdir": None,
    }
    config = OmegaConf.create({**values, "sweep": {"metric": "loss", "direction": "minimize"}})
    config.hydra = OmegaConf.merge(OmegaConf.structured(HydraConf), hydra)
    return config


def behave(cfg: DictConfig) -> Any:
    """What the trials of these tests do."""
    kind = cfg.kind
    if kind == "raise":
        raise RuntimeError("no luck")
    if kind == "refuse":
        raise ConfigError("x must be y.", "a must be b.")
    if kind == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    if kind == "eat":
        eaten = bytearray(400_000_000)
        eaten[:] = b"x" * len(eaten)
        time.sleep(600)
    if kind == "mismatch":
        return Result(0.25, 3, "mismatch", 2)
    if kind == "plain":
        return 0.5
    if kind == "none":
        return None
    print("a trial speaks")
    return Result(float(cfg.value), 0, "match", 2)


def launch(directory: Path, configs: Sequence[dict[str, Any]], **limits: Any) -> list[Any]:
    arguments = Limits(**{"n_jobs": 2, **limits})
    return runner.launch(behave, [configuration(directory, **one) for one in configs], arguments)


def states(directory: Path) -> list[str]:
    return [one.state for one in Ledger(directory).read()]
