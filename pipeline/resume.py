"""Going on with a run: the check that its configuration is the same, and the work that is left."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from pipeline.config.formats import FORMATS
from pipeline.config.schema import Export, Settings
from pipeline.errors import ConfigError, DamagedError, RoundtripError
from pipeline.formats.manifest import read_manifest
from pipeline.runs import checksums
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import Row
from pipeline.runs.policy import Policy, select_rows

KEY = "train.resume"
MAY_DIFFER = (KEY, "train.epochs")


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
    problems = [
        f"{key} must be {before.get(key)!r}, as in the run in {run.path}. Received: {now.get(key)!r}. "
        "Choose another hydra.run.dir for another configuration."
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in MAY_DIFFER
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


def with_recorded(overrides: Sequence[str]) -> list[str]:
    """Return the overrides of a command line, after those that the run to resume has recorded, if any.

    So `train.resume=RUN` alone is enough to go on. An override that is given now replaces a recorded one.

    Args:
        overrides: The overrides of the command line.
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
    kept = [
        str(override.input_line)
        for override in recorded
        if override.key_or_group not in given and _is_plain(override)
    ]
    return [*kept, *overrides]


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

    return replace(export, formats={name: not is_there(name) for name in export.chosen})


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
