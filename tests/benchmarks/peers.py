"""What users would pick instead: the same networks trained by Keras `fit` and by PyTorch.

Both get their features scaled and encoded beforehand, where the pipeline does that in every step.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from data.base import Arrays, Dataset
from tests.zoo import Network

Epoch = Callable[[], object]


def _examples(name: str, train: Arrays, vocabulary_size: int) -> tuple[Any, Any]:
    """Return the features and the targets of a model."""
    if name == "dense":
        return train["feature"], train["target"]
    if name == "transformer":
        return train["tokens"].astype(np.int64), train["topic"]
    if name == "gru":
        return train["features"], train["labels"]
    if name == "mnist_cnn":
        return train["images"].astype(np.float32) / 255, train["labels"]
    return np.eye(vocabulary_size, dtype=np.float32)[train["tokens"]], train["targets"]


def keras_epoch(name: str, dataset: Dataset, learning_rate: float, **compiling: Any) -> Epoch:
    """Return a function that trains an epoch with Keras `fit`.

    Args:
        name: The model.
        dataset: What it trains on.
        learning_rate: Of Adam.
        compiling: Options of `keras.Model.compile`.
    """
    import keras

    layers = keras.layers
    num_classes = len(dataset.metadata.get("vocabulary", ()))
    features, targets = _examples(name, dataset.train, num_classes)
    network = keras.Sequential(
        {
            "dense": lambda: [layers.Dense(1)],
            "gru": lambda: [
                layers.Bidirectional(layers.GRU(10, return_sequences=True)),
                layers.GlobalAveragePooling1D(),
                layers.Dense(5),
            ],
            "mnist_cnn": lambda: [
                layers.Conv2D(16, 5, padding="same", activation="relu"),
                layers.MaxPooling2D(2),
                layers.Conv2D(16, 3, padding="same", activation="relu"),
                layers.MaxPooling2D(2),
                layers.Flatten(),
                layers.Dense(100, activation="relu"),
                layers.Dense(100, activation="relu"),
                layers.Dense(10),
            ],
            "char_lstm": lambda: [layers.LSTM(500, return_sequences=True), layers.Dense(num_classes)],
        }[name]()
    )
    loss: Any = "mse" if name == "dense" else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(optimizer=keras.optimizers.Adam(learning_rate), loss=loss, **compiling)
    options = {"batch_size": dataset.batch_size, "shuffle": not dataset.ordered, "verbose": 0}
    return lambda: network.fit(features, targets.astype("float32" if name == "dense" else "int32"), **options)


def brought_epoch(network: Network, dataset: Dataset, learning_rate: float, **compiling: Any) -> Epoch:
    """Return a function that trains a network of the zoo for an epoch with Keras `fit`.

    Args:
        network: The network.
        dataset: What it trains on.
        learning_rate: Of Adam.
        compiling: Options of `keras.Model.compile`.
    """
    import keras
    import tensorflow as tf

    model = network.network({})
    network.by_hand(model)
    loss = keras.losses.get(network.arguments["loss"])
    model.compile(optimizer=keras.optimizers.Adam(learning_rate), loss=loss, **compiling)
    # Keras takes text as tensors only.
    arrays = {k: tf.constant(v) if v.dtype.kind == "S" else v for k, v in dataset.train.items()}
    features = {tensor.name: arrays.pop(tensor.name) for tensor in model.inputs}
    (targets,) = arrays.values()
    options = {"batch_size": dataset.batch_size, "shuffle": True, "verbose": 0}
    weights = {"class_weight": network.arguments.get("class_weight")}
    return lambda: model.fit(features, targets, **options, **weights)


def torch_epoch(name: str, dataset: Dataset, learning_rate: float, *, loader: bool) -> Epoch:
    """Return a function that trains an epoch with PyTorch.

    Args:
        name: The model.
        dataset: What it trains on.
        learning_rate: Of Adam.
        loader: Whether a `DataLoader` makes the batches; otherwise they are taken by index.
    """
    import torch
    from torch import nn

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    num_classes = len(dataset.metadata.get("vocabulary", ()))
    features, targets = (
        torch.from_numpy(np.ascontiguousarray(a)) for a in _examples(name, dataset.train, num_classes)
    )
    if name != "dense":
        targets = targets.long()
    if name == "mnist_cnn":
        features = features.permute(0, 3, 1, 2).contiguous()
    network = _torch_network(name, num_classes)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    loss_of: Any = nn.MSELoss() if name == "dense" else nn.CrossEntropyLoss()
    batch_size, num_rows = dataset.batch_size, dataset.num_train
    data = torch.utils.data.TensorDataset(features, targets)
    batches = torch.utils.data.DataLoader(data, batch_size, shuffle=not dataset.ordered, drop_last=True)

    def by_index() -> Any:
        rows = torch.arange(num_rows) if dataset.ordered else torch.randperm(num_rows)
        for start in range(0, num_rows - batch_size + 1, batch_size):
            taken = rows[start : start + batch_size]
            yield features[taken], targets[taken]

    def epoch() -> float:
        total = 0.0
        for x, y in batches if loader else by_index():
            optimizer.zero_grad()
            answers = network(x)
            loss = loss_of(
                answers.flatten(0, -2) if y.ndim == 2 and name != "dense" else answers,
                y.flatten() if name != "dense" else y,
            )
            loss.backward()
            optimizer.step()
            total += loss.detach()
        return float(total)

    return epoch


def _torch_network(name: str, num_classes: int) -> Any:
    from torch import nn

    class Last(nn.Module):
        """A recurrent layer, its states at all times, and a dense layer over them or their mean."""

        def __init__(self, layer: Any, dense: Any, mean: bool) -> None:
            super().__init__()
            self.layer, self.dense, self.mean = layer, dense, mean

        def forward(self, x: Any) -> Any:
            hidden, _ = self.layer(x)
            return self.dense(hidden.mean(1) if self.mean else hidden)

    if name == "dense":
        return nn.Linear(2, 1)
    if name == "transformer":
        return _torch_transformer()
    if name == "gru":
        return Last(nn.GRU(30, 10, batch_first=True, bidirectional=True), nn.Linear(20, 5), mean=True)
    if name == "char_lstm":
        layer = nn.LSTM(num_classes, 500, batch_first=True)
        return Last(layer, nn.Linear(500, num_classes), mean=False)
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)),
    )


def _torch_transformer() -> Any:
    """Return the transformer of the zoo: masked attention, two normalised residuals, a masked mean."""
    from torch import nn

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(12, 8)
            self.attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
            self.hidden = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
            self.normal_1, self.normal_2 = nn.LayerNorm(8, eps=1e-3), nn.LayerNorm(8, eps=1e-3)
            self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 3))

        def forward(self, tokens: Any) -> Any:
            padding = tokens == 0
            x = self.embedding(tokens)
            attended, _ = self.attention(x, x, x, key_padding_mask=padding, need_weights=False)
            x = self.normal_1(x + attended)
            x = self.normal_2(x + self.hidden(x))
            kept = (~padding).unsqueeze(-1).float()
            return self.head((x * kept).sum(1) / kept.sum(1))

    return Transformer()
