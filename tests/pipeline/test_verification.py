"""The table that a person reads, and the arithmetic of a tolerance."""

from __future__ import annotations

import sys

import pytest

from pipeline.config import Verify
from pipeline.run import Row
from pipeline.verification import Verified, compare, table


def verified(epoch: int, logged: float = 0.5, restored: float | None = None) -> Verified:
    row = Row(epoch, epoch, None, {"accuracy": 1.0, "loss": logged}, f"checkpoints/epoch-{epoch}")
    metrics = {"accuracy": 1.0, "loss": logged if restored is None else restored}
    exact = Verify(abs_tolerance=0, rel_tolerance=0)
    return compare(row, metrics, exact, format="checkpoint", artifact=row.checkpoint)


def test_columns_are_aligned() -> None:
    text = table([verified(0), verified(10, 123456.7)], [verified(10)], columns=sys.maxsize)
    assert text.splitlines() == [
        "        epoch  test_accuracy  test_loss  restored_accuracy  restored_loss  match",
        "            0              1        0.5                  1            0.5    yes",
        "           10              1     123457                  1         123457    yes",
        "checkpoint@10              1        0.5                  1            0.5    yes",
    ]


def test_a_narrow_terminal_gets_the_columns_that_fit() -> None:
    rows = [verified(0), verified(1, restored=0.25)]
    lines = table(rows, [], columns=60).splitlines()
    assert lines == [
        "epoch  test_accuracy  test_loss  match",
        "    0              1        0.5    yes",
        "    1              1        0.5     NO",
    ]


def test_a_long_table_leaves_out_matching_rows_in_its_middle() -> None:
    rows = [verified(epoch) for epoch in range(100)]
    lines = table(rows, [], columns=200).splitlines()
    assert len(lines) == 1 + 24 + 1
    assert "... 76 matching rows ..." in lines[13]
    assert [line.split()[0] for line in (lines[1], lines[12], lines[14], lines[-1])] == [
        "0",
        "11",
        "88",
        "99",
    ]


def test_a_mismatch_is_never_left_out() -> None:
    rows = [verified(epoch, restored=0.25 if epoch == 50 else None) for epoch in range(100)]
    lines = table(rows, [], columns=200).splitlines()
    assert len(lines) == 101
    assert [line.split()[0] for line in lines if line.endswith("NO")] == ["50"]


def test_the_complaint_gives_both_values_whole() -> None:
    (complaint,) = verified(3, 0.1 + 0.2, 0.3).complaints()
    assert complaint == (
        "checkpoints/epoch-3, epoch 3: test/loss must be 0.30000000000000004 as logged. "
        "Restored: 0.3, -5.55e-17 (tolerance 0)."
    )


@pytest.mark.parametrize(
    ("abs_tolerance", "rel_tolerance", "match"),
    [(0, 0, False), (0.5, 0, True), (0.4, 0, False), (0, 0.25, True), (0.3, 0.1, True), (0.2, 0.1, False)],
)
def test_tolerances_add_up(abs_tolerance: float, rel_tolerance: float, match: bool) -> None:
    tolerance = Verify(abs_tolerance=abs_tolerance, rel_tolerance=rel_tolerance)
    row = Row(0, 0, None, {"loss": -2.0}, "c")
    assert compare(row, {"loss": -1.5}, tolerance, format="f", artifact="a").match is match
