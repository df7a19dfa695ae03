"""Sweeps: what becomes of each trial, and what the next sweep in the same directory does with it."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.utils import JobStatus
from tqdm import tqdm

from pipeline.cli.stop import StopRequested
from pipeline.sweeps import leaderboard, page, runner, trials
from pipeline.sweeps.ledger import Ledger, Trial
from tests.conftest import Command
from tests.pipeline.sweeps.jobs import LOSS, launch, states

GRU = ["-m", "model=gru", "hydra.sweep.dir=sweep"]


def test_each_trial_has_a_process_and_a_directory_of_its_own(tmp_path: Path) -> None:
    jobs = launch(tmp_path, [{"kind": "good", "value": value} for value in (3, 1, 2)])
    assert [job.return_value for job in jobs] == [3.0, 1.0, 2.0]
    assert [job.status for job in jobs] == [JobStatus.COMPLETED] * 3
    assert [(job.return_value.code, job.return_value.verdict) for job in jobs] == [(0, "match")] * 3
    written = Ledger(tmp_path).read()
    assert len({one.pid for one in written} | {os.getpid()}) == 4
    assert [(tmp_path / str(n) / "output.log").read_text() for n in range(3)] == ["a trial speaks\n"] * 3
    with (tmp_path / "leaderboard.csv").open() as file:
        assert [row["trial"] for row in csv.DictReader(file)] == ["1", "2", "0"]


def test_on_a_terminal_each_trial_is_said_as_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "tqdm", lambda **options: tqdm(**options | {"disable": False}))
    launch(tmp_path, [{"kind": "good", "value": 3}, {"kind": "raise", "value": 1}], n_jobs=1)
    output = capsys.readouterr()
    assert re.search(r"trial 0  kind=good  value=3  loss 3  done  [\d.]+ s\n", output.err)
    assert re.search(r"trial 1 .*failed  RuntimeError: no luck", output.err)
    assert "best 3 (trial 0)" in output.err
    assert output.out.startswith("trial   kind"), "only the table is for whoever reads the output"


def test_a_page_that_cannot_be_written_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(page, "write", fail)
    (job,) = launch(tmp_path, [{"kind": "good", "value": 3}])
    assert job.return_value == 3.0
    assert "the tables of the sweep cannot be written: no space left on device" in caplog.text


def test_of_two_equal_jobs_one_runs(tmp_path: Path) -> None:
    jobs = launch(tmp_path, [{"kind": "good", "value": 3}] * 2)
    assert [job.return_value for job in jobs] == [3.0, 3.0]
    assert states(tmp_path) == ["done"]


def test_whatever_happens_to_a_trial_the_others_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "GRACE_SECS", 0.2)
    kinds = ["raise", "segfault", "refuse", "mismatch", "plain", "none", "good"]
    jobs = launch(tmp_path, [{"kind": kind, "value": 1} for kind in kinds])
    assert states(tmp_path) == ["failed", "killed", "failed", "mismatch", "done", "done", "done"]
    reasons = [one.reason for one in Ledger(tmp_path).read()]
    assert reasons[:3] == ["RuntimeError: no luck", "SIGSEGV", "x must be y. a must be b."]
    assert [job.return_value.code for job in jobs] == [1, 1, 1, 3, 0, 0, 0]
    assert "RuntimeError: no luck" in (tmp_path / "0" / "output.log").read_text()
    text = leaderboard.summary(Ledger(tmp_path), LOSS, columns=500)
    assert "trial 1 killed: SIGSEGV" in text
    assert len(text.splitlines()[0]) > 40
    narrow = leaderboard.summary(Ledger(tmp_path), LOSS, columns=40)
    assert "seconds" in text
    assert "seconds" not in narrow


def test_a_trial_that_takes_too_long_or_too_much_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "GRACE_SECS", 0.2)
    launch(tmp_path / "a", [{"kind": "hang"}, {"kind": "good", "value": 1}], timeout_secs=2.0)
    assert states(tmp_path / "a") == ["timed out", "done"]
    assert Ledger(tmp_path / "a").read()[0].reason == "longer than 2 s"
    launch(tmp_path / "b", [{"kind": "eat"}, {"kind": "good", "value": 1}], memory_limit_mb=700)
    assert states(tmp_path / "b") == ["out of memory", "done"]


def test_what_is_finished_is_not_run_again(tmp_path: Path) -> None:
    first: list[dict[str, Any]] = [{"kind": "good", "value": 1}, {"kind": "raise"}]
    launch(tmp_path, first)
    jobs = launch(tmp_path, [*first, {"kind": "good", "value": 2}])
    assert [job.return_value for job in jobs][::2] == [1.0, 2.0]
    assert states(tmp_path) == ["done", "failed", "failed", "done"]
    assert [one.run_dir for one in Ledger(tmp_path).read()] == [str(tmp_path / str(n)) for n in range(4)]


def test_an_interrupted_sweep_leaves_nothing_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "GRACE_SECS", 0.2)
    seen: list[int] = []

    def interrupt(pool: trials.Pool) -> list[Trial]:
        seen.extend(one.process.pid or 0 for one in pool.running)
        os.kill(os.getpid(), signal.SIGINT)
        return wait(pool)

    wait = trials.Pool.wait
    monkeypatch.setattr(trials.Pool, "wait", interrupt)
    with pytest.raises(StopRequested, match="stopped by SIGINT"):
        launch(tmp_path, [{"kind": "hang", "value": value} for value in (1, 2)])
    assert states(tmp_path) == ["interrupted", "interrupted"]
    assert len(seen) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in seen)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "ledger.jsonl").read_text().splitlines()]


def test_a_sweep_by_command(command: Command, tmp_path: Path) -> None:
    completed = command("pipeline", *GRU, "seed=0,1")
    lines = completed.stdout.splitlines()
    assert lines[0].split() == ["trial", "seed", "loss", "verdict", "state", "epochs", "seconds"]
    assert [line.split()[3:5] for line in lines[1:3]] == [["match", "done"]] * 2
    before = read(tmp_path / "sweep")
    assert {one["state"] for one in before} == {"done"}
    assert not list(tmp_path.glob("sweep/*/checkpoints/step-*"))
    completed = command("pipeline", *GRU, "seed=0,1")
    assert read(tmp_path / "sweep") == before, "nothing was left to run"


def test_a_sweep_that_was_killed_goes_on(command: Command, tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "pipeline", *GRU, "seed=0,1,2", "hydra.launcher.n_jobs=1"]
    with subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        ledger = tmp_path / "sweep" / "ledger.jsonl"
        while not (ledger.exists() and '"number": 1' in ledger.read_text()):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.kill()
    first, second = Ledger(tmp_path / "sweep").read()
    pid = second.pid
    deadline = time.monotonic() + 10
    while pid is not None and Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "a trial outlives its sweep"
        time.sleep(0.05)
    command("pipeline", *GRU, "seed=0,1,2")
    found = read(tmp_path / "sweep")
    assert Ledger(tmp_path / "sweep").read()[0] == first
    assert [one["state"] for one in found] == ["done", "interrupted", "done", "done"]
    command("pipeline", "-m", "model=gru", "hydra.sweep.dir=whole", "seed=0,1,2")
    results = [
        sorted(
            (one["overrides"], one["objective"]) for one in read(tmp_path / name) if one["state"] == "done"
        )
        for name in ("sweep", "whole")
    ]
    assert results[0] == results[1]
    assert len(results[0]) == 3


def test_a_relative_path_is_that_of_the_command(command: Command, tmp_path: Path) -> None:
    numbers = np.arange(8, dtype=np.float32)[:, np.newaxis]
    np.savez(tmp_path / "mine.npz", feature=np.repeat(numbers, 2, axis=1), target=2 * numbers)
    arguments = ["model=dense", "data=npz", "data.path=mine.npz", "data.batch_size=2", "train.epochs=1"]
    command("pipeline", "-m", *arguments, "seed=0,1", "hydra.sweep.dir=sweep")
    assert "UserWarning" not in (tmp_path / "sweep" / "0" / "output.log").read_text()


def test_a_trial_that_fails_makes_the_sweep_fail(command: Command, tmp_path: Path) -> None:
    completed = command("pipeline", *GRU, "optimizer.learning_rate=1e-2,1e38", "optimizer=sgd", code=1)
    assert [one["state"] for one in read(tmp_path / "sweep")] == ["done", "failed"]
    assert "trial 1 failed: NonFiniteLoss: The training loss must be finite" in completed.stdout


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_other_launchers_keep_working(launcher: str, command: Command, tmp_path: Path) -> None:
    command("pipeline", *GRU, "seed=0,1", f"hydra/launcher={launcher}")
    for number in ("0", "1"):
        assert (
            json.loads((tmp_path / "sweep" / number / "verification.json").read_text())["verdict"] == "match"
        )
