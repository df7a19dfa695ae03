"""`hydra/sweeper=optuna`: a search by Optuna, whose trials run in processes of their own.

Hydra executes this module for every command, outside `sys.modules`: it imports little, and its annotations
cannot be looked up later.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

PACKAGES = ("optuna", "cmaes")
"""What the extra `sweep` installs."""

SAMPLERS: dict[str, dict[str, Any]] = {
    "tpe": {
        "_target_": "optuna.samplers.TPESampler",
        "n_startup_trials": 8,
        "constant_liar": True,
        "multivariate": True,  # values that are good together, such as an optimizer and its learning rate
    },
    "cmaes": {
        "_target_": "optuna.samplers.CmaEsSampler",
        "n_startup_trials": 5,
        "warn_independent_sampling": False,  # of choices, which it leaves to chance
    },
    "random": {"_target_": "optuna.samplers.RandomSampler"},
    "grid": {"_target_": "pipeline.sweeps.samplers.Grid"},
    "nsga2": {"_target_": "optuna.samplers.NSGAIISampler", "population_size": 10},
}
PRUNERS: dict[str, dict[str, Any]] = {
    "none": {},
    "median": {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 4, "n_warmup_steps": 2},
    "hyperband": {"_target_": "optuna.pruners.HyperbandPruner", "min_resource": 1, "reduction_factor": 3},
}


@dataclass
class OptunaSweeperConf:
    """The section `hydra.sweeper`.

    Attributes:
        n_trials: Trials in all, those of earlier calls with the same sweep directory included.
        seed: Of the sampler.
        params: What to search, by key, as on the command line, such as `tag(log, interval(1e-4, 1e-1))`.
        storage: A database as a URL; `None` is a file in the sweep directory.
        study_name: Name of the study in it.
        grace_secs: A process that works on the same study and is not heard of for so long is taken for dead.
    """

    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"sampler": "tpe"}, {"pruner": "none"}])
    _target_: str = "hydra_plugins.roundtrip.optuna_sweeper.OptunaSweeper"
    _recursive_: bool = False
    n_trials: int = 20
    seed: int = 0
    params: dict[str, Any] = field(default_factory=dict)
    storage: str | None = None
    study_name: str | None = None
    grace_secs: float = 60.0
    sampler: Any = None
    pruner: Any = None


store = ConfigStore.instance()
store.store(group="hydra/sweeper", name="optuna", node=OptunaSweeperConf, provider="roundtrip")
for name, sampler in SAMPLERS.items():
    node = {**sampler, "_partial_": True}
    store.store(group="hydra/sweeper/sampler", name=name, node=node, provider="roundtrip")
for name, pruner in PRUNERS.items():
    store.store(group="hydra/sweeper/pruner", name=name, node=pruner, provider="roundtrip")


class OptunaSweeper(Sweeper):
    """Asks an Optuna study which trial to run next, as soon as there is room for one."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra gives."""
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def sweep(self, arguments: list[str]) -> Any:
        """Run the trials that the study still lacks."""
        # Not for every command that Hydra looks for plugins for.
        from pipeline.config.formats import lacks
        from pipeline.errors import ConfigError

        if problem := lacks("hydra/sweeper=optuna", "sweep", PACKAGES):
            raise ConfigError(problem)
        from pipeline.sweeps import search

        return [search.sweep(self.hydra_context, self.task_function, self.config, self.options, arguments)]
