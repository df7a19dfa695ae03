"""Fixtures: TensorFlow started once, commands run as a user runs them, and a finished run per model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline import runtime
from pipeline.formats.manifest import FOLDERS, MANIFEST
from pipeline.runs import checksums
from tests.cases import CASES, Case

Command = Callable[..., subprocess.CompletedProcess[str]]

runtime.start_tensorflow(seed=0, deterministic=True)


def run_command(
    *arguments: object,
    cwd: Path,
    code: int = 0,
    env: dict[str, str] | None = None,
    timeout: float = 600,
) -> subprocess.CompletedProcess[str]:
    """Run `python -m ...` in a folder, and check its exit code."""
    completed = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert completed.returncode == code, completed.stdout + completed.stderr
    return completed


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Return a function that runs `python -m ...` in an empty folder and checks its exit code."""

    def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        return run_command(*arguments, **{"cwd": tmp_path, **options})

    return run


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a sealed JSON object and seal it again: what is wrong then is no accident of the disk."""
    facts = checksums.unseal(path.read_text())
    change(facts)
    path.write_text(json.dumps(checksums.seal(facts)))


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
    """A finished run of the main job, made when first asked for."""

    folder: Path
    runs: dict[str, tuple[Path, subprocess.CompletedProcess[str]]] = field(default_factory=dict)

    def of(self, case: Case) -> tuple[Path, subprocess.CompletedProcess[str]]:
        """Return the run's directory, not to be written to, and what the command printed."""
        if case.name not in self.runs:
            run = self.folder / f"run of {case.name}"  # a space, as users have
            completed = run_command(
                "pipeline",
                f"model={case.name}",
                "export=all",
                f"hydra.run.dir='{run}'",
                *case.overrides,
                cwd=self.folder,
            )
            self.runs[case.name] = (run, completed)
        return self.runs[case.name]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Return the finished runs of the session."""
    return Finished(tmp_path_factory.mktemp("finished"))


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
