"""`python -m pipeline.predict`: a filter of JSON lines."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import predict, predictor
from pipeline.graphs.signatures import Signature, Spec
from pipeline.predict import PredictSettings
from pipeline.predictor import Predictor
from tests.cases import CASES
from tests.conftest import Command, Finished

DENSE = CASES[3]
SUM = Signature(
    {"x": Spec("float32", (None, 2))},
    {"y": Spec("float32", (None,))},
    lambda x: {"y": x.sum(1)},
)
TEXT = Signature(
    {"prompt": Spec("string", ()), "seed": Spec("int32", (2,))},
    {"text": Spec("string", ())},
    lambda prompt, seed: {"text": np.array(prompt.item() + b"\xff%d" % seed.sum(), dtype=object)},
)


def run(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lines: Sequence[str],
    **changes: Any,
) -> tuple[int, list[dict[str, Any]]]:
    """Call the command's function on some lines, with a predictor of two signatures."""
    signatures = {"serving_default": SUM, "generate": TEXT} | changes.pop("signatures", {})
    opened = Predictor(
        Path(), "onnx", 0, {name: predictor._served(name, one) for name, one in signatures.items()}
    )
    monkeypatch.setattr(predictor, "open", lambda *arguments, **options: opened)
    given = "".join(line + "\n" for line in lines).encode("latin-1", errors="replace")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    settings = PredictSettings(
        **{
            "export_dir": Path(),
            "signature": None,
            "allow_unverified": False,
            "trust": [],
            "batch_size": 1,
            "batch_wait_secs": 0.2,
            **changes,
        }
    )
    code = predict.predict(settings)
    return code, [json.loads(line) for line in capsys.readouterr().out.split("\n")[:-1]]


Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_line_for_a_line_whatever_is_bad(monkeypatch: Patch, capsys: Capture, batch_size: int) -> None:
    lines = [
        '{"x": [1, 2]}',
        '{"x": [[1, 2], [3, 4]]}',
        "",
        "nonsense",
        "[1]",
        '{"x": [1, 2, 3]}',
        '{"x": "a"}',
        '{"x": [1, 2], "z": 3}',
        "{}",
        "[" * 100_000,
        '{"x": [0.1, 0]}',
    ]
    code, answers = run(monkeypatch, capsys, lines, batch_size=batch_size)
    assert code == 2
    assert [next(iter(answer)) for answer in answers] == ["y", "y", *["error"] * 7, "y"]
    assert answers[0] == {"y": 3.0}
    assert answers[1] == {"y": [3.0, 7.0]}
    assert answers[-1] == {"y": 0.1}, "the fewest digits that give the bits"
    assert "Received the shape [1, 3]" in answers[4]["error"]


def test_a_line_names_its_signature_by_its_inputs(monkeypatch: Patch, capsys: Capture) -> None:
    code, answers = run(monkeypatch, capsys, ['{"prompt": "\\u00e9", "seed": 3}', '{"x": [1, 2]}'])
    assert code == 0
    assert answers == [{"text": "é\\xff6"}, {"y": 3.0}]
    code, answers = run(monkeypatch, capsys, ['{"x": [1, 2]}'], signature="generate")
    assert code == 2
    assert "generate takes prompt, seed. Received also: x." in answers[0]["error"]
    with pytest.raises(ValueError, match="signature must be one of serving_default, generate. Received: gen"):
        run(monkeypatch, capsys, [], signature="gen")


def test_waiting_lines_are_answered_by_one_call(monkeypatch: Patch, capsys: Capture) -> None:
    sizes: list[int] = []

    def call(x: np.ndarray) -> dict[str, np.ndarray]:
        sizes.append(len(x))
        if (x < 0).any():
            raise ValueError("negative")
        return {"y": x.sum(1)}

    signatures = {"serving_default": Signature(SUM.inputs, SUM.outputs, call)}
    lines = ['{"x": [1, 2]}', '{"x": [[3, 4], [5, 6]]}', '{"x": [7, 8]}', '{"x": [9, 10]}', '{"x": [0, 0]}']
    code, answers = run(monkeypatch, capsys, lines, batch_size=4, signatures=signatures)
    assert code == 0
    assert [answer["y"] for answer in answers] == [3, [7, 11], 15, 19, 0]
    assert sizes == [5, 1]
    sizes.clear()
    lines[1] = '{"x": [-1, 0]}'
    code, answers = run(monkeypatch, capsys, lines, batch_size=4, signatures=signatures)
    assert code == 2
    assert sizes == [4, 1, 1, 1, 1, 1], "one bad line does not spoil the others"
    assert "serving_default cannot answer this request: negative" in answers[1]["error"]
    assert [answer.get("y") for answer in answers] == [3, None, 15, 19, 0]


def test_lines_that_do_not_go_together_are_answered_apart(monkeypatch: Patch, capsys: Capture) -> None:
    """Rows of one line are never joined with another line's."""
    pair = {"a": Spec("float32", (None, 1)), "b": Spec("float32", (None, 1))}
    both = Signature(pair, {"y": Spec("float32", (None,))}, lambda a, b: {"y": (a + b)[:, 0]})
    lines = [
        '{"a": [[1]], "b": [[1], [2]]}',
        '{"a": [[1], [2]], "b": [[1]]}',
        '{"a": [[1], [2, 3]], "b": [[1]]}',
        '{"a": [[1]], "b": [[1]]}',
    ]
    code, answers = run(monkeypatch, capsys, lines, batch_size=4, signatures={"serving_default": both})
    assert code == 2
    assert ["error" in answer for answer in answers] == [True, True, True, False]
    assert "same number of rows. Received: a 1, b 2" in answers[0]["error"]


ODD = [
    b'{"self": 1}',
    b'{"x": "\xff"}',
    b'{"x": [[1], [2, 3]]}',
    b'{"x": ' + b"[" * 200 + b"]" * 200 + b"}",
    b'{"\\ud800": 1}',
    b'{"x": [NaN, 1]}',
    b'{"x": [1e300, 1]}',
    b'{"x": [1, 1' + b"0" * 400 + b"]}",
    b"\x00",
]


@pytest.mark.parametrize("batch_size", [1, 16])
def test_no_line_ends_the_stream(monkeypatch: Patch, capsys: Capture, batch_size: int) -> None:
    lines = [*(line.decode("latin-1") for line in ODD), '{"x": [1, 2]}']
    code, answers = run(monkeypatch, capsys, lines, batch_size=batch_size)
    assert code == 2
    assert [set(answer) for answer in answers] == [{"error"}] * len(ODD) + [{"y"}]


def test_a_line_does_not_wait_longer_than_it_must() -> None:
    assert list(predict._batches(io.BytesIO(b"1\n2\n3\n"), 8, 0.5)) == [[b"1\n", b"2\n", b"3\n"]]

    def slowly() -> Any:
        yield b"1\n"
        threading.Event().wait()

    assert next(predict._batches(slowly(), 8, 0.01)) == [b"1\n"]


def test_an_answer_that_json_cannot_say(monkeypatch: Patch, capsys: Capture) -> None:
    signatures = {"serving_default": Signature(SUM.inputs, SUM.outputs, lambda x: {"y": x.sum(1) / 0.0})}
    with np.errstate(divide="ignore"):
        _, answers = run(monkeypatch, capsys, ['{"x": [1, 2]}'], signatures=signatures)
    assert answers == [{"error": "the answer is not finite, which JSON cannot say"}]


@pytest.mark.parametrize("name", ["onnx", "saved_model"])
def test_it_is_a_filter(finished: Finished, name: str) -> None:
    path = finished.of(DENSE)[0] / "export" / name
    command = [sys.executable, "-m", "pipeline.predict", f"export_dir='{path}'"]
    lines = '{"number": 7}\n{"number": "seven"}\n{"feature": [[7, 7], [8, 8]]}\n'
    completed = subprocess.run(
        command, input=lines, capture_output=True, text=True, check=False, timeout=60, cwd="/"
    )
    answers = [json.loads(line) for line in completed.stdout.splitlines()]
    assert [set(answer) for answer in answers] == [{"output"}, {"error"}, {"output"}]
    assert np.shape(answers[2]["output"]) == (2, 1)
    assert completed.stderr == "1 of 3 lines were bad\n"
    assert completed.returncode == 2


def test_it_answers_before_the_input_ends(finished: Finished) -> None:
    path = finished.of(DENSE)[0] / "export" / "tflite"
    command = [sys.executable, "-m", "pipeline.predict", f"export_dir='{path}'", "batch_size=8"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(2):
            process.stdin.write('{"number": 7}\n')
            process.stdin.flush()
            assert "output" in process.stdout.readline()
        process.stdin.close()
        assert process.wait(timeout=60) == 0


def test_a_configuration_that_does_not_fit(command: Command) -> None:
    stderr = command("pipeline.predict", "batch_size=0", code=2).stderr
    assert "export_dir must be given" in stderr
    assert "batch_size must be >= 1. Received: 0." in stderr


def test_answers_as_json_values() -> None:
    assert predict._plain(np.array([[1, 2]])) == [[1, 2]]
    assert predict._plain(np.float32(0.1)) == 0.1
    assert predict._plain(np.array([b"a", b"b"], dtype=object)) == ["a", "b"]
