"""The leaderboard: who is the best, what the table shows, and how often the file is written."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from pipeline.sweeps import leaderboard
from pipeline.sweeps import ledger as ledgers
from pipeline.sweeps.leaderboard import LeaderboardFile
from pipeline.sweeps.ledger import Ledger
from tests.pipeline.sweeps.jobs import LOSS, trial


def test_a_trial_that_does_not_match_is_never_the_best() -> None:
    found = [
        trial(0, objective=0.5),
        trial(1, objective=0.1, state=ledgers.MISMATCH, verdict="mismatch"),
        trial(2, objective=0.4),
        trial(3, objective=None, state=ledgers.FAILED),
        trial(4, objective=0.2, state=ledgers.PRUNED, verdict=None),
    ]
    assert [one.number for one in leaderboard.ranked(found, LOSS)] == [2, 0, 4, 1, 3]
    assert [one.number for one in leaderboard.ranked(found, [("loss", "maximize")])] == [0, 2, 4, 1, 3]


def test_the_leaderboard_shows_what_differs(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.write(trial(0, objective=2.0))
    ledger.write(trial(1, state=ledgers.KILLED, objective=None, verdict=None, reason="SIGKILL"))
    with LeaderboardFile(ledger, LOSS).write().open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["trial"], row["seed"], row["loss"]) for row in rows] == [
        ("0", "0", "2.0"),
        ("1", "1", ""),
    ]
    assert rows[1]["reason"] == "SIGKILL"
    assert leaderboard.swept_keys([trial(0)]) == ["model", "seed"]


def test_the_file_is_not_rewritten_at_each_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [10.0]

    def write_text(path: Path, text: str) -> None:
        clock[0] += 1.0
        path.write_text(text)

    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr(leaderboard, "write_text", write_text)
    ledger = Ledger(tmp_path)
    file = LeaderboardFile(ledger, LOSS)

    def num_rows() -> int:
        return len(file.path.read_text().splitlines()) - 1

    ledger.write(trial(0))
    file.update()
    ledger.write(trial(1))
    file.update()
    assert num_rows() == 1
    clock[0] += leaderboard.PATIENCE
    file.update()
    assert num_rows() == 2
    ledger.write(trial(2))
    file.write()
    assert num_rows() == 3
