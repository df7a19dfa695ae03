"""Searches: sweeps in which Optuna chooses the values of the next trial from those that have ended.

Several processes, on several machines, can work on one study. Each has a sweep directory of its own; what
they share is the study's storage. A trial that one of them left undone, because it died, is tried again by
whoever notices.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.types import HydraContext
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from pipeline.cli.composition import plain_values
from pipeline.config.binding import parse
from pipeline.errors import ConfigError
from pipeline.sweeps import leaderboard, runner
from pipeline.sweeps import ledger as ledgers
from pipeline.sweeps.ledger import Ledger, Objectives, Trial
from pipeline.sweeps.runner import Next, Plan
from pipeline.sweeps.samplers import Grid, make_sampler
from pipeline.sweeps.space import Space, space_of
from pipeline.sweeps.study import (
    BEAT,
    LEFT,
    REPLACED,
    RETRIES,
    SUPERFLUOUS,
    WITHDRAWN,
    Options,
    check_study,
    counts,
    identity_of,
    open_study,
    place_of,
)
from pipeline.sweeps.trials import Task

BEATS = 6
"""How often a process says that it lives before others, hearing nothing, take it for dead."""

IDLE_SECS = 1.0
"""How long to wait before the study is asked again, where it had nothing to do."""

log = logging.getLogger(__name__)


def sweep(
    context: HydraContext,
    task: Task,
    config: DictConfig,
    section: Mapping[str, Any],
    arguments: Sequence[str],
) -> list[JobReturn]:
    """Run the trials that a study still lacks; return what became of those of this sweep directory.

    Args:
        context: Hydra's.
        task: See `Pool.submit`.
        config: The composed configuration, before a trial changes it.
        section: `hydra.sweeper`; see `Options`.
        arguments: The overrides of the command line.

    Raises:
        ConfigError: What is asked for does not hold; then no trial is run.
        StopRequested: See `runner.run`.
    """
    options = _options(config, section)
    parser = OverridesParser.create(config_loader=context.config_loader)
    params = [f"{key}={value}" for key, value in options.params.items()]
    space = space_of(parser.parse_overrides([*params, *arguments]))

    def compose(overrides: Sequence[str]) -> DictConfig:
        return context.config_loader.load_sweep_config(config, list(overrides))

    corners = list(map(compose, space.corners()))
    runner.check_all(task, corners)
    objectives = runner.objectives_of(corners[0])
    ledger = runner.ledger_of(corners[0])
    limits = runner.limits_of(config)
    sampler = make_sampler(options, space)
    is_shared = options.storage is not None
    with ledger.locked():
        study, storage = open_study(options, sampler, objectives, ledger.directory)
        check_study(study, space, objectives, identity_of(corners, is_shared=is_shared))
        sampler.trials = functools.partial(study.get_trials, deepcopy=False)
        total = len(sampler) if isinstance(sampler, Grid) else options.n_trials
        search = Search(
            study, storage, space, compose, ledger, objectives, total, options.grace_secs, is_shared
        )
        runner.run(search, task, ledger, limits, objectives)
        leaderboard.show(ledger, objectives)
        return [runner.job_return(trial) for trial in ledger.latest() if not search.is_repeated(trial)]


def _options(config: DictConfig, section: Mapping[str, Any]) -> Options:
    values = {str(key): value for key, value in section.items()}
    for key in ("sampler", "pruner"):
        if isinstance(values[key], DictConfig):
            values[key] = instantiate(values[key]) if values[key] else None
    values["params"] = OmegaConf.to_container(OmegaConf.create(values["params"]))
    options = parse(Options, values, "hydra.sweeper.")
    if not str(config.hydra.launcher.get("_target_")).endswith(".ForkedLauncher"):
        raise ConfigError(
            "hydra/sweeper=optuna needs hydra/launcher=forked, which starts a trial when another one ends. "
            f"Received: {config.hydra.runtime.choices['hydra/launcher']}."
        )
    return options


@dataclass
class Search(Plan):
    """The trials of a study, as one process works on them. See `Plan`.

    Attributes:
        study: The study.
        storage: What holds it.
        space: What is searched.
        compose: Returns the composed configuration of overrides.
        ledger: Of the trials that ran here.
        objectives: See `Objectives`.
        total: Trials of the study.
        grace_secs: See `Options`.
        is_shared: Whether other processes may work on the study.
    """

    study: optuna.Study
    storage: BaseStorage
    space: Space
    compose: Callable[[list[str]], DictConfig]
    ledger: Ledger
    objectives: Objectives
    total: int
    grace_secs: float
    is_shared: bool
    _asked: dict[int, optuna.Trial] = field(default_factory=dict)
    _running: dict[int, optuna.Trial] = field(default_factory=dict)
    _heard: dict[int, tuple[Any, float]] = field(default_factory=dict)
    _beaten: float = 0.0
    _beats: int = 0
    _idle_until: float = 0.0

    def __post_init__(self) -> None:
        """Tell the study what became of the trials that ran here, and have the unfinished ones repeated."""
        found = {trial.number: trial for trial in self._trials() if trial.state != TrialState.WAITING}
        for known in self.ledger.read():
            trial = found.get(-1 if known.study_trial is None else known.study_trial)
            if trial is not None and self._is_of(known, trial):
                del found[trial.number]
                if known.state in ledgers.FINISHED:
                    self._tell(trial.number, known)
                else:
                    self._give_up(trial)
        if not self.is_shared:  # The ledger is locked: nobody else asked for these.
            for trial in found.values():
                if trial.state == TrialState.RUNNING:
                    self._give_up(trial)

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _is_of(self, known: Trial, trial: FrozenTrial) -> bool:
        """Return whether a line of the ledger is about a trial, and not one of another study's."""
        is_whole = set(trial.params) == set(self.space.distributions)
        return is_whole and sorted(self.space.overrides(trial.params)) == sorted(known.overrides)

    @property
    def num_ended(self) -> int:
        """See `Plan`."""
        trials = self._trials()
        ended = [trial for trial in trials if trial.state.is_finished() and WITHDRAWN not in trial.user_attrs]
        return len(ended) - sum(RETRIES in trial.user_attrs for trial in trials)

    def is_repeated(self, known: Trial) -> bool:
        """Return whether what a trial left undone has been done since, here or elsewhere."""
        repetitions = {
            trial.user_attrs[RETRIES]: trial for trial in self._trials() if RETRIES in trial.user_attrs
        }
        trial = repetitions.get(known.study_trial)
        while trial is not None and trial.number in repetitions:
            trial = repetitions[trial.number]
        return trial is not None and trial.state in (TrialState.COMPLETE, TrialState.PRUNED)

    def next(self) -> Next | None:
        """See `Plan`. Values that the study or the ledger knows the result of are not run again."""
        if time.monotonic() < self._idle_until:
            return None
        asked = self._ask()
        if asked is None:
            self._idle_until = time.monotonic() + IDLE_SECS
            return None
        for trial in self._trials():
            if trial.state == TrialState.COMPLETE and trial.params == asked.params:
                self._finish(asked.number, trial.values)
                return None
        config = self.compose(self.space.overrides(asked.params))
        known = self.ledger.finished(ledgers.config_hash(plain_values(config)))
        if known is not None:
            self._tell(asked.number, known)
            return None
        self._asked[asked.number] = asked
        return Next(config, asked.number)

    def _ask(self) -> optuna.Trial | None:
        trials = self._trials()
        is_waiting = any(trial.state == TrialState.WAITING for trial in trials)
        if not is_waiting and sum(map(counts, trials)) >= self.total:
            return None
        asked = self.study.ask(dict(self.space.distributions))
        before = sum(counts(trial) and trial.number < asked.number for trial in self._trials())
        if RETRIES not in asked.user_attrs and before >= self.total:
            # Another process, asking at the same time, got the last one.
            asked.set_user_attr(WITHDRAWN, SUPERFLUOUS)
            self._finish(asked.number, state=TrialState.FAIL)
            return None
        return asked

    def is_complete(self) -> bool:
        """See `Plan`: not while another process works on the study, which may die and leave its trials."""
        trials = self._trials()
        is_open = any(not trial.state.is_finished() for trial in trials)
        return not is_open and sum(map(counts, trials)) >= self.total

    def started(self, trial: Trial) -> None:
        """See `Plan`."""
        assert trial.study_trial is not None
        self._running[trial.number] = self._asked.pop(trial.study_trial)

    def decide(self, number: int, epoch: int, metrics: Mapping[str, float]) -> bool:
        """See `Plan`."""
        if len(self.objectives) > 1:
            return False
        trial = self._running[number]
        try:
            trial.report(metrics[self.objectives[0][0]], epoch)
        except UpdateFinishedTrialError:  # It was taken for dead, and is repeated elsewhere.
            return True
        return trial.should_prune()

    def ended(self, trial: Trial) -> None:
        """See `Plan`."""
        self._tell(self._running.pop(trial.number).number, trial)
        self._idle_until = 0.0

    def tick(self) -> None:
        """Say that this process lives; take up the trials of those that have not said so for long."""
        now = time.monotonic()
        if now - self._beaten < self.grace_secs / BEATS:
            return
        self._beaten = now
        self._beats += 1
        for trial in self._running.values():
            with contextlib.suppress(UpdateFinishedTrialError):  # It was taken for dead.
                trial.set_user_attr(BEAT, self._beats)
        mine = {trial.number for trial in self._running.values()}
        for other in self._trials():
            if other.state != TrialState.RUNNING or other.number in mine:
                continue
            beat = other.user_attrs.get(BEAT)
            heard = self._heard.get(other.number)
            if heard is None or heard[0] != beat:
                self._heard[other.number] = (beat, now)
            elif now - heard[1] > self.grace_secs:
                log.warning("trial %d of the study has not been heard of; it is tried again", other.number)
                self._give_up(other)

    def _give_up(self, trial: FrozenTrial) -> None:
        """Have a trial repeated, by the one process that ends it."""
        sampler = self.study.sampler
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        if isinstance(sampler, Grid) and self.is_shared and RETRIES not in trial.user_attrs:
            params = sampler.at(place_of(trial.number, self._trials()))
        is_whole = set(params) == set(self.space.distributions)
        if not trial.state.is_finished():
            try:
                if not is_whole:
                    reason = LEFT if self.is_shared else REPLACED
                    self.storage.set_trial_user_attr(trial._trial_id, WITHDRAWN, reason)
                self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            except UpdateFinishedTrialError:
                return
        repeated = any(one.user_attrs.get(RETRIES) == trial.number for one in self._trials())
        if is_whole and not repeated:
            self.study.enqueue_trial(params, user_attrs={RETRIES: trial.number})

    def _tell(self, number: int, trial: Trial) -> None:
        if trial.state == ledgers.DONE and trial.objective is not None:
            self._finish(number, [trial.objective, *trial.further])
        elif trial.state == ledgers.PRUNED:
            self._finish(number, state=TrialState.PRUNED)
        else:
            self._finish(number, state=TrialState.FAIL)

    def _finish(
        self, number: int, values: Sequence[float] | None = None, state: TrialState | None = None
    ) -> None:
        with contextlib.suppress(UpdateFinishedTrialError):  # Another process has.
            self.study.tell(number, values, state, skip_if_finished=True)
