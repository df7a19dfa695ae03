"""Composition: what Hydra makes of a command line, and sentences for what it cannot make of it."""

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
# Hydra lets some of Python's own through, such as for `model=null`.
COMPOSE_ERRORS = (*HYDRA_ERRORS, TypeError, ValueError, AttributeError, AssertionError)


def plain_values(cfg: DictConfig) -> dict[str, Any]:
    """Return a configuration without its `hydra` section as plain values, interpolations resolved.

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
    """What Hydra decides for a job.

    Attributes:
        output_dir: The directory for what the job writes, absolute.
        overrides: The overrides of the command line.
    """

    output_dir: Path
    overrides: Sequence[str]


def job_of(cfg: DictConfig) -> Job | None:
    """Return what Hydra decides for the job of a configuration; `None` where there is no job yet.

    A single job is checked before Hydra starts it, with the `hydra` section in its configuration. From a job
    of a sweep, Hydra takes the section out and keeps it. While a sweep checks all of its trials, none has a
    directory.
    """
    if "hydra" in cfg:
        HydraConfig.instance().set_config(cfg)  # `hydra.run.dir` may ask for `hydra:runtime.choices`.
        return Job(Path(cfg.hydra.run.dir).absolute(), list(cfg.hydra.overrides.task))
    section = HydraConfig.get() if HydraConfig.initialized() else None
    if section is None or OmegaConf.is_missing(section.runtime, "output_dir"):
        return None
    return Job(Path(section.runtime.output_dir), list(section.overrides.task))


@contextmanager
def hydra_app(arguments: argparse.Namespace) -> Iterator[Hydra]:
    """Give the Hydra application that a command line asks for, and forget it afterwards.

    Raises:
        ConfigError: `--config-dir` names no folder.
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
    """Compose a configuration and check it; return it with what `check` returned.

    Raises:
        ConfigError: With every override that does not fit, and all that is wrong with the rest.
    """
    try:
        composed = compose(app, config_name, overrides)
    except COMPOSE_ERRORS as error:
        # Each of them once: it takes a tenth of a second.
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
    """Compose a configuration, its `hydra` section included."""
    return app.compose_config(
        config_name=config_name,
        overrides=list(overrides),
        run_mode=RunMode.RUN,
        with_log_configuration=False,
    )


def _explain_each(
    app: Hydra, composing: Callable[..., DictConfig], overrides: Sequence[str], error: Exception
) -> tuple[list[str], list[str]]:
    """Return the overrides that fit, and a sentence for each that fails when added to them.

    Choices of a group come first, because they decide which keys exist.

    Args:
        app: Knows the groups.
        composing: Composes with the overrides given.
        overrides: They cannot be composed together.
        error: Why.
    """

    def is_group(override: str) -> bool:
        key = override.lstrip("+~").partition("=")[0]
        return bool(hydra_internals.options(app, key))

    problems: list[str] = []
    accepted: list[str] = []

    def split(candidates: Sequence[str], error: Exception) -> None:
        """Halve candidates that do not fit, since most do and composing takes time."""
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
    *parents, _ = key.split(".")
    node = OmegaConf.select(known, ".".join(parents)) if parents else known
    if isinstance(node, DictConfig) and key.split(".")[-1] not in node:
        return unknown(key, key.split(".")[-1], [k for k in node if k != "hydra"], what="key")
    if isinstance(node, DictConfig):
        return f"{override} does not fit: {said}"
    return unknown(key, parents[0], [k for k in known if k != "hydra"], what="key")


def in_one_line(error: BaseException) -> str:
    """Return what an error and those that caused it say."""
    said = " ".join(str(error).split())
    return said if error.__cause__ is None else f"{said} {in_one_line(error.__cause__)}".strip()


def help_text(app: Hydra, config_name: str, overrides: Sequence[str]) -> str:
    """Return the help of a command: the template in its configuration, filled in as Hydra does."""
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
