"""The table that a person reads, and the arithmetic of a tolerance."""

from __future__ import annotations

import sys

import pytest

from pipeline.config.schema import Verify
from pipeline.errors import DamagedError
from pipeline.runs.log import Row
from pipeline.verification.answers import AnswerComparison
from pipeline.verification.comparison import Tolerance, compare, tolerance_of
from pipeline.verification.receipt import VerifiedEpoch
from pipeline.verification.tables import metrics_table, parity_table


def verified(epoch: int, logged: float = 0.5, restored: float | None = None) -> VerifiedEpoch:
    row = Row(epoch, epoch, None, {"accuracy": 1.0, "loss": logged}, f"checkpoints/epoch-{epoch}")
    metrics = {"accuracy": 1.0, "loss": logged if restored is None else restored}
    return VerifiedEpoch(epoch, "checkpoint", row.checkpoint, compare(row, metrics, Tolerance()))


def labelled(*rows: VerifiedEpoch) -> list[tuple[str, VerifiedEpoch]]:
    """Return rows as the tables take them; one with the epoch of the one before it is an export's."""
    names = [str(row.epoch) for row in rows]
    return [
        (row.label if name in names[:i] else name, row)
        for i, (name, row) in enumerate(zip(names, rows, strict=True))
    ]


def test_columns_are_aligned() -> None:
    text = metrics_table(labelled(verified(0), verified(10, 123456.7), verified(10)), columns=sys.maxsize)
    assert text.splitlines() == [
        "        epoch  test_accuracy  test_loss  restored_accuracy  restored_loss  match",
        "            0              1        0.5                  1            0.5    yes",
        "           10              1     123457                  1         123457    yes",
        "checkpoint@10              1        0.5                  1            0.5    yes",
    ]


def test_a_narrow_terminal_gets_the_columns_that_fit() -> None:
    rows = [verified(0), verified(1, restored=0.25)]
    lines = metrics_table(labelled(*rows), columns=60).splitlines()
    assert lines == [
        "epoch  test_accuracy  test_loss  match",
        "    0              1        0.5    yes",
        "    1              1        0.5     NO",
    ]


def exported(quantization: str = "none") -> VerifiedEpoch:
    row = Row(3, 3, None, {"loss": 0.5}, "checkpoints/epoch-3")
    return VerifiedEpoch(
        3,
        "tflite",
        "export/tflite/1",
        compare(row, {"loss": 0.75}, Tolerance(0.5)),
        {
            "serving_default": AnswerComparison(1.25e-7, 0, True, {1: 0.00351, 32: 1.5}),
            "initial_state": AnswerComparison(0.5, 2, False, {1: 123.4}),
        },
        not_compared={"generate": "who knows"},
        quantization=quantization,
        size_bytes=1_234_567,
        load_secs=0.25,
    )


def test_the_parity_table_has_a_line_for_each_signature() -> None:
    assert parity_table([("tflite@3", exported())], columns=sys.maxsize).splitlines() == [
        "  export        signature  max_error  flips  ms_at_1  ms_at_32  load_s  size_kB         match",
        "tflite@3  serving_default    1.2e-07      0  0.00351       1.5    0.25    1,235           yes",
        "tflite@3    initial_state        0.5      2      123         -    0.25    1,235            NO",
        "tflite@3         generate          -      -        -         -       -        -  not compared",
    ]
    assert "ms_at" not in parity_table([("tflite@3", exported())], columns=80)
    assert parity_table([], columns=80) == ""


def test_one_signature_that_does_not_match_is_a_mismatch() -> None:
    found = exported()
    assert all(comparison.match for comparison in found.metrics.values())
    assert not found.match
    assert found.complaints() == [
        "export/tflite/1, epoch 3: generate is not compared: who knows.",
        "export/tflite/1, epoch 3: initial_state must answer as the trained model did. "
        "Largest difference: 0.5, argmax flips: 2.",
    ]


def test_what_quantization_costs_is_said() -> None:
    assert exported().losses() == []
    assert exported("int8").losses() == ["tflite int8@3: test/loss 0.5 -> 0.75, +0.25 (accepted: 0.5)"]


def test_a_long_table_leaves_out_matching_rows_in_its_middle() -> None:
    rows = [verified(epoch) for epoch in range(100)]
    lines = metrics_table(labelled(*rows), columns=200).splitlines()
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
    lines = metrics_table(labelled(*rows), columns=200).splitlines()
    assert len(lines) == 101
    assert [line.split()[0] for line in lines if line.endswith("NO")] == ["50"]


def test_the_complaint_gives_both_values_whole() -> None:
    (complaint,) = verified(3, 0.1 + 0.2, 0.3).complaints()
    assert complaint == (
        "checkpoints/epoch-3, epoch 3: test/loss must be 0.30000000000000004 as logged. "
        "Restored: 0.3, -5.55e-17 (tolerance 0)."
    )


@pytest.mark.parametrize(
    ("absolute", "relative", "match"),
    [(0, 0, False), (0.5, 0, True), (0.4, 0, False), (0, 0.25, True), (0.3, 0.1, True), (0.2, 0.1, False)],
)
def test_tolerances_add_up(absolute: float, relative: float, match: bool) -> None:
    row = Row(0, 0, None, {"loss": -2.0}, "c")
    assert compare(row, {"loss": -1.5}, Tolerance(absolute, relative))["loss"].match is match


def test_a_formats_own_tolerance_is_the_least() -> None:
    nothing = Verify(abs_tolerance=None, rel_tolerance=None, quantized_tolerance=None)
    assert tolerance_of(nothing, exact=True) == Tolerance(0, 0)
    assert tolerance_of(nothing, exact=False) == Tolerance(0, 1e-5)
    given = Verify(abs_tolerance=0.1, rel_tolerance=1e-6, quantized_tolerance=None)
    assert tolerance_of(given, exact=True) == Tolerance(0.1, 1e-6)
    assert tolerance_of(given, exact=False) == Tolerance(0.1, 1e-5)


def test_a_missing_metric_is_no_match() -> None:
    with pytest.raises(DamagedError, match=r"must have the metrics \['accuracy'\]. Received: \['loss'\]"):
        compare(Row(0, 0, None, {"loss": 1.0}, "c"), {"accuracy": 1.0}, Tolerance())
