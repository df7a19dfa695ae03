"""Fixtures: TensorFlow started once, commands run as a user runs them, and a finished run per model."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline import runtime
from pipeline.formats.manifest import FOLDERS, MANIFEST
from pipeline.runs import checksums
from tests import warm
from tests.cases import CASES, Case

Command = Callable[..., subprocess.CompletedProcess[str]]

runtime.start_tensorflow(seed=0, deterministic=True)


def run_command(
    *arguments: object,
    cwd: Path,
    code: int = 0,
    env: dict[str, str] | None = None,
    timeout: float = 600,
    cold: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run `python -m ...` in a folder, and check its exit code.

    Args:
        *arguments: The module and its command line.
        cwd: The folder.
        code: The exit code to expect.
        env: Changes of the environment.
        timeout: Seconds after which the command is killed.
        cold: Whether a new interpreter runs the command, rather than a process of `tests.warm`. A sweep needs
            one: it starts a fork server of its own.
    """
    texts, environment = list(map(str, arguments)), os.environ | (env or {})
    if cold or {"-m", "--multirun"} & set(texts) or any("=sweep_" in text for text in texts):
        completed = subprocess.run(
            [sys.executable, "-m", *texts],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
    else:
        completed = warm.run(texts, cwd=cwd, env=environment, timeout=timeout)
    assert completed.returncode == code, completed.stdout + completed.stderr
    return completed


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Return a function that runs `python -m ...` in an empty folder and checks its exit code."""

    def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        return run_command(*arguments, **{"cwd": tmp_path, **options})

    return run


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON object and its checksum with it: what is wrong then is no accident of the disk."""
    facts = checksums.checked(path.read_text())
    change(facts)
    path.write_text(json.dumps(checksums.with_checksum(facts)))


def rewrite_export(export: Path) -> None:
    """Take the digests that an export's manifest names anew, as if it had been written as it is now."""
    facts = next(export / folder for folder in FOLDERS if (export / folder / MANIFEST).exists())
    said = {facts / MANIFEST, facts / "verification.json"}
    files = checksums.digests(export, set(export.rglob("*")) - said)
    checkpoints = export.parents[2] / "checkpoints"

    def update(manifest: dict[str, Any]) -> None:
        answers = checksums.digests(checkpoints, [checkpoints / name for name in manifest["answers"]])
        manifest.update(files=files, answers=answers)

    rewrite(facts / MANIFEST, update)


@dataclass
class Finished:
    """Finished runs of the main job, each made when first asked for, once for all workers of the session."""

    folder: Path

    def of(self, case: Case) -> tuple[Path, subprocess.CompletedProcess[str]]:
        """Return the run's directory, not to be written to, and what the command printed."""
        run = self.folder / f"run of {case.name}"  # a space, as users have
        printed = self.folder / f"{case.name}.json"
        with (self.folder / f"{case.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not printed.exists():
                completed = run_command(
                    "pipeline",
                    f"model={case.name}",
                    "export=all",
                    f"hydra.run.dir='{run}'",
                    *case.overrides,
                    cwd=self.folder,
                )
                printed.write_text(json.dumps([completed.stdout, completed.stderr]))
        return run, subprocess.CompletedProcess([], 0, *json.loads(printed.read_text()))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Return the finished runs of the session."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    folder.mkdir(exist_ok=True)
    return Finished(folder)


@pytest.fixture
def gru_exports(finished: Finished, tmp_path: Path) -> Path:
    """Return a copy of a finished run of the GRU with every export, to do anything to."""
    return Path(shutil.copytree(finished.of(CASES[0])[0], tmp_path / "run"))


@pytest.fixture
def gru_run(gru_exports: Path) -> Path:
    """Return the same with two exports only, which are quick to verify."""

    def keep_two(receipt: dict[str, Any]) -> None:
        kept = [export for export in receipt["exports"] if export["format"] in ("saved_model", "checkpoint")]
        receipt |= {"exports": kept} | {key: kept[-1][key] for key in ("format", "artifact")}

    rewrite(gru_exports / "verification.json", keep_two)
    for folder in (gru_exports / "export").iterdir():
        if folder.name not in ("saved_model", "checkpoint"):
            shutil.rmtree(folder)
    return gru_exports
