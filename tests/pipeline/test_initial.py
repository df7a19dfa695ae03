"""Runs that begin from trained weights: which variables take them, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from data.base import Dataset
from models.keras_network import KerasNetwork
from pipeline.errors import ConfigError, DamagedError
from pipeline.runs import progress
from pipeline.runs.directory import RunDirectory
from pipeline.training.loop import Training
from tests.pipeline import test_training

# Keras converts a variable to NumPy as it saves one, in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

LOGGED = [
    "6 of 7 variables begin as in {}",
    "these begin anew: head/kernel [3, 2] (there [3, 1])",
]


def network(metadata: Any, width: int = 1) -> keras.Model:
    x = keras.Input((2,), name="x")
    h = keras.layers.Dense(3, name="body")(keras.layers.Normalization(name="scaled")(x))
    h = keras.layers.BatchNormalization(name="normed")(h)
    return keras.Model(x, keras.layers.Dense(width, use_bias=False, name="head")(h))


def dataset(offset: float = 0.0, width: int = 1) -> Dataset:
    x = np.random.default_rng(0).normal(offset, 1, (40, 2)).astype(np.float32)
    arrays = {"x": x, "y": np.repeat(x[:, :1], width, axis=1)}
    return Dataset(train=arrays, test={name: array[:8] for name, array in arrays.items()}, batch_size=8)


def prepare(path: Path, *, width: int = 1, offset: float = 0.0, **changes: Any) -> Training:
    arguments = {"width": width}
    trainable = changes.pop("trainable", None)
    model = KerasNetwork(network=f"{__name__}.network", arguments=arguments, loss="mse", trainable=trainable)
    data = dataset(offset, width)
    return test_training.prepare(path, model=model, dataset=data, **{"epochs": 2, **changes})


def values(trained: Training) -> dict[str, np.ndarray]:
    return {path: variable.numpy() for path, variable in trained.built.variables.items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Training:
    run = prepare(tmp_path_factory.mktemp("run"))
    assert run.fit()
    return run


def test_a_new_head_begins_on_the_trained_body(
    trained: Training, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    built: Any = trained.built
    built.network.save(tmp_path / "saved.keras")
    last = values(trained)
    first = trained.run.checkpoint(1)
    for source in (trained.run.path, tmp_path / "saved.keras", first):
        caplog.clear()
        with caplog.at_level(logging.INFO, "pipeline"):
            tuned = prepare(
                tmp_path / f"from {source.name}", width=2, offset=9.0, init_from=source, trainable=["head/*"]
            )
        logged = [record.getMessage() for record in caplog.records]
        assert logged[:2] == [LOGGED[0].format(source), LOGGED[1]]
        begun = values(tuned)
        for path in ("body/kernel", "body/bias", "normed/gamma", "normed/moving_mean"):
            assert np.array_equal(begun[path], last[path]) == (source != first), path
        # What was fitted to the data is fitted to this data.
        np.testing.assert_allclose(begun["scaled/mean"], [9, 9], atol=0.5)
        assert tuned.fit()
        for path, value in values(tuned).items():
            assert np.array_equal(value, begun[path]) == (path != "head/kernel"), path


def test_a_run_that_goes_on_does_not_begin_anew(trained: Training, tmp_path: Path) -> None:
    tuned = prepare(tmp_path, init_from=trained.run.path, epochs=1)
    assert tuned.fit()
    once = values(tuned)
    assert prepare(tmp_path, init_from=tmp_path / "gone", epochs=1).fit(progress.find(RunDirectory(tmp_path)))
    assert all(np.array_equal(value, once[path]) for path, value in values(tuned).items())


def test_what_has_no_weights_is_refused(trained: Training, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be a run's directory, one of its checkpoints .* It is none"):
        prepare(tmp_path / "a", init_from=tmp_path)
    (tmp_path / "text.keras").write_text("no archive")
    with pytest.raises(ConfigError, match=r"text.keras must be a .keras file"):
        prepare(tmp_path / "b", init_from=tmp_path / "text.keras")
    keras.Sequential([keras.Input((7,)), keras.layers.Dense(2, name="other")]).save(tmp_path / "other.keras")
    with pytest.raises(ConfigError, match=r"It has .*other/bias.* the model .* no path fits"):
        prepare(tmp_path / "c", init_from=tmp_path / "other.keras")
    run = prepare(tmp_path / "damaged", epochs=1)
    assert run.fit()
    run.run.checkpoint(1).with_name("epoch-0001.index").write_bytes(b"")
    with pytest.raises(DamagedError, match="epoch-0001.index"):
        prepare(tmp_path / "d", init_from=tmp_path / "damaged")
    for suffix in (".index", ".data-00000-of-00001"):
        run.run.checkpoint(0).with_name(f"other{suffix}").write_bytes(b"")
    with pytest.raises(DamagedError, match="must have a row for the checkpoint other"):
        prepare(tmp_path / "e", init_from=run.run.checkpoint(0).with_name("other"))
