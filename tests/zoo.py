"""Keras models as users write them, each registered once. `tests/test_zoo.py` holds us to what Keras does.

The functions are what a user writes: 15 lines at most.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import layers

from data.base import Dataset

BATCH_SIZE = 16
NUM_TRAIN, NUM_TEST = 80, 40
"""Rows: five batches in an epoch, and a last batch of the test split with half of its rows."""


@dataclass(frozen=True)
class Network:
    """A network, small data for it, and what it must provide.

    Attributes:
        network: The function `(metadata) -> keras.Model`, the user's code.
        arguments: The arguments of `KerasNetwork` besides `network`.
        arrays: Makes the arrays of some rows from a random generator.
        left_out: The signatures that a format leaves out besides `evaluate` in a Keras file, by format.
        unsupported: What is said of a format that cannot hold the network, by format.
        by_hand: What a user of plain Keras does to the network, after making it, for the same arguments.
        slow: Whether its tests are slow.
        slow_exports: Whether those of its exports are.
    """

    network: Callable[..., keras.Model]
    arguments: Mapping[str, Any]
    arrays: Callable[[np.random.Generator, int], dict[str, np.ndarray]]
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    unsupported: Mapping[str, str] = field(default_factory=dict)
    by_hand: Callable[[keras.Model], None] = lambda network: None
    slow: bool = False
    slow_exports: bool = True

    def __str__(self) -> str:
        return self.network.__name__

    @property
    def path(self) -> str:
        """The value of `model.network`."""
        return f"{self.network.__module__}.{self}"

    @property
    def num_lines(self) -> int:
        """Lines of the user's code: those of the function and of the class that it calls."""
        code = inspect.getsource(self.network)
        if self.network is subclassed:
            code += inspect.getsource(Gated)
        return sum(bool(line.strip()) for line in code.splitlines())

    def dataset(self) -> Dataset:
        """Return the data, the same each time."""
        rng = np.random.default_rng(0)
        train, test = self.arrays(rng, NUM_TRAIN), self.arrays(rng, NUM_TEST)
        return Dataset(train=train, test=test, batch_size=BATCH_SIZE)


def image_classifier(metadata: Any) -> keras.Model:
    image = keras.Input((10, 10, 1), name="image")
    x = layers.RandomFlip("horizontal")(image)
    x = layers.RandomRotation(0.1)(x)
    x = layers.RandomTranslation(0.1, 0.1)(x)
    x = layers.Conv2D(4, 3, activation="relu", kernel_constraint="max_norm")(x)
    x = layers.BatchNormalization()(x)
    x = layers.Dropout(0.2)(layers.Flatten()(x))
    x = layers.Dropout(0.4)(layers.Dense(8, activation="relu")(x))
    return keras.Model(image, layers.Dense(3, activation="softmax", name="kind")(x))


def sequential(metadata: Any) -> keras.Model:
    hidden = [layers.Conv1D(4, 3, activation="relu"), layers.MaxPooling1D(), layers.Flatten()]
    return keras.Sequential([keras.Input((6, 2), name="series"), *hidden, layers.Dense(1, name="next")])


def table(metadata: Any) -> keras.Model:
    number = keras.Input((3,), name="number")
    category = keras.Input((1,), dtype="string", name="category")
    embedded = layers.Flatten()(layers.Embedding(6, 2)(layers.StringLookup()(category)))
    x = layers.Concatenate()([layers.Normalization()(number), embedded])
    x = layers.Dense(8, activation="relu")(x)
    return keras.Model([number, category], layers.Dense(1, activation="sigmoid", name="bought")(x))


def transformer(metadata: Any) -> keras.Model:
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = layers.Embedding(12, 8, mask_zero=True)(tokens)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4, dropout=0.1)(x, x))
    x = layers.LayerNormalization()(x + layers.Dense(8)(layers.Dense(16, activation="gelu")(x)))
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(tokens, layers.Dense(3, name="topic")(layers.Dropout(0.2)(x)))


def tagger(metadata: Any) -> keras.Model:
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = layers.Embedding(12, 8, mask_zero=True)(tokens)
    x = layers.Bidirectional(layers.GRU(4, return_sequences=True))(x)
    return keras.Model(tokens, layers.Dense(4, activation="softmax", name="tag")(x))


def two_heads(metadata: Any) -> keras.Model:
    x = keras.Input((6,), name="x")
    shared = layers.Dense(8, activation="relu")(x)
    kind = layers.Dense(3, activation="softmax", name="kind")(shared)
    size = layers.Dense(1, name="size")(shared)
    return keras.Model(x, {"kind": kind, "size": size})


def regression(metadata: Any) -> keras.Model:
    x = keras.Input((5,), name="x")
    hidden = layers.Dense(8, activation="relu", kernel_regularizer="l2")(x)
    return keras.Model(x, layers.Dense(1, kernel_regularizer="l2", name="y_hat")(hidden))


def mobilenet(metadata: Any) -> keras.Model:
    image = keras.Input((32, 32, 3), name="image")
    base = keras.applications.MobileNetV3Small(
        (32, 32, 3), alpha=0.25, minimalistic=True, include_top=False, weights=None, pooling="avg"
    )
    base.trainable = False
    return keras.Model(image, layers.Dense(3, activation="softmax", name="kind")(base(image)))


def tuned_mobilenet(metadata: Any) -> keras.Model:
    image = keras.Input((32, 32, 3), name="image")
    base = keras.applications.MobileNetV3Small(
        (32, 32, 3), alpha=0.25, minimalistic=True, include_top=False, weights=None, pooling="avg"
    )
    return keras.Model(image, layers.Dense(3, activation="softmax", name="kind")(base(image)))


def recurrent(metadata: Any) -> keras.Model:
    series = keras.Input((None, 2), name="series")
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True))(series)
    x = layers.GRU(4, dropout=0.2, recurrent_dropout=0.2)(x)
    return keras.Model(series, layers.Dense(1, name="next")(x))


def siamese(metadata: Any) -> keras.Model:
    left, right = keras.Input((6,), name="left"), keras.Input((6,), name="right")
    encoder = keras.Sequential([layers.Dense(8, activation="relu"), layers.Dropout(0.2)])
    distance = layers.Subtract()([encoder(left), encoder(right)]) ** 2
    same = layers.Dense(1, activation="sigmoid", name="same")(distance)
    return keras.Model([left, right], same)


def autoencoder(metadata: Any) -> keras.Model:
    x = keras.Input((8,), name="x")
    code = layers.Dense(2, activity_regularizer="l1", name="code")(layers.GaussianNoise(0.1)(x))
    return keras.Model(x, layers.Dense(8, name="x_hat")(code))


class Gated(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.value = layers.Dense(8, activation="sigmoid"), layers.Dense(8)
        self.dropout, self.head = layers.Dropout(0.3), layers.Dense(1)

    def call(self, x: Any, training: bool = False) -> Any:
        return self.head(self.dropout(self.gate(x) * self.value(x), training=training))


def subclassed(metadata: Any) -> keras.Model:
    return Gated()


def towers(metadata: Any) -> keras.Model:
    def tower(name: str) -> keras.Model:
        x = keras.Input((4,), name=name)
        return keras.Model(x, layers.Dense(3, activation="relu", name="dense")(x), name=f"{name}_tower")

    inputs = [keras.Input((4,), name=name) for name in ("user", "item")]
    both = layers.Concatenate()([tower(x.name)(x) for x in inputs])
    return keras.Model(inputs, layers.Dense(1, name="dense")(both))


def mixed(metadata: Any) -> keras.Model:
    x = keras.Input((6,), name="x")
    hidden = layers.Dense(8, activation="relu", dtype="mixed_bfloat16")(x)
    hidden = layers.Dropout(0.2, dtype="mixed_bfloat16")(hidden)
    return keras.Model(x, layers.Dense(3, activation="softmax", dtype="float32", name="kind")(hidden))


def averaged(metadata: Any) -> keras.Model:
    """Return a network of which a step changes more than the weights: averages, and two states of seeds."""
    feature = keras.Input((2,), name="feature")
    hidden = layers.BatchNormalization()(layers.Dense(16, activation="relu")(feature))
    hidden = layers.Dropout(0.3)(layers.Dense(16)(layers.Dropout(0.5)(hidden)))
    return keras.Model(feature, layers.Dense(1, name="double")(hidden))


def _images(size: int, channels: int) -> Callable[[np.random.Generator, int], dict[str, np.ndarray]]:
    def arrays(rng: np.random.Generator, num_rows: int) -> dict[str, np.ndarray]:
        image = rng.random((num_rows, size, size, channels), np.float32)
        return {"image": image, "label": rng.integers(0, 3, num_rows).astype(np.int32)}

    return arrays


def _columns(rng: np.random.Generator, num_rows: int) -> dict[str, np.ndarray]:
    number = rng.normal(5, 3, (num_rows, 3)).astype(np.float32)
    category = rng.choice([3, 5, 11, 40], (num_rows, 1)).astype(np.int32)
    bought = (number.sum(1, keepdims=True) + category > 30).astype(np.float32)
    names = np.char.add("sort ", category.astype(str))  # Text, as a table has it.
    return {"number": number, "category": names, "bought": bought}


def _tokens(rng: np.random.Generator, num_rows: int) -> np.ndarray:
    tokens = rng.integers(1, 12, (num_rows, 7)).astype(np.int32)
    tokens[np.arange(7) >= rng.integers(1, 8, num_rows)[:, None]] = 0
    return tokens


def _topics(rng: np.random.Generator, num_rows: int) -> dict[str, np.ndarray]:
    tokens = _tokens(rng, num_rows)
    return {"tokens": tokens, "topic": (tokens.sum(1) % 3).astype(np.int32)}


def _tags(rng: np.random.Generator, num_rows: int) -> dict[str, np.ndarray]:
    tokens = _tokens(rng, num_rows)
    weight = rng.random((num_rows, 7), np.float32)
    return {"tokens": tokens, "tag": tokens % 4, "sample_weight": weight}


def _vectors(num: int, /, **targets: str) -> Callable[[np.random.Generator, int], dict[str, np.ndarray]]:
    """Return a function that makes `x`, and targets: classes of it, numbers, or weights."""

    def arrays(rng: np.random.Generator, num_rows: int) -> dict[str, np.ndarray]:
        x = rng.normal(size=(num_rows, num)).astype(np.float32)
        made = {
            "class": np.argmax(x[:, :3], axis=-1).astype(np.int32),
            "number": np.sum(x, axis=-1, keepdims=True),
            "weight": rng.random(num_rows, np.float32),
        }
        return {"x": x, **{name: made[kind] for name, kind in targets.items()}}

    return arrays


def _series(rng: np.random.Generator, num_rows: int) -> dict[str, np.ndarray]:
    series = np.cumsum(rng.normal(size=(num_rows, 7, 2)), axis=1).astype(np.float32)
    return {"series": series[:, :-1], "next": series[:, -1, :1]}


def _pairs(rng: np.random.Generator, num_rows: int) -> dict[str, np.ndarray]:
    left, right = rng.normal(size=(2, num_rows, 6)).astype(np.float32)
    return {"left": left, "right": right, "same": (np.sum(left * right, axis=1) > 0).astype(np.int32)}


def _users(rng: np.random.Generator, num_rows: int) -> dict[str, np.ndarray]:
    user, item = rng.normal(size=(2, num_rows, 4)).astype(np.float32)
    return {"user": user, "item": item, "rating": np.sum(user * item, axis=1)}


def _adapt(network: keras.Model) -> None:
    """Fit the layers to the training split, as a user of plain Keras does before training."""
    train = NETWORKS[1].dataset().train
    for layer in network.layers:
        if hasattr(layer, "adapt"):
            layer.adapt(train[layer.input.name])


def _thaw_the_end(network: keras.Model) -> None:
    """Freeze all but the last convolution and the head; its BatchNormalization stays as it is, too."""
    for layer in network._flatten_layers(include_self=False):
        if not layer._layers:
            layer.trainable = layer.name in ("conv_1", "kind")


CLASSES = {"loss": "sparse_categorical_crossentropy", "metrics": ["sparse_categorical_accuracy"]}

NETWORKS = (
    Network(image_classifier, CLASSES, _images(10, 1), slow_exports=False),
    Network(
        table,
        {
            "loss": "binary_crossentropy",
            "metrics": ["auc", "precision", "f1_score"],
            "class_weight": {0: 1.0, 1: 3.0},
        },
        _columns,
        by_hand=_adapt,
        slow_exports=False,
    ),
    Network(
        transformer,
        {
            "loss": {"class_name": "SparseCategoricalCrossentropy", "config": {"from_logits": True}},
            "metrics": ["accuracy"],
        },
        _topics,
    ),
    Network(
        tagger,
        {**CLASSES, "weighted_metrics": ["accuracy"]},
        _tags,
        unsupported={
            "keras": "score: not stated",
            "tflite": "score: not stated",
            "onnx": "score: not stated",
        },
    ),
    Network(
        two_heads,
        {
            "loss": {"kind": "sparse_categorical_crossentropy", "size": "mse"},
            "loss_weights": {"kind": 1.0, "size": 0.3},
            "metrics": {"kind": ["accuracy"], "size": ["mae", "root_mean_squared_error"]},
        },
        _vectors(6, kind="class", size="number"),
    ),
    Network(
        regression,
        {"loss": "mse", "metrics": ["root_mean_squared_error", "r2_score"], "weighted_metrics": ["mae"]},
        _vectors(5, y="number", sample_weight="weight"),
    ),
    Network(mobilenet, CLASSES, _images(32, 3), slow=True),
    Network(
        tuned_mobilenet,
        {**CLASSES, "trainable": ["conv_1/*", "kind/*"]},
        _images(32, 3),
        by_hand=_thaw_the_end,
        slow=True,
    ),
    Network(
        recurrent,
        {"loss": "huber", "metrics": ["mae"]},
        _series,
        unsupported={"tflite": r"Held: \['metrics'\]"},
    ),
    Network(siamese, {"loss": "binary_crossentropy", "metrics": ["binary_accuracy"]}, _pairs),
    Network(
        autoencoder,
        {"loss": "mse", "metrics": ["cosine_similarity"], "targets": "x"},
        _vectors(8),
        # The loss has that of the code, which is no output.
        unsupported={"keras": "score: not stated"},
    ),
    Network(
        subclassed,
        {"loss": "mse", "metrics": ["mae"], "targets": "y"},
        _vectors(5, y="number"),
        unsupported={"keras": "export=keras needs a model that states its Keras network"},
        slow_exports=False,
    ),
    Network(sequential, {"loss": "mse", "metrics": ["mae"]}, _series),
    Network(towers, {"loss": "mse", "metrics": ["mae"]}, _users, slow_exports=False),
    Network(
        mixed,
        CLASSES,
        _vectors(6, label="class"),
        unsupported={"tflite": "has no operation BiasAdd", "onnx": "bfloat16"},
        slow_exports=False,
    ),
)
