"""Every experiment file composes, and is a configuration that can be run."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from pipeline.cli import composition
from pipeline.config import checks
from pipeline.sweeps.space import space_of

EXPERIMENTS = sorted(path.stem for path in (Path(checks.__file__).parents[2] / "conf/experiment").glob("*"))
assert EXPERIMENTS, "a test without cases passes whatever the files say"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_a_whole_configuration(name: str) -> None:
    with initialize_config_module("conf", version_base="1.3"):
        composed = compose("config", [f"experiment={name}"], return_hydra_config=True)
    values = composition.plain_values(
        OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    )
    settings = checks.check(values)
    assert settings.resolved["model"]["_target_"].startswith(f"models.{name.removeprefix('sweep_')}.")
    if name.startswith("sweep_"):
        assert composed.hydra.mode == RunMode.MULTIRUN
        params = [f"{key}={value}" for key, value in composed.hydra.sweeper.params.items()]
        space = space_of(OverridesParser.create().parse_overrides(params))
        for corner in space.corners():
            with initialize_config_module("conf", version_base="1.3"):
                checks.check(composition.plain_values(compose("config", [f"experiment={name}", *corner])))


def test_there_is_one_for_each_model_and_a_sweep() -> None:
    """Except for `model=keras`: what is good for it depends on the network."""
    models = [path.stem for path in (Path(checks.__file__).parents[2] / "conf" / "model").glob("*.yaml")]
    models.remove("keras")
    assert sorted([*models, *(f"sweep_{name}" for name in models)]) == EXPERIMENTS
