"""Batch evaluation: all epochs of a run in one process, beside the bare limit and a process per epoch.

    make bench ROWS=evaluation                    the digits of scikit-learn
    make bench ROWS=evaluation MNIST_DIR=...      MNIST itself

A run of `mnist_cnn` with epochs 0 to 9 is evaluated in three ways, in turn (A B C A B C ...):

A  `python -m pipeline.evaluate run_dir=RUN epochs=all format=checkpoint`, one process
B  ten bare evaluations plus one start: a process that starts TensorFlow, reads the data and loads the
   graph once, then swaps in the variables of each epoch and calls `evaluate` batch by batch
C  `python -m pipeline.evaluate run_dir=RUN epochs=N format=checkpoint`, a process for each epoch

What is printed is the median over the turns with its range, and the ratios of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

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


def main() -> None:
    """Train a run, measure, and print a table."""
    parser = argparse.ArgumentParser(description="Batch evaluation of ten epochs, side by side.")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    data = "MNIST" if os.environ.get("MNIST_DIR") else "scikit-learn's digits (no MNIST_DIR)"
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; mnist_cnn on {data}")
    print(f"evaluation of {NUM_EPOCHS} epochs, seconds: median (range)\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        train(run_dir)
        seconds = measure(run_dir, arguments.repeats)
    names = ("A  one process", "B  bare, one start", "C  a process per epoch")
    for name, times in zip(names, seconds, strict=True):
        print(f"{name:24}{statistics.median(times):8.2f} ({min(times):.2f}-{max(times):.2f})")
    ours, bare, one_by_one = map(statistics.median, seconds)
    over, speedup = ours / bare, one_by_one / ours
    print(f"\nA / B  {over:6.2f}   target at most {MAX_OVER_BARE:g}: {verdict(over <= MAX_OVER_BARE)}")
    print(
        f"C / A  {speedup:6.2f}   target at least {MIN_SPEEDUP:g}: {verdict(speedup >= MIN_SPEEDUP)}",
        flush=True,
    )


def verdict(holds: bool) -> str:
    """Return how a table says whether a target is met."""
    return "yes" if holds else "no"


if __name__ == "__main__":
    main()
