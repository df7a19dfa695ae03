"""All uses of Hydra's private modules, each with the reason why no public function will do.

A release of Hydra may change `hydra._internal` without notice. Then this module fails, and no other.
`make latest` runs the tests against the newest releases, so that such a change is seen early.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.types import HydraContext
from omegaconf import DictConfig

__all__ = ["Hydra", "argument_parser", "groups", "job_context", "new_app", "options", "search_path"]


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of Hydra's own flags.

    `hydra.main` parses the command line and runs the job in one go; a command checks its configuration
    between the two, before Hydra makes the output directory.
    """
    return get_args_parser()


def search_path(primary: str) -> ConfigSearchPath:
    """Return the search path of configuration files that begins with `primary`, such as `pkg://conf`."""
    return create_config_search_path(primary)


def new_app(path: ConfigSearchPath) -> Hydra:
    """Return a Hydra application that can run jobs; one of `hydra.initialize` can only compose."""
    return Hydra.create_main_hydra2(task_name="pipeline", config_search_path=path)


def options(app: Hydra, group: str) -> list[str]:
    """Return the choices of a group; none if there is no such group.

    The public `ConfigLoader.get_group_options` copies the whole repository in each call, which takes a
    millisecond. An error message calls it for every override, and `--help` for every group.
    """
    return [str(option) for option in _repository(app).get_group_options(group)]


def groups(app: Hydra, parent: str = "") -> Iterator[str]:
    """Yield the groups of an application, also those inside of groups, without Hydra's own."""
    for name in _repository(app).get_group_options(parent, ObjectType.GROUP):
        group = f"{parent}/{name}" if parent else name
        if group != "hydra":
            yield group
            yield from groups(app, group)


def _repository(app: Hydra) -> IConfigRepository:
    assert isinstance(app.config_loader, ConfigLoaderImpl)
    return app.config_loader.repository


def job_context(config: DictConfig) -> Any:
    """Return the context that Hydra's `run_job` needs in a process without a Hydra application."""
    return HydraContext(config_loader=None, callbacks=Callbacks(config))  # type: ignore[arg-type]
