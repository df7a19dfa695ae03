"""What a run recorded of itself, as the commands that come back to it need it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import binding
from pipeline.binding import ConfigError
from pipeline.config import Best, Verify
from pipeline.run import Row, RunDirectory

if TYPE_CHECKING:
    from data.base import Source


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
    """

    run: RunDirectory
    facts: Mapping[str, Any]
    rows: Sequence[Row]
    source: Source
    verify: Verify
    best: Best

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
) -> Recorded:
    """Read what a run recorded, and check what is given instead.

    Args:
        run_dir: The run's directory.
        data: Replaces keys of the recorded section.
        verify: The same.
        best: The same.

    Raises:
        ConfigError: This is no run directory, the log is damaged, or a section does not hold.
    """
    run = RunDirectory(run_dir)
    facts = run.read_facts()
    rows = run.read_rows()
    sections = facts["config"]
    problems: list[str] = []
    bound_verify = binding.bind(Verify, {**sections["verify"], **verify}, "verify.", problems)
    bound_best = binding.bind(Best, {**sections["best"], **(best or {})}, "best.", problems)
    source, _ = binding.construct({**sections["data"], **data}, "data", problems)
    if problems:
        raise ConfigError(problems)
    return Recorded(run, facts, rows, source, Verify(**bound_verify), Best(**bound_best))


def given(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a section that have a value."""
    return {key: value for key, value in section.items() if value is not None}
