from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.binding import ConfigError
from pipeline.run import Row, RunDirectory, select_rows, staged, write_text

ROWS = [
    Row(
        epoch,
        epoch * 10,
        None if epoch == 0 else {"loss": 1.0},
        {"loss": loss},
        f"checkpoints/epoch-{epoch:04d}",
    )
    for epoch, loss in enumerate([2.0, 0.1 + 0.2, 1.0])
]


BEST = {"metric": "loss", "direction": "minimize"}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    return run


def test_a_directory_is_claimed_once(run: RunDirectory) -> None:
    with run.claimed():
        with pytest.raises(ConfigError, match=f"{run.path} does, and it is left as it was"), run.claimed():
            pass
        run.append_row(ROWS[0])
    with pytest.raises(ConfigError, match="must not hold a run already"):
        run.check_unused()


def test_of_two_that_claim_at_once_one_succeeds(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    with run.claimed():
        monkeypatch.setattr(RunDirectory, "check_unused", lambda self: None)
        with pytest.raises(ConfigError, match="must not hold a run already"), run.claimed():
            pass


def test_a_claim_under_which_no_epoch_was_logged_is_given_back(run: RunDirectory) -> None:
    with run.claimed():
        run.checkpoint(0).touch()
        run.write_facts({"seed": 0})
    assert not list(run.path.iterdir())
    with run.claimed():
        pass


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "export", "checkpoints"])
def test_whatever_a_run_wrote_is_not_written_over(run: RunDirectory, name: str) -> None:
    (run.path / name).touch()
    with pytest.raises(ConfigError, match="must not hold a run already"):
        run.check_unused()


def test_a_path_that_tensorflow_would_take_for_a_pattern(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must have none of \* \? \[ \\"):
        RunDirectory(tmp_path / "run[1]").check_unused()
    with pytest.raises(ConfigError, match=r"run_dir must have none of \* \? \[ \\"):
        RunDirectory(tmp_path / "run[1]").read_facts()


def test_the_log_keeps_every_bit(run: RunDirectory) -> None:
    for row in ROWS:
        run.append_row(row)
    assert run.read_rows() == ROWS


def line(epoch: int, **changes: Any) -> str:
    """Return a line of the log, with some of its values replaced."""
    return json.dumps({**dataclasses.asdict(ROWS[epoch]), **changes}) + "\n"


def test_a_line_that_a_crash_cut_short_is_left_out(run: RunDirectory) -> None:
    for row in ROWS:
        run.append_row(row)
    log = run.path / "metrics.jsonl"
    whole = log.read_text()
    for length in range(whole.rindex("\n", 0, -1) + 1, len(whole)):
        log.write_text(whole[:length])
        assert run.read_rows() == ROWS[:2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "must have a row. The run stopped before"),
        ("", "must have a row. The run stopped before"),
        (b"\xff\n", "must be a text file"),
        ('{"epoch": 0\n', "Line 1 of .* must be the row of epoch 0"),
        ("[]\n", "Line 1 of .* must be the row of epoch 0"),
        ('{"epoch": 0}\n', "Line 1 of .*missing 4 required"),
        (line(0, checkpoint="checkpoints/epoch-0001"), "with checkpoints/epoch-0000. Received: epoch 0 with"),
        (line(1), "Line 1 of .*Received: epoch 1 with checkpoints/epoch-0001"),
        (line(0) + line(2), "Line 2 of .* must be the row of epoch 1"),
        (line(0) + line(0), "Line 2 of .* must be the row of epoch 1"),
        (line(0, test={"loss": "2"}), "metrics that are no finite numbers: .'2'"),
        (line(0, test={"loss": float("nan")}), "metrics that are no finite numbers"),
        (line(0, test=None), "Line 1 of"),
    ],
)
def test_a_damaged_log_is_named(run: RunDirectory, text: str | bytes | None, message: str) -> None:
    if text is not None:
        content = text if isinstance(text, bytes) else text.encode()
        (run.path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        run.read_rows()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "must be a directory that a run has written"),
        ("{", "must be a JSON object. Reading it failed"),
        ("[]", "must hold seed"),
        ("{}", "must hold seed. It does not: it is damaged"),
        ('{"seed": 0, "data": 3}', "must hold data.fingerprint"),
    ],
)
def test_damaged_facts_are_named(run: RunDirectory, text: str | None, message: str) -> None:
    if text is not None:
        (run.path / "run.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        run.read_facts()


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [("all", [0, 1, 2]), ("last", [2]), ("best", [1]), (0, [0]), ([2, 0], [2, 0])],
)
def test_epochs_are_selected(epochs: object, expected: list[int]) -> None:
    assert [row.epoch for row in select_rows(ROWS, epochs, BEST)] == expected


def test_the_best_epoch_is_the_first_of_equals_by_a_metric_and_a_direction() -> None:
    rows = [
        dataclasses.replace(row, test={"loss": 1.0, "accuracy": accuracy})
        for row, accuracy in zip(ROWS, (0.1, 0.9, 0.9), strict=True)
    ]
    (best,) = select_rows(rows, "best", {"metric": "accuracy", "direction": "maximize"})
    assert best.epoch == 1
    (first,) = select_rows(rows, "best", BEST)
    assert first.epoch == 0
    with pytest.raises(
        ConfigError, match=r"best.metric must be one of loss, accuracy. Received: acuracy. Did"
    ):
        select_rows(rows, "best", {"metric": "acuracy", "direction": "maximize"})


@pytest.mark.parametrize("epochs", [3, [1, 5], "first", [], True, None, -1, [[1]], {"a": 1}])
def test_an_epoch_that_is_not_in_the_log_is_refused(epochs: object) -> None:
    with pytest.raises(ConfigError, match="best, last, or of the log's 0 to 2. Received: "):
        select_rows(ROWS, epochs, BEST)


def test_versions_increase_strictly(run: RunDirectory) -> None:
    assert run.newest_export("saved_model") is None
    versions = [run.publish("saved_model", lambda path: (path / "file").touch()) for _ in range(3)]
    numbers = [int(version.name) for version in versions]
    assert numbers == sorted(set(numbers))
    (run.path / "export" / "saved_model" / "9").mkdir()  # the largest integer, not the largest name
    assert run.newest_export("saved_model") == versions[-1]


def test_an_export_that_fails_leaves_nothing(run: RunDirectory) -> None:
    def fail(path: Path) -> None:
        (path / "half").touch()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run.publish("saved_model", fail)
    assert not list((run.path / "export" / "saved_model").iterdir())


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def fail() -> None:
        with staged(path) as staging:
            staging.write_text("half of the ne")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    write_text(path, "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file", "new")]
