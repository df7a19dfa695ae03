"""Latency of a prediction: this pipeline's predictor, the raw runtimes, Keras, and loading at every call.

    make bench ROWS=predictor

One request of one number to the model `dense`, all in this process. Each predictor and the call that its
runtime itself offers on the same file take turns (A B A B ...).
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import predictor, runtime
from tests.benchmarks import results
from tests.benchmarks.results import Line, Ratio, Table

ROOT = Path(__file__).parents[2]
FORMATS = ("saved_model", "onnx", "tflite")
MIN_SPEEDUP = 500.0
MAX_FACTOR, MAX_EXTRA_USECS = 1.3, 3.0
NUM_LOADS, NUM_PREDICTS = 4, 20
NUM_CALLS = {"saved_model": 300, "onnx": 2000, "tflite": 2000}

NUMBER = np.array([[7.0]], np.float32)
FEATURE = np.tile(NUMBER, [1, 2])

Call = Callable[[], Any]
"""Answers the request; returns an array `[1, 1]` float32."""


@dataclass(frozen=True)
class Contender:
    """A way to answer the request.

    Attributes:
        name: How the table calls it.
        call: The way.
        num_calls: Calls in a turn.
    """

    name: str
    call: Call
    num_calls: int

    def usecs(self) -> float:
        """Take a turn; return the microseconds of a call."""
        return timeit.timeit(self.call, number=self.num_calls) / self.num_calls * 1e6


def train(run_dir: Path) -> None:
    """Train and export the model.

    Raises:
        RuntimeError: That failed; the message is what it wrote.
    """
    overrides = ["model=dense", "train.epochs=5", f"export=[{','.join(FORMATS)},keras]"]
    command = [sys.executable, "-m", "pipeline", *overrides, f"hydra.run.dir={run_dir}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def raw_saved_model(directory: Path) -> Call:
    """Return TensorFlow's own way."""
    import tensorflow as tf

    serve = tf.saved_model.load(str(directory)).signatures["serving_default"]
    return lambda: serve(number=NUMBER)["output"].numpy()


def raw_onnx(directory: Path) -> Call:
    """Return ONNX Runtime's own way, with the options of `pipeline.formats.onnx`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    path = directory / "model.onnx"
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"number": NUMBER})[0]


def raw_tflite(directory: Path) -> Call:
    """Return LiteRT's own way."""
    from ai_edge_litert.interpreter import Interpreter

    with runtime.held_back_stderr():
        interpreter = Interpreter(model_content=(directory / "model.tflite").read_bytes())
        interpreter.allocate_tensors()
    run = interpreter.get_signature_runner("serving_default")
    return lambda: run(number=NUMBER)["output"]


RAW = {"saved_model": raw_saved_model, "onnx": raw_onnx, "tflite": raw_tflite}


def slow_ways(export_dir: Path) -> list[Contender]:
    """Return what others do: load the model for every call, and Keras `predict`."""
    import keras
    import tensorflow as tf

    saved_model = str(newest(export_dir / "saved_model"))
    network = keras.saving.load_model(newest(export_dir / "keras") / "model.keras")

    def load_and_call() -> Any:
        loaded = tf.saved_model.load(saved_model)
        return loaded.signatures["serving_default"](number=NUMBER)["output"].numpy()

    def predict() -> Any:
        return network.predict({"feature": FEATURE}, verbose=0)["output"]

    return [
        Contender("load and call", load_and_call, NUM_LOADS),
        Contender("Keras predict", predict, NUM_PREDICTS),
    ]


def newest(folder: Path) -> Path:
    """Return the one version of an export."""
    (version,) = folder.iterdir()
    return version


def pair(name: str, export_dir: Path) -> list[Contender]:
    """Return the predictor of a format, and its runtime's own way on the same file."""
    opened = predictor.open(export_dir / name)
    raw = RAW[name](opened.directory)
    return [
        Contender(f"predictor, {name}", lambda: opened(number=NUMBER)["output"], NUM_CALLS[name]),
        Contender(f"raw {name}", raw, NUM_CALLS[name]),
    ]


def measure(contenders: Sequence[Contender], repeats: int) -> list[list[float]]:
    """Return the microseconds of a call of each contender in each of its turns."""
    turns: list[list[float]] = [[] for _ in contenders]
    for contender in contenders:
        timeit.timeit(contender.call, number=max(1, contender.num_calls // 10))  # traces, fills caches
    for _ in range(repeats):
        for contender, usecs in zip(contenders, turns, strict=True):
            usecs.append(contender.usecs())
    return turns


def check_answers(contenders: Sequence[Contender]) -> None:
    """Check that all give the same answer.

    Raises:
        AssertionError: One does not.
    """
    expected = contenders[0].call()
    for contender in contenders:
        np.testing.assert_allclose(contender.call(), expected, rtol=1e-5, err_msg=contender.name)


def lines(groups: Sequence[tuple[Sequence[Contender], list[list[float]]]]) -> list[Line]:
    """Return the contenders, beside loading, and the predictors beside their runtimes."""
    loading = statistics.median(groups[0][1][0])
    found = []
    for contenders, turns in groups:
        raw = statistics.median(turns[1])
        for contender, usecs in zip(contenders, turns, strict=True):
            median = statistics.median(usecs)
            is_ours = contender.name.startswith("predictor")
            ratios = [
                Ratio(loading / median, "x as fast as loading", at_least=MIN_SPEEDUP if is_ours else None)
            ]
            if is_ours:
                limit = MAX_FACTOR + MAX_EXTRA_USECS / raw
                ratios.append(Ratio(median / raw, "x its runtime's time", at_most=limit))
            found.append(Line("dense, one request of one number", contender.name, usecs, ratios))
    return found


def main() -> int:
    """Train a model and measure; return 1 if a target is missed."""
    arguments = results.parser(__doc__, repeats=7).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        train(run_dir)
        runtime.start_tensorflow(seed=0, deterministic=False)
        export_dir = run_dir / "export"
        slow, pairs = slow_ways(export_dir), [pair(name, export_dir) for name in FORMATS]
        check_answers([*slow, *(contender for both in pairs for contender in both)])
        groups = [(both, measure(both, arguments.repeats)) for both in (slow, *pairs)]
    return results.show(Table("Prediction", "microseconds", lines(groups)), arguments.into)


if __name__ == "__main__":
    sys.exit(main())
