"""Requests, answers, and how far two answers are apart."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import DamagedError
from pipeline.graphs import examples
from pipeline.graphs.signatures import Signature, Spec
from pipeline.verification import answers


def signature(call: Any = dict, **inputs: Spec) -> Signature:
    return Signature(inputs, {}, call)


def test_requests_are_rows_of_the_data_where_they_can_be() -> None:
    served = signature(
        images=Spec("float32", (None, 2)),
        tokens=Spec("int32", (None, None)),
        state=Spec("float32", (None, 3)),
        batch_size=Spec("int64", ()),
        seed=Spec("int32", (2,)),
        prompt=Spec("string", ()),
    )
    arrays = {"images": np.array([[0, 255]] * 3, np.uint8), "tokens": np.arange(40).reshape(40, 1)}
    request = examples.example_requests({"serve": served, "evaluate": served}, arrays)
    assert set(request) == {"serve"}
    found = request["serve"]
    assert found["images"].dtype == np.float32
    assert found["images"].tolist() == [[0, 1]] * 32
    assert found["tokens"].dtype == np.int32
    assert found["tokens"][:, 0].tolist() == list(range(32))
    assert found["state"].shape == (32, 3)
    assert 0 <= found["state"].min() < found["state"].max() < 1
    assert [found[name].tolist() for name in ("batch_size", "seed", "prompt")] == [8, [0, 0], b""]
    assert found["batch_size"].dtype == np.int64


def test_answers_survive_the_disk(tmp_path: Path) -> None:
    arrays: dict[str, dict[str, Any]] = {
        "step": {"a": np.array([[0.1, 2]], np.float32), "n": np.array(3)},
        "generate": {"text": np.array(b"ROMEO:\xc3\xa9")},
    }
    examples.write(tmp_path / "answers.npz", arrays)
    found = examples.read(tmp_path / "answers.npz")
    assert {name: set(of) for name, of in found.items()} == {name: set(of) for name, of in arrays.items()}
    for name, of in arrays.items():
        for key, value in of.items():
            np.testing.assert_array_equal(found[name][key], value)
    (tmp_path / "answers.npz").write_bytes(b"PK damaged")
    with pytest.raises(DamagedError, match="must be a whole NumPy archive"):
        examples.read(tmp_path / "answers.npz")


def test_a_signature_that_does_not_take_its_request_is_left_out() -> None:
    def refuse(**arrays: Any) -> Any:
        raise ValueError

    signatures = {"good": signature(lambda: {"y": [1]}), "bad": signature(refuse)}
    assert set(examples.answer(signatures, {"good": {}, "bad": {}})) == {"good"}


def compare(restored: Any, expected: Any, **tolerances: float) -> answers.AnswerComparison:
    served = signature(lambda **arrays: {"y": np.asarray(restored)}, x=Spec("float32", (None,)))
    bounds = {"abs_tolerance": 0.0, "rel_tolerance": 0.0, **tolerances}
    request = {"x": np.zeros(1, np.float32)}
    return answers.compare(served, request, {"y": np.asarray(expected)}, latency=False, **bounds)


@pytest.mark.parametrize(
    ("restored", "expected", "error", "flips"),
    [
        ([[1.0, 2.0]], [[1.0, 2.0]], 0.0, 0),
        ([[1.0, 2.5]], [[1.0, 2.0]], 0.5, 0),
        ([[3.0, 2.0], [0.0, 1.0]], [[1.0, 2.0], [0.0, 1.0]], 2.0, 1),
        ([1, 2], [1, 4], 2.0, 0),
        ([math.nan], [1.0], math.inf, 0),
        ([math.nan, -math.inf], [math.nan, -math.inf], 0.0, 0),
        ([math.inf], [-math.inf], math.inf, 0),
        ([1.0], [[1.0]], math.inf, 0),
        ([1], [1.0], math.inf, 0),
        (b"abd", b"abc", 1.0, 0),
        (b"abc", b"abc", 0.0, 0),
        (np.zeros((0, 3)), np.zeros((0, 3)), 0.0, 0),
    ],
)
def test_how_far_answers_are_apart(restored: Any, expected: Any, error: float, flips: int) -> None:
    found = compare(restored, expected)
    assert (found.max_abs_error, found.argmax_flips) == (error, flips)
    assert found.match is (error == 0)


def test_tolerance_is_relative_to_the_largest_value() -> None:
    assert compare([[100.0, 0.0005]], [[100.0, 0.0]], rel_tolerance=1e-5).match
    assert not compare([[100.0, 0.002]], [[100.0, 0.0]], rel_tolerance=1e-5).match
    assert compare([[100.0, 0.002]], [[100.0, 0.0]], abs_tolerance=0.01).match
    assert not compare([3], [4], rel_tolerance=0.5).match, "a class is the same or it is another"
    masked = [[1.0, -math.inf]]
    assert compare(masked, masked, rel_tolerance=1e-5).match
    assert not compare([[2.0, -math.inf]], masked, rel_tolerance=1e-5).match
    assert not compare([[math.nan]], [[1.0]], abs_tolerance=math.inf).match, "whatever is accepted"


def test_other_outputs_are_no_answer() -> None:
    served = signature(lambda: {"z": np.ones(1)})
    with pytest.raises(DamagedError, match=r"outputs must be \['y'\]. Received: \['z'\]"):
        answers.compare(served, {}, {"y": np.ones(1)}, abs_tolerance=0, rel_tolerance=0, latency=False)


def test_latency_is_that_of_one_row_and_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "LATENCY_SECS", 0)
    sizes: list[int] = []

    def call(x: np.ndarray) -> dict[str, np.ndarray]:
        sizes.append(len(x))
        return {"y": x}

    served = signature(call, x=Spec("float32", (None,)))
    rows = np.zeros(32, np.float32)
    found = answers.compare(served, {"x": rows}, {"y": rows}, abs_tolerance=0, rel_tolerance=0, latency=True)
    assert set(found.latency_ms) == {1, 32}
    assert sizes == [32, 1, 1, 32, 32], "a first call, and one that is measured"
