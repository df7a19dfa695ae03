"""TF1 graphs and converters at their limits: what they cannot hold, and what is said then."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from models.base import BuiltModel, signature
from pipeline.config.schema import Export
from pipeline.errors import UnsupportedError
from pipeline.formats import onnx, tflite
from pipeline.graphs import checkpoints, sessions
from pipeline.graphs.checkpoints import Graph
from pipeline.graphs.examples import Requests

X = tf.TensorSpec([None, 2], tf.float32, "x")
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
    y = signatures["serving_default"].call(x=x)["y"]
    np.testing.assert_allclose(y[:, 0], [2, 3, 1.2], rtol=1e-6)


def test_a_graph_of_more_than_variables_and_constants_is_refused(tmp_path: Path) -> None:
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["a"], [1.0]), 0.0)

    @signature(tf.TensorSpec([None], tf.string, "key"))
    def look_up(key: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"value": table.lookup(key)}

    weight = tf.Variable(1.0)
    module = tf.Module()
    module.weights, module.table = {"weight": weight}, table
    tf.saved_model.save(module, str(tmp_path / "graph"), signatures={"look_up": look_up})
    loaded = checkpoints.open_graph(tmp_path / "graph")
    with (
        pytest.raises(
            UnsupportedError, match="can hold the model's variables and constants. It also uses .*saved_"
        ),
        tf.Graph().as_default(),
    ):
        sessions._Builder(loaded).add_signature("look_up", loaded.signatures["look_up"])


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
    reason = onnx._convert(graph.signatures["drawn"], path, 18)
    assert reason is not None
    assert reason.startswith("ONNX cannot express it: ")
    assert not path.exists()
    assert onnx._convert(graph.signatures["picked"], path, 18) is None
    assert onnx._cannot_run(path, {"i": np.array([1], np.int32)}) is None
    reason = onnx._cannot_run(path, {"i": np.array([99], np.int32)})
    assert reason is not None
    assert reason.startswith("ONNX Runtime cannot run it: ")


def test_what_litert_cannot_express_or_run_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tf.Module()
    tf.saved_model.save(module, str(tmp_path), signatures={"picked": picked, "drawn": drawn})
    requests: Requests = {"picked": {"i": np.array([99], np.int32)}, "drawn": {}}

    def convert(names: Sequence[str]) -> bytes:
        return tflite._convert(str(tmp_path), names, Export(formats={}), [])

    reason = tflite._reason(convert, ["drawn"], requests)
    assert reason is not None
    assert reason.startswith("LiteRT has no operation Stateless")
    reason = tflite._reason(convert, ["picked"], requests)
    assert reason is not None
    assert reason.startswith("LiteRT cannot run it: ")

    def fail(*arguments: object) -> bytes:
        raise ValueError("it is strange\nand long")

    monkeypatch.setattr(tflite, "_convert", fail)
    assert tflite._reason(convert, ["picked"], requests) == "LiteRT cannot express it: it is strange"
