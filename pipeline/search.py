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
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from pipeline import ledger as ledgers
from pipeline import sweeps
from pipeline.cli.composition import plain_values
from pipeline.config import binding
from pipeline.errors import ConfigError, first_line
from pipeline.ledger import Ledger, Objectives, Trial
from pipeline.sweeps import Next

RETRIES, WITHDRAWN, BEAT, IDENTITY = "retries", "withdrawn", "beat", "search"
"""Attributes of a study's trials: the number of the trial that it repeats; why it is none; a count that its
process increases. And of the study: what it searches."""

REPLACED, SUPERFLUOUS, LEFT = "replaced", "superfluous", "left"
"""Why a trial is none: it was about to start when its process died, and the next one takes its place; it was
one too many; as the first, but others have been asked for since, which keep their places."""

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
        raise ConfigError(*problems)
    return Space(distributions, list(fixed.values()))


def _distribution(override: Override) -> BaseDistribution:
    values = override.value()
    kind: Any
    if isinstance(values, IntervalSweep):
        kind = IntDistribution if isinstance(values.start, int) else FloatDistribution
        return kind(values.start, values.end, log="log" in values.tags)
    if isinstance(values, RangeSweep):
        if "log" in values.tags:
            raise ValueError("only an interval can be logarithmic")
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
        raise ConfigError(*problems)
    return grid


class PerTrialSampler(BaseSampler):
    """Samples each trial by a sampler of its own, seeded by (seed, place of the trial).

    What is suggested is then a function of these and of the trials that have ended, whoever asks: two
    processes that start with the same seed do not draw the same, and a search that goes on draws what it
    would have drawn, unless the sampler itself looks at the trial's number, as CMA-ES and NSGA-II do.

    Attributes:
        trials: Returns all trials of the study; what Optuna passes may be a part of it.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self.trials: Callable[[], list[FrozenTrial]] = list
        self._make = make
        self._seed = seed
        self._sampler = make(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Make the sampler of this trial."""
        place = place_of(trial.number, self.trials())
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


class Grid(BaseSampler):
    """Gives each trial the combination of values at its place, so that each is tried once.

    Optuna's own looks for one that nobody else tries just now, which two processes do at the same time.

    Attributes:
        trials: See `PerTrialSampler`.
    """

    def __init__(self, space: Space) -> None:
        self.trials: Callable[[], list[FrozenTrial]] = list
        self._values = grid_of(space)

    def __len__(self) -> int:
        return math.prod(map(len, self._values.values()))

    def at(self, place: int) -> dict[str, Any]:
        """Return a combination."""
        chosen = {}
        for key, values in reversed(self._values.items()):
            place, index = divmod(place, len(values))
            chosen[key] = values[index]
        return chosen

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """See `BaseSampler`."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See `BaseSampler`."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """See `BaseSampler`."""
        return self.at(place_of(trial.number, self.trials()))[param_name]


def place_of(number: int, trials: Sequence[FrozenTrial]) -> int:
    """Return how many trials come before one, without repetitions and those whose place another takes."""
    return sum(
        trial.number < number
        and RETRIES not in trial.user_attrs
        and trial.user_attrs.get(WITHDRAWN) != REPLACED
        for trial in trials
    )


def _counts(trial: FrozenTrial) -> bool:
    return not {RETRIES, WITHDRAWN}.intersection(trial.user_attrs)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The section `hydra.sweeper`.

    Attributes:
        n_trials: Trials of the study, those of earlier and of other processes included; a grid has its own.
        sampler: Makes an Optuna sampler from a seed, or a `Grid`.
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


def make_sampler(options: Options, space: Space) -> PerTrialSampler | Grid:
    """Return the sampler that the options name.

    Raises:
        ConfigError: It does not take its options, or the space has no grid.
    """
    if getattr(options.sampler, "func", None) is Grid:
        return Grid(space)
    try:
        return PerTrialSampler(lambda seed: options.sampler(seed=seed), options.seed)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"hydra.sweeper.sampler must be what Optuna takes. {first_line(error)}") from error


def open_study(
    options: Options, sampler: BaseSampler, objectives: Objectives, directory: Path
) -> tuple[optuna.Study, BaseStorage]:
    """Return the study, made if it does not exist, and what holds it.

    Args:
        options: See `Options`.
        sampler: See `make_sampler`.
        objectives: See `Objectives`.
        directory: The sweep's.

    Raises:
        ConfigError: The storage cannot be reached, or the options do not fit together.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    if options.pruner and len(objectives) > 1:
        raise ConfigError("hydra/sweeper/pruner must be none where sweep.metric has several metrics.")
    if options.storage and not options.study_name:
        raise ConfigError(
            "hydra.sweeper.study_name must be given with hydra.sweeper.storage. Received: none."
        )
    url = options.storage or f"sqlite:///{directory}/study.db"
    attempt = 0
    while True:
        attempt += 1
        try:
            storage = RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
            study = optuna.create_study(
                storage=storage,
                study_name=options.study_name or STUDY,
                sampler=sampler,
                pruner=options.pruner or optuna.pruners.NopPruner(),
                directions=[optuna.study.StudyDirection[direction.upper()] for _, direction in objectives],
                load_if_exists=True,
            )
        except Exception as error:  # Whatever the database's driver raises, or that there is none.
            if attempt == ATTEMPTS:
                raise ConfigError(
                    f"hydra.sweeper.storage must be a database that can be reached. {first_line(error)}"
                ) from error
            time.sleep(IDLE_SECS)
        else:
            return study, storage


def check_study(study: optuna.Study, space: Space, objectives: Objectives, configuration: str) -> None:
    """Check that a study is of this search, if it is of any yet.

    Args:
        study: The study.
        space: See `Space`.
        objectives: See `Objectives`.
        configuration: See `identity_of`.

    Raises:
        ConfigError: It is of another one, whose trials would not compare.
    """
    searched = {
        "space": {key: distribution_to_json(value) for key, value in space.distributions.items()},
        "fixed": sorted(space.fixed),
        "objectives": [list(pair) for pair in objectives],
        "configuration": configuration,
    }
    known = study.user_attrs.get(IDENTITY)
    if known is None:
        study.set_user_attr(IDENTITY, searched)
    elif any(known[key] != searched[key] for key in ("space", "objectives", "configuration")):
        raise ConfigError(
            "The study is of another search, or its configuration or data have changed: "
            f"{_said(known)}. Received: {_said(searched)}. Choose another hydra.sweep.dir; "
            "with hydra.sweeper.storage, another hydra.sweeper.study_name, too."
        )


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
    limits = sweeps.limits_of(config)
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
        sweeps.run(search, task, ledger, limits, objectives)
        sweeps.show(ledger, objectives)
        return [sweeps.job_return(trial) for trial in ledger.latest() if not search.is_repeated(trial)]


def _options(config: DictConfig, section: Mapping[str, Any]) -> Options:
    problems: list[str] = []
    values = {str(key): value for key, value in section.items()}
    for key in ("sampler", "pruner"):
        if isinstance(values[key], DictConfig):
            values[key] = instantiate(values[key]) if values[key] else None
    values["params"] = OmegaConf.to_container(OmegaConf.create(values["params"]))
    bound = binding.bind(Options, values, "hydra.sweeper.", problems)
    if not str(config.hydra.launcher.get("_target_")).endswith(".ForkedLauncher"):
        problems.append(
            "hydra/sweeper=optuna needs hydra/launcher=forked, which starts a trial when another one ends. "
            f"Received: {config.hydra.runtime.choices['hydra/launcher']}."
        )
    if problems:
        raise ConfigError(*problems)
    return Options(**bound)


def identity_of(corners: Sequence[DictConfig], *, is_shared: bool) -> str:
    """Return what tells a search from another one: the hash of the configurations at the ends of its space.

    Args:
        corners: These configurations; between them they hold every value that is not searched.
        is_shared: Whether several machines work on it: where each keeps its data then makes no difference.
    """
    hashes = []
    for corner in corners:
        values = plain_values(OmegaConf.masked_copy(corner, [str(key) for key in corner if key != "hydra"]))
        data = values.get("data")
        if is_shared and isinstance(data, Mapping):
            kept = {k: v for k, v in data.items() if k == "_target_" or not isinstance(v, str)}
            values = {**values, "data": kept}
        hashes.append(ledgers.config_hash(values))
    return ledgers.config_hash({"corners": hashes})


@dataclass
class Search:
    """The trials of a study, as one process works on them. See `sweeps.Plan`.

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
        if not is_waiting and sum(map(_counts, trials)) >= self.total:
            return None
        asked = self.study.ask(dict(self.space.distributions))
        before = sum(_counts(trial) and trial.number < asked.number for trial in self._trials())
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
