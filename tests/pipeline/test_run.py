from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.binding import ConfigError
from pipeline.run import Row, RunDirectory, select_rows, staged, write_text

ROWS = [
    Row(epoch, epoch * 10, None if epoch == 0 else {"loss": 1.0}, {"loss": loss}, f"checkpoints/{epoch}")
    for epoch, loss in enumerate([2.0, 0.1 + 0.2, 1.0])
]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.claim()
    return run


def test_a_directory_is_claimed_once(run: RunDirectory) -> None:
    with pytest.raises(ConfigError, match="left as it was. Choose another"):
        run.check_unused()
    with pytest.raises(ConfigError, match=f"{run.path} does"):
        run.claim()
    RunDirectory(run.path.with_name("other")).check_unused()


def test_the_log_keeps_every_bit(run: RunDirectory) -> None:
    for row in ROWS:
        run.append_row(row)
    assert run.read_rows() == ROWS


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
        (None, "metrics.jsonl must exist. The run stopped before"),
        ("", "must have a row. The run stopped before"),
        ('{"epoch": 0\n', "Line 1 of .* must be a row of the log"),
        ('{"epoch": 0}\n', "Line 1 of .*missing 4 required"),
    ],
)
def test_a_damaged_log_is_named(run: RunDirectory, text: str | None, message: str) -> None:
    if text is not None:
        (run.path / "metrics.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=message):
        run.read_rows()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "must be a directory that a run has written"),
        ("{", "must be a JSON object. Reading it failed"),
        ("[]", r"must be a JSON object. Received: \[\]"),
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
    assert [row.epoch for row in select_rows(ROWS, epochs)] == expected


@pytest.mark.parametrize("epochs", [3, [1, 5], "first", [], True, None, -1])
def test_an_epoch_that_is_not_in_the_log_is_refused(epochs: object) -> None:
    with pytest.raises(ConfigError, match="best, last, or of the log's 0 to 2. Received: "):
        select_rows(ROWS, epochs)


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
