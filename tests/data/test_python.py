"""Functions of the user's: what they may return, and what is said of what they may not."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data.base import DataError, Dataset
from data.python import PythonData
from tests.conftest import Command

MODULE = """
import numpy as np
import tensorflow as tf

assert tf.executing_eagerly()
constant = 3


def arrays(count=10):
    x = np.arange(count, dtype=np.float32)
    return {"feature": np.stack([x, x], 1), "target": tf.constant(2 * x[:, np.newaxis])}


def splits(metadata=None):
    both = {"x": np.arange(4)}, {"x": np.arange(2)}
    return both if metadata is None else (*both, metadata)


def rows():
    for number in range(10):
        yield {"x": [number, 2 * number], "word": f"w{number}"}


def given(value):
    return eval(value)
"""


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").touch()
    (tmp_path / "mine" / "data.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "mine" / "data.py"
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


def load(function: str, **options: Any) -> Dataset:
    return PythonData(function=f"mine.data.{function}", **{"batch_size": 1, **options}).load()


def test_a_dict_is_split() -> None:
    data = load("arrays", arguments={"count": 20}, split="tail", test_fraction=0.2)
    assert data.test["target"].ravel().tolist() == [32, 34, 36, 38]
    assert data.train["feature"].shape == (16, 2)
    random, same = (load("arrays", test_fraction=0.2) for _ in range(2))
    assert (
        random.fingerprint() == same.fingerprint() != load("arrays", test_fraction=0.2, seed=1).fingerprint()
    )


def test_splits_are_taken_as_they_are() -> None:
    data = load("splits")
    assert (data.num_train, data.num_test, dict(data.metadata)) == (4, 2, {})
    assert load("splits", arguments={"metadata": {"classes": ["a"]}}).metadata == {"classes": ["a"]}


def test_rows_are_stacked() -> None:
    data = load("rows", split="tail")
    assert data.train["x"].tolist() == [[number, 2 * number] for number in range(9)]
    assert data.test["word"].tolist() == [b"w9"]
    listed = load("given", arguments={"value": "[{'x': 1}, {'x': 2}, {'x': 3}]"}, split="tail")
    assert listed.train["x"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("3", "must return arrays, or rows that are dicts. Received: int"),
        ("{}", "Received: dict of nothing"),
        ("[]", "Received: dict of nothing"),
        ("({'x': [1]}, 3)", "training and test arrays, or rows that are dicts. Received: int"),
        ("({'x': [1]}, {'x': [1]}, 'abc')", "must return a dict of metadata. Received: 'abc'"),
        ("{'x': [[1], [1, 2]]}", "must return arrays: .*inhomogeneous"),
        ("{'x': [1, 2], 'y': [1], 'z': 3}", "arrays of one length. Received: {'x': 2, 'y': 1, 'z': 0}"),
        ("[{'x': 1}, {'y': 1}]", "must yield dicts of x. Row 1 is not. Received: y"),
        ("[{'x': 1}, 3]", "must yield dicts of x. Row 1 is not. Received: int"),
        ("['x']", "must yield dicts. Row 0 is not. Received: str"),
        ("[{'x': 1}]", "at least 2 rows. Received: 1"),
        ("({'x': np.array([{}])}, {'x': np.array([{}])})", "'x' holds objects"),
    ],
)
def test_what_is_no_data_is_refused(value: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load("given", arguments={"value": value})


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"arguments of mine.data.arrays\(count=10\): got an unexpected .*'n'"
    ):
        load("arrays", arguments={"n": 3})
    with pytest.raises(DataError, match="data.function must name a function. mine.data.constant is 3"):
        load("constant")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            "mine.data.array",
            "must name a function of .*data.py: arrays, splits, rows, given. Received: array",
        ),
        ("mine.date.arrays", "must be the path of a function, .*Received: mine.date.arrays"),
        ("mine.data.deeper.arrays", "must be the path of a function"),
        ("theirs.data.arrays", "must be the path of a function"),
        ("arrays", "must be the path of a function"),
        ("mine..arrays", "must be the path of a function"),
        ("sys.exit", "must be the path of a function"),
        ("handmade.load", "must be the path of a function"),
    ],
)
def test_a_function_that_is_not_there_is_a_configuration_error(
    function: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "handmade", type(sys)("handmade"))
    with pytest.raises(ValueError, match=message):
        PythonData(function=function)
    assert "mine" not in sys.modules, "the module is not run before it is used"


def test_a_run_is_verified_by_who_trusts_its_function(command: Command) -> None:
    arguments = ["model=dense", "data=python", "data.function=mine.data.arrays", "data.batch_size=2"]
    completed = command("pipeline", *arguments, "train.epochs=1", "hydra.run.dir=run", cold=True)
    assert "verdict: match" in completed.stdout
    (again,) = re.findall(r"evaluate again:  python -m (.*)", completed.stderr)
    assert "verdict: match" in command(*shlex.split(again)).stdout
    refused = command("pipeline.evaluate", "run_dir=run", code=2).stderr
    assert "function of the package mine. If it is yours, add trust=[mine]." in refused
