"""`train.precision`: Keras' steps in half precision, exact resumes, models that do not follow it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from models.dense import DenseRegressor
from models.gru import GRUClassifier
from models.keras_network import KerasNetwork
from pipeline.config import checks
from pipeline.errors import ConfigError
from pipeline.optimizers import Adam, KerasOptimizer
from pipeline.runs import progress
from pipeline.runs.directory import RunDirectory
from pipeline.training import loop, setup
from tests.cases import CASES
from tests.conftest import Command
from tests.pipeline import test_keras_optimizer as zoo
from tests.pipeline.test_config import changed
from tests.pipeline.test_resume import stop_after
from tests.pipeline.test_training import files, prepare

ROOT = Path(__file__).parent.parent.parent
MIXED = ("mixed_bfloat16", "mixed_float16")
HALF = {"mixed_bfloat16": "bfloat16", "mixed_float16": "float16"}
ADAM = KerasOptimizer(
    name="AdamW", learning_rate=0.01, options={"use_ema": True}, exclude_from_weight_decay=["bias"]
)


@pytest.mark.parametrize("precision", MIXED)
def test_steps_are_those_of_keras(precision: str, tmp_path: Path) -> None:
    trained = zoo.training(tmp_path / "run", ADAM, precision=precision)
    assert keras.config.dtype_policy().name == "float32"
    assert {variable.dtype.name for variable in trained.built.variables.values()} == {"float32"}
    keras.config.set_dtype_policy(precision)
    try:
        reference = zoo.network({})
    finally:
        keras.config.set_dtype_policy("float32")
    for ours, variable in zip(trained.built.weights.values(), reference.weights, strict=True):
        variable.assign(ours)
    optimizer = keras.optimizers.AdamW(0.01, use_ema=True)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    if precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    reference.compile(optimizer, loss=zoo.loss, jit_compile=False)
    zoo.step(trained)
    for rows in zoo.batches(trained.dataset):
        reference.train_on_batch(*(array[rows] for array in trained.dataset.train.values()))
    for ours, variable in zip(trained.built.variables.values(), reference.weights, strict=True):
        np.testing.assert_allclose(ours.numpy(), variable.numpy(), rtol=1e-6, atol=1e-7)
    # And not those of float32.
    single = zoo.training(tmp_path / "single", ADAM)
    zoo.step(single)
    pairs = zip(trained.built.variables.values(), single.built.variables.values(), strict=True)
    assert max(np.abs(one.numpy() - other.numpy()).max() for one, other in pairs) > 1e-5


def test_gradients_that_overflow_change_the_scale_and_no_weight(tmp_path: Path) -> None:
    trained = zoo.training(tmp_path / "run", ADAM, precision="mixed_float16")
    scale = trained.optimizer.dynamic_scale
    scale.assign(2.0**120)
    before = {path: v.numpy() for path, v in trained.built.variables.items() if "moving" not in path}
    rows, zero = np.stack(zoo.batches(trained.dataset)), tf.constant(0)
    losses, _ = trained.compile().steps(tf.constant(rows), zero, tf.constant(3), zero, {})
    assert np.isfinite(losses.numpy()).all()
    assert float(scale.value) == 2.0**117
    for path, value in before.items():
        np.testing.assert_array_equal(trained.built.variables[path].numpy(), value)


@pytest.mark.parametrize("precision", MIXED)
def test_a_run_that_goes_on_comes_to_the_same_bits(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_next_chunk", lambda num_steps, elapsed: 1)

    def go_on(name: str, **changes: Any) -> bool:
        trained = zoo.training(tmp_path / name, ADAM, precision=precision, **changes)
        return trained.fit(progress.find(RunDirectory(tmp_path / name)))

    assert go_on("whole", epochs=3)
    assert not go_on("run", epochs=2, stopped=stop_after(7))
    assert go_on("run", epochs=2)
    assert go_on("run", epochs=3)
    assert files(tmp_path / "run") == files(tmp_path / "whole")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras writes a file so.
def test_a_model_that_does_not_follow_it_is_refused(tmp_path: Path) -> None:
    gru, dense = CASES[0], CASES[-1]
    options: dict[str, Any] = {"optimizer": Adam(learning_rate=0.1), "precision": "mixed_bfloat16"}
    with pytest.raises(ConfigError, match="GRUClassifier has no operation in bfloat16: it does not follow"):
        prepare(tmp_path / "gru", gru, model=GRUClassifier(), **options)
    with pytest.raises(ConfigError, match=r"made for it, such as model=keras. DenseRegressor is not: Input"):
        prepare(tmp_path / "dense", dense, model=DenseRegressor(), **options)
    zoo.network({}).save(tmp_path / "single.keras")
    adopted = KerasNetwork(network=str(tmp_path / "single.keras"), loss=f"{zoo.__name__}.loss")
    with pytest.raises(ConfigError, match="KerasNetwork has no operation in bfloat16"):
        prepare(tmp_path / "adopted", model=adopted, dataset=zoo.dataset(), **options)
    assert keras.config.dtype_policy().name == "float32"


def test_an_error_of_the_model_is_not_taken_for_one_of_the_precision() -> None:
    class Broken(DenseRegressor):
        def build(self, batch: Any, metadata: Any) -> Any:
            raise TypeError("a mistake")

    with pytest.raises(TypeError, match="^a mistake$"):
        setup._build(Broken(), CASES[-1].load(), "float32")


def test_wrong_values_are_said() -> None:
    with pytest.raises(ConfigError, match="train.precision must be one of float32, mixed_bfloat16, mixed_fl"):
        checks.check(changed(train__precision="float16"))


NETS = """
import keras

def classifier(metadata):
    images = keras.Input((28, 28, 1), name="images")
    x = keras.layers.Flatten(name="flat")(images)
    x = keras.layers.Dense(8, activation="relu", name="hidden")(x)
    return keras.Model(images, keras.layers.Dense(10, activation="softmax", name="digit")(x))
"""


@pytest.mark.parametrize("precision", MIXED)
def test_what_is_exported_is_proven(precision: str, command: Command, tmp_path: Path) -> None:
    (tmp_path / "nets_of_precision.py").write_text(NETS)
    stdout = command(
        "pipeline",
        "model=keras",
        "data=digits",
        "model.network=nets_of_precision.classifier",
        "model.loss=sparse_categorical_crossentropy",
        "optimizer.learning_rate=1e-3",
        "train.limit_batches=3",
        "export=[saved_model,checkpoint,meta_graph]",
        f"train.precision={precision}",
        env={"PYTHONPATH": f"{ROOT}:{tmp_path}"},
        cold=True,
    ).stdout
    assert "verdict: match" in stdout
