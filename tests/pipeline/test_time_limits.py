"""`train.max_seconds` and `train.checkpoint_secs`: where they stop and write, and that the bits stay."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import checks
from pipeline.errors import ConfigError
from pipeline.optimizers import KerasOptimizer
from pipeline.runs import progress
from pipeline.runs.directory import RunDirectory
from pipeline.training import loop
from pipeline.training.loop import Training
from pipeline.training.time_limits import TimeLimits
from tests.conftest import Command
from tests.pipeline.test_config import changed
from tests.pipeline.test_keras_optimizer import training
from tests.pipeline.test_training import files

OPTIMIZER = KerasOptimizer(
    name="Adam",
    learning_rate=0.01,
    options={"use_ema": True, "ema_momentum": 0.7, "gradient_accumulation_steps": 3},
)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(autouse=True)
def step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask after each step whether the time is over."""
    monkeypatch.setattr(loop, "_next_chunk", lambda num_steps, elapsed: 1)


def fit(path: Path, limits: TimeLimits | None = None, **changes: Any) -> Training:
    trained = training(path, OPTIMIZER, epochs=3, **changes)
    if limits is not None:
        object.__setattr__(trained, "limits", limits)
    trained.fit(progress.find(RunDirectory(path)))
    return trained


def seconds() -> Any:
    """Return a clock that is a second later each time."""
    return itertools.count().__next__


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    fit(tmp_path / "whole")
    return files(tmp_path / "whole")


def test_a_training_whose_time_is_over_stops_and_goes_on(whole: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "run"
    trained = fit(path, TimeLimits(8, None, seconds()))
    assert trained.limits.over
    # It is asked before each step, 5 in an epoch; the eighth time is before the third step of the second.
    found = progress.find(RunDirectory(path))
    assert [row.epoch for row in found.rows] == [0, 1]
    assert found.unfinished is not None
    assert (found.unfinished.epoch, found.unfinished.num_steps) == (2, 2)
    # Where it begins, it may end at once: nothing is lost.
    assert fit(path, TimeLimits(1, None, seconds())).limits.over
    assert progress.find(RunDirectory(path)) == found
    assert not fit(path).limits.over
    assert files(path) == whole
    assert not list(path.glob("checkpoints/step-*"))


@pytest.mark.parametrize(("dies_before", "kept"), [(3, 1), (4, 3), (9, 7)])
def test_a_kill_loses_no_more_than_what_is_said(
    dies_before: int, kept: int, whole: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    asked = itertools.count()

    def killed() -> bool:
        if next(asked) == dies_before:
            raise Killed
        return False

    with pytest.raises(Killed):
        # Asked once a step: every second step is written.
        fit(path, TimeLimits(None, 2, seconds()), stopped=killed)
    assert len(list(path.glob("checkpoints/step-*.index"))) == 1
    found = progress.find(RunDirectory(path)).unfinished
    assert found is not None
    assert (found.epoch, found.num_steps) == (kept // 5 + 1, kept % 5)
    assert found.checkpoint == f"step-{kept:08d}"
    fit(path)
    assert files(path) == whole
    assert not list(path.glob("checkpoints/step-*"))


def test_without_it_the_epoch_is_lost(tmp_path: Path) -> None:
    asked = itertools.count()

    def killed() -> bool:
        if next(asked) == 4:
            raise Killed
        return False

    with pytest.raises(Killed):
        fit(tmp_path / "run", stopped=killed)
    assert progress.find(RunDirectory(tmp_path / "run")).unfinished is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__max_seconds": 0}, "train.max_seconds must be > 0. Received: 0.0."),
        ({"train__checkpoint_secs": "1 h"}, "train.checkpoint_secs must be a number. Received: '1 h'."),
    ],
)
def test_wrong_values_are_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checks.check(changed(**changes))


def test_a_command_ends_well_and_goes_on(command: Command, tmp_path: Path) -> None:
    arguments = ["pipeline", "model=dense", "train.epochs=3", "export=checkpoint"]
    command(*arguments, "hydra.run.dir=whole")
    for epoch in ("best", "3"):
        directory = f"hydra.run.dir=run-{epoch}"
        completed = command(*arguments, directory, "train.max_seconds=1e-9", f"epoch={epoch}")
        assert "checkpoint@0" in completed.stdout
        assert "verdict: match" in completed.stdout
        assert (
            "max_seconds ended the training after epoch 0, before a first epoch was whole" in completed.stderr
        )
        resumed = command(
            "pipeline", f"train.resume=run-{epoch}", "train.max_seconds=null", "train.checkpoint_secs=1e-9"
        )
        assert epoch == "best" or "checkpoint@3" in resumed.stdout
        assert "verdict: match" in resumed.stdout
        whole, run = tmp_path / "whole", tmp_path / f"run-{epoch}"
        assert files(run) == files(whole)
        assert RunDirectory(run).read_facts()["config"]["train"]["max_seconds"] is None
