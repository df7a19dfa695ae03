"""Composing the configuration of a command line with Hydra, and explaining why that fails."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import hydra
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.cli import hydra_internals
from pipeline.cli.hydra_internals import Hydra
from pipeline.errors import ConfigError, RoundtripError, unknown

CONF = "pkg://conf"
HYDRA_ERRORS = (HydraException, OmegaConfBaseException)
# Hydra does not catch all of Python's own exceptions: `model=null`, for instance, raises one.
COMPOSE_ERRORS = (*HYDRA_ERRORS, TypeError, ValueError, AttributeError, AssertionError)


def plain_values(cfg: DictConfig) -> dict[str, Any]:
    """Return a configuration as plain values, with interpolations resolved, without the section `hydra`.

    Raises:
        ConfigError: An interpolation cannot be resolved.
    """
    keys = [str(key) for key in cfg if key != "hydra"]
    try:
        plain = OmegaConf.to_container(OmegaConf.masked_copy(cfg, keys), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


class Job(NamedTuple):
    """The facts about a job that are Hydra's to decide.

    Attributes:
        output_dir: The output directory of the job, absolute.
        overrides: The overrides of the job.
    """

    output_dir: Path
    overrides: Sequence[str]


def job_of(cfg: DictConfig) -> Job | None:
    """Return the output directory and the overrides of a job; `None` if there is no job yet.

    There are three cases. A single job is checked before Hydra starts it, and its configuration still has the
    section `hydra`. For a job of a sweep, Hydra has moved that section to `HydraConfig`. And while a sweep
    checks all of its trials, none of them has a directory yet.
    """
    if "hydra" in cfg:
        # `hydra.run.dir` may have interpolations such as `${hydra:runtime.choices.model}`: they look there.
        HydraConfig.instance().set_config(cfg)
        return Job(Path(cfg.hydra.run.dir).absolute(), list(cfg.hydra.overrides.task))
    section = HydraConfig.get() if HydraConfig.initialized() else None
    if section is None or OmegaConf.is_missing(section.runtime, "output_dir"):
        return None
    return Job(Path(section.runtime.output_dir), list(section.overrides.task))


@contextmanager
def hydra_app(arguments: argparse.Namespace) -> Iterator[Hydra]:
    """Yield the Hydra application for a command line; Hydra's global state is cleared at the end.

    Raises:
        ConfigError: `--config-path` or `--config-dir` does not name a folder, or `--experimental-rerun` is
            given.
    """
    if arguments.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun is not supported. Repeat the run's own command.")
    for flag in ("config_path", "config_dir"):
        folder = getattr(arguments, flag)
        if folder is not None and "://" not in folder and not Path(folder).is_dir():
            raise ConfigError(f"--{flag.replace('_', '-')} must name a folder. Not found: {folder}.")
    hydra.version.setbase("1.3")
    search_path = hydra_internals.search_path(_as_url(arguments.config_path or CONF))
    if arguments.config_dir is not None:
        path = _as_url(arguments.config_dir)
        search_path.prepend("command-line", path, SearchPathQuery(provider="schema"))
    try:
        yield hydra_internals.new_app(search_path)
    finally:
        GlobalHydra.instance().clear()


def _as_url(folder: str) -> str:
    return folder if "://" in folder else f"file://{Path(folder).absolute()}"


def compose_and_check(
    app: Hydra, config_name: str, overrides: Sequence[str], check: Callable[[DictConfig], Any]
) -> tuple[DictConfig, Any]:
    """Compose a configuration and check it.

    Hydra reports the first override that fails. This function reports all of them, and the problems that
    `check` finds in a configuration of the others, so that a user mends them in one go.

    Returns:
        The configuration, and the result of `check`.

    Raises:
        ConfigError: Overrides do not fit.
        RoundtripError: Whatever `check` raises.
    """
    try:
        composed = compose(app, config_name, overrides)
    except COMPOSE_ERRORS as error:
        # Composing takes a tenth of a second, and the same overrides are needed several times.
        composing = functools.cache(lambda *accepted: compose(app, config_name, accepted))
        accepted, problems = _explain_each(app, composing, overrides, error)
        if not problems:
            raise ConfigError(in_one_line(error)) from error
        try:
            check(composing(*accepted))
        except RoundtripError as other:
            problems += other.problems
        raise ConfigError(*problems) from error
    return composed, check(composed)


def compose(app: Hydra, config_name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose a configuration, with its section `hydra`."""
    return app.compose_config(
        config_name=config_name,
        overrides=list(overrides),
        run_mode=RunMode.RUN,
        with_log_configuration=False,
    )


def _explain_each(
    app: Hydra, composing: Callable[..., DictConfig], overrides: Sequence[str], error: Exception
) -> tuple[list[str], list[str]]:
    """Return the overrides that can be composed together, and a sentence for each that cannot.

    Choices of a group are tried first, because they decide which keys exist.

    Args:
        app: The application, which knows the groups.
        composing: Composes a configuration from the overrides that it is given.
        overrides: Overrides that cannot be composed together.
        error: The error that Hydra raised for all of them.
    """

    def is_group(override: str) -> bool:
        key = override.lstrip("+~").partition("=")[0]
        return bool(hydra_internals.options(app, key))

    problems: list[str] = []
    accepted: list[str] = []

    def split(candidates: Sequence[str], error: Exception) -> None:
        """Search candidates by halves: most of them fit, so that takes less time than one by one."""
        if len(candidates) == 1:
            problems.append(_explain(app, composing, accepted, candidates[0], error))
            return
        half = len(candidates) // 2
        for part in (candidates[:half], candidates[half:]):
            try:
                composing(*accepted, *part)
            except COMPOSE_ERRORS as other:
                split(part, other)
            else:
                accepted.extend(part)

    if overrides:
        split(sorted(overrides, key=is_group, reverse=True), error)
    return accepted, problems


def _explain(
    app: Hydra,
    composing: Callable[..., DictConfig],
    accepted: Sequence[str],
    override: str,
    error: Exception,
) -> str:
    said = in_one_line(error)
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        name, _, text = override.partition("=")
        return f"{override} is not an override that can be read: {said}. Try to quote it: '{name}=\"{text}\"'"
    key = parsed.key_or_group
    if parsed.is_sweep_override():
        return f"{override} names several values. Add --multirun (-m) to run them all."
    if options := hydra_internals.options(app, key):
        value: Any = parsed.value()
        chosen = value if isinstance(value, list) else [value]
        bad = [value for value in chosen if value not in options]
        return unknown(key, ", ".join(map(str, bad)), options) if bad else said
    try:
        known = composing(*accepted)
    except COMPOSE_ERRORS:
        return said
    # The key itself may be what is wrong, so look it up in the configuration without this override.
    *parents, _ = key.split(".")
    node = OmegaConf.select(known, ".".join(parents)) if parents else known
    if isinstance(node, DictConfig) and key.split(".")[-1] not in node:
        return unknown(key, key.split(".")[-1], [k for k in node if k != "hydra"], what="key")
    if isinstance(node, DictConfig):
        return f"{override} does not fit: {said}"
    return unknown(key, parents[0], [k for k in known if k != "hydra"], what="key")


def in_one_line(error: BaseException) -> str:
    """Return the message of an error and of the errors that caused it, in one line."""
    said = " ".join(str(error).split())
    return said if error.__cause__ is None else f"{said} {in_one_line(error.__cause__)}".strip()


def help_text(app: Hydra, config_name: str, overrides: Sequence[str]) -> str:
    """Return the help of a command: the template `hydra.help.template`, filled in as Hydra does."""
    composed = compose(app, config_name, overrides)
    HydraConfig.instance().set_config(composed)
    choices = {
        group: sorted(hydra_internals.options(app, group)) for group in sorted(hydra_internals.groups(app))
    }
    keys = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    return Template(composed.hydra.help.template).substitute(
        APP_CONFIG_GROUPS="".join(
            f"{group}: {', '.join(names)}\n" for group, names in choices.items() if names
        ),
        CONFIG=OmegaConf.to_yaml(keys),
    )
