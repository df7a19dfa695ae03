"""The four models, each registered once: every conformance test takes its cases from here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.base import Dataset
from data.digits import Digits
from data.numbers import Numbers
from data.sequences import Sequences
from data.text import Text
from models.char_lstm import CharLSTM
from models.dense import DenseRegressor
from models.gru import GRUClassifier
from models.mnist_cnn import MnistCNN
from pipeline.config.schema import Best, EarlyStopping, Train
from pipeline.runs.policy import Policy

CORPUS = Path(__file__).parent.parent / "LICENSE"
"""A text that every checkout has."""


def policy(
    epochs: int = 2, *, compile: Any = "graph", keep: Any = "all", patience: int | None = None, **changes: Any
) -> Policy:
    """Return how long is trained and what is kept, as the configuration's defaults say besides."""
    stopping = EarlyStopping(patience=patience, min_delta=changes.pop("min_delta", 0.0))
    init_from = changes.pop("init_from", None)
    train = Train(
        epochs=epochs,
        resume=None,
        keep=keep,
        early_stopping=stopping,
        compile=compile,
        deterministic=True,
        on_interrupt="stop",
        init_from=init_from,
        precision=changes.pop("precision", "float32"),
    )
    best = Best(metric="loss", direction="minimize")
    return Policy(**{"train": train, "best": best, "exported": "last", **changes})


@dataclass(frozen=True)
class Case:
    """A model, small data for it, and what it must provide.

    Attributes:
        name: The model's name in the configuration.
        overrides: What makes a command with this model quick.
        model: Makes the model.
        load: Makes its data.
        weights: Every variable by path.
        signatures: Every signature with its inputs and outputs.
        requests: Inputs for each signature but `evaluate`, whose inputs are a batch of the data.
    """

    name: str
    overrides: tuple[str, ...]
    model: Callable[[], Any]
    load: Callable[[], Dataset]
    weights: tuple[str, ...]
    signatures: Mapping[str, tuple[set[str], set[str]]]
    requests: Mapping[str, Mapping[str, Any]]

    def __str__(self) -> str:
        return self.name


def _random(*shape: int) -> Any:
    return np.random.default_rng(1).random(shape, np.float32)


CLASSIFIED = {"logits", "probabilities", "class_id"}
SUMS = {"loss_sum", "accuracy_sum", "count"}
STATE = {"state_c", "state_h"}
GRU_CELLS = ("bidirectional/forward_gru/gru_cell", "bidirectional/backward_gru/gru_cell")
STEP = {
    "tokens": np.array([[0, 3, 1], [2, 2, 5]], np.int32),
    "state_c": _random(2, 8),
    "state_h": _random(2, 8),
}

CASES = (
    Case(
        name="gru",
        overrides=("train.epochs=2",),
        model=GRUClassifier,
        load=Sequences().load,
        weights=(
            *(
                f"gru_classifier/{cell}/{name}"
                for cell in GRU_CELLS
                for name in ("kernel", "recurrent_kernel", "bias")
            ),
            "gru_classifier/output/kernel",
            "gru_classifier/output/bias",
        ),
        signatures={
            "serving_default": ({"features"}, CLASSIFIED),
            "predict_dataset": ({"features", "batch_size"}, {"logits"}),
            "evaluate": ({"features", "labels"}, SUMS),
        },
        requests={
            "serving_default": {"features": _random(3, 7, 30)},
            "predict_dataset": {"features": _random(64, 10, 30), "batch_size": np.int64(32)},
        },
    ),
    Case(
        name="mnist_cnn",
        overrides=("data=digits", "train.epochs=2"),
        model=MnistCNN,
        load=Digits().load,
        weights=tuple(
            f"mnist_cnn/{layer}/{name}"
            for layer in ("convolution_1", "convolution_2", "hidden_1", "hidden_2", "output")
            for name in ("kernel", "bias")
        ),
        signatures={
            "serving_default": ({"images"}, CLASSIFIED),
            "serving_uint8": ({"images"}, CLASSIFIED),
            "evaluate": ({"images", "labels"}, SUMS),
        },
        requests={
            "serving_default": {"images": _random(3, 28, 28, 1)},
            "serving_uint8": {"images": (_random(2, 28, 28, 1) * 255).astype(np.uint8)},
        },
    ),
    Case(
        name="char_lstm",
        overrides=(
            f"data.path={CORPUS}",
            "data.batch_size=4",
            "data.sequence_length=20",
            "model.units=8",
            "train.epochs=2",
        ),
        model=lambda: CharLSTM(units=8),
        load=Text(path=CORPUS, batch_size=4, sequence_length=20).load,
        weights=(
            "lstm/lstm_cell/kernel",
            "lstm/lstm_cell/recurrent_kernel",
            "lstm/lstm_cell/bias",
            "output/kernel",
            "output/bias",
        ),
        signatures={
            "serving_default": ({"tokens"} | STATE, {"probabilities"} | STATE),
            "step": ({"tokens"} | STATE, {"probabilities"} | STATE),
            "initial_state": ({"batch_size"}, STATE),
            "generate": ({"prompt", "length", "temperature", "seed"}, {"text"}),
            "evaluate": (
                {"tokens", "targets"} | STATE,
                SUMS | {"bits_per_character_sum"} | STATE,
            ),
        },
        requests={
            "serving_default": STEP,
            "step": STEP,
            "initial_state": {"batch_size": np.int32(3)},
            "generate": {
                "prompt": np.array("License"),
                "length": np.int32(30),
                "temperature": np.float32(0.8),
                "seed": np.array([1, 2], np.int32),
            },
        },
    ),
    Case(
        name="dense",
        overrides=("train.epochs=3",),
        model=DenseRegressor,
        load=Numbers().load,
        weights=("dense_regressor/output/kernel", "dense_regressor/output/bias"),
        signatures={
            "serving_default": ({"number"}, {"output"}),
            "predict_features": ({"feature"}, {"output"}),
            "evaluate": ({"feature", "target"}, {"loss_sum", "absolute_error_sum", "count"}),
        },
        requests={
            "serving_default": {"number": _random(4, 1)},
            "predict_features": {"feature": _random(4, 2)},
        },
    ),
)
