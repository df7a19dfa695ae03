"""`optimizer=keras`: steps as Keras itself takes them, exact resumes, and wrong values as sentences."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from data.base import Dataset
from models.keras_network import KerasNetwork
from pipeline.errors import ConfigError
from pipeline.optimizers import OPTIMIZERS, SCHEDULES, KerasOptimizer, classes_of
from pipeline.runs import progress
from pipeline.runs.directory import RunDirectory
from pipeline.training import loop
from pipeline.training.loop import Training
from tests.conftest import Command
from tests.pipeline.test_resume import stop_after
from tests.pipeline.test_training import files, prepare

NUM_STEPS = 20


def network(metadata: Any) -> keras.Model:
    """Return a network with a variable of each kind: trained, decayed or not, and not trained."""
    image = keras.Input((6,), name="features")
    x = keras.layers.Dense(8, activation="relu", name="hidden")(image)
    x = keras.layers.BatchNormalization(name="normalization")(x)
    return keras.Model(image, keras.layers.Dense(3, name="scores")(x))


def dataset() -> Dataset:
    """Return data of 5 steps an epoch, so that 3 accumulated gradients end in the middle of one."""
    random = np.random.default_rng(0)
    features = random.normal(size=(100, 6)).astype(np.float32)
    arrays = {"features": features, "labels": (features[:, 0] > 0).astype(np.int32) + (features[:, 1] > 1)}
    return Dataset(train=arrays, test={k: v[:30] for k, v in arrays.items()}, batch_size=20)


LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def loss(y_true: Any, y_pred: Any) -> Any:
    return LOSS(y_true, y_pred)


def training(path: Path, optimizer: KerasOptimizer, **changes: Any) -> Training:
    model = KerasNetwork(network=f"{__name__}.network", loss=f"{__name__}.loss")
    return prepare(path, model=model, dataset=dataset(), optimizer=optimizer, **changes)


def batches(data: Dataset) -> list[np.ndarray]:
    epochs = range(1, NUM_STEPS // 5 + 1)
    return [rows for e in epochs for rows in loop.order(data.num_train, 20, seed=0, epoch=e, ordered=False)]


def step(trained: Training) -> None:
    """Take the steps of all epochs at once."""
    rows, zero = np.stack(batches(trained.dataset)), tf.constant(0)
    trained.compile().steps(tf.constant(rows), zero, tf.constant(NUM_STEPS), zero, {})


DECAY = {"initial_learning_rate": 0.05, "decay_steps": 7, "decay_rate": 0.5}

SAME: dict[str, tuple[KerasOptimizer, Any]] = {
    "adamw": (
        KerasOptimizer(
            name="adam_w",
            learning_rate=0.01,
            options={"weight_decay": 0.3},
            exclude_from_weight_decay=["hidden/bias", "gamma"],
        ),
        lambda: keras.optimizers.AdamW(0.01, weight_decay=0.3),
    ),
    "lion": (KerasOptimizer(name="Lion", learning_rate=0.01), lambda: keras.optimizers.Lion(0.01)),
    "muon": (KerasOptimizer(name="muon", learning_rate=0.01), lambda: keras.optimizers.Muon(0.01)),
    "clipvalue": (
        KerasOptimizer(name="SGD", learning_rate=1, options={"clipvalue": 0.01}),
        lambda: keras.optimizers.SGD(1.0, clipvalue=0.01),
    ),
    "clipnorm": (
        KerasOptimizer(name="SGD", learning_rate=1, options={"clipnorm": 0.1}),
        lambda: keras.optimizers.SGD(1.0, clipnorm=0.1),
    ),
    "global_clipnorm": (
        KerasOptimizer(name="SGD", learning_rate=1, options={"global_clipnorm": 0.1}),
        lambda: keras.optimizers.SGD(1.0, global_clipnorm=0.1),
    ),
    "use_ema": (
        KerasOptimizer(name="Adam", learning_rate=0.01, options={"use_ema": True, "ema_momentum": 0.8}),
        lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.8),
    ),
    "accumulation": (
        KerasOptimizer(name="Adam", learning_rate=0.01, options={"gradient_accumulation_steps": 3}),
        lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=3),
    ),
    "loss_scale": (
        KerasOptimizer(name="Adam", learning_rate=0.01, options={"loss_scale_factor": 64}),
        lambda: keras.optimizers.Adam(0.01, loss_scale_factor=64.0),
    ),
    "schedule": (
        KerasOptimizer(name="SGD", learning_rate={"name": "exponential_decay", **DECAY}),
        lambda: keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(**DECAY)),
    ),
}


@pytest.mark.parametrize("case", SAME)
def test_steps_are_those_of_keras(case: str, tmp_path: Path) -> None:
    optimizer, make = SAME[case]
    trained = training(tmp_path / "run", optimizer)
    reference, theirs = network({}), make()
    for ours, variable in zip(trained.built.weights.values(), reference.weights, strict=True):
        variable.assign(ours)
    if optimizer.exclude_from_weight_decay:
        kept = [reference.get_layer("hidden").bias, reference.get_layer("normalization").gamma]
        theirs.exclude_from_weight_decay(var_list=kept)
    reference.compile(theirs, loss=loss, jit_compile=False)
    before = [variable.numpy() for variable in reference.weights]
    step(trained)
    for rows in batches(trained.dataset):
        reference.train_on_batch(*(array[rows] for array in trained.dataset.train.values()))
    # As `fit` does when it ends.
    trained._average.enter()
    theirs.finalize_variable_values(reference.trainable_variables)
    for ours, variable, old in zip(trained.built.variables.values(), reference.weights, before, strict=True):
        np.testing.assert_allclose(ours.numpy(), variable.numpy(), rtol=1e-6, atol=1e-7)
        assert np.any(variable.numpy() != old)


@pytest.mark.parametrize("key", ["weight_decay", "exclude_from_weight_decay", "clipnorm"])
def test_a_value_that_is_left_out_shows_in_the_steps(key: str, tmp_path: Path) -> None:
    whole = KerasOptimizer(
        name="AdamW",
        learning_rate=0.01,
        options={"weight_decay": 0.3, "clipnorm": 0.01},
        exclude_from_weight_decay=["gamma"],
    )
    options = {name: value for name, value in (whole.options or {}).items() if name != key}
    kept = None if key.startswith("exclude") else whole.exclude_from_weight_decay
    lacking = KerasOptimizer(
        name="AdamW", learning_rate=0.01, options=options, exclude_from_weight_decay=kept
    )
    values = []
    for name, optimizer in (("whole", whole), ("lacking", lacking)):
        trained = training(tmp_path / name, optimizer)
        step(trained)
        values.append(trained.built.variables["normalization/gamma"].numpy())
    assert np.abs(values[0] - values[1]).max() > 1e-6


RESUMED: dict[str, dict[str, Any]] = {
    "ema": {"use_ema": True, "ema_momentum": 0.7},
    "accumulation": {"gradient_accumulation_steps": 3},
    "both": {"use_ema": True, "gradient_accumulation_steps": 3, "weight_decay": 0.1},
}


@pytest.mark.parametrize("options", RESUMED)
def test_a_run_that_goes_on_comes_to_the_same_bits(
    options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_next_chunk", lambda num_steps, elapsed: 1)
    optimizer = KerasOptimizer(name="Adam", learning_rate=0.01, options=RESUMED[options])

    def go_on(name: str, **changes: Any) -> bool:
        path = tmp_path / name
        trained = training(path, optimizer, **changes)
        return trained.fit(progress.find(RunDirectory(path)))

    assert go_on("whole", epochs=4)
    # By a signal in the middle of an epoch and of three gradients, twice, then to the end.
    assert not go_on("stopped", epochs=4, stopped=stop_after(6))
    assert not go_on("stopped", epochs=4, stopped=stop_after(2))
    assert go_on("stopped", epochs=4)
    # By the number of epochs: after 5 and 10 steps, two and one gradients are added up.
    assert go_on("raised", epochs=1)
    assert go_on("raised", epochs=2)
    assert go_on("raised", epochs=4)
    whole = files(tmp_path / "whole")
    assert len(whole) == 2 * 5 + 1
    assert files(tmp_path / "stopped") == whole
    assert files(tmp_path / "raised") == whole


def test_a_schedule_over_the_whole_training_cannot_be_stretched(tmp_path: Path) -> None:
    def optimizer(steps: Any) -> KerasOptimizer:
        return KerasOptimizer(
            name="SGD",
            learning_rate={"name": "CosineDecay", "initial_learning_rate": 1, "decay_steps": steps},
        )

    for name, steps in (("total", "total_steps"), ("fixed", 10)):
        training(tmp_path / name, optimizer(steps), epochs=2).fit()
    found = progress.find(RunDirectory(tmp_path / "total"))
    with pytest.raises(ConfigError, match="train.epochs cannot be raised: the learning rate follows"):
        training(tmp_path / "total", optimizer("total_steps"), epochs=3).fit(found)
    found = progress.find(RunDirectory(tmp_path / "fixed"))
    assert training(tmp_path / "fixed", optimizer(10), epochs=3).fit(found)


def test_every_public_class_of_keras_is_known() -> None:
    base = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer"}
    public = {
        name
        for name, found in vars(keras.optimizers).items()
        if isinstance(found, type) and issubclass(found, keras.optimizers.Optimizer)
    }
    assert set(classes_of(OPTIMIZERS)) == public - base
    for name in classes_of(OPTIMIZERS):
        built = KerasOptimizer(name=name, learning_rate=0.5, options={"clipnorm": 1}).build(10)
        assert type(built).__name__ == name
        assert built.get_config()["clipnorm"] == 1
    schedules = {name for name, found in vars(keras.optimizers.schedules).items() if isinstance(found, type)}
    assert set(classes_of(SCHEDULES)) == schedules - {"LearningRateSchedule"}


def test_the_length_of_the_training_is_known_to_the_schedule() -> None:
    rate = {"name": "cosine_decay", "initial_learning_rate": 1, "decay_steps": "total_steps"}

    def decay_steps(num_steps: int, **options: Any) -> Any:
        made = KerasOptimizer(name="SGD", learning_rate=rate, options=options).build(num_steps)
        return made.get_config()["learning_rate"]["config"]["decay_steps"]

    assert decay_steps(90) == 90
    assert decay_steps(90, gradient_accumulation_steps=3) == 30
    assert decay_steps(0) == 1
    steps = {"name": "PiecewiseConstantDecay", "boundaries": [4, 8], "values": [1, 0.5, 0.1]}
    schedule = KerasOptimizer(name="SGD", learning_rate=steps).build(9)._learning_rate
    assert [round(float(schedule(number)), 3) for number in (0, 5, 9)] == [1, 0.5, 0.1]
    cosine = KerasOptimizer(name="SGD", learning_rate=rate).build(10)._learning_rate
    assert float(cosine(5)) == pytest.approx(0.5)


COSINE = {"name": "CosineDecay", "initial_learning_rate": 1, "decay_steps": 9}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Adan"}, r"optimizer.name must be one of .*Lamb.* Received: Adan. Did you mean Adam\?"),
        ({"name": "MultiOptimizer"}, "optimizer.name must be one of"),
        ({"learning_rate": 0}, "optimizer.learning_rate must be a number > 0, or a section .* Received: 0."),
        ({"learning_rate": True}, "optimizer.learning_rate must be a number > 0"),
        ({"learning_rate": {}}, "optimizer.learning_rate.name must be one of .* Received: None."),
        (
            {"learning_rate": {"name": "CosineDecay"}},
            "optimizer.learning_rate must have initial_learning_rate, decay_steps, which CosineDecay needs.",
        ),
        (
            {"learning_rate": {**COSINE, "decay_step": 1}},
            r"optimizer.learning_rate.decay_step is not a key. .* Did you mean decay_steps\?",
        ),
        (
            {"learning_rate": {**COSINE, "decay_steps": "all"}},
            "optimizer.learning_rate.decay_steps must be a number. Received: 'all'.",
        ),
        (
            {"learning_rate": {"name": "PiecewiseConstantDecay", "boundaries": 3, "values": [1, "x"]}},
            r"boundaries must be a list of numbers. Received: 3.\n.*values must be a list of numbers",
        ),
        ({"options": {"weight_dcay": 1}}, r"weight_dcay is not a key. .* Did you mean weight_decay\?"),
        ({"options": {"learning_rate": 1}}, "optimizer.options.learning_rate is not a key"),
        ({"options": {"clipnorm": "big"}}, "clipnorm must be a number or null. Received: 'big'."),
        ({"options": {"beta_1": None}}, "optimizer.options.beta_1 must be a number. Received: None."),
        ({"options": {"use_ema": 1}}, "optimizer.options.use_ema must be true or false. Received: 1."),
        ({"options": {"clipnorm": 1, "clipvalue": 1}}, "must have one of clipnorm, clipvalue, global_clip"),
        (
            {"options": {"gradient_accumulation_steps": 1}},
            "gradient_accumulation_steps must be an integer >= 2, or null. Received: 1.",
        ),
        ({"exclude_from_weight_decay": ["bias"]}, "needs optimizer.options.weight_decay. Received: .'bias'"),
    ],
)
def test_wrong_values_are_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        KerasOptimizer(**{"name": "Adam", "learning_rate": 0.1, **changes})


def test_what_only_keras_knows_is_said_when_it_is_built(tmp_path: Path) -> None:
    optimizer = KerasOptimizer(
        name="Adam", learning_rate=0.1, options={"use_ema": True, "ema_momentum": 3, "weight_decay": None}
    )
    with pytest.raises(ConfigError, match=r"as keras.optimizers.Adam takes it. `ema_momentum` must be in"):
        optimizer.build(10)
    nowhere = KerasOptimizer(name="AdamW", learning_rate=0.1, exclude_from_weight_decay=["scale", "bias"])
    with pytest.raises(ConfigError, match=r"\['scale'\] are in none of \['hidden/kernel'"):
        training(tmp_path / "run", nowhere)


def test_the_source_of_keras_is_read_without_keras() -> None:
    program = """
import sys
from pipeline.optimizers import KerasOptimizer
rate = {"name": "CosineDecay", "initial_learning_rate": 1, "decay_steps": 9}
KerasOptimizer(name="adamw", learning_rate=rate)
assert not {"keras", "tensorflow"} & {*sys.modules}
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_command_takes_any_of_it(command: Command) -> None:
    stdout = command(
        "pipeline",
        "model=dense",
        "optimizer=keras",
        "optimizer.name=lion",
        "optimizer.learning_rate={name: CosineDecay, initial_learning_rate: 1e-3, decay_steps: total_steps}",
        "optimizer.options={weight_decay: 0.01, use_ema: true}",
        "+optimizer.options.clipnorm=1",
        "optimizer.exclude_from_weight_decay=[bias]",
        "train.epochs=2",
        "export=saved_model",
    ).stdout
    assert "verdict: match" in stdout
    stderr = command("pipeline", "optimizer=keras", "optimizer.name=adan", code=2).stderr
    assert "optimizer.name must be one of Adadelta, " in stderr
