"""The predictor: one interface over every format, and requests that are wrong."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import predictor
from pipeline.config.formats import FORMATS
from pipeline.errors import ConfigError, DamagedError, UntrustedError
from pipeline.formats.manifest import Manifest
from pipeline.graphs import examples
from pipeline.graphs.signatures import Signature, Spec
from pipeline.predictor import RequestError
from pipeline.runs import checksums
from pipeline.runs.directory import RunDirectory
from tests.cases import CASES
from tests.conftest import Finished

GRU, _, CHAR_LSTM, DENSE = CASES


@pytest.mark.parametrize("name", FORMATS)
def test_the_interface_is_the_same_for_every_format(name: str, finished: Finished) -> None:
    run = RunDirectory(finished.of(GRU)[0])
    opened = predictor.open(run.path / "export" / name)
    assert (opened.format, opened.epoch) == (name, 2)
    assert opened.directory == run.newest_export(name)
    serve = opened.signatures["serving_default"]
    assert str(serve.inputs["features"]) == "float32 [any, any, 30]"
    assert set(serve.outputs) == {"logits", "probabilities", "class_id"}
    request = examples.read(run.requests)["serving_default"]
    expected = examples.read(run.answers(2))["serving_default"]
    outputs = opened(**request)
    for key, value in expected.items():
        assert type(outputs[key]) is np.ndarray
        np.testing.assert_allclose(outputs[key], value, rtol=1e-5, atol=1e-6)
    one = serve(features=request["features"][:1].tolist())
    np.testing.assert_allclose(one["logits"], expected["logits"][:1], rtol=1e-5, atol=1e-6)


def test_text_goes_in_and_comes_out(finished: Finished) -> None:
    run, _ = finished.of(CHAR_LSTM)
    generate = predictor.open(run / "export" / "saved_model").signatures["generate"]
    outputs = generate(prompt="License", length=30, temperature=0.8, seed=[1, 2])
    assert len(outputs["text"].item().decode()) == 37
    with pytest.raises(RequestError, match="generate cannot answer this request: .*outside the vocabulary"):
        generate(prompt="ÄÖ", length=30, temperature=0.8, seed=[1, 2])
    with pytest.raises(RequestError, match=r"prompt must be string \[\]. Received: 3"):
        generate(prompt=3, length=30, temperature=0.8, seed=[1, 2])


def test_the_newest_version_is_the_largest_number(finished: Finished, tmp_path: Path) -> None:
    run, _ = finished.of(DENSE)
    (version,) = (run / "export" / "onnx").iterdir()
    for number in ("9", "10", "11"):
        shutil.copytree(version, tmp_path / "onnx" / number)
    (tmp_path / "onnx" / "11" / "manifest.json").unlink()
    (tmp_path / "onnx" / ".12.staging").mkdir()
    assert predictor.open(tmp_path / "onnx").directory.name == "10"
    assert predictor.open(tmp_path / "onnx" / "9").directory.name == "9"


@pytest.fixture
def export(finished: Finished, tmp_path: Path) -> Path:
    (version,) = (finished.of(DENSE)[0] / "export" / "onnx").iterdir()
    return Path(shutil.copytree(version, tmp_path / "1"))


def sealed(facts: dict[str, Any]) -> str:
    return json.dumps(checksums.with_checksum(facts))


@pytest.mark.parametrize(
    ("receipt", "message"),
    [
        (lambda receipt: None, "There is no receipt"),
        (lambda receipt: "{}", "no receipt"),
        (lambda receipt: '{"verdict": "match"}', "no receipt"),
        (lambda receipt: sealed({"verdict": "match"}), "no receipt"),
        (lambda receipt: sealed(receipt | {"verdict": "mismatch"}), "no receipt"),
        (lambda receipt: sealed(receipt | {"epochs": []}), "no receipt"),
        (lambda receipt: sealed(receipt | {"epochs": [], "verdict": "mismatch"}), "receipt says mismatch"),
        (lambda receipt: sealed(receipt | {"files": {}}), "receipt is of other files"),
    ],
)
def test_what_is_not_proven_is_refused(
    export: Path, receipt: Callable[[dict[str, Any]], str | None], message: str
) -> None:
    path = export / "verification.json"
    text = receipt(checksums.checked(path.read_text()))
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(
        UntrustedError, match=f"{message}.*Verify it with python -m pipeline.evaluate run_dir="
    ):
        predictor.open(export)
    assert predictor.open(export, allow_unverified=True)(number=[[7]])["output"].shape == (1, 1)


def test_what_has_changed_since_it_was_proven_is_refused(export: Path) -> None:
    model = export / "predict_features.onnx"
    model.write_bytes(model.read_bytes() + b" ")
    (export / "evaluate.onnx").unlink()
    for allow in (False, True):
        with pytest.raises(DamagedError) as refusal:
            predictor.open(export, allow_unverified=allow)
        missing, changed = refusal.value.problems
        assert "evaluate.onnx must be there. It is missing" in missing
        assert "predict_features.onnx must have the SHA-256" in changed


def test_what_was_put_beside_it_is_refused(export: Path) -> None:
    (export / ".nfs0001").touch()
    (export / "assets.extra").mkdir()
    (export / "assets.extra" / "tf_serving_warmup_requests").touch()
    predictor.open(export)
    shutil.copy(export / "predict_features.onnx", export / "foreign.onnx")
    with pytest.raises(DamagedError, match="foreign.onnx must not be there. .* Remove it"):
        predictor.open(export)


def test_an_epoch_of_several_can_be_chosen(finished: Finished) -> None:
    path = finished.of(DENSE)[0] / "export" / "checkpoint"
    assert predictor.open(path, epoch=3).epoch == 3
    with pytest.raises(ConfigError, match="epoch must be one of 3. Received: 2"):
        predictor.open(path, epoch=2)


def test_opening_an_export_leaves_the_program_as_it_was(finished: Finished) -> None:
    path = finished.of(DENSE)[0] / "export" / "saved_model"
    random.seed(5)
    expected = random.random()
    random.seed(5)
    predictor.open(path)
    assert random.random() == expected


def test_no_export_and_a_damaged_one(export: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="export_dir must be an export, or a folder of its versions"):
        predictor.open(tmp_path / "nowhere")
    for text, message in (
        ('{"format": "os"}', "its checksum does not fit"),
        (json.dumps(checksums.with_checksum({"format": "onnx"})), "epochs must be"),
        (manifest(format="os", epochs=[1]), "format must be one of saved_model, .* Received: os"),
    ):
        (export / "manifest.json").write_text(text)
        with pytest.raises(
            DamagedError, match=f"must say what the export holds. Reading it failed: {message}"
        ):
            predictor.open(export)
    (export / "manifest.json").write_text(manifest(format="onnx", epochs=[]))
    with pytest.raises(DamagedError, match="must hold an epoch. It says that it holds none"):
        predictor.open(export, allow_unverified=True)


def manifest(*, format: str, epochs: list[int]) -> str:
    """Return the manifest of an export without files."""
    held = Manifest(
        format=format,
        epochs=epochs,
        signatures=[],
        left_out={},
        run="",
        quantization="none",
        quantized_tolerance=0.0,
        files={},
        answers={},
    )
    return json.dumps(checksums.with_checksum(vars(held)))


def served(call: Any = dict, **inputs: Spec) -> predictor.Served:
    return predictor._served("serve", Signature(inputs, {}, call))


NUMBERS = Spec("float32", (None, 2))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, r"x must be given: float32 \[any, 2\]."),
        ({"x": [[1, 2]], "z": 1}, "serve takes x. Received also: z."),
        ({"x": [1, 2]}, r"x must be float32 \[any, 2\]. Received the shape \[2\]."),
        ({"x": [[1, 2, 3]]}, r"Received the shape \[1, 3\]."),
        ({"x": [[1], [1, 2]]}, r"x must be float32 \[any, 2\]. "),
        ({"x": [["a", "b"]]}, "x must be float32"),
        ({"x": [[True, False]]}, "x must be float32"),
        ({"x": [[None, None]]}, "x must be float32"),
        ({"x": np.zeros((1, 2))}, r"Received: float64. Convert it with .astype\('float32'\)."),
        ({"x": np.zeros((1, 3), np.float32)}, r"Received the shape \[1, 3\]."),
        ({"x": np.zeros(2, np.float32)}, r"Received the shape \[2\]."),
    ],
)
def test_what_is_wrong_with_a_request_is_said(request_: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        served(x=NUMBERS)(**request_)


def test_everything_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(RequestError, match=r"takes x, y.*also: a.*y must be given.*x must be float32"):
        served(x=NUMBERS, y=NUMBERS)(a=1, x=3)


def test_inputs_have_the_same_number_of_rows() -> None:
    serve = served(lambda **arrays: arrays, x=NUMBERS, y=NUMBERS)
    rows = np.zeros((3, 2), np.float32)
    with pytest.raises(RequestError, match="same number of rows. Received: x 3, y 2."):
        serve(x=rows, y=rows[:2])
    assert set(serve(x=rows, y=rows)) == {"x", "y"}


def test_plain_numbers_become_the_dtype_that_can_hold_them() -> None:
    token = served(lambda **arrays: arrays, x=Spec("uint8", (None,)), y=Spec("bool", (None,)))
    outputs = token(x=[0, 255], y=[True, False])
    assert [outputs[name].dtype.name for name in "xy"] == ["uint8", "bool"]
    assert token(x=[], y=[])["x"].shape == (0,)
    for bad in ([256], [-1], [0.5]):
        with pytest.raises(RequestError, match=r"x must be uint8 \[any\]. Received"):
            token(x=bad, y=[True])
    anything = served(lambda **arrays: arrays, x=Spec("float32", None))
    assert anything(x=[[[1]]])["x"].ndim == 3
    with pytest.raises(RequestError, match="x must be float32 of any shape"):
        anything(x="a")


def test_the_default_signature_may_be_missing(finished: Finished) -> None:
    opened = predictor.open(finished.of(DENSE)[0] / "export" / "keras")
    assert set(opened.signatures) == {"predict_features"}
    with pytest.raises(
        RequestError, match="signature must be one of predict_features. Received: serving_def"
    ):
        opened(number=[[7]])


WITHOUT_TENSORFLOW = """
import sys
sys.modules["tensorflow"] = None
from pipeline import predictor
print(predictor.open(sys.argv[1])(number=[[7]])["output"].shape)
"""


@pytest.mark.parametrize("name", ["onnx", "tflite"])
def test_no_tensorflow_where_none_is_needed(name: str, finished: Finished) -> None:
    path = finished.of(DENSE)[0] / "export" / name
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, str(path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert printed == "(1, 1)\n"
