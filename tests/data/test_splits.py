"""Splits: what is held out, and how many rows of each class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from data.base import DataError
from data.splits import divide, held_out


def rows(num_rows: int, split: Any, fraction: float = 0.2, seed: int = 0, **options: Any) -> list[int]:
    mask = held_out(num_rows, split, test_fraction=fraction, seed=seed, **options)
    assert mask.shape == (num_rows,)
    return np.flatnonzero(mask).tolist()


def test_the_tail_is_the_tail() -> None:
    assert rows(10, "tail") == rows(10, "tail", seed=1) == [8, 9]


def test_a_random_split_is_a_function_of_the_seed() -> None:
    assert rows(100, "random") == rows(100, "random")
    assert rows(100, "random") != rows(100, "random", seed=1)
    assert len(rows(100, "random")) == 20
    assert max(rows(100, "random")) > 80 > min(rows(100, "random"))


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.3])
@pytest.mark.parametrize("text", [False, True], ids=["integers", "text"])
def test_a_stratified_split_takes_its_part_of_each_class(fraction: float, text: bool) -> None:
    classes = np.repeat([0, 1, 2], [500, 97, 10])
    np.random.default_rng(0).shuffle(classes)
    held = rows(607, "stratified", fraction, classes=classes.astype(str) if text else classes)
    assert len(held) == round(607 * fraction)
    taken = np.bincount(classes[held])
    assert (abs(taken - fraction * np.bincount(classes)) <= 1).all()
    again = rows(607, "stratified", fraction, classes=classes)
    assert held == again
    assert held != rows(607, "stratified", fraction, seed=1, classes=classes)


@pytest.mark.parametrize("split", ["tail", "random", "stratified"])
def test_each_split_has_a_row(split: str) -> None:
    classes = np.array([0, 1, 1])
    assert len(rows(3, split, 0.01, classes=classes)) == 1
    assert len(rows(3, split, 0.99, classes=classes)) == 2


@pytest.mark.parametrize(
    ("num_rows", "split", "classes", "message"),
    [
        (1, "tail", None, "at least 2 rows. Received: 1"),
        (2, "stratified", None, "one class for each row, a text or an integer. Received: none"),
        (2, "stratified", np.array([0.5, 1]), r"Received: float64 \[2\]. Choose random or tail"),
        (2, "stratified", np.array([[0], [1]]), r"Received: int64 \[2, 1\]"),
    ],
)
def test_what_cannot_be_split_is_refused(num_rows: int, split: Any, classes: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        held_out(num_rows, split, test_fraction=0.5, seed=0, classes=classes)


def test_rows_keep_their_order() -> None:
    arrays = {"x": np.arange(5), "y": np.arange(10).reshape(5, 2)}
    train, test = divide(arrays, np.array([True, False, True, False, False]))
    assert (train["x"].tolist(), test["x"].tolist()) == ([1, 3, 4], [0, 2])
    assert test["y"].tolist() == [[0, 1], [4, 5]]
