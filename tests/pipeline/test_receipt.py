"""Receipts: what is written is read, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.verification.answers import AnswerComparison
from pipeline.verification.comparison import Comparison
from pipeline.verification.receipt import Receipt, VerifiedEpoch

ANSWER = AnswerComparison(1e-7, 0, True, {1: 0.5, 32: 1.5})


def export(version: int, restored: float = 0.5, **changes: Any) -> Receipt:
    found = VerifiedEpoch(
        3,
        "onnx",
        f"export/onnx/{version}",
        {"loss": Comparison(0.5, restored, 0.25)},
        {"serving_default": ANSWER},
        size_bytes=10,
        load_secs=0.5,
    )
    return Receipt("onnx", found.artifact, [found], files={"model.onnx": "12ab"}, **changes)


def test_what_is_written_is_read() -> None:
    failed = VerifiedEpoch(2, "checkpoint", "checkpoints/epoch-0002", problems=["Cut short."])
    receipt = Receipt("onnx", "export/onnx/2", [failed], [export(1), export(2, float("nan"))])
    again = Receipt.from_json(receipt.to_json())
    assert again.to_json() == receipt.to_json()
    assert again.verdict == "mismatch"
    assert again.complaints() == [
        "checkpoints/epoch-0002, epoch 2: Cut short.",
        "export/onnx/2, epoch 3: test/loss must be 0.5 as logged. Restored: nan, +nan (tolerance 0.25).",
    ]


def test_of_a_format_the_newest_export_decides() -> None:
    assert Receipt("onnx", "", [], [export(9, 5.0), export(10)]).match
    assert not Receipt("onnx", "", [], [export(9), export(10, 5.0)]).match
    assert not Receipt("onnx", "", []).match, "nothing was verified"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("verdict", "mismatch"),
        ("verdict", None),
        ("format", 3),
        ("epochs", {}),
        ("epochs", []),
        ("epochs.0.epoch", "3"),
        ("epochs.0.epoch", True),
        ("epochs.0.artifact", None),
        ("epochs.0.metrics", []),
        ("epochs.0.metrics.test/loss.restored", "many"),
        ("epochs.0.metrics.test/loss.tolerance", True),
        ("epochs.0.metrics.test/loss", {}),
        ("epochs.0.signatures.serving_default.match", 1),
        ("epochs.0.signatures.serving_default.argmax_flips", 0.5),
        ("epochs.0.signatures.serving_default.latency_ms", {"one": 1}),
        ("epochs.0.problems", 3),
        ("files", ["model.onnx"]),
        ("files.model%onnx", 12),
    ],
)
def test_what_nobody_writes_is_no_receipt(path: str, value: Any) -> None:
    facts = export(1).to_json()
    assert Receipt.from_json(facts).match
    node: Any = facts
    *parents, last = (int(key) if key.isdecimal() else key.replace("%", ".") for key in path.split("."))
    for key in parents:
        node = node[key]
    node[last] = value
    with pytest.raises(ValueError, match=r"."):
        Receipt.from_json(facts)
