"""`python -m pipeline.export`: any epoch, later, from the run directory alone."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from pipeline.cli import command
from pipeline.cli.stop import Stop, StopRequested
from pipeline.errors import ConfigError
from pipeline.export import ExportRequest, check, export
from pipeline.formats import exporting
from pipeline.runs.directory import RunDirectory
from tests.cases import CASES
from tests.conftest import Finished

Command = Callable[..., subprocess.CompletedProcess[str]]


def checked(run: Path, **changes: Any) -> ExportRequest:
    """Call the command's check with its own configuration file and some changes."""
    folder = Path(__file__).parents[2] / "conf"
    defaults: Any = OmegaConf.load(folder / "export.yaml")
    values: Any = OmegaConf.masked_copy(defaults, ["epoch", "best", "verify", "data", "trust"])
    values["export"] = OmegaConf.load(folder / "export" / "saved_model.yaml")
    values.update({"run_dir": str(run), **changes})
    return check(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": "first"}, "epoch must be all, best, last, a number, or a list such as .* Received: first"),
        ({"epoch": 7}, "Received: 7"),
        ({"epoch": "all"}, "epoch=all needs a format that holds many epochs: .* Received: saved_model"),
        ({"export": {"formats": {"onxx": True}}}, "export must be one of .* Received: onxx"),
        ({"best": {"metric": "f1"}}, "best.metric must be one of accuracy, loss. Received: f1"),
        ({"best": {"direction": "up"}}, "best.direction must be one of minimize, maximize. Received: up"),
        ({"data": {"foo": 1}}, "data.foo is not a key"),
        ({"verify": {"abs_tolerance": -1}}, "verify.abs_tolerance must be >= 0"),
        ({"run_dir": "nowhere"}, "run_dir must be a directory that a run has written"),
        ({"run_dir": "???"}, "run_dir must be given"),
    ],
)
def test_a_request_that_does_not_fit(gru_run: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checked(gru_run, **{"epoch": "best", **changes})


def test_the_best_epoch_is_the_runs_own_or_as_asked(gru_run: Path) -> None:
    log = RunDirectory(gru_run).read_rows()
    (best,) = checked(gru_run, epoch="best").rows
    assert best == min(log, key=lambda row: row.test["loss"])
    (worst,) = checked(gru_run, epoch="best", best={"metric": "loss", "direction": "maximize"}).rows
    assert worst == max(log, key=lambda row: row.test["loss"])


def test_an_earlier_epoch_is_exported_and_verified(gru_run: Path, command: Command) -> None:
    completed = command(
        "pipeline.export", f"run_dir={gru_run}", "export=[keras,onnx]", "epoch=1", "+data.seed=0"
    )
    assert "verdict: match" in completed.stdout
    receipt = json.loads((gru_run / "verification.json").read_text())
    added = [export for export in receipt["exports"] if export["format"] in ("keras", "onnx")]
    assert [export["epochs"][0]["epoch"] for export in added] == [1, 1]
    assert "evaluate again:  python -m pipeline.evaluate run_dir=" in completed.stderr
    assert list(gru_run.parent.iterdir()) == [gru_run], "nothing is left in the working folder"


def test_a_quantized_export_is_judged_by_the_tolerance_given(gru_run: Path, command: Command) -> None:
    arguments = ["pipeline.export", f"run_dir={gru_run}", "export=tflite", "export.quantization=int8"]
    completed = command(*arguments, code=2)
    assert "verify.quantized_tolerance=0.01, for example" in completed.stderr
    completed = command(*arguments, "verify.quantized_tolerance=0", code=3)
    assert "tflite int8@2: test/loss " in completed.stdout
    assert "verdict: mismatch" in completed.stdout
    completed = command("pipeline.evaluate", f"run_dir={gru_run}", "format=saved_model")
    last = completed.stdout.splitlines()[-1]
    assert last.startswith("verdict: match    with what was verified earlier: mismatch    receipt: ")
    page = (gru_run / "report.html").read_text()
    assert "tflite int8" in page
    assert "tflite int8 leaves out evaluate" in page


def test_a_signal_stops_it_in_good_order(gru_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def receive(module: str, overrides: list[str], stop: Stop) -> int:
        stop.signals.append(signal.SIGTERM)
        return 1

    monkeypatch.setattr(command, "in_fresh_process", receive)
    with pytest.raises(StopRequested, match="stopped by SIGTERM"):
        export(checked(gru_run))


def test_a_signal_is_noticed_between_two_formats(gru_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def write(task: object, name: str, directory: Path) -> dict[str, str]:
        written.append(name)
        signal.raise_signal(signal.SIGTERM)
        return {}

    before = list((gru_run / "export").rglob("*"))
    monkeypatch.setattr(exporting, "_write", write)
    with pytest.raises(StopRequested, match="stopped by SIGTERM"):
        export(checked(gru_run, export={"formats": {"keras": True, "onnx": True}}))
    assert written == ["keras"]
    left = [path for path in (gru_run / "export").rglob("*") if path.parent != gru_run / "export"]
    assert left == [path for path in before if path.parent != gru_run / "export"]


def test_state_is_calibrated_from_its_beginning_on(finished: Finished) -> None:
    case = CASES[2]
    requests = exporting._calibration(RunDirectory(finished.of(case)[0]), case.load())
    first, second = (one["step"]["state_h"] for one in requests[:2])
    assert not first.any()
    assert second.any()
    assert all(set(one) == {"serving_default", "step"} for one in requests)
