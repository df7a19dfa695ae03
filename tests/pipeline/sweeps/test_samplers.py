"""Samplers: every trial draws from its own seed, whoever asks."""

from __future__ import annotations

import functools
from pathlib import Path

import optuna
import pytest

from pipeline.errors import ConfigError
from pipeline.sweeps.samplers import make_sampler
from tests.pipeline.sweeps.searching import SAMPLERS, SPACE, found, open_search, options, work


def test_a_sampler_that_does_not_take_its_options() -> None:
    sampler = functools.partial(SAMPLERS["random"], sead=1)
    with pytest.raises(ConfigError, match=r"hydra.sweeper.sampler must be what Optuna takes. .*sead"):
        make_sampler(options(sampler=sampler), SPACE)


@pytest.mark.parametrize("pruner", ["hyperband", "none"])
def test_no_two_trials_have_the_same_seed(tmp_path: Path, pruner: str) -> None:
    made = optuna.pruners.HyperbandPruner(max_resource=9) if pruner == "hyperband" else None
    work(open_search(tmp_path, n_trials=20, pruner=made))
    assert len(set(found(tmp_path))) == 20
