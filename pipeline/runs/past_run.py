"""Reading a run for a later command, such as `pipeline.evaluate`, without trusting its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import runtime
from pipeline.config import binding
from pipeline.config.schema import Best, Train, Verify
from pipeline.errors import ConfigError, DamagedError
from pipeline.runs import checksums
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import Row
from pipeline.runs.policy import Policy

if TYPE_CHECKING:
    from data.base import Source


TRUSTED = ("data",)
"""Packages whose classes a recorded configuration may name."""


@dataclass(frozen=True)
class Recorded:
    """A run and its configuration, in which a later command may have replaced some keys.

    Attributes:
        run: The run's directory.
        facts: The content of `run.json`.
        rows: The rows of the log.
        source: The data source, constructed.
        verify: See `pipeline.config.schema.Verify`.
        best: See `pipeline.config.schema.Best`.
        train: See `pipeline.config.schema.Train`.
        kept: The epochs whose checkpoints are kept.
        trust: Further packages and operations that the user trusts.
    """

    run: RunDirectory
    facts: Mapping[str, Any]
    rows: Sequence[Row]
    source: Source
    verify: Verify
    best: Best
    train: Train
    kept: set[int]
    trust: Sequence[str]

    def start_tensorflow(self) -> None:
        """Start TensorFlow as the training started it: another setting would compute other bits."""
        runtime.start_tensorflow(
            seed=int(self.facts["seed"]),
            deterministic=bool(self.facts["config"]["train"]["deterministic"]),
            rewrites=bool(self.facts.get("rewrites", True)),
        )


def read(
    run_dir: Path,
    *,
    data: Mapping[str, Any],
    verify: Mapping[str, Any],
    best: Mapping[str, Any] | None = None,
    trust: Sequence[str] = (),
) -> Recorded:
    """Read a run, and replace keys of its configuration.

    The run is not trusted: the checksums of its files are checked, and a class that it names is imported
    only from the package `data` or from a package in `trust`.

    Args:
        run_dir: The run's directory.
        data: Keys that replace those of the recorded section `data`.
        verify: Keys that replace those of the recorded section `verify`.
        best: Keys that replace those of the recorded section `best`.
        trust: Further packages whose classes may be imported, and operations that the graph may have.

    Raises:
        ConfigError: The directory has no run or no logged epoch, or a key does not fit its section.
        DamagedError: `run.json`, the log or the graph is damaged.
    """
    run = RunDirectory(run_dir)
    facts = run.read_facts()
    rows = run.read_rows()
    if changed := checksums.problems(run.path, facts["files"]):
        raise DamagedError(*changed)
    sections = facts["config"]
    problems: list[str] = []
    bound_verify = binding.bind(Verify, {**sections["verify"], **verify}, "verify.", problems)
    bound_best = binding.bind(Best, {**sections["best"], **(best or {})}, "best.", problems)
    # Which checkpoints the run has kept depends on its own `best`, not on the one that is given now.
    bound_train = binding.bind(Train, sections["train"], "train.", problems)
    own_best = binding.bind(Best, sections["best"], "best.", problems)
    values = {**sections["data"], **data}
    if "download" in values and not {"download", "url"} & data.keys():
        # The run would decide from where to download, and to which folder.
        values["download"] = False
    # A class that the user names now is the user's choice. One that the run names may be a stranger's.
    if "_target_" not in data:
        problems += _untrusted(values, [*TRUSTED, *trust])
    if problems:
        raise ConfigError(*problems)
    source, _ = binding.construct(values, "data", problems)
    # A class of ours may call a function of the user's, which the run names as well.
    for package in getattr(source, "packages", ()):
        if package not in trust:
            problems.append(
                f"The data of this run calls a function of the package {package}. If it is yours, add "
                f"trust=[{package}]."
            )
    if problems:
        raise ConfigError(*problems)
    train = Train(**bound_train)
    policy = Policy(train, Best(**own_best), sections.get("epoch"))
    return Recorded(
        run, facts, rows, source, Verify(**bound_verify), Best(**bound_best), train, policy.kept(rows), trust
    )


def _untrusted(values: Mapping[str, Any], trusted: Sequence[str]) -> Iterator[str]:
    """Yield a sentence if a recorded section names a class of a package that is not trusted."""
    target = str(values.get("_target_"))
    if not any(target.startswith(f"{package}.") for package in trusted):
        package = target.partition(".")[0]
        yield (
            f"data._target_ must be in a package that is trusted: {', '.join(trusted)}. Received: {target}. "
            f"If it is yours, add trust=[{package}]."
        )


def given(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a section whose value is not `None`, with their values."""
    return {key: value for key, value in section.items() if value is not None}
