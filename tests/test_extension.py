"""A user's own model and data, from their own package and configuration, as docs/own-model.md shows."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from tests.conftest import Command

PAGE = Path(__file__).parent.parent / "docs" / "own-model.md"


def files_of_page() -> dict[str, str]:
    """Return the files that the page shows, by the name above them."""
    blocks = re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return dict(blocks)


def test_the_example_trains_exports_and_verifies(command: Command, tmp_path: Path) -> None:
    files = files_of_page()
    assert set(files) == {
        "mine/model.py",
        "mine/data.py",
        "myconf/model/linear.yaml",
        "myconf/data/line.yaml",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    overrides = ["--config-dir=myconf", "model=linear", "data.slope=3", "hydra.run.dir=run"]
    # A new interpreter, as a user has: it finds the package in the current folder, and so do its children.
    completed = command("pipeline", *overrides, cold=True)
    assert "verdict: match" in completed.stdout
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["test"]["loss"] < rows[0]["test"]["loss"] / 100

    (again,) = re.findall(r"evaluate again:  python -m (.*)", completed.stderr)
    assert again.endswith(" 'trust=[mine]'")
    assert "verdict: match" in command(*shlex.split(again)).stdout
    refused = command("pipeline.evaluate", "run_dir=run", code=2).stderr
    assert "Received: mine.data.Line. If it is yours, add trust=[mine]." in refused

    stderr = command("pipeline", *overrides[:2], "data.slope=x", "model.slope=1", code=2).stderr
    assert "data.slope must be a number. Received: 'x'." in stderr
    assert "model.slope is not a key. Known here: _target_." in stderr
    stderr = command("pipeline", "--config-dir=myconf", "model=lineer", code=2).stderr
    assert "Did you mean linear?" in stderr

    (tmp_path / "mine" / "data.py").unlink()
    stderr = command("pipeline.evaluate", "run_dir=run", "trust=[mine]", code=2).stderr
    assert "data._target_ must name a class that can be imported. Received: mine.data.Line" in stderr
