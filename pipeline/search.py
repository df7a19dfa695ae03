"""Searches: sweeps in which Optuna chooses the values of the next trial from those that have ended.

Several processes, on several machines, can work on one study. Each has a sweep directory of its own; what
they share is the study's storage. A trial that one of them left undone, because it died, is tried again by
whoever notices.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.utils import JobReturn
from hydra.types import HydraContext
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.samplers import BaseSampler, GridSampler
from optuna.trial import FrozenTrial, TrialState

from pipeline import binding, sweeps
from pipeline import ledger as ledgers
from pipeline.binding import ConfigError, first_line
from pipeline.composition import plain_values
from pipeline.ledger import Ledger, Objectives, Trial
from pipeline.sweeps import Next

RETRIES, WITHDRAWN, BEAT, IDENTITY = "retries", "withdrawn", "beat", "search"
"""Attributes of a study's trials: the number of the trial that it repeats; that it was one too many; a count
that its process increases. And of the study: what it searches."""

BEATS = 6
"""How often a process says that it lives before others, hearing nothing, take it for dead."""

IDLE_SECS = 1.0
"""How long to wait before the study is asked again, where it had nothing to do."""

MAX_GRID = 10_000

STUDY = "sweep"
"""Name of the study in a file of its own."""

ATTEMPTS = 3
"""How often to try to reach a storage: of two processes that make its tables at a time, one fails."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Space:
    """What a search chooses from, and what it leaves as it is.

    Attributes:
        distributions: By key, as in an override.
        fixed: Overrides that every trial has.
    """

    distributions: Mapping[str, BaseDistribution]
    fixed: Sequence[str]

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """Return the overrides of a trial with these values."""
        return [*self.fixed, *(f"{key}={values[key]}" for key in self.distributions)]

    def corners(self) -> list[list[str]]:
        """Return overrides in which every choice and both ends of every interval occur."""
        ends = {key: _ends(distribution) for key, distribution in self.distributions.items()}
        first = {key: values[0] for key, values in ends.items()}
        others = ({**first, key: value} for key, values in ends.items() for value in values[1:])
        return [self.overrides(first), *map(self.overrides, others)]


def _ends(distribution: Any) -> Sequence[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    return (distribution.low, distribution.high)


def space_of(overrides: Sequence[Override]) -> Space:
    """Return the search space that overrides state by `choice`, `range`, `interval`, and the tag `log`.

    Args:
        overrides: Parsed; of two with the same key, the last one counts.

    Raises:
        ConfigError: One of them states no range of values, or none does.
    """
    problems: list[str] = []
    distributions: dict[str, BaseDistribution] = {}
    fixed: dict[str, str] = {}
    for override in overrides:
        key = override.get_key_element()
        distributions.pop(key, None)
        fixed.pop(key, None)
        if not override.is_sweep_override():
            fixed[key] = f"{key}={override.get_value_element_as_str()}"
            continue
        try:
            distributions[key] = _distribution(override)
        except ValueError as error:
            problems.append(f"{key} must state values that can be searched. {override.input_line}: {error}")
    if not distributions and not problems:
        problems.append(
            "A search needs a key with several values. Received: none. "
            "Add optimizer.learning_rate='tag(log, interval(1e-4, 1e-1))', for example."
        )
    if problems:
        raise ConfigError(problems)
    return Space(distributions, list(fixed.values()))


def _distribution(override: Override) -> BaseDistribution:
    values = override.value()
    kind: Any
    if isinstance(values, IntervalSweep):
        kind = IntDistribution if isinstance(values.start, int) else FloatDistribution
        return kind(values.start, values.end, log="log" in values.tags)
    if isinstance(values, RangeSweep):
        numbers = list(values.range())
        if not numbers:
            raise ValueError("the range is empty")
        kind = IntDistribution if isinstance(numbers[0], int) else FloatDistribution
        return kind(min(numbers), max(numbers), step=abs(values.step))
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def grid_of(space: Space) -> dict[str, list[Any]]:
    """Return every value of each key.

    Raises:
        ConfigError: A key has infinitely many, or there are too many combinations.
    """
    grid: dict[str, list[Any]] = {}
    problems = []
    for key, distribution in space.distributions.items():
        step = getattr(distribution, "step", None)
        if isinstance(distribution, CategoricalDistribution):
            grid[key] = list(distribution.choices)
        elif step is None or getattr(distribution, "log", False):
            problems.append(f"hydra/sweeper/sampler=grid needs a choice(...) or range(...) for {key}.")
        else:
            assert isinstance(distribution, IntDistribution | FloatDistribution)
            count = round((distribution.high - distribution.low) / step) + 1
            grid[key] = [distribution.low + i * step for i in range(count)]
    size = int(np.prod([len(values) for values in grid.values()], dtype=float))
    if size > MAX_GRID:
        problems.append(f"A grid must have at most {MAX_GRID} combinations. Received: {size}.")
    if problems:
        raise ConfigError(problems)
    return grid


class PerTrialSampler(BaseSampler):
    """Samples each trial by a sampler of its own, seeded by (seed, place of the trial).

    What is suggested is then a function of these and of the trials that have ended, whoever asks: two
    processes that start with the same seed do not draw the same, and a search that goes on draws what it
    would have drawn.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make = make
        self._seed = seed
        self._sampler = make(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Make the sampler of this trial."""
        place = place_of(trial.number, study.get_trials(deepcopy=False))
        state = np.random.SeedSequence([self._seed, place]).generate_state(1)
        self._sampler = self._make(int(state[0]))
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """See `BaseSampler`."""
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See `BaseSampler`."""
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """See `BaseSampler`."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)


def _make_grid(options: Options, grid: Mapping[str, list[Any]], _: int) -> BaseSampler:
    """Make the sampler of a grid, whose seed is its order: that of one trial is that of all."""
    return options.sampler(grid, seed=options.seed)


def place_of(number: int, trials: Sequence[FrozenTrial]) -> int:
    """Return how many trials come before one, without those that repeat another or were one too many."""
    return sum(trial.number < number and _counts(trial) for trial in trials)


def _counts(trial: FrozenTrial) -> bool:
    return not {RETRIES, WITHDRAWN}.intersection(trial.user_attrs)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The section `hydra.sweeper`.

    Attributes:
        n_trials: Trials of the study, those of earlier and of other processes included.
        sampler: Makes an Optuna sampler from a seed or, for the grid, from the search space and a seed.
        pruner: An Optuna pruner, or nothing.
        seed: Of the sampler.
        params: What to search, by key, as on the command line.
        storage: A database that Optuna knows, as a URL; `None` is a file in the sweep directory.
        study_name: Name of the study in it.
        grace_secs: A process that is not heard of for so long is taken for dead.
    """

    n_trials: Annotated[int, ">= 1"]
    sampler: Any
    pruner: Any
    seed: Annotated[int, ">= 0"]
    params: dict[str, Any]
    storage: str | None
    study_name: str | None
    grace_secs: Annotated[float, ">= 1"]

    @property
    def is_grid(self) -> bool:
        """Whether the sampler goes through all combinations."""
        return getattr(self.sampler, "func", None) is GridSampler


def open_study(
    options: Options, space: Space, objectives: Objectives, identity: str, directory: Path
) -> optuna.Study:
    """Return the study, made if it does not exist.

    Args:
        options: See `Options`.
        space: See `Space`.
        objectives: See `Objectives`.
        identity: What tells the configuration searched from another one.
        directory: The sweep's.

    Raises:
        ConfigError: The storage cannot be reached, or the study is of another search.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    if options.pruner and len(objectives) > 1:
        raise ConfigError(["hydra/sweeper/pruner must be none where sweep.metric has several metrics."])
    if options.storage and not options.study_name:
        raise ConfigError(
            ["hydra.sweeper.study_name must be given with hydra.sweeper.storage. Received: none."]
        )
    storage = options.storage or f"sqlite:///{directory}/study.db"
    study = _create_study(options, space, objectives, storage)
    searched = {
        "space": {key: distribution_to_json(value) for key, value in space.distributions.items()},
        "fixed": sorted(space.fixed),
        "objectives": [list(pair) for pair in objectives],
        "configuration": identity,
    }
    known = study.user_attrs.get(IDENTITY)
    if known is None:
        study.set_user_attr(IDENTITY, searched)
    elif any(known[key] != searched[key] for key in ("space", "objectives", "configuration")):
        raise ConfigError(
            [
                f"The study {study.study_name!r} is of another search, or its configuration has changed: "
                f"{_said(known)}. Received: {_said(searched)}. "
                "Choose another hydra.sweep.dir, or hydra.sweeper.study_name."
            ]
        )
    return study


def _create_study(options: Options, space: Space, objectives: Objectives, storage: str) -> optuna.Study:
    grid = grid_of(space) if options.is_grid else None
    make = functools.partial(_make_grid, options, grid) if grid else lambda seed: options.sampler(seed=seed)
    attempt = 0
    while True:
        attempt += 1
        try:
            return optuna.create_study(
                storage=storage,
                study_name=options.study_name or STUDY,
                sampler=PerTrialSampler(make, options.seed),
                pruner=options.pruner or optuna.pruners.NopPruner(),
                directions=[optuna.study.StudyDirection[direction.upper()] for _, direction in objectives],
                load_if_exists=True,
            )
        except Exception as error:  # Whatever the database's driver raises, or that there is none.
            if attempt == ATTEMPTS:
                raise ConfigError(
                    [f"hydra.sweeper.storage must be a database that can be reached. {first_line(error)}"]
                ) from error
            time.sleep(IDLE_SECS)


def _said(searched: Mapping[str, Any]) -> str:
    return " ".join([*searched["fixed"], *searched["space"], json.dumps(searched["objectives"])])


def sweep(
    context: HydraContext,
    task: sweeps.Task,
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
        StopRequested: See `sweeps.run`.
    """
    options = _options(config, section)
    parser = OverridesParser.create(config_loader=context.config_loader)
    params = [f"{key}={value}" for key, value in options.params.items()]
    space = space_of(parser.parse_overrides([*params, *arguments]))

    def compose(overrides: Sequence[str]) -> DictConfig:
        return context.config_loader.load_sweep_config(config, list(overrides))

    corners = list(map(compose, space.corners()))
    sweeps.check_all(task, corners)
    objectives = sweeps.objectives_of(corners[0])
    ledger = sweeps.ledger_of(corners[0])
    total = options.n_trials
    if options.is_grid:
        total = min(total, math.prod(map(len, grid_of(space).values())))
    with ledger.locked():
        study = open_study(options, space, objectives, identity_of(corners[0], space), ledger.directory)
        search = Search(study, space, compose, ledger, objectives, total, options.grace_secs, options.is_grid)
        sweeps.run(search, task, ledger, sweeps.limits_of(config), objectives)
    sweeps.show(ledger, objectives)
    return list(map(sweeps.job_return, ledger.latest()))


def _options(config: DictConfig, section: Mapping[str, Any]) -> Options:
    problems: list[str] = []
    values = {str(key): value for key, value in section.items()}
    for key in ("sampler", "pruner"):
        values[key] = instantiate(values[key]) if values[key] else None
    values["params"] = OmegaConf.to_container(OmegaConf.create(values["params"]))
    bound = binding.bind(Options, values, "hydra.sweeper.", problems)
    if not str(config.hydra.launcher.get("_target_")).endswith(".ForkedLauncher"):
        problems.append(
            "hydra/sweeper=optuna needs hydra/launcher=forked, which starts a trial when another one ends. "
            f"Received: {config.hydra.runtime.choices['hydra/launcher']}."
        )
    if problems:
        raise ConfigError(problems)
    return Options(**bound)


def identity_of(config: DictConfig, space: Space) -> str:
    """Return the hash of a configuration without what is searched and without where the data lies."""
    config = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    values = plain_values(config)
    data = values.get("data")
    if isinstance(data, Mapping):
        values = {
            **values,
            "data": {k: v for k, v in data.items() if k in ("_target_",) or not isinstance(v, str)},
        }
    for key in space.distributions:
        values = _without(values, key.lstrip("+").partition("@")[0].replace("/", ".").split("."))
    return ledgers.config_hash(values)


def _without(values: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    key, *rest = path
    inner = values.get(key)
    if rest and isinstance(inner, Mapping):
        return {**values, key: _without(inner, rest)}
    return {name: value for name, value in values.items() if name != key}


@dataclass
class Search:
    """The trials of a study, as one process works on them. See `sweeps.Plan`.

    Attributes:
        study: The study.
        space: What is searched.
        compose: Returns the composed configuration of overrides.
        ledger: Of the trials that ran here.
        objectives: See `Objectives`.
        total: Trials of the study.
        grace_secs: See `Options`.
        no_repeats: Whether a trial with the values of another one is one too many.
    """

    study: optuna.Study
    space: Space
    compose: Callable[[list[str]], DictConfig]
    ledger: Ledger
    objectives: Objectives
    total: int
    grace_secs: float
    no_repeats: bool
    _asked: dict[int, optuna.Trial] = field(default_factory=dict)
    _running: dict[int, optuna.Trial] = field(default_factory=dict)
    _heard: dict[tuple[int, Any], float] = field(default_factory=dict)
    _beaten: float = 0.0
    _beats: int = 0
    _idle_until: float = 0.0

    def __post_init__(self) -> None:
        """Tell the study what became of earlier trials, and have the unfinished ones repeated."""
        found = {trial.number: trial for trial in self.study.get_trials(deepcopy=False)}
        for known in self.ledger.read():
            if known.study_trial in found:
                self._settle(found[known.study_trial], known)

    @property
    def num_ended(self) -> int:
        """See `Plan`."""
        trials = self.study.get_trials(deepcopy=False)
        ended = [trial for trial in trials if trial.state.is_finished() and WITHDRAWN not in trial.user_attrs]
        return len(ended) - sum(RETRIES in trial.user_attrs for trial in trials)

    def next(self) -> Next | None:
        """See `Plan`."""
        while time.monotonic() >= self._idle_until:
            asked = self._ask()
            if asked is None:
                self._idle_until = time.monotonic() + IDLE_SECS
                return None
            config = self.compose(self.space.overrides(asked.params))
            known = self.ledger.finished(ledgers.config_hash(plain_values(config)))
            if known is None:
                self._asked[asked.number] = asked
                return Next(config, asked.number)
            self._tell(asked.number, known)
        return None

    def _ask(self) -> optuna.Trial | None:
        trials = self.study.get_trials(deepcopy=False)
        is_waiting = any(trial.state == TrialState.WAITING for trial in trials)
        if not is_waiting and sum(map(_counts, trials)) >= self.total:
            return None
        asked = self.study.ask(dict(self.space.distributions))
        if RETRIES not in asked.user_attrs and self._is_superfluous(asked):
            asked.set_user_attr(WITHDRAWN, True)
            self.study.tell(asked, state=TrialState.FAIL)
            return None
        return asked

    def _is_superfluous(self, asked: optuna.Trial) -> bool:
        """Return whether other processes, asking at the same time, got the last trials or these values."""
        before = [one for one in self.study.get_trials(deepcopy=False) if one.number < asked.number]
        repeats = (_counts(one) and one.params == asked.params for one in before)
        return place_of(asked.number, before) >= self.total or (self.no_repeats and any(repeats))

    def is_complete(self) -> bool:
        """See `Plan`: not while another process works on the study, which may die and leave its trials."""
        trials = self.study.get_trials(deepcopy=False)
        is_open = any(not trial.state.is_finished() for trial in trials)
        return not is_open and sum(map(_counts, trials)) >= self.total

    def started(self, trial: Trial) -> None:
        """See `Plan`."""
        assert trial.study_trial is not None
        self._running[trial.number] = self._asked.pop(trial.study_trial)

    def decide(self, number: int, epoch: int, metrics: Mapping[str, float]) -> bool:
        """See `Plan`."""
        if len(self.objectives) > 1:
            return False
        trial = self._running[number]
        trial.report(metrics[self.objectives[0][0]], epoch)
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
            trial.set_user_attr(BEAT, self._beats)
        mine = {trial.number for trial in self._running.values()}
        for other in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            heard = self._heard.setdefault((other.number, other.user_attrs.get(BEAT)), now)
            if other.number not in mine and now - heard > self.grace_secs:
                log.warning("trial %d of the study has not been heard of; it is tried again", other.number)
                self._give_up(other)

    def _settle(self, trial: FrozenTrial, known: Trial) -> None:
        """Tell the study what it does not know of a trial, and have an unfinished one repeated."""
        if known.state in ledgers.FINISHED:
            self._tell(trial.number, known)
        else:
            self._give_up(trial)

    def _give_up(self, trial: FrozenTrial) -> None:
        """Have a trial repeated, unless another process was quicker."""
        self._finish(trial.number, state=TrialState.FAIL)
        trials = self.study.get_trials(deepcopy=False)
        if not any(one.user_attrs.get(RETRIES) == trial.number for one in trials):
            self.study.enqueue_trial(trial.params, user_attrs={RETRIES: trial.number})

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
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # Another process has.
            self.study.tell(number, values, state, skip_if_finished=True)
