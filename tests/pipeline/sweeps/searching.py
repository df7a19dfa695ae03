"""Searches as the tests run them: trials that are started and ended without a process of their own."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from optuna.trial import TrialState

from pipeline.cli.composition import plain_values
from pipeline.sweeps import ledger as ledgers
from pipeline.sweeps import space as spaces
from pipeline.sweeps.ledger import Ledger, Trial
from pipeline.sweeps.samplers import Grid, make_sampler
from pipeline.sweeps.search import Search
from pipeline.sweeps.space import Space
from pipeline.sweeps.study import Options, check_study, open_study
from tests.pipeline.sweeps.jobs import LOSS

SAMPLERS: dict[str, Any] = {
    "tpe": functools.partial(optuna.samplers.TPESampler, n_startup_trials=3),
    "cmaes": functools.partial(
        optuna.samplers.CmaEsSampler, n_startup_trials=2, warn_independent_sampling=False
    ),
    "random": functools.partial(optuna.samplers.RandomSampler),
    "nsga2": functools.partial(optuna.samplers.NSGAIISampler, population_size=3),
    "grid": functools.partial(Grid),
}


def space_of(*overrides: str) -> Space:
    """Return the space that overrides state, as on the command line."""
    return spaces.space_of(OverridesParser.create().parse_overrides(list(overrides)))


SPACE = space_of("x=interval(-2, 2)", "n=int(interval(1, 8))", "c=a,b", "fixed=3")
COUNTED = space_of("x=range(0, 3)", "n=1,2", "c=a,b")


def options(**changes: Any) -> Options:
    values: dict[str, Any] = {
        "n_trials": 8,
        "sampler": SAMPLERS["random"],
        "pruner": None,
        "seed": 0,
        "params": {},
        "storage": None,
        "study_name": None,
        "grace_secs": 60.0,
    }
    return Options(**{**values, **changes})


def open_search(directory: Path, space: Space = SPACE, **changes: Any) -> Search:
    """Return what `search.sweep` makes of options, with a configuration that is the overrides alone."""
    chosen = options(**changes)
    objectives = chosen.params.get("objectives", LOSS)
    ledger = Ledger(directory)

    def compose(overrides: list[str]) -> DictConfig:
        values = dict(override.split("=", 1) for override in overrides)
        return OmegaConf.create({**values, "hydra": {"overrides": {"task": overrides}}})

    with ledger.locked():
        sampler = make_sampler(chosen, space)
        study, storage = open_study(chosen, sampler, objectives, directory)
        check_study(study, space, objectives, "configuration")
        sampler.trials = functools.partial(study.get_trials, deepcopy=False)
        total = len(sampler) if isinstance(sampler, Grid) else chosen.n_trials
        is_shared = chosen.storage is not None
        return Search(study, storage, space, compose, ledger, objectives, total, chosen.grace_secs, is_shared)


def started(search: Search) -> Trial | None:
    """Start the next trial, as a pool would; `None` where there is none."""
    following = search.next()
    if following is None:
        return None
    overrides = list(following.config.hydra.overrides.task)
    digest = ledgers.config_hash(plain_values(following.config))
    trial = Trial(
        search.ledger.next_number(), overrides, digest, ledgers.RUNNING, "", study_trial=following.study_trial
    )
    search.ledger.write(trial)
    search.started(trial)
    return trial


def loss(values: Mapping[str, str]) -> float:
    return (float(values["x"]) - 1) ** 2 + int(values["n"]) + (values["c"] == "a")


def end(search: Search, trial: Trial, **changes: Any) -> None:
    changes = {"state": ledgers.DONE, "verdict": "match", **changes}
    if "objective" not in changes:
        changes["objective"] = loss(trial.values)
    trial = replace(trial, **changes)
    search.ledger.write(trial)
    search.ended(trial)


def work(search: Search, most: float = math.inf) -> int:
    """Run trials one after the other; return how many."""
    count = 0
    while count < most and not search.is_complete():
        known = len(search.study.trials)
        trial = started(search)
        is_waiting = any(one.state == TrialState.WAITING for one in search.study.trials)
        if trial is None and not is_waiting and len(search.study.trials) == known:
            break
        if trial is not None:
            end(search, trial)
            count += 1
    return count


def found(directory: Path) -> list[tuple[str, ...]]:
    return [tuple(trial.overrides) for trial in Ledger(directory).latest() if trial.state == ledgers.DONE]
