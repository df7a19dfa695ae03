"""Batch evaluation: all epochs of a run in one process, beside the bare limit and a process per epoch.

    make bench ROWS=evaluation                    the digits of scikit-learn
    make bench ROWS=evaluation MNIST_DIR=...      MNIST itself

A run of `mnist_cnn` with epochs 0 to 9 is evaluated in three ways, in turn (A B C A B C ...):

A  `python -m pipeline.evaluate run_dir=RUN epochs=all format=checkpoint`, one process
B  ten bare evaluations plus one start: a process that starts TensorFlow, reads the data and loads the
   graph once, then swaps in the variables of each epoch and calls `evaluate` batch by batch
C  `python -m pipeline.evaluate run_dir=RUN epochs=N format=checkpoint`, a process for each epoch
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks import results
from tests.benchmarks.results import Line, Ratio, Table

ROOT = Path(__file__).parents[2]
NUM_EPOCHS = 10  # with epoch 0, which is before training
MAX_OVER_BARE = 1.3
MIN_SPEEDUP = 5.0


def python(*arguments: str) -> None:
    """Run a Python process to its end.

    Raises:
        RuntimeError: It failed; the message is what it wrote.
    """
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{arguments} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def train(run_dir: Path) -> None:
    """Train the run that is to be evaluated, on MNIST if `MNIST_DIR` says where it is."""
    data = "mnist" if os.environ.get("MNIST_DIR") else "digits"
    settings = [f"data={data}", f"train.epochs={NUM_EPOCHS - 1}", "export=checkpoint"]
    python("-m", "pipeline", "model=mnist_cnn", *settings, f"hydra.run.dir={run_dir}")


def evaluate_epochs(run_dir: Path, epochs: str) -> None:
    """Evaluate epochs of a run as a user does."""
    python("-m", "pipeline.evaluate", f"run_dir={run_dir}", f"epochs={epochs}", "format=checkpoint")


def evaluate_bare(run_dir: str) -> None:
    """Evaluate all epochs of a run with TensorFlow alone, in this process.

    Raises:
        ValueError: A metric is not what the run logged, so that what was timed is no evaluation.
    """
    from data.digits import Digits
    from data.mnist import Mnist
    from pipeline.runtime import start_tensorflow

    start_tensorflow(seed=0, deterministic=True)
    import tensorflow as tf

    path = Path(run_dir)
    recorded = json.loads((path / "run.json").read_text())["config"]["data"]
    source = Digits() if "digits" in recorded["_target_"] else Mnist(dir=Path(recorded["dir"]))
    dataset = source.load()
    graph = tf.saved_model.load(str(path / "checkpoints" / "graph"))
    evaluate = graph.signatures["evaluate"]
    images, labels = dataset.test["images"], dataset.test["labels"]
    for line in (path / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        reader = tf.train.load_checkpoint(str(path / row["checkpoint"]))
        for name, variable in graph.weights.items():
            key = name.replace(".", "..").replace("/", ".S")
            variable.assign(reader.get_tensor(f"weights/{key}/.ATTRIBUTES/VARIABLE_VALUE"))
        totals: Counter[str] = Counter()
        for start in range(0, len(images), dataset.batch_size):
            rows = slice(start, start + dataset.batch_size)
            sums = evaluate(images=images[rows], labels=labels[rows])
            totals.update({name: float(value) for name, value in sums.items()})
        count = totals.pop("count")
        metrics = {name.removesuffix("_sum"): total / count for name, total in totals.items()}
        if metrics != row["test"]:
            raise ValueError(f"The metrics must be {row['test']} as logged. Received: {metrics}.")


def measure(run_dir: Path, repeats: int) -> list[list[float]]:
    """Return the seconds that each of the three ways took, turn by turn."""

    def bare() -> None:
        code = f"from {__spec__.name} import evaluate_bare; evaluate_bare({str(run_dir)!r})"
        python("-c", code)

    def one_by_one() -> None:
        for epoch in range(NUM_EPOCHS):
            evaluate_epochs(run_dir, str(epoch))

    ways: list[Callable[[], None]] = [lambda: evaluate_epochs(run_dir, "all"), bare, one_by_one]
    for way in ways[:2]:
        way()  # reads every file once, so that no way pays for the others
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(repeats):
        for way, times in zip(ways, seconds, strict=True):
            started = time.perf_counter()
            way()
            times.append(time.perf_counter() - started)
    return seconds


def main() -> int:
    """Train a run and measure; return 1 if a target is missed."""
    arguments = results.parser(__doc__, repeats=3).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        train(run_dir)
        seconds = measure(run_dir, arguments.repeats)
    ours, bare, apart = map(statistics.median, seconds)
    compared = [
        [],
        [Ratio(ours / bare, "x its time", at_most=MAX_OVER_BARE)],
        [Ratio(apart / ours, "x as fast", at_least=MIN_SPEEDUP)],
    ]
    data = "MNIST" if os.environ.get("MNIST_DIR") else "scikit-learn's digits (no MNIST_DIR)"
    row = f"mnist_cnn on {data}, {NUM_EPOCHS} epochs"
    names = ("one process", "bare, one start", "a process per epoch")
    lines = [Line(row, *found) for found in zip(names, seconds, compared, strict=True)]
    note = "One process for all epochs is compared with each."
    return results.show(Table("Batch evaluation", "seconds", lines, note), arguments.into)


if __name__ == "__main__":
    sys.exit(main())
