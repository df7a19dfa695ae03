"""Studies: opened, and held to be of the search that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from omegaconf import OmegaConf
from optuna.trial import TrialState

from pipeline.errors import ConfigError
from pipeline.sweeps import study as studies
from pipeline.sweeps.study import identity_of
from tests.pipeline.sweeps.jobs import LOSS
from tests.pipeline.sweeps.searching import SAMPLERS, SPACE, open_search, space_of, work


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "PAUSE_SECS", 0.0)


class TestStudy:
    def test_of_another_search(self, tmp_path: Path) -> None:
        open_search(tmp_path)
        open_search(tmp_path, n_trials=99, sampler=SAMPLERS["tpe"], seed=4)
        with pytest.raises(ConfigError, match="another search, or its configuration or data have changed"):
            open_search(tmp_path, space_of("y=1,2"))

    def test_that_cannot_be_reached(self, tmp_path: Path) -> None:
        with pytest.raises(
            ConfigError, match=r"hydra.sweeper.storage must be a database that can be reached"
        ):
            open_search(tmp_path, storage="sqlite:////nowhere/at/all.db", study_name="s")

    def test_without_a_name(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="study_name must be given with"):
            open_search(tmp_path, storage="sqlite://")

    def test_several_metrics_cannot_be_pruned_by(self, tmp_path: Path) -> None:
        pruner = optuna.pruners.MedianPruner()
        params = {"objectives": [*LOSS, ("accuracy", "maximize")]}
        with pytest.raises(ConfigError, match="pruner must be none where sweep.metric has several"):
            open_search(tmp_path, pruner=pruner, params=params)

    def test_a_ledger_of_another_study_says_nothing_of_this_one(self, tmp_path: Path) -> None:
        first = open_search(tmp_path, storage=f"sqlite:///{tmp_path}/a.db", study_name="s", seed=1)
        assert work(first, 2) == 2
        second = open_search(tmp_path, storage=f"sqlite:///{tmp_path}/b.db", study_name="s", seed=2)
        asked = second.study.ask(dict(SPACE.distributions))
        again = open_search(tmp_path, storage=f"sqlite:///{tmp_path}/b.db", study_name="s", seed=2)
        assert again.study.trials[asked.number].state == TrialState.RUNNING

    def test_what_tells_configurations_apart(self) -> None:
        def identity(is_shared: bool = False, **changes: Any) -> str:
            values: dict[str, Any] = {
                "model": {"units": 3, "depth": 1},
                "data": {"_target_": "a", "path": "/here", "batch_size": 3},
                "hydra": {"x": 1},
            }
            for key, value in changes.items():
                section, _, name = key.partition("__")
                values[section][name] = value
            corners = [OmegaConf.create({**values, "corner": number}) for number in range(2)]
            return identity_of(corners, is_shared=is_shared)

        assert identity(hydra__x=2) == identity()
        for other in ({"model__depth": 2}, {"data__batch_size": 4}, {"data___target_": "b"}):
            assert identity(**other) != identity()
            assert identity(True, **other) != identity(True)
        assert identity(data__path="/there") != identity()
        assert identity(True, data__path="/there") == identity(True)
