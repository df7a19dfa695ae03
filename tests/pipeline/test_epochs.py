"""Which epochs are trained, kept and exported."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pipeline.config.schema import Best
from pipeline.errors import ConfigError
from pipeline.runs.log import Row
from pipeline.runs.policy import select_rows
from tests.cases import policy

BEST = Best(metric="loss", direction="minimize")
HIGHEST = Best(metric="accuracy", direction="maximize")


def log(*losses: float) -> list[Row]:
    """Return rows with these losses of the test split."""
    return [
        Row(epoch, epoch * 10, None, {"loss": loss, "accuracy": 1 - loss}, f"checkpoints/epoch-{epoch:04d}")
        for epoch, loss in enumerate(losses)
    ]


ROWS = log(2.0, 0.1 + 0.2, 1.0)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [("all", [0, 1, 2]), ("last", [2]), ("best", [1]), (0, [0]), ([2, 0], [2, 0])],
)
def test_epochs_are_selected(wanted: object, expected: list[int]) -> None:
    assert [row.epoch for row in select_rows(ROWS, wanted, BEST)] == expected


def test_the_best_epoch_is_the_first_of_equals_by_a_metric_and_a_direction() -> None:
    rows = [
        dataclasses.replace(row, test={"loss": 1.0, "accuracy": accuracy})
        for row, accuracy in zip(ROWS, (0.1, 0.9, 0.9), strict=True)
    ]
    assert [row.epoch for row in select_rows(rows, "best", HIGHEST)] == [1]
    assert [row.epoch for row in select_rows(rows, "best", BEST)] == [0]
    unknown = Best(metric="acuracy", direction="maximize")
    with pytest.raises(
        ConfigError, match=r"best.metric must be one of loss, accuracy. Received: acuracy. Did"
    ):
        select_rows(rows, "best", unknown)


@pytest.mark.parametrize("wanted", [3, [1, 5], "first", [], True, None, -1, [[1]], {"a": 1}])
def test_an_epoch_that_is_not_in_the_log_is_refused(wanted: object) -> None:
    with pytest.raises(ConfigError, match="best, last, or of the log's 0 to 2. Received: "):
        select_rows(ROWS, wanted, BEST)


def test_an_epoch_that_is_not_kept_is_refused() -> None:
    assert [row.epoch for row in select_rows(ROWS, "all", BEST, {0, 2})] == [0, 2]
    with pytest.raises(ConfigError, match=r"whose checkpoint is kept: 0, 2. Received: 1. See train.keep"):
        select_rows(ROWS, [0, 1], BEST, {0, 2})
    with pytest.raises(ConfigError, match=r"whose checkpoint is kept: 0, 2. Received: 1. See train.keep"):
        select_rows(ROWS, "best", BEST, {0, 2})


@pytest.mark.parametrize(
    ("keep", "exported", "expected"),
    [
        ("all", "last", {0, 1, 2, 3, 4}),
        ("best", "last", {1, 4}),
        (1, "last", {1, 4}),
        (3, "best", {1, 2, 3, 4}),
        (9, "last", {0, 1, 2, 3, 4}),
        ("best", 2, {1, 2, 4}),
        ("best", [0, 3, 7], {0, 1, 3, 4}),
    ],
)
def test_what_is_kept_is_a_function_of_the_log(keep: Any, exported: Any, expected: set[int]) -> None:
    assert policy(9, keep=keep, exported=exported).kept(log(5, 1, 2, 3, 4)) == expected


@pytest.mark.parametrize(
    ("losses", "complete"),
    [
        ([5.0], False),
        ([5.0, 4.0, 4.5], False),
        ([5.0, 4.0, 4.5, 4.2], True),
        ([5.0, 4.0, 4.5, 3.8, 4.0], False),
        ([5.0, 4.0, 3.95, 3.91], True),  # together, but not one of them
        ([5.0, 6.0, 7.0], True),
    ],
)
def test_training_stops_when_it_no_longer_improves(losses: list[float], complete: bool) -> None:
    rows = log(*losses)
    assert policy(9, patience=2, min_delta=0.1).is_complete(rows) == complete
    assert policy(9, patience=2, min_delta=0.1, best=HIGHEST).is_complete(rows) == complete
    assert not policy(9).is_complete(rows)
    assert policy(len(rows) - 1).is_complete(rows)
