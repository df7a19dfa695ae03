"""Every experiment file composes, and is a configuration that can be run."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from pipeline import composition, config

EXPERIMENTS = sorted(path.stem for path in (Path(config.__file__).parents[1] / "conf/experiment").glob("*"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_a_whole_configuration(name: str) -> None:
    with initialize_config_module("conf", version_base="1.3"):
        settings = config.check(composition.plain_values(compose("config", [f"experiment={name}"])))
    assert settings.resolved["model"]["_target_"].startswith(f"models.{name}.")


def test_there_is_one_for_each_model() -> None:
    models = (Path(config.__file__).parents[1] / "conf" / "model").glob("*.yaml")
    assert sorted(path.stem for path in models) == EXPERIMENTS
