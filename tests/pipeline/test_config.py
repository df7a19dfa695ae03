from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest

from data.base import DataError, Dataset
from models.base import ArraySpec
from pipeline.config import binding, checks
from pipeline.config.dataset_checks import check_batch, load
from pipeline.config.formats import FORMATS
from pipeline.errors import ConfigError, DataSetError

VALUES: dict[str, Any] = {
    "model": {"_target_": "models.gru.GRUClassifier", "units": 3},
    "data": {"_target_": "data.text.Text", "path": "text.txt"},
    "optimizer": {"_target_": "pipeline.optimizers.Adam", "learning_rate": 1},
    "export": {"formats": {"saved_model": True}},
    "train": {
        "epochs": 2,
        "resume": None,
        "keep": "all",
        "early_stopping": {"patience": None, "min_delta": 0},
        "compile": "xla",
        "deterministic": True,
        "on_interrupt": "stop",
    },
    "trust": [],
    "verify": {"abs_tolerance": 0, "rel_tolerance": 1e-3, "quantized_tolerance": None},
    "best": {"metric": "loss", "direction": "minimize"},
    "sweep": {"metric": "loss", "direction": "minimize", "epoch": "best"},
    "seed": 0,
    "epoch": "last",
}


def changed(**changes: Any) -> dict[str, Any]:
    """Return the values with some replaced; keys are paths with `__` for the dot."""
    values = copy.deepcopy(VALUES)
    for path, value in changes.items():
        *parents, key = path.split("__")
        node = values
        for parent in parents:
            node = node[parent]
        node[key] = value
    return values


def test_constructs_what_it_names() -> None:
    settings = checks.check(VALUES)
    assert settings.model.units == 3  # type: ignore[attr-defined]
    assert settings.optimizer.learning_rate == 1.0
    assert settings.train.epochs == 2
    assert settings.verify.abs_tolerance == 0.0


def test_the_resolved_configuration_holds_every_value_and_absolute_paths(tmp_path: Path) -> None:
    resolved = checks.check(VALUES).resolved
    assert resolved["data"]["path"] == str(Path.cwd() / "text.txt")
    assert resolved["data"]["sequence_length"] == 100
    assert resolved["model"] == {
        "_target_": "models.gru.GRUClassifier",
        "num_features": 30,
        "units": 3,
        "num_classes": 5,
    }
    assert checks.check(resolved).resolved == resolved


def test_a_missing_package_is_said_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnx" else name)
    with pytest.raises(ConfigError) as refusal:
        checks.check(changed(export__formats={"onnx": True, "tflite": True}))
    assert refusal.value.problems == [
        "export=onnx needs onnx. Not installed. Install the extra: pip install 'roundtrip[onnx]'."
    ]


NAN_RATE = "optimizer.learning_rate must be a finite number. Received: nan."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__epochs": -3}, "train.epochs must be >= 0. Received: -3."),
        ({"train__epochs": 1.5}, "train.epochs must be an integer. Received: 1.5."),
        ({"train__epochs": float("inf")}, "train.epochs must be an integer. Received: inf."),
        ({"optimizer__learning_rate": float("nan")}, NAN_RATE),
        ({"epoch": "first"}, f"epoch must be {checks.EPOCHS}. Received: first."),
        ({"epoch": [1, -1]}, f"epoch must be {checks.EPOCHS}. Received: [1, -1]."),
        ({"export": None}, "export must be a section. Received: None."),
        (
            {"sweep__metric": ["parameters"]},
            "sweep.metric must be a metric, or a list that begins with one. Received: ['parameters'].",
        ),
        (
            {"sweep__direction": "minimise"},
            "sweep.direction must be one of minimize, maximize. Received: minimise. Did you mean minimize?",
        ),
        (
            {"sweep__metric": ["loss", "parameters"]},
            "sweep.direction must be given for each of 2 metrics. Received: minimize.",
        ),
        (
            {"export__formats": {"saved_model": 1}},
            "export.formats.saved_model must be true or false. Received: 1.",
        ),
        (
            {"export__formats": {"onnx": False}},
            f"export.formats must have at least one of {', '.join(FORMATS)}. Received: none.",
        ),
        (
            {"export__quantisation": "int8"},
            "export.quantisation is not a key. Known here: formats, quantization, opset, skip_unsupported. "
            "Did you mean quantization?",
        ),
        (
            {"export__quantization": "int4"},
            "export.quantization must be one of none, float16, int8. Received: int4. Did you mean int8?",
        ),
        (
            {"export__quantization": "int8"},
            "export.quantization=int8 changes the metrics. Say by how much they may differ: "
            "verify.quantized_tolerance=0.01, for example.",
        ),
        ({"export__opset": 9}, "export.opset must be >= 13. Received: 9."),
        ({"best__direction": "up"}, "best.direction must be one of minimize, maximize. Received: up."),
        (
            {"model": {"_target_": "math.pi"}},
            "model._target_ must name a class that can be imported. Received: math.pi: pi is no class.",
        ),
        ({"train__epochs": True}, "train.epochs must be an integer. Received: True."),
        ({"train__deterministic": 1}, "train.deterministic must be true or false. Received: 1."),
        (
            {"train__compile": "xlaa"},
            "train.compile must be one of graph, xla. Received: xlaa. Did you mean xla?",
        ),
        ({"train": 3}, "train must be a section. Received: 3."),
        ({"train__keep": 0}, "train.keep must be all, best or a number >= 1. Received: 0."),
        ({"train__keep": "last"}, "train.keep must be all, best or a number >= 1. Received: last."),
        (
            {"train__keep": 3, "epoch": "all", "export__formats": {"checkpoint": True}},
            "epoch=all needs the checkpoint of every epoch: train.keep=all. Received: train.keep=3.",
        ),
        (
            {"train__early_stopping": {"patience": 0, "min_delta": 0}},
            "train.early_stopping.patience must be >= 1. Received: 0.",
        ),
        ({"trust": "mine"}, "trust must be a list, such as [a,b]. Received: 'mine'."),
        ({"trust": [3]}, "trust must be a string. Received: 3."),
        (
            {"train__epoch": 3},
            "train.epoch is not a key. Known here: epochs, resume, keep, early_stopping, compile, "
            "deterministic, on_interrupt, limit_batches, overfit_batches, max_seconds, checkpoint_secs, "
            "precision, init_from, validation_fraction. "
            "Did you mean epochs?",
        ),
        ({"seed": 2**31}, "seed must be <= 2147483647. Received: 2147483648."),
        ({"seed": "???"}, "seed must be given. Add seed=... to the command."),
        ({"epoch": 3}, "epoch must be at most train.epochs (2). Received: 3."),
        ({"epoch": []}, f"epoch must be {checks.EPOCHS}. Received: []."),
        (
            {"epoch": [0, 2]},
            "epoch=[0, 2] needs a format that holds many epochs: checkpoint, meta_graph. "
            "Received: saved_model.",
        ),
        ({"data__path": 3}, "data.path must be a path. Received: 3."),
        ({"data__test_fraction": 1}, "data.test_fraction must be < 1. Received: 1.0."),
        (
            {"export__formats": {"onxx": True}},
            f"export must be one of {', '.join(FORMATS)}. Received: onxx. Did you mean onnx?",
        ),
        ({"model__units": 0}, "model.units must be >= 1. Received: 0."),
        ({"model": None}, "model._target_ must name a class. Received: None."),
        (
            {"model___target_": "models.gru.GRU"},
            "model._target_ must name a class that can be imported. Received: models.gru.GRU: "
            "module 'models.gru' has no attribute 'GRU'.",
        ),
        (
            {"model___target_": "nowhere.Model"},
            "model._target_ must name a class that can be imported. Received: nowhere.Model: "
            "No module named 'nowhere'.",
        ),
    ],
)
def test_a_problem_is_a_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        checks.check(changed(**changes))
    assert refusal.value.problems == [message]


def test_all_problems_are_found_at_once() -> None:
    values = changed(
        train__epochs=-1,
        train__keep=0,
        optimizer__learning_rate=0,
        data__batch_size="x",
        model__nits=3,
        foo=1,
    )
    with pytest.raises(ConfigError) as refusal:
        checks.check(values)
    keys = [problem.split()[0] for problem in refusal.value.problems]
    assert keys == [
        "model.nits",
        "data.batch_size",
        "optimizer.learning_rate",
        "foo",
        "train.epochs",
        "train.keep",
    ]


class Demanding:
    """A component with a check of its own, and an annotation of its own."""

    def __init__(
        self, *, shape: tuple[int, ...], scale: Annotated[float | None, "> 0"] = None, **rest: Any
    ) -> None:
        if len(shape) != 2:
            raise ValueError(f"shape must have 2 sizes. Received: {shape}.")
        self.shape, self.scale, self.rest = shape, scale, rest


def test_a_constructor_may_have_checks_and_types_of_its_own() -> None:
    problems: list[str] = []
    target = f"{__name__}.Demanding"
    made, _ = binding.construct({"_target_": target, "shape": [1, 2], "more": 3}, "model", problems)
    assert (made.shape, made.rest) == ([1, 2], {"more": 3})
    binding.construct({"_target_": target, "shape": [1]}, "model", problems)
    assert problems == ["shape must have 2 sizes. Received: [1]."]


class Failing:
    def load(self) -> Dataset:
        raise DataError("It is Monday.")


def test_data_that_cannot_be_loaded_is_a_configuration_error() -> None:
    with pytest.raises(DataSetError, match="It is Monday"):
        load(Failing())


IMAGES = ArraySpec((None, 2), {"uint8": None, "float32": (0, 1)})


class Labelled:
    """A model, as far as its data is concerned."""

    def arrays(self, metadata: Mapping[str, Any]) -> Mapping[str, ArraySpec]:
        if metadata.get("broken"):
            raise ValueError("There must be no broken data.")
        return {"images": IMAGES, "labels": ArraySpec((None,), {"int32": (0, 2)})}

    def build(self, batch: Any, metadata: Any) -> Any:
        raise NotImplementedError


def dataset(**arrays: Any) -> Dataset:
    arrays = {"images": np.zeros((3, 2), np.uint8), "labels": np.zeros(3, np.int32), **arrays}
    return Dataset(train=arrays, test=arrays, batch_size=1)


@pytest.mark.parametrize("images", [np.full((3, 2), 255, np.uint8), np.ones((3, 2), np.float32)])
def test_a_batch_that_fits_is_accepted(images: Any) -> None:
    check_batch(Labelled(), dataset(images=images))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"images": np.zeros((3, 3), np.uint8)},
            r"'images' must be \[any, 2\] uint8 or float32 in \[0, 1\]. Received: \[3, 3\] uint8",
        ),
        ({"images": np.zeros((3, 2))}, r"Received: \[3, 2\] float64"),
        ({"images": np.array([[0, 1], [0, 2], [0, 0]], np.float32)}, r"Row 1 holds 2\.0"),
        ({"labels": np.array([0, 0, 3], np.int32)}, r"The train array 'labels' must be .*Row 2 holds 3"),
        ({"labels": np.array([-1, 0, 0], np.int32)}, r"Row 0 holds -1"),
        ({"masks": np.zeros(3)}, r"(?s)that the model consumes:\n    images: .*Received: .*masks \[3\]"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataSetError, match=message):
        check_batch(Labelled(), dataset(**arrays))


def test_a_model_may_refuse_the_metadata() -> None:
    broken = dataclasses.replace(dataset(), metadata={"broken": True})
    with pytest.raises(DataSetError, match="There must be no broken data"):
        check_batch(Labelled(), broken)


def test_a_home_that_does_not_exist_is_a_path_like_any_other() -> None:
    values = changed(data__path="~nobody-of-that-name/text.txt")
    with pytest.raises(DataSetError, match="No such file"):
        load(checks.check(values).data)


def test_a_huge_number_of_epochs_costs_nothing() -> None:
    assert checks.check(changed(train__epochs=10**12, epoch=10**12)).epoch == 10**12
