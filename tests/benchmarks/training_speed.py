"""Training speed, side by side: this pipeline, Keras `fit`, and the bare compiled step.

    make bench              all rows, a few minutes
    make bench ROWS=gru     one row

For each model the contenders train the same network on the same data with the same batch size, optimizer
and number of threads, each in a process of its own, in turn (A B C A B C ...). What is printed is the
median over the turns with its range, and the ratio of medians. The bare step is the compiled training
step of this pipeline, called from Python on one constant batch: no data, no order, no progress.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from data.base import Dataset
from data.numbers import Numbers
from data.sequences import Sequences
from models.char_lstm import CharLSTM
from models.dense import DenseRegressor
from models.gru import GRUClassifier
from models.mnist_cnn import MnistCNN
from pipeline import runtime
from pipeline.optimizers import Adam

VOCABULARY = "".join(map(chr, range(32, 97)))  # 65 characters, as many as the usual corpus has


@dataclass(frozen=True)
class Row:
    """A model with the data it trains on and how its step is compiled."""

    model: Any
    dataset: Callable[[], Dataset]
    learning_rate: float
    use_xla: bool


def images() -> Dataset:
    """Return 6,000 random images: what an image shows makes no step slower."""
    generator = np.random.default_rng(0)

    def split(num_rows: int) -> dict[str, Any]:
        shape = (num_rows, 28, 28, 1)
        return {
            "images": generator.integers(256, size=shape, dtype=np.uint8),
            "labels": generator.integers(10, size=num_rows, dtype=np.uint8),
        }

    return Dataset(train=split(6000), test=split(100), batch_size=100)


def characters() -> Dataset:
    """Return 8 batches of 16 streams x 100 random characters."""
    generator = np.random.default_rng(0)

    def split(num_rows: int) -> dict[str, Any]:
        return {
            name: generator.integers(len(VOCABULARY), size=(num_rows, 100), dtype=np.uint8)
            for name in ("tokens", "targets")
        }

    metadata = {"vocabulary": VOCABULARY}
    return Dataset(train=split(128), test=split(16), batch_size=16, ordered=True, metadata=metadata)


ROWS = {
    "dense": Row(DenseRegressor(), Numbers(batch_size=20, count=20_000).load, 0.5, use_xla=False),
    "gru": Row(GRUClassifier(), Sequences(num_train=6400).load, 1e-2, use_xla=True),
    "mnist_cnn": Row(MnistCNN(), images, 1e-4, use_xla=False),
    "char_lstm": Row(CharLSTM(), characters, 1e-2, use_xla=True),
}


def pipeline_training(name: str, folder: Path) -> Any:
    """Return the pipeline's training of a row, ready to compile."""
    from pipeline import training
    from pipeline.run import RunDirectory

    row = ROWS[name]
    (folder / "checkpoints").mkdir()
    return training.prepare(
        RunDirectory(folder),
        row.model,
        row.dataset(),
        Adam(learning_rate=row.learning_rate),
        epochs=1,
        seed=0,
        use_xla=row.use_xla,
        metrics=("loss",),
        config={},
        stopped=lambda: False,
    )


def pipeline_epoch(name: str, folder: Path) -> Callable[[], object]:
    """Return a function that trains an epoch as the pipeline does."""
    from pipeline.events import EventWriter

    training = pipeline_training(name, folder)
    steps = training.compile().steps
    events = EventWriter(folder / "events")
    return lambda: training.train_epoch(1, steps, events)


def bare_epoch(name: str, folder: Path) -> Callable[[], object]:
    """Return a function that calls the compiled step on one batch, as often as an epoch has steps."""
    import tensorflow as tf

    from pipeline.evaluation import initial_state

    training = pipeline_training(name, folder)
    dataset = training.dataset
    arrays = {name: tf.constant(array[: dataset.batch_size]) for name, array in dataset.train.items()}
    batch = arrays | initial_state(training.signatures, dataset.batch_size)
    seed = tf.zeros([2], tf.int32)
    step = training.compile().step.get_concrete_function(batch, seed)

    def epoch() -> None:
        for _ in range(dataset.num_train // dataset.batch_size):
            loss, _ = step(batch, seed)
        loss.numpy()

    return epoch


def keras_epoch(name: str, folder: Path) -> Callable[[], object]:
    """Return a function that trains an epoch of the same network with Keras `fit`."""
    import keras

    row = ROWS[name]
    dataset = row.dataset()
    layers = keras.layers
    labels = "labels"
    features: Any
    loss: Any = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if name == "dense":
        network = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
        features, labels, loss = dataset.train["feature"], "target", "mse"
    elif name == "gru":
        network = keras.Sequential(
            [
                keras.Input((10, 30)),
                layers.Bidirectional(layers.GRU(10, return_sequences=True)),
                layers.GlobalAveragePooling1D(),
                layers.Dense(5),
            ]
        )
        features = dataset.train["features"]
    elif name == "mnist_cnn":
        network = keras.Sequential(
            [
                keras.Input((28, 28, 1)),
                layers.Conv2D(16, 5, padding="same", activation="relu"),
                layers.MaxPooling2D(2),
                layers.Conv2D(16, 3, padding="same", activation="relu"),
                layers.MaxPooling2D(2),
                layers.Flatten(),
                layers.Dense(100, activation="relu"),
                layers.Dense(100, activation="relu"),
                layers.Dense(10),
            ]
        )
        # Scaled beforehand, in fit's favour: the pipeline divides by 255 in every step.
        features = dataset.train["images"].astype(np.float32) / 255
    else:
        tokens = keras.Input((100,), dtype="int32")
        hidden = layers.LSTM(500, return_sequences=True)(keras.ops.one_hot(tokens, len(VOCABULARY)))
        network = keras.Model(tokens, layers.Dense(len(VOCABULARY))(hidden))
        features, labels = dataset.train["tokens"].astype(np.int32), "targets"
    network.compile(optimizer=keras.optimizers.Adam(row.learning_rate), loss=loss)

    target = dataset.train[labels].astype(np.float32 if labels == "target" else np.int32)
    return lambda: network.fit(
        features,
        target,
        batch_size=dataset.batch_size,
        shuffle=not dataset.ordered,
        verbose=0,
    )


CONTENDERS = {"pipeline": pipeline_epoch, "Keras fit": keras_epoch, "bare step": bare_epoch}


def contend(contender: str, name: str, orders: Connection) -> None:
    """Train an epoch at every order, and answer with the steps per second."""
    runtime.start_tensorflow(seed=0, deterministic=True)
    dataset = ROWS[name].dataset()
    num_steps = dataset.num_train // dataset.batch_size
    with tempfile.TemporaryDirectory() as folder:
        epoch = CONTENDERS[contender](name, Path(folder))
        epoch()  # traces and compiles
        while orders.recv():
            started = time.perf_counter()
            epoch()
            orders.send(num_steps / (time.perf_counter() - started))


def measure(name: str, repeats: int) -> dict[str, list[float]]:
    """Return the steps per second of each contender in each of its turns."""
    context = multiprocessing.get_context("spawn")
    speeds: dict[str, list[float]] = {contender: [] for contender in CONTENDERS}
    children = {}
    for contender in CONTENDERS:
        ours, theirs = context.Pipe()
        child = context.Process(target=contend, args=(contender, name, theirs), daemon=True)
        child.start()
        theirs.close()
        children[contender] = (child, ours)
    for _ in range(repeats):
        for contender, (_, orders) in children.items():
            orders.send(True)
            speeds[contender].append(orders.recv())
    for child, orders in children.values():
        orders.send(False)
        child.join()
    return speeds


def main() -> None:
    """Measure the rows asked for and print a table."""
    parser = argparse.ArgumentParser(description="Training speed, side by side.")
    parser.add_argument("--rows", default="all", choices=["all", *ROWS])
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; training steps per second,")
    print("median (range); this pipeline's as a multiple of Keras', and its time as one of the bare step's\n")
    print(f"{'':10}{'pipeline':>24}{'Keras fit':>24}{'speed':>9}{'bare step':>24}{'time':>9}")
    for name in ROWS if arguments.rows == "all" else [arguments.rows]:
        speeds = measure(name, arguments.repeats)
        ours, fit, bare = (statistics.median(values) for values in speeds.values())
        cells = [
            f"{statistics.median(values):.4g} ({min(values):.4g}-{max(values):.4g})"
            for values in speeds.values()
        ]
        print(
            f"{name:10}{cells[0]:>24}{cells[1]:>24}{ours / fit:>8.2f}x{cells[2]:>24}{bare / ours:>8.2f}x",
            flush=True,
        )


if __name__ == "__main__":
    main()
