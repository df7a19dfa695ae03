"""Search spaces: what the overrides of a command line state by `choice`, `range` and `interval`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from pipeline.errors import ConfigError

MAX_GRID = 10_000
"""Combinations that a grid may have, at most."""


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
