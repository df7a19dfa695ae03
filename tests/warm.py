"""Commands in processes that are forked off a server with TensorFlow imported, as the trials of a sweep are.

A new interpreter spends seconds on imports, and its fork server as many again. The process that runs a
command is as fresh as a trial's: it has started nothing and seen no model. Tests whose subject is the process
itself start a new interpreter: `run_command(..., cold=True)`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.cli import processes


def run(
    arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a module as `python -m` does; return its exit code and what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / name for name in ("stdout", "stderr")]
        process = processes.start(
            _run, list(arguments), str(cwd), dict(env), list(map(str, outputs)), spares=1
        )
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
        texts = [path.read_text() if path.exists() else "" for path in outputs]
    return subprocess.CompletedProcess(arguments, process.exitcode or 0, *texts)


def _run(arguments: Sequence[str], cwd: str, env: Mapping[str, str], outputs: Sequence[str]) -> None:
    os.chdir(cwd)
    sys.path.insert(0, cwd)  # As `python -m` does: a user's package lies in the current folder.
    os.environ.clear()
    os.environ.update(env)
    for descriptor, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    processes._run_module(arguments[0], arguments[1:])
