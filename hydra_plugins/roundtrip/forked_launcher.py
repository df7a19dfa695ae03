"""`hydra/launcher=forked`: each job in a fresh process that has TensorFlow imported already.

Hydra executes this module for every command, outside `sys.modules`: it imports little, and its annotations
cannot be looked up later.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class ForkedLauncherConf:
    """The section `hydra.launcher`.

    Attributes:
        n_jobs: Jobs at a time; `None` is one for each core.
        timeout_secs: Time after which a job is ended.
        memory_limit_mb: Memory beyond which a job is ended.
    """

    _target_: str = "hydra_plugins.roundtrip.forked_launcher.ForkedLauncher"
    n_jobs: int | None = None
    timeout_secs: float | None = None
    memory_limit_mb: float | None = None


ConfigStore.instance().store(
    group="hydra/launcher", name="forked", node=ForkedLauncherConf, provider="roundtrip"
)


class ForkedLauncher(Launcher):
    """Runs the jobs of a sweep in processes of their own, and writes down what became of each."""

    def __init__(self, n_jobs: int | None, timeout_secs: float | None, memory_limit_mb: float | None) -> None:
        """Take what `runner.limits_of` reads."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra gives."""
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs that the sweep's directory does not hold already."""
        from pipeline.sweeps import runner  # Not for every command that Hydra looks for plugins for.

        configs: list[Any] = [
            self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            for overrides in job_overrides
        ]
        return runner.launch(self.task_function, configs, runner.limits_of(self.config))
