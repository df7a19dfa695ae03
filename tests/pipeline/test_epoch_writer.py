"""What an epoch leaves behind: in order, one at a time, and no error is lost."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from pipeline.graphs import checkpoints
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import Row
from pipeline.training.epoch_writer import EpochWriter
from tests.cases import policy


def row(epoch: int) -> Row:
    return Row(epoch, 10 * epoch, None, {"loss": 1.0 / (epoch + 1)}, f"checkpoints/epoch-{epoch:04d}")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    (tmp_path / "checkpoints").mkdir()
    return RunDirectory(tmp_path)


@pytest.fixture
def variable() -> tf.Variable:
    return tf.Variable(0.0)


def test_what_is_written_is_what_was_there_when_it_was_said(
    run: RunDirectory, variable: tf.Variable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next epoch may go on at once; one more has to wait."""
    may_write = threading.Event()
    write = checkpoints.write_checkpoint

    def slowly(*arguments: Any) -> Any:
        assert may_write.wait(10)
        return write(*arguments)

    monkeypatch.setattr(checkpoints, "write_checkpoint", slowly)
    with EpochWriter(run, {"weights": {"w": variable}}, policy(9)) as writer:
        writer.write(row(0))
        variable.assign(1.0)  # Training goes on.
        assert not run.log.exists()
        threading.Timer(0.2, may_write.set).start()
        writer.write(row(1))
        assert len(run.read_rows()) >= 1
    rows = run.read_rows()
    for epoch, found in enumerate(rows):
        run.check_row(found)
        read = tf.Variable(-1.0)
        checkpoints.restore_row(run, found, {"weights": {"w": read}})
        assert read.numpy() == epoch
    assert len(rows) == 2


def test_an_error_is_raised_at_the_next_epoch_and_at_the_end(
    run: RunDirectory, variable: tf.Variable
) -> None:
    (run.path / "checkpoints" / "epoch-0001.data-00000-of-00001").mkdir()
    groups = {"weights": {"w": variable}}
    with EpochWriter(run, groups, policy(9)) as writer:
        writer.write(row(0))
        writer.write(row(1))
        with pytest.raises(OSError, match="epoch-0001"):
            writer.write(row(2))
    assert [found.epoch for found in run.read_rows()] == [0]
    writer = EpochWriter(run, groups, policy(9))
    writer.write(row(1))
    with pytest.raises(OSError, match="epoch-0001"):
        writer.__exit__(None, None, None)


def test_an_error_does_not_hide_the_one_before_it(
    run: RunDirectory, variable: tf.Variable, caplog: pytest.LogCaptureFixture
) -> None:
    (run.path / "checkpoints" / "epoch-0000.data-00000-of-00001").mkdir()
    writer = EpochWriter(run, {"weights": {"w": variable}}, policy(9))
    writer.write(row(0))
    writer.__exit__(RuntimeError, RuntimeError("of the training"), None)
    assert "The epoch before could not be written: " in caplog.text


def test_what_is_not_kept_is_removed_once_it_is_not_needed(run: RunDirectory, variable: tf.Variable) -> None:
    run.graph.with_name("step-00000007.index").touch()
    with EpochWriter(run, {"weights": {"w": variable}}, policy(9, keep=2)) as writer:
        for epoch in range(5):
            writer.write(row(epoch))
    assert sorted(path.name for path in run.graph.parent.glob("*.index")) == [
        "epoch-0003.index",
        "epoch-0004.index",
    ]
    assert len(run.read_rows()) == 5


def test_curves_that_cannot_be_written(run: RunDirectory, variable: tf.Variable, monkeypatch: Any) -> None:
    with EpochWriter(run, {"weights": {"w": variable}}, policy(9)) as writer:

        def full(record: bytes) -> None:
            raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

        monkeypatch.setattr(writer.events, "_writer", type("Full", (), {"write": full, "close": print}))
        with pytest.raises(OSError, match="The curves cannot be written: No space left on device"):
            writer.events.scalars(1, {"x": 1.0})
