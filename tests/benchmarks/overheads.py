"""What the pipeline costs beside the work itself: what follows an epoch, and what a command takes to start.

    make bench ROWS=overheads

after an epoch       evaluation, checkpoint and log of the CNN, as a part of the epoch
from shards          an epoch of the CNN on data=tfrecord, beside one on data in memory
the main job         `python -m pipeline model=gru export=saved_model`, beside `import tensorflow`
a mistyped key       beside `import hydra`

Commands take turns (A B A B ...), each in a process of its own.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from data.tfrecord import TFRecord, Writer
from pipeline import runtime
from tests.benchmarks import results
from tests.benchmarks.results import Line, Ratio, Table
from tests.benchmarks.training_speed import images, pipeline_training

NUM_EPOCHS = 4
COMMANDS = {
    "the main job": (
        ["-m", "pipeline", "model=gru", "export=saved_model"],
        "import tensorflow",
        2.5,
    ),
    "a mistyped key": (["-m", "pipeline", "train.epoch=3"], "import hydra", 4.0),
}


def seconds_of(arguments: list[str], folder: str) -> float:
    """Return what a Python process takes."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, check=False)
    return time.perf_counter() - started


def commands(repeats: int) -> list[Line]:
    """Return each command beside the import that it cannot do without."""
    lines = []
    for row, (arguments, bare, limit) in COMMANDS.items():
        ours, theirs = [], []
        for _ in range(repeats + 1):
            with tempfile.TemporaryDirectory() as folder:
                ours.append(seconds_of(arguments, folder))
                theirs.append(seconds_of(["-c", bare], folder))
        ratio = Ratio(
            statistics.median(ours[1:]) / statistics.median(theirs[1:]), "x its time", at_most=limit
        )
        lines += [Line(row, " ".join(arguments[1:]), ours[1:]), Line(row, bare, theirs[1:], [ratio])]
    return lines


def after_an_epoch() -> list[Line]:
    """Return what follows an epoch of the CNN on as many images as MNIST has, beside its training."""
    runtime.start_tensorflow(seed=0, deterministic=True)
    import tensorflow as tf

    from pipeline.graphs.evaluation import evaluate
    from pipeline.training.epoch_writer import EpochWriter

    seconds: dict[str, list[float]] = {"training": [], "evaluation": [], "checkpoint and log": []}
    with tempfile.TemporaryDirectory() as folder:
        training = pipeline_training("mnist_cnn", Path(folder), images(60_000, 10_000))
        steps = training.compile().steps
        test = {name: tf.constant(array) for name, array in training.dataset.test.items()}
        with EpochWriter(training.run, training.variables, training.policy) as writer:
            for epoch in range(NUM_EPOCHS):  # The first traces and compiles.
                times = [time.perf_counter()]
                training.train_epoch(epoch, steps, writer)
                times.append(time.perf_counter())
                evaluate(training.signatures, test, batch_size=training.dataset.batch_size)
                times.append(time.perf_counter())
                training.finish_epoch(epoch, 0.0, test, writer)
                writer.wait()
                times.append(time.perf_counter())
                trained, evaluated, finished = (after - before for before, after in pairwise(times))
                for values, value in zip(
                    seconds.values(), (trained, evaluated, finished - evaluated), strict=True
                ):
                    values.append(value)
    lines = {name: Line("an epoch of the CNN", name, values[1:]) for name, values in seconds.items()}
    trained, evaluated, kept = (line.median for line in lines.values())
    whole = trained + evaluated + kept
    ratios = {
        "evaluation": Ratio((evaluated + kept) / whole, "of the epoch, with the next", at_most=0.08),
        "checkpoint and log": Ratio(kept / whole, "of the epoch", at_most=0.02),
    }
    return [replace(line, ratios=[ratios[name]] if name in ratios else []) for name, line in lines.items()]


def from_shards(num_epochs: int) -> list[Line]:
    """Return the training of an epoch of the CNN on as many images as MNIST has, in memory and in shards."""
    seconds: dict[str, list[float]] = {"in memory": [], "shards": []}
    from pipeline.training.epoch_writer import EpochWriter

    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "records"
        shards.mkdir()
        resident = images(60_000)
        list(Writer().write(resident, shards))
        streamed = TFRecord(dir=shards, batch_size=resident.batch_size).load()
        trainings = []
        for name, dataset in (("in memory", resident), ("shards", streamed)):
            (Path(folder) / name).mkdir()
            training = pipeline_training("mnist_cnn", Path(folder) / name, dataset)
            writer = EpochWriter(training.run, training.variables, training.policy)
            trainings.append((name, training, training.compile().steps, writer))
        for epoch in range(num_epochs):
            for name, training, steps, writer in trainings:
                started = time.perf_counter()
                training.train_epoch(epoch, steps, writer)
                seconds[name].append(time.perf_counter() - started)
    memory, streaming = (Line("an epoch from shards", name, values[1:]) for name, values in seconds.items())
    ratio = Ratio(streaming.median / memory.median, "x the time in memory", at_most=1.5)
    return [memory, replace(streaming, ratios=[ratio])]


def main() -> int:
    """Measure; return 1 if a target is missed."""
    arguments = results.parser(__doc__, repeats=5).parse_args()
    found = [*commands(arguments.repeats), *after_an_epoch(), *from_shards(NUM_EPOCHS)]
    return results.show(Table("Overheads", "seconds", found), arguments.into)


if __name__ == "__main__":
    sys.exit(main())
