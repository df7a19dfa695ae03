"""What every model must do: names, signatures, and the same bits through every loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from models.base import BuiltModel
from pipeline.config.dataset_checks import check_batch
from pipeline.graphs import checkpoints
from pipeline.graphs.evaluation import evaluate, initial_state
from pipeline.training.setup import batch_specs
from tests.cases import CASES, Case

cases = pytest.mark.parametrize("case", CASES, ids=str)


def build(case: Case) -> BuiltModel:
    dataset = case.load()
    built: BuiltModel = case.model().build(batch_specs(dataset), dataset.metadata)
    return built


def fill(built: BuiltModel) -> None:
    """Give every weight a value of its own, so that any permuted restore fails."""
    start = 0
    for variable in built.variables.values():
        size = variable.shape.num_elements()
        values = np.sin(np.arange(start, start + size, dtype=np.float64)) / 3
        variable.assign(values.astype(np.float32).reshape(variable.shape))
        start += size


def requests(case: Case) -> dict[str, dict[str, Any]]:
    """Return inputs for every signature, for `evaluate` a batch of the test split."""
    dataset = case.load()
    batch = {name: array[: dataset.batch_size] for name, array in dataset.test.items()}
    state = {
        name: np.zeros((dataset.batch_size, 8), np.float32)
        for name in case.signatures["evaluate"][0] - set(batch)
    }
    return {**{k: dict(v) for k, v in case.requests.items()}, "evaluate": batch | state}


def call_live(built: BuiltModel, name: str, request: dict[str, Any]) -> dict[str, Any]:
    outputs = built.signatures[name](**{key: tf.constant(value) for key, value in request.items()})
    return {key: value.numpy() for key, value in outputs.items()}


@cases
def test_has_the_promised_variables_and_signatures(case: Case) -> None:
    built = build(case)
    assert tuple(built.variables) == case.weights
    assert set(built.signatures) == set(case.signatures)


@cases
def test_data_is_what_the_model_consumes(case: Case) -> None:
    dataset = case.load()
    check_batch(case.model(), dataset)


@cases
def test_names_do_not_depend_on_what_was_built_before(case: Case, tmp_path: Path) -> None:
    first, second = build(case), build(case)
    fill(first)
    checkpoints.write_checkpoint(tmp_path / "first", {"weights": first.variables})
    checkpoints.restore(tmp_path / "first", {"weights": second.variables})
    for name, variable in second.variables.items():
        np.testing.assert_array_equal(variable.numpy(), first.variables[name].numpy())


@cases
def test_every_signature_gives_the_same_bits_through_both_loaders(case: Case, tmp_path: Path) -> None:
    """`tf.compat.v1.saved_model.load` is the way TensorFlow Serving and the C++ loaders take."""
    built = build(case)
    fill(built)
    checkpoints.write_graph(tmp_path / "graph", built)
    graph = checkpoints.open_graph(tmp_path / "graph")
    expected = {name: call_live(built, name, request) for name, request in requests(case).items()}
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        v1 = tf.compat.v1.saved_model.load(session, ["serve"], str(tmp_path / "graph"))
        for name, request in requests(case).items():
            definition = v1.signature_def[name]
            through_v1 = session.run(
                {key: output.name for key, output in definition.outputs.items()},
                {definition.inputs[key].name: value for key, value in request.items()},
            )
            assert set(request) == case.signatures[name][0] == set(definition.inputs)
            assert set(through_v1) == case.signatures[name][1]
            for key, value in expected[name].items():
                np.testing.assert_array_equal(through_v1[key], value, err_msg=f"{name} {key}")
    for name, request in requests(case).items():
        signature = graph.signatures[name]
        assert (set(signature.inputs), set(signature.outputs)) == case.signatures[name]
        outputs = signature.call(**{key: tf.constant(value) for key, value in request.items()})
        for key, value in expected[name].items():
            np.testing.assert_array_equal(outputs[key].numpy(), value, err_msg=f"{name} {key}")


@cases
def test_a_graph_takes_the_weights_of_any_epoch(case: Case, tmp_path: Path) -> None:
    built = build(case)
    checkpoints.write_graph(tmp_path / "graph", built)
    fill(built)
    checkpoints.write_checkpoint(tmp_path / "epoch", {"weights": built.variables})
    graph = checkpoints.open_graph(tmp_path / "graph")
    before = {name: variable.numpy() for name, variable in graph.weights.items()}
    checkpoints.restore(tmp_path / "epoch", {"weights": graph.weights})
    for name, variable in graph.weights.items():
        np.testing.assert_array_equal(variable.numpy(), built.variables[name].numpy())
        assert not np.array_equal(variable.numpy(), before[name])
    for name, request in requests(case).items():
        outputs = graph.signatures[name].call(**{k: tf.constant(v) for k, v in request.items()})
        for key, value in call_live(built, name, request).items():
            np.testing.assert_array_equal(outputs[key].numpy(), value, err_msg=f"{name} {key}")


@cases
def test_metrics_do_not_depend_on_the_batch_size(case: Case) -> None:
    """A wrong carry, or a division too early, would show."""
    built = build(case)
    fill(built)
    dataset = case.load()
    signatures = {
        name: checkpoints.signature_of(function.get_concrete_function())
        for name, function in built.signatures.items()
    }
    whole = evaluate(signatures, dataset.test, batch_size=dataset.num_test)
    if dataset.ordered:
        state = initial_state(signatures, dataset.batch_size)
        assert all(not value.numpy().any() for value in state.values())
        whole = _evaluate_one_long_sequence(signatures, dataset)
    batched = evaluate(signatures, dataset.test, batch_size=dataset.batch_size)
    for name, value in whole.items():
        assert batched[name] == pytest.approx(value, rel=1e-5), name


def _evaluate_one_long_sequence(signatures: Any, dataset: Any) -> dict[str, float]:
    """Evaluate each stream in one call, its sequences joined: what carrying the state amounts to."""
    streams = dataset.batch_size
    joined = {
        name: np.concatenate(np.split(array, len(array) // streams), axis=1)
        for name, array in dataset.test.items()
    }
    step = signatures["step"]
    outputs = step.call(tokens=tf.constant(joined["tokens"], tf.int32), **initial_state(signatures, streams))
    probabilities = outputs["probabilities"].numpy().astype(np.float64)
    right = np.take_along_axis(probabilities, joined["targets"][..., np.newaxis].astype(int), axis=-1)
    loss = float(-np.log(right).mean())
    accuracy = float((probabilities.argmax(-1) == joined["targets"]).mean())
    return {"loss": loss, "bits_per_character": loss / np.log(2), "accuracy": accuracy}
