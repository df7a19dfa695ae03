from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from data.numbers import Numbers
from models.base import BuiltModel, signature, weights_of
from models.dense import DenseRegressor
from pipeline.errors import ConfigError, UnsupportedError
from pipeline.graphs import checkpoints, examples
from pipeline.graphs.evaluation import initial_state
from pipeline.graphs.signatures import Signature, Spec
from pipeline.optimizers import SGD, Adam
from pipeline.runs.directory import RunDirectory
from pipeline.training import loop, setup
from pipeline.training.loop import NonFiniteLoss, Training
from tests.cases import CASES, Case, policy

DENSE = CASES[-1]
FLOAT = Spec("float32", (None,))
POLICY = ("epochs", "compile", "keep", "patience", "min_delta", "exported", "init_from", "precision")


def prepare(path: Path, case: Case = DENSE, **changes: Any) -> Training:
    run = RunDirectory(path)
    (path / "checkpoints").mkdir(parents=True, exist_ok=True)
    dataset = changes.pop("dataset", None) or case.load()
    options = {key: changes.pop(key) for key in POLICY if key in changes}
    chosen = changes.pop("policy", None) or policy(**options)
    arguments: dict[str, Any] = {
        "policy": chosen,
        "seed": 0,
        "metrics": ("loss",),
        "config": {
            "train": {"epochs": chosen.train.epochs},
            "data": {},
            "verify": {},
            "best": vars(chosen.best),
        },
        "stopped": lambda: False,
        **changes,
    }
    model = arguments.pop("model", case.model())
    optimizer = arguments.pop("optimizer", Adam(learning_rate=0.1))
    tf.keras.utils.set_random_seed(0)
    return setup.prepare(run, model, dataset, optimizer, **arguments)


def files(path: Path) -> dict[str, bytes]:
    """Return what a run's log and checkpoints hold; the graph is not part of the claim."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in [*sorted(path.glob("checkpoints/epoch-*")), path / "metrics.jsonl"]
    }


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        rows = loop.order(7, 2, seed=seed, epoch=epoch, ordered=False)
        assert rows.shape == (3, 2)
        assert len(set(rows.ravel())) == 6
        return rows.tolist()

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2) != order(1, 2)


def test_ordered_data_stays_in_order() -> None:
    rows = loop.order(6, 2, seed=0, epoch=3, ordered=True)
    assert rows.tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("compile", ["graph", "xla"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_runs_give_the_same_bits(case: Case, compile: str, tmp_path: Path) -> None:
    if case.name == "mnist_cnn" and compile == "xla":
        # XLA has no deterministic gradient of max-pooling: that is said, with what to do.
        with pytest.raises(UnsupportedError, match=r"train\.compile=xla .* Use train\.compile=graph"):
            prepare(tmp_path / "run", case, compile="xla").fit()
        return
    for name in ("first", "second"):
        assert prepare(tmp_path / name, case, epochs=1, compile=compile).fit()
    assert files(tmp_path / "first") == files(tmp_path / "second")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_step_is_traced_once(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many chunks and epochs there are, and whatever the length of a chunk."""
    monkeypatch.setattr(loop, "CHUNK_SECS", 0.0)
    prepared = prepare(tmp_path, case)
    calls = []

    def loss(batch: Any, seed: Any) -> Any:
        calls.append(seed)
        return built.loss(batch, seed)

    built = prepared.built
    assert dataclasses.replace(prepared, built=dataclasses.replace(built, loss=loss)).fit()
    assert len(calls) == 1


def test_chunks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path / "few").fit()
    monkeypatch.setattr(loop, "_next_chunk", lambda num_steps, elapsed: 1)
    prepare(tmp_path / "many").fit()
    assert files(tmp_path / "few") == files(tmp_path / "many")


def test_chunks_grow_to_their_time_and_shrink_at_once() -> None:
    assert loop._next_chunk(1, elapsed_secs=1e-5) == 4
    assert loop._next_chunk(100, elapsed_secs=0.25) == 100
    assert loop._next_chunk(100, elapsed_secs=25) == 1
    assert loop._next_chunk(1, elapsed_secs=100) == 1


def test_the_log_has_a_row_before_training_and_one_an_epoch(tmp_path: Path) -> None:
    prepare(tmp_path / "run", epochs=3).fit()
    rows = RunDirectory(tmp_path / "run").read_rows()
    assert [(row.epoch, row.step, row.checkpoint) for row in rows] == [
        (epoch, 5 * epoch, f"checkpoints/epoch-{epoch:04d}") for epoch in range(4)
    ]
    assert rows[0].train is None
    assert rows[3].train is not None
    assert rows[3].test["loss"] < rows[0].test["loss"]


def test_each_row_is_gathered_once_an_epoch_and_state_is_carried(tmp_path: Path) -> None:
    """The compiled loop must give what a plain loop in Python gives, step by step."""
    lstm = CASES[2]
    trained = prepare(tmp_path / "run", lstm, epochs=1)
    compiled = trained.compile()
    dataset = trained.dataset
    rows = loop.order(dataset.num_train, dataset.batch_size, seed=0, epoch=1, ordered=True)
    start = [variable.numpy() for variable in trained.built.variables.values()]
    state = initial_state(trained.signatures, dataset.batch_size)
    losses, last_state = compiled.steps(
        tf.constant(rows), tf.constant(0), tf.constant(5), tf.constant(0), state
    )

    reference = prepare(tmp_path / "reference", lstm, epochs=1)
    for variable, value in zip(reference.built.variables.values(), start, strict=True):
        variable.assign(value)
    step = reference.compile().step
    for number in range(5):
        batch = {name: tf.constant(array[rows[number]]) for name, array in dataset.train.items()}
        loss, state = step({**batch, **state}, tf.constant([0, number]))
        assert loss.numpy() == losses[number].numpy()
    for name, value in state.items():
        np.testing.assert_array_equal(value.numpy(), last_state[name].numpy())
        assert value.numpy().any()


def test_the_optimizer_is_in_the_checkpoint(tmp_path: Path) -> None:
    prepare(tmp_path / "run", epochs=1).fit()
    names = [name for name, _ in tf.train.list_variables(str(tmp_path / "run/checkpoints/epoch-0001"))]
    assert "optimizer/0.Sadam.Siteration/.ATTRIBUTES/VARIABLE_VALUE" in names
    slots = [name for name in names if name.startswith("optimizer/") and "_kernel_" in name]
    assert len(slots) == 2


class ByHand(DenseRegressor):
    """A network of Keras with a regularizer, and a loss and an evaluation that are written by hand."""

    regularized, reduce = True, staticmethod(tf.reduce_sum)

    def build(self, batch: Any, metadata: Any) -> BuiltModel:
        feature = keras.Input(batch["feature"].shape[1:], name="feature")
        dense = keras.layers.Dense(1, kernel_regularizer="l2", activity_regularizer="l1")
        network = keras.Model(feature, dense(feature))

        def loss(batch: Any, seed: tf.Tensor) -> Any:
            errors = (network(batch["feature"], training=True) - batch["target"]) ** 2
            return tf.reduce_mean(errors) + (sum(network.losses) if self.regularized else 0.0), {}

        @signature(batch["feature"], batch["target"])
        def evaluate(feature: tf.Tensor, target: tf.Tensor) -> dict[str, tf.Tensor]:
            error = network(feature, training=False) - target
            return {"loss_sum": self.reduce(error**2), "count": tf.size(error)}

        return BuiltModel(weights_of(network), loss, {"evaluate": evaluate})


def test_a_loss_without_the_losses_of_its_regularizers_is_refused(tmp_path: Path) -> None:
    assert prepare(tmp_path / "with", model=ByHand(), epochs=1).fit()
    model = ByHand()
    model.regularized = False
    with pytest.raises(UnsupportedError, match=r"Missing: those of dense(_\d+)?/kernel. Add sum\(network"):
        prepare(tmp_path / "without", model=model, epochs=1).fit()


def test_an_evaluation_that_does_not_add_up_is_refused(tmp_path: Path) -> None:
    model = ByHand()
    model.reduce = staticmethod(tf.reduce_mean)
    with pytest.raises(
        ConfigError, match=r"loss_sum of evaluate must be a sum .* Return the sum, not the mean"
    ):
        prepare(tmp_path / "mean", model=model)
    one = Numbers(batch_size=1).load()
    assert prepare(tmp_path / "one", dataset=one, epochs=0).fit()  # A batch of one row has no halves.


def test_slots_of_variables_with_the_same_name_are_all_kept(tmp_path: Path) -> None:
    """A user's variables need not be named."""

    class Unnamed(Seeded):
        def build(self, batch: Any, metadata: Any) -> BuiltModel:
            slope, intercept = tf.Variable([[0.0], [0.0]]), tf.Variable(0.0)

            def output(feature: tf.Tensor) -> tf.Tensor:
                return feature @ slope + intercept

            def loss(batch: Any, seed: tf.Tensor) -> Any:
                return tf.reduce_mean((output(batch["feature"]) - batch["target"]) ** 2), {}

            @signature(batch["feature"], batch["target"])
            def evaluate(feature: tf.Tensor, target: tf.Tensor) -> dict[str, tf.Tensor]:
                error = output(feature) - target
                return {"loss_sum": tf.reduce_sum(error**2), "count": tf.size(error)}

            return BuiltModel({"slope": slope, "intercept": intercept}, loss, {"evaluate": evaluate})

    trained = prepare(tmp_path / "run", model=Unnamed(), epochs=1)
    trained.fit()
    values = tf.train.load_checkpoint(str(tmp_path / "run/checkpoints/epoch-0001"))
    for position, variable in enumerate(trained.optimizer.variables):
        key = checkpoints.variable_key("optimizer", f"{position}/{variable.path}")
        np.testing.assert_array_equal(values.get_tensor(key), variable.numpy())


@pytest.mark.parametrize(
    ("signatures", "message"),
    [
        ({}, r"must have the signature evaluate. Received: \[\]"),
        ({"evaluate": ({"feature", "target"}, {"count"})}, "must return loss_sum and count. Received"),
        ({"evaluate": ({"feature"}, {"loss_sum", "count"})}, r"must take a batch, \['feature', 'target'\]"),
        (
            {"evaluate": ({"feature", "target", "h"}, {"loss_sum", "count", "h"})},
            "carries h: it must have the signature initial_state",
        ),
    ],
)
def test_a_model_that_cannot_be_evaluated_is_refused(
    signatures: dict[str, tuple[set[str], set[str]]], message: str
) -> None:
    made = {
        name: Signature(dict.fromkeys(inputs, FLOAT), dict.fromkeys(outputs, FLOAT), dict)
        for name, (inputs, outputs) in signatures.items()
    }
    with pytest.raises(ConfigError, match=message):
        setup._check_signatures(made, {"feature", "target"}, ["loss"])


def test_stopping_keeps_what_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_next_chunk", lambda num_steps, elapsed: 1)
    asked = iter([False] * 7 + [True])
    trained = prepare(tmp_path / "run", stopped=lambda: next(asked))
    assert trained.fit() is False
    rows = RunDirectory(tmp_path / "run").read_rows()
    assert [row.step for row in rows] == [0, 5]
    kept = tmp_path / "run/checkpoints/step-00000007"
    values = tf.train.load_checkpoint(str(kept))
    for name, variable in trained.built.variables.items():
        value = values.get_tensor(checkpoints.variable_key("weights", name))
        np.testing.assert_array_equal(value, variable.numpy())


def test_a_loss_that_is_no_number_stops_at_its_step(tmp_path: Path) -> None:
    trained = prepare(tmp_path / "run", optimizer=SGD(learning_rate=1e30, momentum=0.0), epochs=3)
    with pytest.raises(NonFiniteLoss, match=r"Received: (inf|nan) at step (\d+)\. .*are kept") as stop:
        trained.fit()
    rows = RunDirectory(tmp_path / "run").read_rows()
    assert [row.epoch for row in rows] == [0]

    again = prepare(tmp_path / "again", optimizer=SGD(learning_rate=1e30, momentum=0.0))
    order = loop.order(100, 20, seed=0, epoch=1, ordered=False)
    steps = again.compile().steps
    losses = steps(tf.constant(order), tf.constant(0), tf.constant(5), tf.constant(0), {})[0].numpy()
    first_bad = int(np.flatnonzero(~np.isfinite(losses))[0]) + 1
    assert f"at step {first_bad}." in str(stop.value)


def test_a_metric_that_is_no_number_stops_before_it_is_logged(tmp_path: Path) -> None:
    # One step makes weights so large that only the evaluation after it overflows.
    trained = prepare(
        tmp_path / "run",
        dataset=Numbers(batch_size=100).load(),
        optimizer=SGD(learning_rate=1e30, momentum=0.0),
    )
    with pytest.raises(NonFiniteLoss, match=r"test/\w+ must be finite. Received: inf after epoch 1"):
        trained.fit()
    assert len(RunDirectory(tmp_path / "run").read_rows()) == 1


class Seeded:
    """A model whose loss shows the seed that it was given."""

    def arrays(self, metadata: Mapping[str, Any]) -> Mapping[str, Any]:
        return DenseRegressor().arrays(metadata)

    def build(self, batch: Mapping[str, tf.TensorSpec], metadata: Mapping[str, Any]) -> BuiltModel:
        built = DenseRegressor().build(batch, metadata)

        def loss(batch: dict[str, tf.Tensor], seed: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
            wrong, _ = built.loss(batch, seed)
            return 0.0 * wrong + tf.cast(1000 * seed[0] + seed[1], tf.float32), {}

        return BuiltModel(built.weights, loss, built.signatures)


def test_the_loss_receives_the_seed_and_the_step(tmp_path: Path) -> None:
    trained = prepare(tmp_path / "run", model=Seeded(), seed=3)
    rows = tf.constant(loop.order(100, 20, seed=0, epoch=1, ordered=False))
    losses, _ = trained.compile().steps(rows, tf.constant(0), tf.constant(5), tf.constant(0), {})
    assert losses.numpy().tolist() == [3000, 3001, 3002, 3003, 3004]


def test_tensorboard_files_hold_the_curves(tmp_path: Path) -> None:
    prepare(tmp_path / "run", epochs=2).fit()
    (path,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert path.name.startswith("events.out.tfevents.")
    points: dict[str, list[tuple[int, float]]] = {}
    for record in tf.data.TFRecordDataset(str(path)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            points.setdefault(value.tag, []).append((event.step, value.simple_value))
    rows = RunDirectory(tmp_path / "run").read_rows()
    assert [step for step, _ in points["test/loss"]] == [row.step for row in rows]
    assert [loss for _, loss in points["test/loss"]] == pytest.approx([row.test["loss"] for row in rows])
    assert [step for step, _ in points["train/loss"]] == [5, 10]
    assert points["train/batch_loss"]


def test_the_facts_tell_what_was_run(tmp_path: Path) -> None:
    prepare(tmp_path / "run", config={"train": {"epochs": 2}}, seed=7)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["seed"] == 7
    assert facts["config"] == {"train": {"epochs": 2}}
    assert facts["model"]["parameters"] == 3
    bias = {"shape": [1], "dtype": "float32", "trained": True}
    assert bias in facts["model"]["variables"].values()
    assert facts["data"]["fingerprint"] == Numbers().load().fingerprint()
    assert {"python", "tensorflow", "keras", "numpy", "roundtrip"} <= set(facts["versions"])
    assert facts["device"]["cores"] >= 1


def test_who_watches_the_epochs_may_stop_it(tmp_path: Path) -> None:
    seen: list[int] = []

    def watch(epoch: int, metrics: Mapping[str, float]) -> bool:
        seen.append(epoch)
        return epoch == 1

    assert prepare(tmp_path / "run").fit(on_epoch=watch) is False
    assert seen == [1]
    assert [row.epoch for row in RunDirectory(tmp_path / "run").read_rows()] == [0, 1]


class WithExamples(DenseRegressor):
    def build(self, batch: Any, metadata: Any) -> BuiltModel:
        built = super().build(batch, metadata)
        return dataclasses.replace(built, examples={"serving_default": {"number": [[7.0]]}})


def test_a_model_gives_its_own_examples(tmp_path: Path) -> None:
    trained = prepare(tmp_path / "run", model=WithExamples())
    assert examples.read(trained.run.requests)["serving_default"]["number"].tolist() == [[7.0]]


def test_a_loss_of_each_example_is_refused(tmp_path: Path) -> None:
    class PerExample(DenseRegressor):
        def build(self, batch: Any, metadata: Any) -> BuiltModel:
            built = super().build(batch, metadata)
            return dataclasses.replace(built, loss=lambda batch, seed: (batch["target"], {}))

    with pytest.raises(UnsupportedError, match=r"must be a scalar. Received: .* Return the mean"):
        prepare(tmp_path, model=PerExample()).fit()


def test_a_signature_that_draws_numbers_is_refused(tmp_path: Path) -> None:
    class Draws(DenseRegressor):
        def build(self, batch: Any, metadata: Any) -> BuiltModel:
            import keras

            built, noise = super().build(batch, metadata), keras.layers.GaussianNoise(0.1)

            @signature(batch["feature"])
            def noisy(feature: tf.Tensor) -> dict[str, tf.Tensor]:
                return {"noisy": noise(feature, training=True)}

            return dataclasses.replace(built, signatures={**built.signatures, "noisy": noisy})

    with pytest.raises(UnsupportedError, match=r"They also use .*seed_generator_state.* training=False"):
        prepare(tmp_path, model=Draws())


def test_an_error_that_is_not_the_compilers_is_left_as_it_is() -> None:
    def steps(*arguments: Any) -> Any:
        raise tf.errors.InvalidArgumentError(None, None, "indices[0] = 7 is not in [0, 3)")

    with pytest.raises(tf.errors.InvalidArgumentError, match="indices"):
        loop._run(steps, None, 0, 1, 0, {})
