"""What is kept back and what is said of the process."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pipeline import runtime


def write_to_stderr(error: BaseException | None = None) -> None:
    with runtime.held_back_stderr():
        os.write(2, b"a library's note\n")  # not through sys.stderr: libraries in C++ know nothing of it
        if error is not None:
            raise error


def test_notes_of_libraries_are_kept_back(capfd: pytest.CaptureFixture[str]) -> None:
    write_to_stderr()
    with pytest.raises(KeyboardInterrupt):
        write_to_stderr(KeyboardInterrupt())
    os.write(2, b"ours\n")
    assert capfd.readouterr().err == "ours\n"


def test_notes_of_libraries_are_shown_if_something_fails(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="no such device"):
        write_to_stderr(RuntimeError("no such device"))
    assert capfd.readouterr().err == "a library's note\n"


def test_the_commit_is_that_of_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runtime, "__file__", str(tmp_path / "pipeline" / "runtime.py"))
    assert runtime._own_commit() is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    assert runtime._own_commit() is None  # a checkout without a commit
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message=a"], check=True)
    assert len(runtime._own_commit() or "") == 40
