"""Networks of users beside plain Keras: steps, metrics, and the answers of every export.

The oracle is Keras' own: `train_on_batch`, `evaluate` and `predict` of a second network of the same function.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from data.base import Dataset
from models.base import BuiltModel, signature
from models.keras_functions import SAMPLE_WEIGHT, wire
from models.keras_network import KerasNetwork, _resolved
from pipeline.config.formats import FORMATS
from pipeline.config.schema import Export
from pipeline.errors import RoundtripError
from pipeline.formats import exporting, opening
from pipeline.graphs import checkpoints, examples
from pipeline.graphs.evaluation import evaluate
from pipeline.optimizers import Adam
from pipeline.runs import progress
from pipeline.runs.directory import RunDirectory
from pipeline.training import loop
from pipeline.training.loop import Training
from pipeline.training.setup import batch_specs
from tests import zoo
from tests.cases import policy
from tests.conftest import run_command
from tests.pipeline.test_formats import NOTHING_GIVEN, newest
from tests.pipeline.test_training import prepare
from tests.zoo import BATCH_SIZE, NETWORKS, NUM_TEST, NUM_TRAIN, Network

NUM_STEPS = 20

ROOT = Path(__file__).parents[1]

REQUESTS = (slice(0, 1), slice(1, 8))
"""Rows of the test split that are asked for."""


def parameters(is_slow: Callable[[Network], bool]) -> list[Any]:
    """Return the networks as parameters."""
    return [pytest.param(one, marks=[pytest.mark.slow] if is_slow(one) else []) for one in NETWORKS]


def compiled(network: Network) -> keras.Model:
    """Return a second network of the same function, compiled and fitted to the data as with plain Keras."""
    keras_model = network.network({})
    dataset = network.dataset()
    wire(keras_model, batch_specs(dataset), network.arguments.get("targets"))  # Builds a subclassed model.
    network.by_hand(keras_model)
    options = {
        key: _resolved(
            network.arguments.get(key), keras.metrics.get if "metrics" in key else keras.losses.get
        )
        for key in ("loss", "loss_weights", "metrics", "weighted_metrics")
    }
    keras_model.compile(optimizer=keras.optimizers.Adam(0.01), jit_compile=False, **options)
    return keras_model


def build(network: Network) -> tuple[BuiltModel, keras.Model]:
    """Build a network as the pipeline does; return it with the Keras model in it."""
    ours = network.network({})
    dataset = network.dataset()
    model = KerasNetwork(network=network.path, **network.arguments)
    model.fit_preprocessing(dataset.train)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(zoo, str(network), lambda metadata: ours)
        return model.build(batch_specs(dataset), dataset.metadata), ours


def state_of(network: keras.Model) -> list[keras.Variable]:
    """Return all variables of a network but those of its metrics: weights, averages and seeds."""
    counted = {id(variable) for variable in network.metrics_variables}
    return [variable for variable in network.variables if id(variable) not in counted]


def arguments(network: Network, keras_model: keras.Model, arrays: Any) -> dict[str, Any]:
    """Return some rows as the arguments of `train_on_batch` and `evaluate`."""
    wiring = wire(keras_model, batch_specs(network.dataset()), network.arguments.get("targets"))
    return {
        "x": one_or_named({name: arrays[name] for name in wiring.inputs}),
        "y": one_or_named({name: arrays[target] for name, target in wiring.targets.items()}),
        "sample_weight": arrays.get(SAMPLE_WEIGHT),
    }


def one_or_named(arrays: dict[str, np.ndarray]) -> Any:
    """Return arrays as Keras takes them: one alone, or several by name; text as tensors."""
    arrays = {k: tf.constant(v) if v.dtype.kind == "S" else v for k, v in arrays.items()}
    return arrays if len(arrays) > 1 else next(iter(arrays.values()))


@dataclass(frozen=True)
class Both:
    """A network of the pipeline and one of plain Keras, after the same steps.

    Attributes:
        network: The network.
        built: The model of the pipeline.
        ours: The Keras model in it.
        reference: The Keras model beside it.
        before: The values of the variables before the steps.
        losses: The losses of the steps by the pipeline.
        keras_losses: Those by Keras.
    """

    network: Network
    built: BuiltModel
    ours: keras.Model
    reference: keras.Model
    before: list[np.ndarray]
    losses: np.ndarray
    keras_losses: list[float]


@pytest.fixture(scope="module", params=parameters(lambda network: network.slow), ids=str)
def both(request: pytest.FixtureRequest) -> Both:
    """Train a network by the pipeline, and by `train_on_batch` on the same batches from the same state."""
    network: Network = request.param
    reference = compiled(network)
    built, ours = build(network)
    dataset = network.dataset()
    state, expected = state_of(ours), state_of(reference)
    assert [(v.shape, v.dtype) for v in state] == [(v.shape, v.dtype) for v in expected]
    before = [variable.numpy() for variable in state]
    for value, other in zip(before, expected, strict=True):
        other.assign(value)
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(list(built.trainable.values()))
    arrays = {name: tf.constant(array) for name, array in dataset.train.items()}
    steps = loop.compile_steps(built, optimizer, arrays, seed=0, use_xla=False).steps
    rows = np.concatenate(
        [loop.order(NUM_TRAIN, BATCH_SIZE, seed=0, epoch=epoch, ordered=False) for epoch in range(1, 5)]
    )
    assert len(rows) == NUM_STEPS
    losses, _ = steps(tf.constant(rows), *map(tf.constant, (0, NUM_STEPS, 0)), {})
    weights = {"class_weight": network.arguments.get("class_weight")}
    keras_losses = [
        reference.train_on_batch(
            **arguments(network, reference, {k: v[batch] for k, v in dataset.train.items()}),
            **weights,
            return_dict=True,
        )["loss"]
        for batch in rows
    ]
    return Both(network, built, ours, reference, before, losses.numpy(), keras_losses)


def test_steps_are_those_of_keras(both: Both) -> None:
    np.testing.assert_allclose(both.losses, both.keras_losses, rtol=1e-5)
    trained = {id(variable) for variable in both.reference.trainable_variables}
    for variable, other, before in zip(
        state_of(both.ours), state_of(both.reference), both.before, strict=True
    ):
        value, expected = variable.numpy(), other.numpy()
        tolerance = 1e-6 * np.max(np.abs(expected)) if value.dtype.kind == "f" else 0
        assert np.max(np.abs(value - expected)) <= tolerance, other.path
        # Equality would not show that neither trains a variable.
        if id(other) in trained:
            assert np.any(value != before), f"{other.path} must be trained"
        elif not {"moving_mean", "moving_variance", "seed_generator_state"} & {other.name}:
            assert np.all(value == before), f"{other.path} must stay"
    assert len(both.built.trainable) == len(trained)


def test_metrics_are_those_of_keras(both: Both) -> None:
    signatures = {
        name: checkpoints.signature_of(function.get_concrete_function())
        for name, function in both.built.signatures.items()
    }
    test = both.network.dataset().test
    found = evaluate(signatures, test, batch_size=BATCH_SIZE)
    given = arguments(both.network, both.reference, test)
    expected = both.reference.evaluate(**given, batch_size=BATCH_SIZE, verbose=0, return_dict=True)
    flat: dict[str, float] = {}
    for name, value in expected.items():
        several = np.ndim(value) > 0  # Such as the F1 score of each class.
        flat |= {f"{name}_{n}": item for n, item in enumerate(value)} if several else {name: value}
    assert set(found) == set(flat)
    # With a free batch size, Keras takes the mean of the batches for the loss of each output. Weighed by
    # rows, as it weighs the whole loss, it does not depend on where the batches end.
    batches = [{k: v[i : i + BATCH_SIZE] for k, v in test.items()} for i in range(0, NUM_TEST, BATCH_SIZE)]
    for name in set(flat) & {f"{output}_loss" for output in both.network.arguments["loss"]}:
        total = 0.0
        for batch in batches:
            given = arguments(both.network, both.reference, batch)
            num_rows = len(next(iter(batch.values())))
            total += num_rows * both.reference.test_on_batch(**given, return_dict=True)[name]
        flat[name] = total / NUM_TEST
    for name, value in flat.items():
        # R2 is 1 minus a quotient, so its last bit is that of 1.
        assert found[name] == pytest.approx(value, rel=1e-5 if "loss" in name else 1e-6, abs=2e-7), name


@dataclass(frozen=True)
class Exported:
    """A network after an epoch, exported in every format that can hold it.

    Attributes:
        network: The network.
        run: The run.
        skipped: By format, why it cannot hold the network.
        reference: A plain Keras model with the weights of the run.
    """

    network: Network
    run: RunDirectory
    skipped: Mapping[str, Sequence[str]]
    reference: keras.Model


@pytest.fixture(
    scope="module", params=parameters(lambda network: network.slow or network.slow_exports), ids=str
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Train a network for an epoch, and export it."""
    network: Network = request.param
    folder = tmp_path_factory.mktemp(str(network))
    dataset = network.dataset()
    paths = {"path": folder / "train.npz", "test_path": folder / "test.npz"}
    for path, arrays in zip(paths.values(), (dataset.train, dataset.test), strict=True):
        np.savez(path, **dict[str, Any](arrays))
    data = {"_target_": "data.npz.Npz", **{k: str(v) for k, v in paths.items()}, "batch_size": BATCH_SIZE}
    chosen = policy(1)
    config = {"train": asdict(chosen.train), "data": data, "verify": vars(NOTHING_GIVEN)}
    training = train(network, folder / "run", policy=chosen, config={**config, "best": vars(chosen.best)})
    rows = training.run.read_rows()
    training.record_answers(rows[-1])
    options = Export(formats=dict.fromkeys(FORMATS, True), skip_unsupported=True)
    task = exporting.task_of(training.run, rows[-1:], options, network.dataset(), NOTHING_GIVEN)
    skipped = exporting.export(task)
    reference = compiled(network)
    values = training.built.weights.values()
    for variable, value in zip(reference.weights, values, strict=True):
        variable.assign(value)
    return Exported(network, training.run, skipped, reference)


@dataclass(frozen=True)
class Refusal:
    """A network, or data for it, that is refused in a sentence.

    Attributes:
        network: Makes the network.
        arrays: The data.
        message: The sentence.
        arguments: Arguments of `KerasNetwork`, and `compile`.
    """

    network: Callable[[], keras.Model]
    arrays: Mapping[str, np.ndarray]
    message: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def dense(**options: Any) -> Callable[[], keras.Model]:
    """Return a function that makes a classifier of an input of four numbers."""

    def network() -> keras.Model:
        x = keras.Input((4,), **{"name": "x", **options})
        return keras.Model(x, layers.Dense(3, activation="softmax", name="kind")(x))

    return network


def of_layers(*made: Callable[[], Any], shape: Sequence[int | None], **options: Any) -> Any:
    """Return a function that makes a classifier of layers in a row."""

    def network() -> keras.Model:
        x = keras.Input(shape, **{"name": "x", **options})
        return keras.Model(x, keras.Sequential([layer() for layer in made])(x))

    return network


def softmax() -> Any:
    return layers.Dense(3, activation="softmax")


def two_outputs() -> keras.Model:
    x = keras.Input((4,), name="x")
    return keras.Model(x, [layers.Dense(3, activation="softmax", name=name)(x) for name in ("a", "b")])


class OwnStep(keras.Model):
    def train_step(self, data: Any) -> Any:
        return {}


class PerExample(keras.Model):
    def compute_loss(self, x: Any, y: Any, y_pred: Any, *_: Any, **__: Any) -> Any:
        return tf.reduce_sum(y_pred, axis=-1)


class FromOne(keras.metrics.Metric):
    def __init__(self) -> None:
        super().__init__()
        self.total = self.add_variable((), "ones")

    def update_state(self, *_: Any, **__: Any) -> None:
        pass

    def result(self) -> Any:
        return self.total


def per_example() -> keras.Model:
    x = keras.Input((4,), name="x")
    return PerExample(x, softmax()(x))


X, Y = np.ones((8, 4), np.float32), np.array([0, 1, 2, 0] * 2, np.int32)
TOKENS = np.array([[1, 2, 0]] * 8, np.int32)
masked = of_layers(lambda: layers.Embedding(4, 2, mask_zero=True), softmax, shape=(3,), dtype="int32")

REFUSALS = {
    "another name": Refusal(dense(name="features"), {"x": X, "y": Y}, r"keras.Input\(..., name='x'\)"),
    "no name": Refusal(
        lambda: keras.Sequential([keras.Input((4,)), softmax()]),
        {"x": X, "y": Y},
        r"Missing: \['keras_tensor.*model.targets=TARGET",
    ),
    "no input": Refusal(lambda: keras.Sequential([softmax()]), {"x": X, "y": Y}, "has no keras.Input"),
    "no target": Refusal(dense(), {"x": X}, "must have a target for each output"),
    "no target of one": Refusal(two_outputs, {"x": X, "a": Y}, "Missing: b. It has"),
    "no target of one loss": Refusal(
        two_outputs,
        {"x": X, "a": Y},
        "Missing: b. It has",
        {"loss": dict.fromkeys("ab", "sparse_categorical_crossentropy")},
    ),
    "text": Refusal(
        dense(), {"x": X.astype("S3"), "y": Y}, "fits its keras.Input, float32. Received: string"
    ),
    "fractions": Refusal(dense(dtype="int32"), {"x": X, "y": Y}, "keras.Input, int32. Received: float32"),
    "shape": Refusal(dense(), {"x": X[:, :3], "y": Y}, r"expected shape=\(None, 4\)"),
    "sparse": Refusal(dense(sparse=True), {"x": X, "y": Y}, "The inputs must be dense. x is"),
    "ragged": Refusal(
        of_layers(layers.GlobalAveragePooling1D, softmax, shape=(None, 1), ragged=True),
        {"x": X[..., None], "y": Y},
        "The inputs must be dense. x is",
    ),
    "state": Refusal(
        of_layers(lambda: layers.GRU(2, stateful=True), softmax, shape=(4, 1), batch_size=4),
        {"x": X[..., None], "y": Y},
        "Layers must not carry state",
    ),
    "state in both directions": Refusal(
        of_layers(
            lambda: layers.Bidirectional(layers.LSTM(2, stateful=True)), softmax, shape=(4, 1), batch_size=4
        ),
        {"x": X[..., None], "y": Y},
        "Layers must not carry state",
    ),
    "own step": Refusal(OwnStep, {"x": X, "y": Y}, "OwnStep has train_step of its own"),
    "weights beside a mask": Refusal(
        masked, {"x": TOKENS, "y": TOKENS, "sample_weight": X[:, 0]}, "must fit .* Dimensions must be equal"
    ),
    "classes beside a mask": Refusal(
        masked, {"x": TOKENS, "y": TOKENS}, "must fit .* Dimensions", {"class_weight": {1: 2.0}}
    ),
    "classes of two": Refusal(
        two_outputs, {"x": X, "a": Y, "b": Y}, "class_weight needs one target", {"class_weight": {1: 2.0}}
    ),
    "rotation under XLA": Refusal(
        of_layers(lambda: layers.RandomRotation(0.1), layers.Flatten, softmax, shape=(4, 4, 1)),
        {"x": np.ones((8, 4, 4, 1), np.float32), "y": Y},
        "It has no operation ImageProjectiveTransformV3. Use train.compile=graph",
        {"compile": "xla"},
    ),
    "text under XLA": Refusal(
        of_layers(
            lambda: layers.StringLookup(vocabulary=["a"]),
            lambda: layers.Embedding(2, 2),
            layers.Flatten,
            softmax,
            shape=(1,),
            dtype="string",
        ),
        {"x": np.array([["a"]] * 8), "y": Y},
        "It has no arrays of text. Use train.compile=graph",
        {"compile": "xla"},
    ),
    "loss": Refusal(dense(), {"x": X, "y": Y}, "interpret loss identifier: nope", {"loss": "nope"}),
    "path": Refusal(dense(), {"x": X, "y": Y}, "model.loss must be the path", {"loss": "nowhere.loss"}),
    "path in a list": Refusal(
        dense(), {"x": X, "y": Y}, "model.metrics must be the path", {"metrics": {"kind": ["nowhere.loss"]}}
    ),
    "class": Refusal(
        dense(), {"x": X, "y": Y}, "must be Keras' own", {"loss": {"class_name": "Huber", "config": {"d": 2}}}
    ),
    "odd name": Refusal(dense(), {"x y": X, "y": Y}, "must be letters, digits and _"),
    "unknown target": Refusal(dense(), {"x": X, "y": Y}, r"Received: \['z'\]", {"targets": "z"}),
    "name of a sum": Refusal(dense(), {"x": X, "count": Y}, "need names other than count"),
    "metric from one": Refusal(
        dense(), {"x": X, "y": Y}, "Metrics must start at 0", {"metrics": [f"{__name__}.FromOne"]}
    ),
    "loss of each example": Refusal(per_example, {"x": X, "y": Y}, "The loss of a batch must be a scalar"),
    "not fitted, inside": Refusal(
        of_layers(layers.Normalization, softmax, shape=(4,)), {"x": X, "y": Y}, "It lies inside of another"
    ),
    "no network": Refusal(lambda: 3, {"x": X, "y": Y}, "must give a keras.Model"),
    "no loss": Refusal(dense(), {"x": X, "y": Y}, "model.loss must be given", {"loss": None}),
    "metrics without a loss": Refusal(
        dense(), {"x": X, "y": Y}, "model.metrics needs model.loss", {"loss": None, "metrics": ["mae"]}
    ),
    "no such variable": Refusal(
        dense(), {"x": X, "y": Y}, r"\['nope/\*'\] fit none of", {"trainable": ["nope/*"]}
    ),
    "nothing trains": Refusal(
        of_layers(layers.BatchNormalization, softmax, shape=(4,)),
        {"x": X, "y": Y},
        "must fit paths of variables that can train",
        {"trainable": ["*/moving_mean"]},
    ),
}


@pytest.fixture(params=list(REFUSALS.values()), ids=list(REFUSALS))
def refusal(request: pytest.FixtureRequest) -> Refusal:
    """Return a case of what is refused."""
    found: Refusal = request.param
    return found


def train(network: Network, path: Path, **changes: Any) -> Training:
    """Train a network as the main job does."""
    model = KerasNetwork(network=network.path, **network.arguments)
    options = {"dataset": network.dataset(), "optimizer": Adam(learning_rate=0.01), **changes}
    training = prepare(path, model=model, **options)
    assert training.fit(progress.find(training.run))
    return training


def test_every_format_answers_as_keras_predicts(exported: Exported) -> None:
    network, reference = exported.network, exported.reference
    assert set(exported.skipped) == set(network.unsupported)
    for name, sentences in exported.skipped.items():
        assert re.search(network.unsupported[name], " ".join(sentences))
    wiring = wire(reference, batch_specs(network.dataset()), network.arguments.get("targets"))
    test = network.dataset().test
    requests = [{name: test[name][rows] for name in wiring.inputs} for rows in REQUESTS]
    if any(tensor.shape[1] is None for tensor in getattr(reference, "inputs", None) or []):
        requests.append({name: array[:, :5] for name, array in requests[1].items()})
    answers = [
        keras.tree.flatten(reference.predict(one_or_named(request), batch_size=64, verbose=0))
        for request in requests
    ]
    for name in set(FORMATS) - set(exported.skipped):
        manifest, signatures = opening.open(newest(exported.run.path, name), 1)
        assert set(manifest.left_out) - {"evaluate", "metrics"} == set(network.left_out.get(name, ()))
        for request, expected in zip(requests, answers, strict=True):
            answer = examples.call(signatures["serving_default"], request)
            assert set(answer) == set(wiring.outputs)
            for key, value in zip(wiring.outputs, expected, strict=True):
                tolerance = (1e-6 if FORMATS[name].exact else 1e-5) * np.max(np.abs(value))
                assert np.max(np.abs(answer[key] - value)) <= tolerance, f"{name} {key}"


FRESH = ("subclassed", "image_classifier", "table")


@pytest.mark.parametrize(
    "exported",
    [
        pytest.param(one, marks=[pytest.mark.slow] if str(one) != FRESH[0] else [], id=str(one))
        for one in NETWORKS
        if str(one) in FRESH
    ],
    indirect=True,
)
def test_exports_are_evaluated_where_none_of_the_users_code_is(exported: Exported, tmp_path: Path) -> None:
    for package in ("pipeline", "models", "data", "conf", "hydra_plugins"):
        (tmp_path / package).symlink_to(ROOT / package)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "__init__.py").write_text("raise ImportError('this is the code of the user')")
    environment = {"PYTHONPATH": str(tmp_path)}
    completed = run_command(
        "pipeline.evaluate", f"run_dir={exported.run.path}", cwd=tmp_path, env=environment, cold=True
    )
    assert "verdict: match" in completed.stdout


def test_a_model_of_keras_that_roundtrip_refuses(
    refusal: Refusal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "mine", lambda metadata: refusal.network(), raising=False)
    options = {"loss": "sparse_categorical_crossentropy", **refusal.arguments}
    compiler = options.pop("compile", "graph")
    dataset = Dataset(train=refusal.arrays, test=refusal.arrays, batch_size=4)

    def begin() -> None:
        model = KerasNetwork(network="tests.zoo.mine", **options)
        prepare(tmp_path / "run", model=model, dataset=dataset, epochs=1, compile=compiler).fit()

    with pytest.raises((RoundtripError, ValueError), match=refusal.message):
        begin()


def compiled_by_the_user(metadata: Any) -> keras.Model:
    """Return a network with a loss of its own, and a layer that is fitted to the data."""
    features = keras.Input((4,), name="features")
    bins = layers.Discretization(num_bins=4, output_mode="one_hot")
    network = keras.Model(features, layers.Dense(1, name="y_hat")(layers.Flatten()(bins(features))))
    network.compile(loss="mse", metrics=["mae"])
    return network


def doubled(network: keras.Model) -> dict[str, Any]:
    @signature(tf.TensorSpec([None, 4], tf.float32, "features"))
    def twice(features: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"twice": 2 * network(features, training=False)}

    return {"twice": twice}


def fails(metadata: Any, units: int = 1) -> keras.Model:
    return metadata["vocabulary"][units]


def test_an_error_in_the_users_function_names_its_line() -> None:
    model = KerasNetwork(network=f"{__name__}.fails", loss="mse")
    with pytest.raises(ValueError, match=r"which has \['classes'\].*test_zoo.py, line \d+: KeyError: 'vocab"):
        model.build({}, {"classes": []})
    model = KerasNetwork(network=f"{__name__}.fails", loss="mse", arguments={"unit": 3})
    with pytest.raises(
        ValueError, match=r"the arguments \['unit'\]\. TypeError: fails\(\) got an unexpected"
    ):
        model.build({}, {})


def test_what_the_user_has_compiled_fitted_and_named_is_taken() -> None:
    model = KerasNetwork(
        network=f"{__name__}.compiled_by_the_user", targets={"y_hat": "y"}, signatures=f"{__name__}.doubled"
    )
    arrays = {"x": np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32), "y": X[:, :1]}
    model.fit_preprocessing(arrays)
    built = model.build({k: tf.TensorSpec([None, *a.shape[1:]], a.dtype, k) for k, a in arrays.items()}, {})
    assert set(built.signatures) == {"serving_default", "evaluate", "metrics", "twice"}
    answer = built.signatures["serving_default"](arrays["x"])["y_hat"].numpy()
    np.testing.assert_array_equal(built.signatures["twice"](arrays["x"])["twice"].numpy(), 2 * answer)
    assert len(set(answer.ravel())) > 1
    sums = built.signatures["evaluate"](*arrays.values())
    assert sums["loss_sum"].numpy() / 8 == pytest.approx(np.mean((answer - arrays["y"]) ** 2), rel=1e-6)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("nowhere.keras", "must name a .keras file or a function. Not found: nowhere.keras"),
        ("nowhere.sub.net", "must be the path of a function"),
        ("tests.cases.nothing", r"must name a function of .*cases.py. Received: nothing. Known: \['Case'"),
        ("conf.model.nothing", r"must name a function of conf.model. Received: nothing. Known: \[\]"),
    ],
)
def test_a_path_that_names_no_network_is_refused_before_anything_runs(network: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KerasNetwork(network=network, loss="mse")


# In a process of its own each time.
RESUME = """
import sys
from pathlib import Path
import tests.conftest
from tests.test_zoo import train
from tests.zoo import NETWORKS
name, path, epochs = sys.argv[1:]
network = next(one for one in NETWORKS if str(one) == name)
train(network, Path(path), epochs=int(epochs))
"""


def variables(path: Path, epoch: int) -> dict[str, np.ndarray]:
    """Return every variable of an epoch's checkpoint by its key."""
    reader = tf.train.load_checkpoint(str(RunDirectory(path).checkpoint(epoch)))
    return {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}


@pytest.mark.parametrize("fresh", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_goes_on_to_the_same_bits(fresh: bool, tmp_path: Path) -> None:
    def run(path: Path, epochs: int) -> None:
        if fresh:
            command = [sys.executable, "-c", RESUME, "image_classifier", str(path), str(epochs)]
            subprocess.run(command, check=True, cwd=ROOT)
        else:
            train(NETWORKS[0], path, epochs=epochs)

    run(tmp_path / "whole", 3)
    run(tmp_path / "run", 1)
    run(tmp_path / "run", 3)
    whole, resumed = variables(tmp_path / "whole", 3), variables(tmp_path / "run", 3)
    assert set(whole) == set(resumed)
    assert sum("seed" in key for key in whole) >= 2
    for key, value in whole.items():
        np.testing.assert_array_equal(value, resumed[key], err_msg=key)
    assert any(np.any(value != variables(tmp_path / "whole", 1)[key]) for key, value in whole.items())


def test_the_table_of_the_zoo(capsys: pytest.CaptureFixture[str]) -> None:
    """Print it with `pytest -s`: what each network is compared in, and the lines of the user's code."""
    rows = []
    for network in NETWORKS:
        named = network.arguments.get("metrics", [])
        lists = named.values() if isinstance(named, Mapping) else [named]
        metrics = [
            "loss",
            *(name for of in lists for name in of),
            *network.arguments.get("weighted_metrics", []),
        ]
        held = [name for name in FORMATS if name not in network.unsupported]
        left = f" without {', '.join(network.unsupported)}" if network.unsupported else ""
        rows.append(f"{network!s:17}{network.num_lines:3}  {NUM_STEPS}  {len(held)} of {len(FORMATS)}{left}")
        rows[-1] += f"  {', '.join(metrics)}"
        assert network.num_lines <= 15, network
    with capsys.disabled():
        print("\nnetwork        lines steps formats  metrics", *rows, sep="\n")
