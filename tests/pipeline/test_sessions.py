"""TF1 graphs and converters at their limits: what they cannot hold, and what is said then."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from models.base import BuiltModel, signature
from pipeline.config.schema import Export
from pipeline.errors import UnsupportedError
from pipeline.formats import base, onnx, tflite
from pipeline.formats import keras as keras_format
from pipeline.formats.base import ExportTask
from pipeline.graphs import checkpoints, sessions
from pipeline.graphs.checkpoints import Graph
from pipeline.graphs.examples import Requests
from pipeline.graphs.signatures import Signature, Spec
from pipeline.runs.directory import RunDirectory

X = tf.TensorSpec([None, 2], tf.float32, "x")
X_SPEC = {"x": Spec("float32", (None, 2))}
PIXELS = tf.TensorSpec([None, 2], tf.uint8, "x")
LABELS = tf.TensorSpec([None], tf.int64, "labels")


def graph_of(path: Path, **changes: Any) -> Graph:
    """Write a model of one weight, and open its graph."""
    weight = tf.Variable([[1.0], [2.0]])
    offset = tf.constant([1.0])

    @signature(X)
    def serving_default(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.matmul(x, weight) + offset}

    @signature(PIXELS, LABELS)
    def evaluate(x: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
        y = serving_default(tf.cast(x, tf.float32) / 255)["y"][:, 0]
        return {"loss_sum": tf.reduce_sum(y - tf.cast(labels, tf.float32)), "count": tf.size(y)}

    signatures = {"serving_default": serving_default, "evaluate": evaluate, **changes.pop("signatures", {})}
    built = BuiltModel(weights={"weight": weight}, loss=dict, signatures=signatures, **changes)  # type: ignore[arg-type]
    checkpoints.write_graph(path / "graph", built)
    return checkpoints.open_graph(path / "graph")


def test_pixels_are_fractions_where_the_model_predicts_from_floats(tmp_path: Path) -> None:
    built = sessions.build(graph_of(tmp_path), input_pipeline=True)
    signatures = sessions.signatures_of(built.session, built.signature_defs)
    x = np.array([[255, 0], [0, 255], [51, 0]], np.uint8)
    outputs = signatures["evaluate"].call(x=x, labels=np.array([1, 2, 3]))
    assert outputs["count"] == 3
    fed = {"x_data_ph:0": x, "labels_data_ph:0": np.array([1, 2, 3]), "batch_size_ph:0": 3}
    built.session.run("dataset_init", fed)
    y = built.session.run("y:0")
    np.testing.assert_allclose(y[:, 0], [2, 3, 1.2], rtol=1e-6)


def test_a_table_that_can_change_is_refused(tmp_path: Path) -> None:
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.float32, 0.0)

    @signature(tf.TensorSpec([None], tf.string, "key"))
    def look_up(key: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"value": table.lookup(key)}

    loaded = graph_of(tmp_path, signatures={"look_up": look_up}, tables=[table])
    with (
        pytest.raises(UnsupportedError, match="constants and lookup tables. It also uses"),
        tf.Graph().as_default(),
    ):
        sessions._Builder(loaded).add_signature("look_up", loaded.signatures["look_up"])
    reason = onnx._convert(loaded.signatures["look_up"], loaded, tmp_path / "a.onnx", 18)
    assert reason is not None
    assert "a table that does not change" in reason


@pytest.mark.parametrize(
    ("keys", "values", "asked", "answers"),
    [
        (["a", "é"], [5, 6], [b"\xc3\xa9", b"x", b"a"], [6, -1, 5]),
        ([3, -2], [7, 8], [-2, 0, 3], [8, -1, 7]),
        ([3, -2], ["ü", "v"], [3, 4, -2], [b"\xc3\xbc", b"?", b"v"]),
    ],
)
def test_tables_and_strings_are_in_every_format(
    tmp_path: Path, keys: Any, values: Any, asked: Any, answers: Any
) -> None:
    content = tf.lookup.KeyValueTensorInitializer(
        tf.constant(keys, None if isinstance(keys[0], str) else tf.int64),
        tf.constant(values, None if isinstance(values[0], str) else tf.int64),
    )
    default = "?" if isinstance(values[0], str) else -1
    table = tf.lookup.StaticHashTable(content, default)

    @signature(tf.TensorSpec([None], table.key_dtype, "key"))
    def look_up(key: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"value": table.lookup(key)}

    graph = graph_of(tmp_path, signatures={"look_up": look_up}, tables=[table])
    given = np.array(asked)
    task = ExportTask(RunDirectory(tmp_path), [], Export(formats={}), {"look_up": {"key": given}}, list)
    assert onnx._reason("look_up", graph, tmp_path, task) is None
    built = sessions.build(graph, input_pipeline=True)
    everywhere = {
        "session": sessions.signatures_of(built.session, built.signature_defs)["look_up"],
        "saved_model": sessions.load(tmp_path / "graph")["look_up"],
        "onnx": onnx._signature(tmp_path / "look_up.onnx"),
    }
    if {table.key_dtype, table.value_dtype} == {tf.string, tf.int64}:
        tflite._save(graph, str(tmp_path / "saved"))
        content = tflite._convert(str(tmp_path / "saved"), ["look_up"], Export(formats={}), [])
        everywhere["tflite"] = tflite._signatures(tflite._interpreter(model_content=content))["look_up"]
    for name, function in everywhere.items():
        assert function.call(key=given)["value"].tolist() == answers, name


def test_a_request_of_another_length_passes_by_the_input_pipeline(tmp_path: Path) -> None:
    @signature(tf.TensorSpec([None, None], tf.float32, "x"))
    def serving_default(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"total": tf.reduce_sum(x, axis=1)}

    @signature(X)
    def evaluate(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"loss_sum": tf.reduce_sum(x), "count": tf.shape(x)[0]}

    graph = graph_of(tmp_path, signatures={"serving_default": serving_default, "evaluate": evaluate})
    built = sessions.build(graph, input_pipeline=True)
    total = sessions.signatures_of(built.session, built.signature_defs)["serving_default"]
    for width in (2, 3):
        assert total.call(x=np.ones((4, width), np.float32))["total"].tolist() == [width] * 4


def test_functions_that_onnx_lacks_are_others(tmp_path: Path) -> None:
    @signature(X)
    def special(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"erfc": tf.math.erfc(x), "log1p": tf.math.log1p(x)}

    graph = graph_of(tmp_path, signatures={"special": special})
    request = {"x": np.linspace(0, 2, 10, dtype=np.float32).reshape(5, 2)}
    task = ExportTask(RunDirectory(tmp_path), [], Export(formats={}), {"special": request}, list)
    assert onnx._reason("special", graph, tmp_path, task) is None
    answer = onnx._signature(tmp_path / "special.onnx").call(**request)
    for name, expected in graph.signatures["special"].call(**request).items():
        np.testing.assert_allclose(answer[name], expected, rtol=1e-5, atol=1e-7)


def test_a_converter_that_computes_something_else_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = graph_of(tmp_path)
    x = np.array([[1, 2], [3, 4]], np.float32)

    def other(answer: Any) -> Signature:
        return Signature(X_SPEC, {}, lambda x: {"y": answer})

    right = graph.signatures["serving_default"]
    assert base.disagreement(other([[6.0], [12.0]]), right, {"x": x}) is None
    assert base.disagreement(other([[6.0], [12.5]]), right, {"x": x}) == (
        "its y is [ 6.  12.5], that of the model [ 6. 12.]"
    )
    nothing = base.disagreement(other([[np.nan]]), right, {"x": x[:1]})
    assert nothing == "its y is nan, that of the model 6"
    # A request that the model itself refuses says nothing.
    assert base.disagreement(other([]), right, {"x": x[:, :1]}) is None

    task = ExportTask(RunDirectory(tmp_path), [], Export(formats={}), {"serving_default": {"x": x}}, list)
    for module, name in ((onnx, "ONNX Runtime"), (tflite, "LiteRT")):
        monkeypatch.setattr(module, "disagreement", lambda *_: "its y is 1, that of the model 2")
        said = f"{name} computes something else: its y is 1, that of the model 2"
        if module is onnx:
            assert onnx._reason("serving_default", graph, tmp_path, task) == said
    content = tflite._convert(
        str(tmp_path / "graph"), ["serving_default", "evaluate"], Export(formats={}), []
    )
    names = ["evaluate", "serving_default"]  # There is no request of the first.
    assert tflite._reason(lambda _: content, names, graph, task) == said


def test_a_layer_that_keras_cannot_build_without_its_code_is_said(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.graph.parent.mkdir()
    network = {"module": "mine", "class_name": "Own", "config": {}, "registered_name": "Own"}
    run.graph.with_name("network.json").write_text(json.dumps({"network": network, "weights": []}))
    task = ExportTask(run, [], Export(formats={}), {}, list)
    with pytest.raises(UnsupportedError, match=r"registered by keras.saving.* Could not locate class 'Own'"):
        keras_format.write(task, tmp_path)


def test_one_name_is_one_tensor(tmp_path: Path) -> None:
    @signature(X)
    def doubled(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"x": 2 * x}

    graph = graph_of(tmp_path, session_graph=doubled)
    with pytest.raises(UnsupportedError, match="must have one tensor x:0. An output and an input"):
        sessions.build(graph, input_pipeline=False)


@signature(tf.TensorSpec([None], tf.int32, "i"))
def picked(i: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"y": tf.gather(tf.constant([1.0, 2.0]), i)}


@signature(tf.TensorSpec([2], tf.int32, "seed"))
def drawn(seed: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"y": tf.random.stateless_uniform([3], seed)}


def test_what_onnx_cannot_express_or_run_is_said(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, signatures={"picked": picked, "drawn": drawn})
    path = tmp_path / "a.onnx"
    reason = onnx._convert(graph.signatures["drawn"], graph, path, 18)
    assert reason is not None
    assert reason.startswith("ONNX cannot express it: ")
    assert not path.exists()
    assert onnx._convert(graph.signatures["picked"], graph, path, 18) is None
    assert onnx._cannot_run(path, graph.signatures["picked"], {"i": np.array([1], np.int32)}) is None
    reason = onnx._cannot_run(path, graph.signatures["picked"], {"i": np.array([99], np.int32)})
    assert reason is not None
    assert reason.startswith("ONNX Runtime cannot run it: ")


def test_what_litert_cannot_express_or_run_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of(tmp_path, signatures={"picked": picked, "drawn": drawn})
    requests: Requests = {"picked": {"i": np.array([99], np.int32)}, "drawn": {}}
    task = ExportTask(RunDirectory(tmp_path), [], Export(formats={}), requests, list)

    def convert(names: Sequence[str]) -> bytes:
        return tflite._convert(str(tmp_path / "graph"), names, Export(formats={}), [])

    reason = tflite._reason(convert, ["drawn"], graph, task)
    assert reason is not None
    assert reason.startswith("LiteRT has no operation Stateless")
    reason = tflite._reason(convert, ["picked"], graph, task)
    assert reason is not None
    assert reason.startswith("LiteRT cannot run it: ")

    def fail(*arguments: object) -> bytes:
        raise ValueError("it is strange\nand long")

    monkeypatch.setattr(tflite, "_convert", fail)
    assert tflite._reason(convert, ["picked"], graph, task) == "LiteRT cannot express it: it is strange"
