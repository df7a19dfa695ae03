"""A validation split: the epochs are chosen by it, and the test split is left to the proof."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.base import Stream
from data.numbers import Numbers
from data.text import Text
from pipeline.config import dataset_checks
from pipeline.config.schema import Best, Train
from pipeline.errors import DataSetError
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import Row, from_line, to_line
from pipeline.runs.policy import select_rows
from pipeline.training.loop import NonFiniteLoss
from tests.cases import CORPUS, policy
from tests.pipeline.test_training import prepare


class Whole:
    """A source that returns what it is made with."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def load(self) -> Any:
        return self.dataset


def train(**changes: Any) -> Train:
    return replace(policy().train, **changes)


def test_rows_are_held_out_at_random_and_always_the_same() -> None:
    whole = Numbers().load()
    once, again = (dataset_checks.load(Numbers(), train(validation_fraction=0.2)) for _ in range(2))
    assert once.validation is not None
    held_out, kept = once.validation["feature"][:, 0], once.train["feature"][:, 0]
    assert sorted([*held_out, *kept]) == sorted(whole.train["feature"][:, 0])
    assert len(held_out) == round(0.2 * whole.num_train)
    assert list(held_out) != sorted(whole.train["feature"][:, 0])[-len(held_out) :]
    assert once.fingerprint() == again.fingerprint() != whole.fingerprint()
    assert np.array_equal(once.test["feature"], whole.test["feature"])


def test_other_cuts_come_after_it() -> None:
    limited = dataset_checks.load(Numbers(), train(validation_fraction=0.4, limit_batches=1))
    assert limited.validation is not None
    assert len(limited.validation["feature"]) == limited.num_train == limited.num_test == 20
    by_heart = dataset_checks.load(Numbers(), train(validation_fraction=0.4, overfit_batches=1))
    assert by_heart.validation is None


def test_ordered_data_keeps_whole_batches() -> None:
    text = Text(path=CORPUS, batch_size=4, sequence_length=20)
    whole, cut = text.load(), dataset_checks.load(text, train(validation_fraction=0.3))
    assert cut.validation is not None
    parts = np.concatenate([cut.train["tokens"], cut.validation["tokens"]])
    assert np.array_equal(parts, whole.train["tokens"])
    assert len(cut.validation["tokens"]) % 4 == 0


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(DataSetError, match=r"must leave a batch of 20 rows .* Received: 0.9 of 100"):
        dataset_checks.load(Numbers(), train(validation_fraction=0.9))
    stream = Stream(100, {}, "", lambda seed, epoch: None)
    with pytest.raises(DataSetError, match="that is in memory. Received: one in shards"):
        dataset_checks.load(Whole(replace(Numbers().load(), stream=stream)), train(validation_fraction=0.1))


def test_the_log_has_its_metrics_and_epochs_are_chosen_by_them(tmp_path: Path) -> None:
    dataset = dataset_checks.load(Numbers(), train(validation_fraction=0.2))
    prepared = prepare(tmp_path, dataset=dataset, epochs=2)
    judged: list[Any] = []
    assert prepared.fit(on_epoch=lambda epoch, metrics: bool(judged.append(metrics)))  # type: ignore[func-returns-value]
    rows = RunDirectory(tmp_path).read_rows()
    assert [row.validation for row in rows[1:]] == judged
    assert all(row.validation != row.test for row in rows)
    best = Best(metric="loss", direction="minimize")
    by_validation = [
        Row(0, 0, None, {"loss": 1.0}, "", validation={"loss": 5.0}),
        Row(1, 1, None, {"loss": 2.0}, "", validation={"loss": 3.0}),
    ]
    assert [row.epoch for row in select_rows(by_validation, "best", best)] == [1]
    assert from_line(to_line(by_validation[0])) == by_validation[0]
    without = Row(0, 0, None, {"loss": 1.0}, "")
    assert "validation" not in to_line(without)
    assert from_line(to_line(without)) == without
    with pytest.raises(ValueError, match="no finite numbers"):
        from_line(to_line(replace(without, validation={"loss": 1})))


def test_a_metric_that_is_no_number_names_its_split(tmp_path: Path) -> None:

    dataset = dataset_checks.load(Numbers(), train(validation_fraction=0.2))
    assert dataset.validation is not None
    huge = {name: np.full_like(array, 3e38) for name, array in dataset.validation.items()}
    prepared = prepare(tmp_path, dataset=replace(dataset, validation=huge), epochs=1)
    with pytest.raises(NonFiniteLoss, match="validation/.* must be finite. Received: inf after epoch 0"):
        prepared.fit()
