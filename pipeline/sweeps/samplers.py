"""Samplers whose draws do not depend on who asks, so that a search may be killed, and shared."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from pipeline.errors import ConfigError, first_line
from pipeline.sweeps.space import Space, grid_of
from pipeline.sweeps.study import Options, place_of


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
