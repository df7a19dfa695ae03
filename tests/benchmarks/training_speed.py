"""Training speed, side by side: this pipeline, what users would pick instead, and the bare compiled step.

    make bench ROWS=training    all models, a few minutes
    make bench ROWS=gru         one model

For each model the contenders train the same network on the same data with the same batch size, optimizer
and number of threads, each in a process of its own, in turn (A B C A B C ...).

pipeline                     with its log, its checkpoint of the epoch, and deterministic operations
Keras fit                    as it is installed: what TensorFlow and Keras choose by themselves
Keras fit, tuned             with oneDNN as the pipeline has, the faster of XLA and graph, 32 steps a call
PyTorch, by index            batches taken from tensors in memory, if PyTorch is installed
PyTorch, DataLoader          the usual way
bare step                    the pipeline's compiled step, called from Python on one constant batch
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import sys
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
from models.keras_network import KerasNetwork
from models.mnist_cnn import MnistCNN
from pipeline import runtime
from pipeline.optimizers import Adam
from tests import zoo
from tests.benchmarks import results
from tests.benchmarks.peers import Epoch, brought_epoch, keras_epoch, torch_epoch
from tests.benchmarks.results import Line, Ratio, Table
from tests.cases import policy

VOCABULARY = "".join(map(chr, range(32, 97)))  # 65 characters, as many as the usual corpus has


@dataclass(frozen=True)
class Row:
    """A model with the data it trains on and how its step is compiled.

    Attributes:
        model: The model.
        dataset: Makes the data.
        learning_rate: Of Adam.
        use_xla: Whether XLA compiles the pipeline's step.
        keras_xla: Whether it makes Keras faster.
        over_keras: How many times faster than Keras `fit` the pipeline has to be.
        over_torch: Than PyTorch.
        over_bare: How much of the bare step's time it may take.
        network: The network of the zoo that the model is, if it is one.
        over_tuned: How many times faster than Keras `fit` at its best the pipeline has to be.
    """

    model: Any
    dataset: Callable[[], Dataset]
    learning_rate: float
    use_xla: bool
    keras_xla: bool
    over_keras: float
    over_torch: float
    over_bare: float
    network: zoo.Network | None = None
    over_tuned: float | None = None


def brought(name: str) -> Row:
    """Return the row of a network of the zoo, as somebody would bring it, in batches of 32."""
    (network,) = (network for network in zoo.NETWORKS if str(network) == name)

    def dataset() -> Dataset:
        generator = np.random.default_rng(0)
        train, test = network.arrays(generator, 3200), network.arrays(generator, 320)
        return Dataset(train=train, test=test, batch_size=32)

    return Row(
        KerasNetwork(network=network.path, **network.arguments), dataset, 1e-3, network=network,
        use_xla=name == "transformer", keras_xla=False,
        over_keras=2, over_torch=1, over_bare=1.1, over_tuned=1.2,
    )  # fmt: skip


def images(num_train: int = 6000, num_test: int = 100) -> Dataset:
    """Return random images: what an image shows makes no step slower."""
    generator = np.random.default_rng(0)

    def split(num_rows: int) -> dict[str, Any]:
        shape = (num_rows, 28, 28, 1)
        return {
            "images": generator.integers(256, size=shape, dtype=np.uint8),
            "labels": generator.integers(10, size=num_rows, dtype=np.uint8),
        }

    return Dataset(train=split(num_train), test=split(num_test), batch_size=100)


def characters() -> Dataset:
    """Return 16 batches of 16 streams x 100 random characters."""
    generator = np.random.default_rng(0)

    def split(num_rows: int) -> dict[str, Any]:
        return {
            name: generator.integers(len(VOCABULARY), size=(num_rows, 100), dtype=np.uint8)
            for name in ("tokens", "targets")
        }

    metadata = {"vocabulary": VOCABULARY}
    return Dataset(train=split(256), test=split(16), batch_size=16, ordered=True, metadata=metadata)


ROWS = {
    "dense": Row(
        DenseRegressor(), Numbers(batch_size=20, count=50_000).load, 0.5,
        use_xla=False, keras_xla=False, over_keras=10, over_torch=3, over_bare=1.1,
    ),
    "gru": Row(
        GRUClassifier(), Sequences(num_train=6400).load, 1e-2,
        use_xla=True, keras_xla=True, over_keras=6, over_torch=6, over_bare=1.1,
    ),
    "mnist_cnn": Row(
        MnistCNN(), images, 1e-4,
        use_xla=False, keras_xla=False, over_keras=2, over_torch=2, over_bare=1.05,
    ),
    "char_lstm": Row(
        CharLSTM(), characters, 1e-2,
        use_xla=True, keras_xla=False, over_keras=2, over_torch=1.1, over_bare=1.05,
    ),
    **{name: brought(name) for name in ("image_classifier", "table", "transformer")},
}  # fmt: skip


def pipeline_training(name: str, folder: Path, dataset: Dataset | None = None) -> Any:
    """Return the pipeline's training of a row, ready to compile, on its data or other."""
    from pipeline.runs.directory import RunDirectory
    from pipeline.training import setup

    row = ROWS[name]
    (folder / "checkpoints").mkdir()
    return setup.prepare(
        RunDirectory(folder),
        row.model,
        row.dataset() if dataset is None else dataset,
        Adam(learning_rate=row.learning_rate),
        policy=policy(1, compile="xla" if row.use_xla else "graph"),
        seed=0,
        metrics=("loss",),
        config={},
        stopped=lambda: False,
    )


def pipeline_epoch(name: str, folder: Path) -> Epoch:
    """Return a function that trains an epoch as the pipeline does, and checkpoints it."""
    from pipeline.runs.log import Row
    from pipeline.training.epoch_writer import EpochWriter

    training = pipeline_training(name, folder)
    steps = training.compile().steps
    writer = EpochWriter(training.run, training.variables, training.policy)

    def epoch() -> None:
        training.train_epoch(1, steps, writer)
        writer.write(Row(1, 0, None, {"loss": 0.0}, ""))
        writer.wait()

    return epoch


def bare_epoch(name: str, folder: Path) -> Epoch:
    """Return a function that calls the compiled step on one batch, as often as an epoch has steps."""
    import tensorflow as tf

    from pipeline.graphs.evaluation import initial_state

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


def peer(make: Callable[..., Epoch], **options: Any) -> Callable[[str, Path], Epoch]:
    """Return what makes an epoch of a peer."""

    def epoch(name: str, folder: Path) -> Epoch:
        row = ROWS[name]
        if row.network is not None and make is keras_epoch:
            return brought_epoch(row.network, row.dataset(), row.learning_rate, **options)
        return make(name, row.dataset(), row.learning_rate, **options)

    return epoch


def tuned_keras_epoch(name: str, folder: Path) -> Epoch:
    """Return a function that trains an epoch with Keras `fit` at its best."""
    return peer(keras_epoch, jit_compile=ROWS[name].keras_xla, steps_per_execution=32)(name, folder)


PIPELINE, KERAS, TUNED, BARE = "pipeline", "Keras fit", "Keras fit, tuned", "bare step"
BY_INDEX, LOADER = "PyTorch, by index", "PyTorch, DataLoader"
CONTENDERS: dict[str, Callable[[str, Path], Epoch]] = {
    PIPELINE: pipeline_epoch,
    KERAS: peer(keras_epoch),
    TUNED: tuned_keras_epoch,
    BY_INDEX: peer(torch_epoch, loader=False),
    LOADER: peer(torch_epoch, loader=True),
    BARE: bare_epoch,
}


def contenders(name: str) -> list[str]:
    """Return those that can take part here: PyTorch has no layers that look text up or turn images."""
    has_torch = importlib.util.find_spec("torch") is not None and name not in ("image_classifier", "table")
    return [name for name in CONTENDERS if has_torch or name not in (BY_INDEX, LOADER)]


def contend(contender: str, name: str, orders: Connection) -> None:
    """Train an epoch at every order, and answer with the steps per second."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if contender in (PIPELINE, BARE):
        runtime.start_tensorflow(seed=0, deterministic=True)
    elif contender == TUNED:
        runtime.import_tensorflow()
    dataset = ROWS[name].dataset()
    num_steps = dataset.num_train // dataset.batch_size
    with tempfile.TemporaryDirectory() as folder:
        with runtime.held_back_stderr():
            epoch = CONTENDERS[contender](name, Path(folder))
            epoch()  # traces and compiles
        orders.send("ready")
        while orders.recv():
            started = time.perf_counter()
            epoch()
            orders.send(num_steps / (time.perf_counter() - started))


def measure(name: str, repeats: int) -> dict[str, list[float]]:
    """Return the steps per second of each contender in each of its turns."""
    context = multiprocessing.get_context("spawn")
    speeds: dict[str, list[float]] = {contender: [] for contender in contenders(name)}
    children = {}
    for contender in speeds:
        ours, theirs = context.Pipe()
        child = context.Process(target=contend, args=(contender, name, theirs), daemon=True)
        child.start()
        theirs.close()
        children[contender] = (child, ours)
    for _, orders in children.values():
        orders.recv()  # No turn is taken while somebody still compiles.
    for _ in range(repeats):
        for contender, (_, orders) in children.items():
            orders.send(True)
            speeds[contender].append(orders.recv())
    for child, orders in children.values():
        orders.send(False)
        child.join()
    return speeds


def lines(name: str, speeds: dict[str, list[float]]) -> list[Line]:
    """Return the contenders of a row, each with how the pipeline compares."""
    row = ROWS[name]
    medians = {contender: Line(name, contender, values).median for contender, values in speeds.items()}
    targets = {KERAS: row.over_keras, TUNED: row.over_tuned, BY_INDEX: row.over_torch, LOADER: row.over_torch}

    def ratio(contender: str) -> list[Ratio]:
        times = medians[PIPELINE] / medians[contender]
        if contender == PIPELINE:
            return []
        if contender == BARE:
            return [Ratio(1 / times, "of its time", at_most=row.over_bare)]
        return [Ratio(times, "x its speed", at_least=targets.get(contender))]

    return [Line(name, contender, values, ratio(contender)) for contender, values in speeds.items()]


def main() -> int:
    """Measure the rows asked for; return 1 if a target is missed."""
    parser = results.parser(__doc__, repeats=5)
    parser.add_argument("--rows", default="all", choices=["all", *ROWS])
    arguments = parser.parse_args()
    names = list(ROWS) if arguments.rows == "all" else [arguments.rows]
    found = [line for name in names for line in lines(name, measure(name, arguments.repeats))]
    note = "The pipeline is compared with each: a multiple of its speed, a part of the bare step's time."
    return results.show(Table("Training", "steps/s", found, note), arguments.into)


if __name__ == "__main__":
    sys.exit(main())
