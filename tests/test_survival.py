"""Runs that are killed, damaged or hostile: really killed, every file damaged in turn, every trick tried."""

from __future__ import annotations

import functools
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from pipeline import checkpoints, operations, predictor, processes, sealed
from pipeline.binding import ConfigError
from pipeline.run import RunDirectory
from tests.cases import CASES
from tests.conftest import Command, Finished, rewrite, rewrite_export
from tests.pipeline.test_evaluate import run_evaluate
from tests.slow_disk import main_job

GRU, _, _, DENSE = CASES
TIMEOUT_SECS = 120
# The kills of the short test, and those of the mark slow.
NUM_KILLS = [50, pytest.param(500, marks=pytest.mark.slow)]


def results(run_dir: Path) -> dict[str, bytes]:
    """Return all that a run came to and that has no time in it: checkpoints, log, graph, answers, requests."""
    found = {
        str(path.relative_to(run_dir)): path.read_bytes()
        for path in [*(run_dir / "checkpoints").rglob("*"), run_dir / "metrics.jsonl"]
        if path.is_file() and path.name != "fingerprint.pb"  # TensorFlow puts a random number into it.
    }
    receipt = sealed.unseal((run_dir / "verification.json").read_text())
    metrics = [(row["epoch"], row["metrics"]) for row in receipt["epochs"]]
    return {**found, "verdict": receipt["verdict"].encode(), "metrics": json.dumps(metrics).encode()}


def timed(run_dir: Path) -> float:
    """Run the main job to its end; return its seconds."""
    started = time.monotonic()
    process = processes.start(main_job, run_dir, spares=1)
    process.join(TIMEOUT_SECS)
    assert process.exitcode == 0, run_dir.with_suffix(".log").read_text()
    return time.monotonic() - started


@pytest.mark.parametrize("num_kills", NUM_KILLS)
def test_a_run_that_is_killed_at_any_instant_goes_on_to_the_same_bits(num_kills: int, tmp_path: Path) -> None:
    """Every run is killed once, by SIGKILL at a random instant, and started again with the same command."""
    timed(tmp_path / "warm")
    seconds = timed(tmp_path / "whole")
    expected = results(tmp_path / "whole")
    generator = random.Random(0)
    instants = [generator.uniform(0, seconds) for _ in range(num_kills)]

    def survive(number: int) -> str:
        run_dir = tmp_path / str(number)
        process = processes.start(main_job, run_dir, spares=1)
        process.join(instants[number])
        was_alive = process.exitcode is None
        process.kill()
        process.join(TIMEOUT_SECS)
        log = run_dir / "metrics.jsonl"
        lines = log.read_bytes().count(b"\n") if log.exists() else 0
        timed(run_dir)
        assert results(run_dir) == expected, f"killed after {instants[number]:.3f} s with {lines} rows"
        assert not list(run_dir.rglob(".*staging"))
        return f"{lines} rows" if was_alive else "not killed: done"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        outcomes = list(pool.map(survive, range(num_kills)))
    table = {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}
    print(f"\n{num_kills} runs killed, all went on to the same bits; by what was in the log: {table}")
    assert len(table) > 4
