"""Every format, in its own runtime, and a negative for each proof."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from models.base import classify
from pipeline.config.formats import FORMATS
from pipeline.config.schema import Export, Verify
from pipeline.errors import RoundtripError, UnsupportedError
from pipeline.formats import base, exporting, opening
from pipeline.formats.base import ExportTask
from pipeline.graphs import examples
from pipeline.graphs.checkpoints import Graph
from pipeline.graphs.signatures import Signature, Spec, predicting, scored
from pipeline.runs.directory import RunDirectory
from pipeline.runtime import held_back_stderr
from pipeline.verification.receipt import VerifiedEpoch
from pipeline.verification.verifier import Verifier
from tests.cases import CASES, Case
from tests.conftest import Finished, rewrite, rewrite_export

cases = pytest.mark.parametrize("case", CASES, ids=str)
NOTHING_GIVEN = Verify(abs_tolerance=None, rel_tolerance=None, quantized_tolerance=None)
EXACT = ("saved_model", "checkpoint", "meta_graph", "simple_save")
LEFT_OUT = {
    "gru": {
        "keras": {"predict_dataset", "evaluate"},
        "tflite": {"predict_dataset"},
        "onnx": {"predict_dataset"},
    },
    "mnist_cnn": {"keras": {"serving_uint8", "evaluate"}, "tflite": set(), "onnx": set()},
    "char_lstm": {
        "keras": {"initial_state", "generate", "evaluate"},
        "tflite": {"generate"},
        "onnx": {"generate"},
    },
    "dense": {"keras": {"serving_default", "evaluate"}, "tflite": set(), "onnx": set()},
}


def newest(run: Path, format: str) -> Path:
    path = RunDirectory(run).newest_export(format)
    assert path is not None
    return path


def verify(run: Path, *names: str, **given: float) -> list[VerifiedEpoch]:
    directory = RunDirectory(run)
    tolerance = Verify(**{**vars(NOTHING_GIVEN), **given})
    verifier = Verifier(directory, directory.read_rows(), CASES[0].load(), tolerance)
    return verifier.exports([newest(run, name) for name in names])


@cases
def test_every_format_matches_for_every_model(case: Case, finished: Finished) -> None:
    """The run's receipt was written by a process that never saw the model's code."""
    run, completed = finished.of(case)
    receipt = json.loads((run / "verification.json").read_text())
    assert receipt["verdict"] == "match"
    assert [export["format"] for export in receipt["exports"]] == list(FORMATS)
    for export in receipt["exports"]:
        (row,) = export["epochs"]
        name = export["format"]
        left_out = LEFT_OUT[case.name].get(name, set())
        assert set(row["left_out"]) == left_out
        named = {"session_graph"} if name == "meta_graph" and case.name != "gru" else set()
        assert set(row["signatures"]) == set(case.signatures) - left_out - {"evaluate"} | named
        assert not row["not_compared"]
        differences = [metric["difference"] for metric in row["metrics"].values()]
        errors = [found["max_abs_error"] for found in row["signatures"].values()]
        if name in EXACT:
            assert not any(differences)
            assert not any(errors)
        for left in left_out:
            assert f"{name} leaves out {left}: " in completed.stderr
    assert list(RunDirectory(run).path.glob("checkpoints/answers-*.npz"))


# Programs that know the names in docs/formats.md, and nothing of this project.
SAVER = """
import sys, numpy as np, tensorflow as tf
tf1 = tf.compat.v1
directory, data = sys.argv[1:]
arrays = np.load(data)
for prefix in tf1.train.get_checkpoint_state(directory).all_model_checkpoint_paths:
    with tf.Graph().as_default() as graph, tf1.Session() as session:
        saver = tf1.train.import_meta_graph(prefix + ".meta")
        saver.restore(session, prefix)
        names = ["accuracy_sum:0", "loss_sum:0", "count:0", "accuracy_op:0", "cross_entropy_op:0",
                 "logits:0", "probabilities:0"]
        tensors = [graph.get_tensor_by_name(name) for name in names]
        totals = np.zeros(3)
        for start in range(0, len(arrays["labels"]), 100):
            rows = slice(start, start + 100)
            images = arrays["images"][rows].astype(np.float32) / np.float32(255)
            *sums, accuracy, loss, logits, probabilities = session.run(
                tensors, {"images:0": images, "labels:0": arrays["labels"][rows]})
            assert abs(accuracy - sums[0] / sums[2]) < 1e-6 and abs(loss - sums[1] / sums[2]) < 1e-6
            assert (logits.argmax(1) == probabilities.argmax(1)).all()
            totals += [float(value) for value in sums]
        print(*(repr(value) for value in (totals[:2] / totals[2]).tolist()))
assert not {"pipeline", "models", "data"} & set(sys.modules)
"""

STEP = """
import sys, numpy as np, tensorflow as tf
tf1 = tf.compat.v1
prefix, vocabulary_size, units = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with tf.Graph().as_default() as graph, tf1.Session() as session:
    tf1.train.import_meta_graph(prefix + ".meta").restore(session, prefix)
    x = np.eye(vocabulary_size, dtype=np.float32)[[[5, 1], [0, 2], [3, 3]]]  # T, B, V
    state = np.zeros((2, 2, units), np.float32)
    names = ["probabilities:0", "current_state_c:0", "current_state_h:0"]
    whole = session.run(names, {"x:0": x, "init_state:0": state})
    for t in range(3):
        probabilities, c, h = session.run(names, {"x:0": x[t : t + 1], "init_state:0": state})
        state = np.stack([c, h])
    assert np.abs(probabilities[0] - whole[0][-1]).max() < 1e-6
    np.savez(sys.argv[4], probabilities=whole[0], c=whole[1], h=whole[2])
"""

NUMBER = """
import sys, tensorflow as tf
tf1 = tf.compat.v1
with tf.Graph().as_default() as graph, tf1.Session() as session:
    tf1.train.import_meta_graph(sys.argv[1] + ".meta").restore(session, sys.argv[1])
    print(repr(session.run("output:0", {"number:0": [[7.0]]})[0, 0].item()))
"""

PIPELINE = """
import sys, numpy as np, tensorflow as tf
tf1 = tf.compat.v1
kind, path, data, outputs = sys.argv[1:]
arrays = np.load(data)
with tf.Graph().as_default() as graph, tf1.Session() as session:
    if kind == "simple_save":
        tf1.saved_model.load(session, ["serve"], path)
    else:
        tf1.train.import_meta_graph(path + ".meta").restore(session, path)
    feeds = {f"{name}_data_ph:0": arrays[name] for name in arrays}
    session.run("dataset_init", {"batch_size_ph:0": 30, **feeds})
    batches = []
    while True:
        try:
            batches.append(session.run("logits:0"))
        except tf.errors.OutOfRangeError:
            break
np.savez(outputs, *batches)
"""


def script(text: str, *arguments: object, blocked: str | None = None) -> str:
    block = f"import sys; sys.modules[{blocked!r}] = None\n" if blocked else ""
    command = [sys.executable, "-c", block + text, *map(str, arguments)]
    completed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd="/")
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def test_a_tf1_program_gives_the_logged_metrics_of_ten_epochs(
    tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    case = CASES[1]
    command(
        "pipeline", "model=mnist_cnn", "data=digits", "train.epochs=9", "export=meta_graph", "epoch=all",
        "hydra.run.dir=run",
    )  # fmt: skip
    run = RunDirectory(tmp_path / "run")
    np.savez(tmp_path / "data.npz", **dict[str, Any](case.load().test))
    printed = script(SAVER, newest(run.path, "meta_graph"), tmp_path / "data.npz")
    logged = [row.test for row in run.read_rows()]
    assert len(logged) == 10
    assert printed.splitlines() == [f"{test['accuracy']!r} {test['loss']!r}" for test in logged]


def test_a_tf1_program_steps_through_the_char_lstm(finished: Finished, tmp_path: Path) -> None:
    case = CASES[2]
    run, _ = finished.of(case)
    vocabulary_size = len(case.load().metadata["vocabulary"])
    script(STEP, newest(run, "meta_graph") / "epoch-2", vocabulary_size, 8, tmp_path / "out.npz")
    found = np.load(tmp_path / "out.npz")
    step = tf.saved_model.load(str(newest(run, "saved_model"))).signatures["step"]
    zeros = tf.zeros([2, 8])
    expected = step(tokens=tf.constant([[5, 0, 3], [1, 2, 3]]), state_c=zeros, state_h=zeros)
    np.testing.assert_allclose(
        found["probabilities"], np.swapaxes(expected["probabilities"], 0, 1), rtol=1e-5
    )
    np.testing.assert_allclose(found["c"], expected["state_c"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["h"], expected["state_h"], rtol=1e-4, atol=1e-6)


def test_a_tf1_program_finds_number_and_output(finished: Finished) -> None:
    run, _ = finished.of(CASES[3])
    printed = script(NUMBER, newest(run, "meta_graph") / "epoch-3")
    serve = tf.saved_model.load(str(newest(run, "saved_model"))).signatures["serving_default"]
    assert float(printed) == serve(number=tf.constant([[7.0]]))["output"].numpy().item()


@pytest.mark.parametrize("kind", ["simple_save", "meta_graph"])
def test_the_restored_input_pipeline_gives_the_logits_of_every_batch(
    kind: str, finished: Finished, tmp_path: Path
) -> None:
    case = CASES[0]
    run, _ = finished.of(case)
    test = case.load().test
    np.savez(tmp_path / "data.npz", **dict[str, Any](test))
    path = newest(run, kind) / ("epoch-2" if kind == "meta_graph" else "")
    script(PIPELINE, kind, path, tmp_path / "data.npz", tmp_path / "out.npz")
    found = np.load(tmp_path / "out.npz")
    assert [found[name].shape for name in found.files] == [(30, 5), (30, 5), (4, 5)]
    serve = tf.saved_model.load(str(newest(run, "saved_model"))).signatures["serving_default"]
    for number, name in enumerate(found.files):
        rows = test["features"][30 * number : 30 * number + 30]
        np.testing.assert_array_equal(found[name], serve(features=tf.constant(rows))["logits"].numpy())


LITERT = """
import sys, numpy as np
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(model_path=sys.argv[1])
requests, answers = np.load(sys.argv[2]), np.load(sys.argv[3])
for name in interpreter.get_signature_list():
    inputs = {key.partition(":")[2]: requests[key] for key in requests if key.startswith(name + ":")}
    if inputs:
        outputs = interpreter.get_signature_runner(name)(**inputs)
        for key, value in outputs.items():
            expected = answers[f"{name}:{key}"]
            assert np.abs(value - expected).max() <= 1e-5 * np.abs(expected).max(), (name, key)
            print(name, key)
"""

ONNX = """
import sys, numpy as np, onnxruntime
from pathlib import Path
requests, answers = np.load(sys.argv[2]), np.load(sys.argv[3])
for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
    name = "serving_default" if path.stem == "model" else path.stem
    session = onnxruntime.InferenceSession(path)
    inputs = {node.name: requests[f"{name}:{node.name}"] for node in session.get_inputs()
              if f"{name}:{node.name}" in requests}
    if inputs:
        names = [node.name for node in session.get_outputs()]
        for key, value in zip(names, session.run(names, inputs)):
            expected = answers[f"{name}:{key.removeprefix('next_')}"]
            assert np.abs(value - expected).max() <= 1e-5 * np.abs(expected).max(), (name, key)
            print(name, key)
"""


@cases
@pytest.mark.parametrize(("format", "program"), [("tflite", LITERT), ("onnx", ONNX)])
def test_the_runtime_alone_gives_the_trained_models_answers(
    format: str, program: str, case: Case, finished: Finished
) -> None:
    run = RunDirectory(finished.of(case)[0])
    (answers,) = run.path.glob("checkpoints/answers-*.npz")
    path = newest(run.path, format) / ("model.tflite" if format == "tflite" else "")
    printed = script(program, path, run.requests, answers, blocked="tensorflow")
    held = set(case.signatures) - LEFT_OUT[case.name][format] - {"evaluate"}
    assert {line.split()[0] for line in printed.splitlines()} == held


class TestNegatives:
    """What a broken export looks like to the verification."""

    @pytest.mark.parametrize("name", FORMATS)
    def test_another_epochs_weights(self, name: str, gru_exports: Path) -> None:
        """An export of epoch 0 that says it is of epoch 2."""
        run = RunDirectory(gru_exports)
        first = run.read_rows()[:1]
        exporting.record_answers(run, first)
        options = Export(formats={name: True})
        exporting.export(exporting.task_of(run, first, options, CASES[0].load(), NOTHING_GIVEN))
        export = newest(gru_exports, name)
        (manifest,) = export.rglob("manifest.json")
        rewrite(manifest, lambda facts: facts.update(epochs=[2], answers={"answers-0002.npz": ""}))
        for path in export.glob("epoch-*"):
            path.rename(path.with_name(path.name.replace("-0000.", "-0002.").replace("-0.", "-2.")))
        rewrite_export(export)
        (found,) = verify(gru_exports, name)
        assert not found.problems
        assert not found.match
        assert not all(answer.match for answer in found.signatures.values())
        assert not all(metric.match for metric in found.metrics.values())
        assert any("must answer as the trained model did" in sentence for sentence in found.complaints())

    def test_variables_that_no_converter_sees(self, gru_exports: Path) -> None:
        """A SavedModel that tracks the Keras object alone: the converter finds no variables.

        It does not fail, and the file serves numbers out of memory that nobody wrote.
        """
        import keras

        description = json.loads((gru_exports / "checkpoints" / "network.json").read_text())
        network = keras.models.model_from_json(json.dumps(description["network"]))
        module = tf.Module()
        module.network = network
        layers = {layer.name: layer for layer in network.layers}
        kernel, bias = (weight.value for weight in layers["output"].weights)

        @tf.function(
            autograph=False, input_signature=[tf.TensorSpec([None, None, 30], tf.float32, "features")]
        )
        def serving_default(features: tf.Tensor) -> dict[str, tf.Tensor]:
            mean = tf.reduce_mean(features, axis=1)[:, :20]
            return classify(tf.matmul(mean, kernel) + bias)

        broken = gru_exports / "broken"
        tf.saved_model.save(module, str(broken), signatures={"serving_default": serving_default})
        with held_back_stderr(show_on_error=False):
            converter = tf.lite.TFLiteConverter.from_saved_model(str(broken))
            converted = converter.convert()
        export = newest(gru_exports, "tflite")
        (export / "model.tflite").write_bytes(converted)
        rewrite(export / "manifest.json", lambda manifest: manifest.update(signatures=["serving_default"]))
        rewrite_export(export)
        (found,) = verify(gru_exports, "tflite")
        assert not found.match

    @pytest.mark.parametrize("name", FORMATS)
    def test_a_damaged_file(self, name: str, gru_exports: Path) -> None:
        export = newest(gru_exports, name)
        largest = max((path for path in export.rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
        (found,) = verify(gru_exports, name)
        assert f"{largest} must have the SHA-256" in found.problems[0]
        assert not found.match
        rewrite_export(export)
        (found,) = verify(gru_exports, name)
        assert found.problems
        assert not found.match

    def test_a_signature_that_is_gone(self, gru_exports: Path) -> None:
        export = newest(gru_exports, "onnx")
        (export / "evaluate.onnx").unlink()
        rewrite_export(export)
        (found,) = verify(gru_exports, "onnx")
        assert "must hold evaluate. Held: ['serving_default']" in found.problems[0]

    def test_a_file_of_another_model(self, gru_exports: Path, finished: Finished) -> None:
        """The runtime's own error is named, and the other exports are verified."""
        other = newest(finished.of(CASES[3])[0], "onnx") / "model.onnx"
        shutil.copy(other, newest(gru_exports, "onnx") / "model.onnx")
        rewrite_export(newest(gru_exports, "onnx"))
        damaged, good = verify(gru_exports, "onnx", "tflite")
        assert "onnx" in damaged.problems[0]
        assert "epoch 2, cannot be evaluated" in damaged.problems[0]
        assert good.match

    def test_a_signature_whose_answer_is_not_known(self, gru_exports: Path) -> None:
        path = RunDirectory(gru_exports).answers(2)
        answers = examples.read(path)
        export = newest(gru_exports, "saved_model")
        examples.write(path, {name: of for name, of in answers.items() if name != "serving_default"})
        rewrite_export(export)
        (found,) = verify(gru_exports, "saved_model")
        assert not found.match
        assert "serving_default is not compared: the trained model did not take" in found.complaints()[0]
        examples.write(path, {name: of for name, of in answers.items() if name != "predict_dataset"})
        rewrite_export(export)
        (found,) = verify(gru_exports, "saved_model")
        assert found.match
        assert set(found.not_compared) == {"predict_dataset"}

    def test_an_input_pipeline_that_predicts_something_else(self, gru_exports: Path) -> None:
        """The names in docs/formats.md are what is compared, not a copy beside them."""
        directory = newest(gru_exports, "simple_save")
        path = directory / "saved_model.pb"
        model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
        (logits,) = (node for node in model.meta_graphs[0].graph_def.node if node.name == "logits")
        logits.op = "Neg"
        path.write_bytes(model.SerializeToString())
        rewrite_export(directory)
        (found,) = verify(gru_exports, "simple_save")
        assert not found.match
        assert not found.signatures["serving_default"].match
        assert all(metric.match for metric in found.metrics.values())

    def test_answers_that_are_gone(self, gru_exports: Path) -> None:
        RunDirectory(gru_exports).answers(2).unlink()
        (found,) = verify(gru_exports, "onnx")
        assert "answers-0002.npz must be there. It is missing" in found.problems[0]


@pytest.mark.parametrize("quantization", ["float16", "int8"])
def test_quantization_is_judged_by_the_tolerance_chosen(quantization: str, gru_exports: Path) -> None:
    run = RunDirectory(gru_exports)
    options = Export(formats={"tflite": True}, quantization=quantization)  # type: ignore[arg-type]
    before = (newest(gru_exports, "tflite") / "model.tflite").stat().st_size
    accepting = dataclasses.replace(NOTHING_GIVEN, quantized_tolerance=0.4)
    exporting.export(exporting.task_of(run, run.read_rows()[2:], options, CASES[0].load(), accepting))
    (as_exported,) = verify(gru_exports, "tflite")
    assert {metric.tolerance for metric in as_exported.metrics.values()} == {0.4}
    assert (newest(gru_exports, "tflite") / "model.tflite").stat().st_size < before
    (generous,) = verify(gru_exports, "tflite", quantized_tolerance=0.5)
    assert generous.match
    assert generous.label == f"tflite {quantization}@2"
    assert "evaluate" in generous.left_out
    assert max(answer.max_abs_error for answer in generous.signatures.values()) > 0
    (strict,) = verify(gru_exports, "tflite", quantized_tolerance=0.0)
    assert not strict.match


class TestRehearsal:
    """What cannot be expressed is said before training starts."""

    def task(self, run: Path, name: str) -> ExportTask:
        options = Export(formats={name: True})
        return ExportTask(RunDirectory(run), [], options, examples.read(RunDirectory(run).requests), list)

    def test_a_model_without_a_keras_network(self, gru_run: Path) -> None:
        (gru_run / "checkpoints" / "network.json").unlink()
        with pytest.raises(RoundtripError, match="export=keras needs a model that states its Keras network"):
            exporting.rehearse(self.task(gru_run, "keras"))

    def test_a_network_that_is_no_signature(self, gru_run: Path) -> None:
        path = gru_run / "checkpoints" / "network.json"
        path.write_text(path.read_text().replace('"class_id"', '"class"'))
        with pytest.raises(RoundtripError, match=r"the dtypes, of a signature's. Received: fe"):
            exporting.rehearse(self.task(gru_run, "keras"))

    def test_every_problem_is_said_at_once(self, gru_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(task: ExportTask, directory: Path) -> Mapping[str, str]:
            raise UnsupportedError("cannot")

        for name in ("keras", "onnx"):
            monkeypatch.setattr(base.load(name), "write", fail)
        options = Export(formats={"keras": True, "onnx": True, "saved_model": True})
        with pytest.raises(RoundtripError) as refusal:
            exporting.rehearse(
                exporting.task_of(RunDirectory(gru_run), [], options, CASES[0].load(), NOTHING_GIVEN)
            )
        assert refusal.value.problems == ["cannot", "cannot"]

    def test_of_an_export_all_formats_are_published_or_none(
        self, gru_run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(task: ExportTask, directory: Path) -> Mapping[str, str]:
            raise UnsupportedError("cannot")

        monkeypatch.setattr(base.load("onnx"), "write", fail)
        run = RunDirectory(gru_run)
        before = newest(gru_run, "saved_model")
        options = Export(formats={"saved_model": True, "onnx": True})
        task = exporting.task_of(run, run.read_rows()[2:], options, CASES[0].load(), NOTHING_GIVEN)
        with pytest.raises(UnsupportedError, match="cannot"):
            exporting.export(task)
        assert newest(gru_run, "saved_model") == before
        assert run.newest_export("onnx") is None

    @pytest.mark.parametrize("name", ["tflite", "onnx"])
    def test_a_format_that_can_hold_nothing(
        self, name: str, gru_run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(base.load(name), "_reason", lambda *arguments: "it is too beautiful")
        with pytest.raises(RoundtripError, match=r"can hold no signature of the model.*it is too beautiful"):
            exporting.rehearse(self.task(gru_run, name))


class _Names(tf.Module):
    """Signatures whose names have another meaning in ONNX, and one that is as good as any."""

    @tf.function(input_signature=[tf.TensorSpec([None], name="x")])
    def serving_default(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x}

    @tf.function(input_signature=[tf.TensorSpec([None], name="x")])
    def model(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": 2 * x}

    @tf.function(input_signature=[tf.TensorSpec([None], name="x")])
    def step(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"x": x + 1, "next_x": x + 2}


def test_names_that_mean_something_else_in_onnx_are_left_out(tmp_path: Path) -> None:
    module = _Names()
    module.weights = {}
    names = {name: getattr(module, name) for name in ("serving_default", "model", "step")}
    tf.saved_model.save(module, str(tmp_path / "checkpoints" / "graph"), signatures=names)
    task = ExportTask(RunDirectory(tmp_path), [], Export(formats={}), {}, list)
    left_out = base.load("onnx").write(task, tmp_path)
    assert sorted(left_out) == ["model", "step"]
    assert [path.name for path in tmp_path.glob("*.onnx")] == ["model.onnx"]


NUMBERS = Spec("float32", (None, 2))
IMAGES = Spec("uint8", (None, 2))


def signature(inputs: dict[str, Spec], outputs: dict[str, Spec], call: Any = dict) -> Signature:
    return Signature(inputs, outputs, call)


def test_predictions_are_scored_where_evaluate_cannot_be() -> None:
    predict = signature({"x": NUMBERS}, {"y": NUMBERS}, lambda x: {"y": 2 * x})
    score = signature(
        {"y": NUMBERS, "target": NUMBERS},
        {"loss_sum": Spec("float32", ())},
        lambda y, target: {"loss_sum": np.sum(y - target)},
    )
    evaluate = signature({"x": IMAGES, "target": IMAGES}, {"loss_sum": Spec("float32", ())})
    assert predicting({"evaluate": evaluate, "p": predict}, evaluate) == "p"
    assert predicting({"evaluate": evaluate}, evaluate) is None
    same = signature({"x": IMAGES}, {"y": NUMBERS})
    assert predicting({"p": predict, "same": same}, evaluate) == "same"
    sums = scored(predict, score, evaluate).call(
        x=np.array([[255, 0]], np.uint8), target=np.array([[1, 0]], np.uint8)
    )
    assert sums == {"loss_sum": 1.0}


def test_an_evaluation_that_is_held_needs_the_metrics_of_the_run() -> None:
    counted = signature({"x": NUMBERS}, {"loss_sum": NUMBERS, "count": NUMBERS, "hits_state": NUMBERS})
    metrics = signature({"hits_state": NUMBERS}, {"hits": NUMBERS})
    graph = Graph({"evaluate": counted, "metrics": metrics}, {})
    found = opening.evaluable("onnx", {"evaluate": counted}, lambda: graph)
    assert found == {"evaluate": counted, "metrics": metrics}


def test_a_user_is_told_what_an_unscored_format_needs(gru_run: Path) -> None:
    from pipeline.graphs import checkpoints

    graph = checkpoints.open_graph(RunDirectory(gru_run).graph)
    with pytest.raises(RoundtripError, match=r"verified by scoring predictions.* Held: \[\]; score: stated"):
        opening.evaluable("keras", {}, lambda: graph)
