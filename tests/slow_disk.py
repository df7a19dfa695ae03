"""The main job on a slow disk, for tests that kill it in the middle of a write.

A fresh process imports this module: it has nothing that would start TensorFlow.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from pipeline.cli import processes
from pipeline.graphs import checkpoints
from pipeline.runs import directory, files

SYNC_SECS = 0.02
"""What each wait for the disk takes longer, before and after."""


def main_job(run_dir: Path, *model: str) -> None:
    """Run the main job of a model in this process; what it writes goes to a file beside the run."""
    sync = files.sync

    def slow_sync(path: Path) -> None:
        time.sleep(SYNC_SECS)
        sync(path)
        time.sleep(SYNC_SECS)

    for module in (files, directory, checkpoints):
        vars(module)["sync"] = slow_sync
    output = os.open(run_dir.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    arguments = [*model, "train.epochs=5", "export=checkpoint", f"hydra.run.dir={run_dir}"]
    processes._run_module("pipeline", arguments)
