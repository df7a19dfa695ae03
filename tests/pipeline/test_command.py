"""What a command does with an exception, whatever raised it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig

from pipeline.cli import command
from pipeline.cli.stop import StopRequested
from pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "error: stopped by SIGINT"),
        (StopRequested(15), 143, "error: stopped by SIGTERM"),
        (ConfigError("One.", "Two."), 2, "2 errors:\n  One.\n  Two."),
        (ZeroDivisionError("by nought"), 1, "error: ZeroDivisionError: by nought"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_an_exception_is_a_sentence_and_an_exit_code(
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null"]
    monkeypatch.setattr(sys, "argv", ["pipeline", f"hydra.run.dir={tmp_path}", *quiet])

    def task(checked: object) -> int:
        assert checked == "checked"
        raise error

    def check(cfg: DictConfig) -> str:
        assert cfg.hydra.run.dir == str(tmp_path)
        return "checked"

    with pytest.raises(SystemExit) as stop:
        command.run(task, config_name="config", check=check)
    assert stop.value.code == code
    assert capsys.readouterr().err.startswith(said)
