from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import BusyError, ConfigError, RoundtripError
from pipeline.runs import checksums, locks
from pipeline.runs.directory import RunDirectory
from pipeline.runs.files import staged, write_text
from pipeline.runs.log import Row

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


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    return run


def test_of_two_that_claim_at_once_one_succeeds(run: RunDirectory) -> None:
    message = rf"used by one process at a time. {run.path} is, by process {os.getpid()} on "
    with run.claimed():
        with pytest.raises(BusyError, match=message), run.claimed():
            pass
        with pytest.raises(BusyError, match=message):
            run.check_usable()
        (run.path / ".lock").write_text("")
        with pytest.raises(BusyError, match="by another process"):
            run.check_usable()
    with run.claimed():
        pass


def test_a_lock_is_gone_with_its_process(run: RunDirectory) -> None:
    holder = [sys.executable, "-c", HOLD, str(run.path)]
    with subprocess.Popen(holder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match=f"by process {process.pid} on"):
            run.check_usable()
        process.kill()
        process.wait()
        with run.claimed():
            pass


HOLD = """
import sys, time, pathlib
from pipeline.runs.directory import RunDirectory
with RunDirectory(pathlib.Path(sys.argv[1])).claimed():
    print("held", flush=True)
    time.sleep(60)
"""


def test_who_changes_the_same_file_waits_for_a_turn(run: RunDirectory) -> None:
    order = []

    def change() -> None:
        with locks.turn(run.verification):
            order.append("second")

    other = threading.Thread(target=change)
    with locks.turn(run.verification):
        other.start()
        other.join(0.2)
        order.append("first")
    other.join()
    assert order == ["first", "second"]


def test_what_a_run_left_that_logged_no_epoch_is_removed(run: RunDirectory) -> None:
    with run.claimed():
        run.checkpoint(0).with_suffix(".index").touch()
        run.write_facts({"seed": 0})
    assert [path.name for path in run.path.iterdir()] == [".lock"]
    with run.claimed():
        run.checkpoint(0).with_suffix(".index").touch()
        run.log.write_text('{"epoch": 0, "st')
    assert [path.name for path in run.path.iterdir()] == [".lock"]


def test_what_was_staged_is_removed_with_whoever_staged_it(run: RunDirectory) -> None:
    with run.claimed():
        run.write_facts({"seed": 0})
        run.append_row(ROWS[0])
        (run.path / "export" / "onnx").mkdir(parents=True)
    left = [run.path / ".report.html.999999999.staging", run.path / "export/onnx/.7.999999999.staging"]
    others = run.path / ".verification.json.1.staging"
    left[0].touch()
    left[1].mkdir()
    others.touch()
    with run.claimed():
        assert not any(path.exists() for path in left)
        assert others.exists()
        assert run.read_rows() == ROWS[:1]


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "export", "checkpoints"])
def test_what_no_run_wrote_is_left_as_it_is(run: RunDirectory, name: str) -> None:
    (run.path / name).touch()
    with pytest.raises(ConfigError, match=f"new, or hold a run that can go on. {run.path} holds {name} and"):
        run.check_usable()
    with pytest.raises(ConfigError, match="it is left as it was"), run.claimed():
        pass
    assert [path.name for path in run.path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["export", "checkpoints/epoch-0001.index", "checkpoints/mine.h5"])
@pytest.mark.parametrize("text", [None, "", '{"epoch": 0, "st'])
def test_what_has_lost_its_log_is_left_as_it_is(run: RunDirectory, name: str, text: str | None) -> None:
    with run.claimed():
        run.append_row(ROWS[0])
    run.log.unlink()
    if text is not None:
        run.log.write_text(text)
    for path in (name, "checkpoints/z1", "checkpoints/z2"):
        (run.path / path).mkdir()
    found = sorted([name, "checkpoints/z1", "checkpoints/z2"])
    message = f"{run.path} holds {', '.join(found)} and no log of it; it is left as it was"
    with pytest.raises(ConfigError, match=message), run.claimed():
        pass
    assert (run.path / name).exists()
    (run.path / "checkpoints" / "z3").touch()
    with pytest.raises(ConfigError, match="checkpoints/z., 1 more and no log of it"):
        run.check_usable()


def test_to_look_leaves_no_lock(run: RunDirectory) -> None:
    run.check_usable()
    assert not list(run.path.iterdir())


def test_a_path_that_tensorflow_would_take_for_a_pattern(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must have none of \* \? \[ \\"):
        RunDirectory(tmp_path / "run[1]").check_usable()
    with pytest.raises(ConfigError, match=r"run_dir must have none of \* \? \[ \\"):
        RunDirectory(tmp_path / "run[1]").read_facts()


def test_the_log_keeps_every_bit(run: RunDirectory) -> None:
    for row in ROWS:
        run.append_row(row)
    assert run.read_rows() == ROWS


def line(epoch: int, **changes: Any) -> str:
    """Return a line of the log, with some of its values replaced."""
    return json.dumps(checksums.with_checksum({**dataclasses.asdict(ROWS[epoch]), **changes})) + "\n"


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
        (b"\xff\n", "Line 1 of .* must be the row of epoch 0"),
        ('{"epoch": 0\n', "Line 1 of .* must be the row of epoch 0"),
        ("[]\n", "Line 1 of .* must be the row of epoch 0"),
        (json.dumps(checksums.with_checksum({"epoch": 0})) + "\n", "Line 1 of .*missing 4 required"),
        ('{"epoch": 0}\n', "Line 1 of .*its checksum does not fit"),
        (line(0, checkpoint="checkpoints/epoch-0001"), "with checkpoints/epoch-0000. Received: epoch 0 with"),
        (line(1), "Line 1 of .*Received: epoch 1 with checkpoints/epoch-0001"),
        (line(0) + line(2), "Line 2 of .* must be the row of epoch 1"),
        (line(0) + line(0), "Line 2 of .* must be the row of epoch 1"),
        (line(0, test={"loss": "2"}), "metrics that are no finite numbers: .'2'"),
        (line(0, test=None), "Line 1 of"),
    ],
)
def test_a_damaged_log_is_named(run: RunDirectory, text: str | bytes | None, message: str) -> None:
    if text is not None:
        content = text if isinstance(text, bytes) else text.encode()
        (run.path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(RoundtripError, match=message):
        run.read_rows()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "must be a directory that a run has written"),
        ("{", "must be as the run wrote it. Reading it failed: Expecting"),
        ("[]", "it is no JSON object"),
        ("{}", "its checksum does not fit"),
        (json.dumps(checksums.with_checksum({})), "must hold seed. It does not: it is damaged"),
        (json.dumps(checksums.with_checksum({"seed": 0, "data": 3})), "must hold data.fingerprint"),
    ],
)
def test_damaged_facts_are_named(run: RunDirectory, text: str | None, message: str) -> None:
    if text is not None:
        (run.path / "run.json").write_text(text)
    with pytest.raises(RoundtripError, match=message):
        run.read_facts()


def test_versions_increase_strictly(run: RunDirectory) -> None:
    assert run.newest_export("saved_model") is None
    versions = []
    for _ in range(3):
        with run.new_version("saved_model") as (version, staging):
            (staging / "file").touch()
        versions.append(version)
        assert (version / "file").exists()
    numbers = [int(version.name) for version in versions]
    assert numbers == sorted(set(numbers))
    (run.path / "export" / "saved_model" / "9").mkdir()  # the largest integer, not the largest name
    assert run.newest_export("saved_model") == versions[-1]


def test_an_export_that_fails_leaves_nothing(run: RunDirectory) -> None:
    def write_half() -> None:
        with run.new_version("saved_model") as (_, staging):
            (staging / "half").touch()
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
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
