"""The experiments on real data: MNIST_DIR names its four files, TEXT_FILE a text."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from data.mnist import Mnist
from tests.conftest import Command

pytestmark = pytest.mark.real_data
needs_mnist = pytest.mark.skipif("MNIST_DIR" not in os.environ, reason="MNIST_DIR is not set")
needs_text = pytest.mark.skipif("TEXT_FILE" not in os.environ, reason="TEXT_FILE is not set")


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@needs_mnist
def test_mnist_is_mnist() -> None:
    data = Mnist(dir=Path(os.environ["MNIST_DIR"]), download=False).load()
    assert data.train["images"].shape == (60_000, 28, 28, 1)
    assert data.test["images"].shape == (10_000, 28, 28, 1)
    assert data.train["labels"][:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]


@needs_mnist
def test_one_epoch_of_mnist(command: Command, tmp_path: Path) -> None:
    command("pipeline", "experiment=mnist_cnn", "train.epochs=1", "hydra.run.dir=run")
    assert rows_of(tmp_path / "run")[1]["test"]["accuracy"] > 0.9


@needs_mnist
@pytest.mark.slow
def test_the_mnist_experiment(command: Command, tmp_path: Path) -> None:
    started = time.monotonic()
    completed = command("pipeline", "experiment=mnist_cnn", "hydra.run.dir=run")
    print(f"{time.monotonic() - started:.0f} s\n{completed.stdout}")
    rows = rows_of(tmp_path / "run")
    assert len(rows) == 10
    assert rows[9]["test"]["accuracy"] >= 0.979
    assert rows[9]["test"]["loss"] <= 0.066
    receipt = json.loads((tmp_path / "run" / "verification.json").read_text())
    differences = [m["difference"] for row in receipt["epochs"] for m in row["metrics"].values()]
    assert differences == [0.0] * 20


@needs_text
@pytest.mark.slow
def test_the_char_lstm_experiment(command: Command, tmp_path: Path) -> None:
    text_file = os.environ["TEXT_FILE"]
    command("pipeline", "experiment=char_lstm", f"data.path={text_file}", "hydra.run.dir=run", timeout=1800)
    assert rows_of(tmp_path / "run")[-1]["test"]["bits_per_character"] < 2.25
    (export,) = (tmp_path / "run" / "export" / "saved_model").iterdir()
    text = tf.saved_model.load(str(export)).signatures["generate"](
        prompt=tf.constant(""),
        length=tf.constant(600),
        temperature=tf.constant(0.8),
        seed=tf.constant([1, 2]),
    )["text"]
    sampled = text.numpy().decode()
    print(sampled)
    words = set(Path(text_file).read_text().split())
    known = [word in words for word in sampled.split()[:-1]]
    assert sum(known) / len(known) > 0.8
