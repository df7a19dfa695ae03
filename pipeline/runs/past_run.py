"""What a run recorded of itself, as the commands that come back to it need it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    """A run, and what a later command gives instead of what it recorded.

    Attributes:
        run: The run's directory.
        facts: Its `run.json`.
        rows: Its log.
        source: Its data source, constructed.
        verify: See `Verify`.
        best: See `Best`.
        kept: The epochs whose checkpoints are kept.
        trust: Packages and operations that are trusted besides.
    """

    run: RunDirectory
    facts: Mapping[str, Any]
    rows: Sequence[Row]
    source: Source
    verify: Verify
    best: Best
    kept: set[int]
    trust: Sequence[str]

    @property
    def seed(self) -> int:
        """The seed that the run was given."""
        return int(self.facts["seed"])

    @property
    def deterministic(self) -> bool:
        """Whether its operations were."""
        return bool(self.facts["config"]["train"]["deterministic"])


def read(
    run_dir: Path,
    *,
    data: Mapping[str, Any],
    verify: Mapping[str, Any],
    best: Mapping[str, Any] | None = None,
    trust: Sequence[str] = (),
) -> Recorded:
    """Read what a run recorded, and check what is given instead.

    The run is not trusted: its files are held against their digests, and of the classes that it names only
    those of `data` are imported.

    Args:
        run_dir: The run's directory.
        data: Replaces keys of the recorded section.
        verify: The same.
        best: The same.
        trust: Further packages whose classes may be imported, and operations that its graph may have.

    Raises:
        ConfigError: This is no run directory, the log or the graph is damaged, or a section does not hold.
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
    # What the run itself kept is a matter of its own `best`.
    bound_train = binding.bind(Train, sections["train"], "train.", problems)
    own_best = binding.bind(Best, sections["best"], "best.", problems)
    values = {**sections["data"], **data}
    if "download" in values and not {"download", "url"} & data.keys():
        values["download"] = False  # From where, and to where, the run would say.
    if "_target_" not in data:
        problems += _untrusted(values, [*TRUSTED, *trust])
    if problems:
        raise ConfigError(*problems)
    source, _ = binding.construct(values, "data", problems)
    if problems:
        raise ConfigError(*problems)
    policy = Policy(Train(**bound_train), Best(**own_best), sections.get("epoch"))
    return Recorded(
        run, facts, rows, source, Verify(**bound_verify), Best(**bound_best), policy.kept(rows), trust
    )


def _untrusted(values: Mapping[str, Any], trusted: Sequence[str]) -> Iterator[str]:
    """Yield what is wrong with the class that a recorded section names."""
    target = str(values.get("_target_"))
    if not any(target.startswith(f"{package}.") for package in trusted):
        package = target.partition(".")[0]
        yield (
            f"data._target_ must be in a package that is trusted: {', '.join(trusted)}. Received: {target}. "
            f"If it is yours, add trust=[{package}]."
        )


def given(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a section that have a value."""
    return {key: value for key, value in section.items() if value is not None}
