"""Trials: processes that are watched, asked after each epoch, and written down."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from pipeline.cli.command import Job, Result, register_resolvers
from pipeline.cli.stop import Stop
from pipeline.round_trip import check, round_trip
from pipeline.sweeps import trials
from pipeline.sweeps.ledger import Ledger
from tests.pipeline.sweeps.jobs import behave, configuration, states


def test_a_trial_that_a_signal_stopped_has_not_failed(tmp_path: Path) -> None:
    pool = trials.Pool(
        Ledger(tmp_path), trials.Limits(1), lambda *arguments: False, Stop([signal.SIGINT]), tmp_path
    )
    pool.submit(behave, configuration(tmp_path, kind="raise"))
    while pool.running:
        pool.wait()
    assert states(tmp_path) == ["interrupted"]


def train(checked: Any, on_epoch: Any = None) -> Result:
    """Report epochs until told to stop."""
    for epoch in range(1, 10):
        if on_epoch(epoch, {"loss": 1 / epoch}):
            return Result(1 / epoch, epochs=epoch, pruned=True)
    return Result(0.1, verdict="match", epochs=9)


def accept(cfg: DictConfig) -> DictConfig:
    return cfg


def test_a_trial_that_does_not_look_good_is_stopped(tmp_path: Path) -> None:
    seen: list[tuple[int, int, float]] = []

    def decide(number: int, epoch: int, metrics: Any) -> bool:
        seen.append((number, epoch, metrics["loss"]))
        return number == 0 and epoch == 3

    pool = trials.Pool(Ledger(tmp_path), trials.Limits(2), decide, Stop(), tmp_path)
    for number in range(2):
        pool.submit(Job(train, accept), configuration(tmp_path, value=number))
    ended = []
    while pool.running:
        ended += pool.wait()
    found = {one.number: one for one in ended}
    assert (found[0].state, found[0].epochs, found[0].objective) == ("pruned", 3, 1 / 3)
    assert (found[1].state, found[1].epochs, found[1].verdict) == ("done", 9, "match")
    assert [(epoch, loss) for number, epoch, loss in seen if number == 0] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


def test_a_job_without_anybody_who_asks() -> None:
    assert Job(lambda checked: checked.x, accept)(OmegaConf.create({"x": 3})) == 3


def test_the_memory_of_a_process_that_is_gone() -> None:
    assert trials._resident_mb(None) == 0
    assert trials._resident_mb(os.getpid()) > 10


def test_a_run_that_does_not_look_good_is_not_exported(tmp_path: Path) -> None:
    register_resolvers()
    overrides = ["model=dense", "train.epochs=50", f"hydra.sweep.dir={tmp_path}"]
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("config", overrides, return_hydra_config=True)
    pool = trials.Pool(
        Ledger(tmp_path), trials.Limits(1), lambda number, epoch, metrics: epoch == 3, Stop(), tmp_path
    )
    pool.submit(Job(round_trip, check), config)
    ended = None
    while ended is None:
        ended = next(iter(pool.wait()), None)
    assert (ended.state, ended.epochs, ended.verdict) == ("pruned", 3, None)
    assert len((tmp_path / "0" / "metrics.jsonl").read_text().splitlines()) == 4
    assert not (tmp_path / "0" / "export").exists()
