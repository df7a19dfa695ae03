"""Going on with a run: the check that its configuration is the same, and the work that is left."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

import conf
from pipeline.cli.quoting import override as override_of
from pipeline.config.formats import FORMATS
from pipeline.config.schema import Export, Settings, Train
from pipeline.errors import ConfigError, DamagedError, RoundtripError
from pipeline.formats.manifest import read_manifest
from pipeline.runs import checksums
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import Row
from pipeline.runs.policy import Policy, select_rows

KEY = "train.resume"
MAY_DIFFER = (KEY, "train.epochs", "train.max_seconds", "train.checkpoint_secs", "trust")

CODE = (
    "data.function",
    "model.network",
    "model.signatures",
    "model.loss",
    "model.metrics",
    "model.weighted_metrics",
)
"""Keys whose values may be paths of functions, or of a `.keras` file, which holds code, too."""

LATER = ("export.skip_unsupported",)
"""Keys that runs of earlier versions did not record."""

ADDED = {f"train.{one.name}": one.default for one in fields(Train) if one.default is not MISSING}
"""Further such keys, with what runs of earlier versions did."""


def check(run: RunDirectory, settings: Settings) -> None:
    """Check that a run with a configuration can start, or go on, in a directory.

    Raises:
        BusyError: Another process writes to the directory.
        ConfigError: The directory has files of something else, or a run with another configuration: the
            message names every key that differs. Or `train.resume` names another or no run.
        DamagedError: The log cannot be read, or `run.json` is damaged.
    """
    resumed = settings.train.resume
    if resumed is not None and resumed.resolve() != run.path.resolve():
        raise ConfigError(f"{KEY} is where the run goes on: {resumed}. Received also: {run.path}.")
    if resumed is not None and not run.log.exists():
        raise ConfigError(f"{KEY} must be the directory of a run that has begun. Received: {resumed}.")
    run.check_usable()
    if not run.read_lines():
        return
    recorded = run.read_facts()["config"]
    # Through JSON, as the recorded configuration went: otherwise a tuple would differ from its own list.
    before, now = dict(_leaves(recorded)), dict(_leaves(json.loads(json.dumps(settings.resolved))))
    before, now = {**ADDED, **before}, {**ADDED, **now}
    problems = [
        f"{key} must be {before.get(key)!r}, as in the run in {run.path}. Received: {now.get(key)!r}. "
        "Choose another hydra.run.dir for another configuration."
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in MAY_DIFFER and (key in before or key not in LATER)
    ]
    if settings.train.epochs < recorded["train"]["epochs"]:
        problems.append(
            f"train.epochs may only be raised, from {recorded['train']['epochs']}, in the run in {run.path}. "
            f"Received: {settings.train.epochs}."
        )
    if problems:
        raise ConfigError(*problems)


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def arguments(run_dir: Path, settings: Settings) -> str:
    """Return the arguments with which a run goes on: `train.resume`, and the trust that its code needs."""
    given = OverridesParser.create().parse_overrides(list(settings.overrides))
    trusted = sorted({*settings.trust, *(package for one in given for package in _packages(one))})
    trust = [shlex.quote(f"trust=[{','.join(trusted)}]")] if trusted else []
    return " ".join([override_of(KEY, run_dir), *trust])


def with_recorded(overrides: Sequence[str], config_dir: str | None = None) -> list[str]:
    """Return the overrides of a command line, after those that the run to resume has recorded, if any.

    So `train.resume=RUN` alone is enough to go on. An override that is given now replaces a recorded one.

    Args:
        overrides: The overrides of the command line.
        config_dir: The folder of further choices that the command line names.

    Raises:
        ConfigError: The run was begun with a choice from a folder that is not named now, or with code of a
            package that is not trusted.
    """
    parser = OverridesParser.create()
    try:
        given = {override.key_or_group: override for override in parser.parse_overrides(list(overrides))}
    except HydraException:  # Composing will fail, too, and explain which override is wrong.
        return list(overrides)
    if KEY not in given or given[KEY].value() is None:
        return list(overrides)
    run = RunDirectory(Path(str(given[KEY].value())).expanduser())
    try:
        recorded = parser.parse_overrides(list(map(str, run.read_facts()["overrides"])))
    except (RoundtripError, HydraException):  # `check` will report that `run.json` is missing or damaged.
        return list(overrides)
    left = [override for override in recorded if override.key_or_group not in given and _is_plain(override)]
    trusted: Any = given["trust"].value() if "trust" in given else None
    for override in left:
        if unknown := _packages(override) - {*(trusted or [])}:
            raise ConfigError(
                f"{KEY}={run.path} was begun with {override.input_line}, which is code. If it is yours, add "
                f"trust=[{','.join(sorted(unknown))}], or give it again."
            )
    kept = [str(override.input_line) for override in left]
    _check_choices(kept, config_dir, run)
    return [*kept, *overrides]


def _check_choices(overrides: Sequence[str], config_dir: str | None, run: RunDirectory) -> None:
    """Check that there is a file for each recorded choice, in `conf` or in the folder of the command line."""
    folders = [Path(conf.__path__[0]), *([Path(config_dir)] if config_dir else [])]
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        group, value = override.key_or_group.partition("@")[0], override.value()
        is_group = any((folder / group).is_dir() for folder in folders)
        for choice in value if isinstance(value, list) else [value]:
            is_there = any((folder / group / f"{choice}.yaml").is_file() for folder in folders)
            if is_group and choice is not None and not is_there:
                raise ConfigError(
                    f"{KEY}={run.path} needs the folder of {override.input_line}, with which the run was "
                    "begun: give it again, --config-dir=DIR."
                )


def _packages(override: Override) -> set[str]:
    """Return the packages of the functions that an override names, and the `.keras` files."""
    key = override.key_or_group
    if not any(key == code or key.startswith(f"{code}.") for code in CODE):
        return set()
    # `model.loss.module=os` says the same as `model.loss={module: os}`.
    return set(_code_in({key.rpartition(".")[2]: override.value()}))


def _code_in(value: Any) -> Iterator[str]:
    """Yield the packages that a value of `CODE` names, and its `.keras` files.

    Keras imports the `module` of a section such as `{class_name: Focal, module: mine, config: {}}`, however
    deep it lies in the `config` of another.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "module":
                yield str(item).partition(".")[0]
            else:
                yield from _code_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from _code_in(item)
    elif isinstance(value, str) and "." in value:
        yield value if value.endswith(".keras") else value.partition(".")[0]


def _is_plain(override: Override) -> bool:
    """Return whether an override does no more than to set a value or to choose one of a group.

    A run may come from a stranger. So recorded overrides must not choose a class (`_target_`), resolve an
    interpolation, trust anything, load a configuration from elsewhere, or change a setting of Hydra.
    """
    key, line = override.key_or_group, str(override.input_line)
    if key in (KEY, "trust") or re.split("[./@]", key)[0] == "hydra" or "_target_" in line or "${" in line:
        return False
    return "." in key or not {*r"/\:"} & {*line}


def unexported(run: RunDirectory, rows: Sequence[Row], export: Export) -> Export:
    """Return the section `export` with only those formats that have no whole export of some epochs yet.

    Formats that cannot hold the model, as the rehearsal found, are not among them.

    Args:
        run: The run.
        rows: The rows of the epochs.
        export: The section with all formats that are wanted.
    """
    wanted = sorted(row.epoch for row in rows)

    def is_there(name: str) -> bool:
        newest = run.newest_export(name)
        if newest is None:
            return False
        try:
            manifest = read_manifest(newest)
        except DamagedError:
            return False
        quantization = export.quantization_of(FORMATS[name])
        is_asked_for = list(manifest.epochs) == wanted and manifest.quantization == quantization
        return is_asked_for and not checksums.problems(newest, manifest.files)

    skipped = run.read_facts().get("skipped", {}) if export.skip_unsupported else {}
    return export.without([name for name in export.chosen if name in skipped or is_there(name)])


def verdict(run: RunDirectory, settings: Settings, rows: Sequence[Row]) -> str | None:
    """Return the verdict of a run that has nothing left to do, otherwise `None`.

    Nothing is left to do if all epochs are trained and kept, all exports are written, and all are verified.
    """
    policy = Policy(settings.train, settings.best, settings.epoch)
    if not rows or not policy.is_complete(rows):
        return None
    chosen = select_rows(rows, settings.epoch, settings.best, policy.kept(rows))
    if unexported(run, chosen, settings.export).chosen:
        return None
    kept = policy.kept(rows)
    # Not before TensorFlow is needed: the module imports NumPy, which a mistyped key need not wait for.
    from pipeline.verification import receipt as receipts

    receipt = receipts.read_if_whole(run.verification)
    if receipt is None or not kept <= {found.epoch for found in receipt.epochs}:
        return None
    try:
        for row in rows:
            if row.epoch in kept:
                run.check_row(row)
    except DamagedError:  # The run is then verified once more, and the verification reports the file.
        return None
    verified = {export.artifact for export in receipt.exports}
    newest = [run.newest_export(name) for name in settings.export.chosen]
    if not {str(path.relative_to(run.path)) for path in newest if path} <= verified:
        return None
    return receipt.verdict
