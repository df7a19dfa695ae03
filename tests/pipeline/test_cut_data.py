"""`train.limit_batches` and `train.overfit_batches`: which rows train and evaluate, and what is proven."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.base import Dataset
from data.numbers import Numbers
from data.tfrecord import TFRecord, Writer
from pipeline import resume
from pipeline.config import checks
from pipeline.config.dataset_checks import load
from pipeline.config.schema import Train
from pipeline.errors import ConfigError, DataSetError
from pipeline.runs.directory import RunDirectory
from pipeline.training import loop
from tests.cases import policy
from tests.conftest import Command, rewrite
from tests.pipeline.test_config import changed
from tests.pipeline.test_training import prepare

NUMBERS = Numbers(count=100, batch_size=20)


def train(**changes: Any) -> Train:
    return dataclasses.replace(policy().train, **changes)


def shards(folder: Path, batch_size: int = 20) -> TFRecord:
    folder.mkdir()
    list(Writer(num_shards=3).write(Numbers(count=600).load(), folder))
    return TFRecord(dir=folder, batch_size=batch_size)


def test_without_a_limit_nothing_is_cut() -> None:
    assert load(NUMBERS, train()).fingerprint() == load(NUMBERS).fingerprint()
    assert load(NUMBERS, train(limit_batches=99)).fingerprint() == load(NUMBERS).fingerprint()


def test_an_epoch_has_at_most_so_many_batches(tmp_path: Path) -> None:
    whole, cut = load(NUMBERS), load(NUMBERS, train(limit_batches=2))
    assert (cut.num_train, cut.num_test) == (40, min(40, whole.num_test))
    for name, array in cut.train.items():
        np.testing.assert_array_equal(array, whole.train[name][:40])
    assert cut.fingerprint() != whole.fingerprint()
    prepare(tmp_path / "run", dataset=cut).fit()
    assert [row.step for row in RunDirectory(tmp_path / "run").read_rows()] == [0, 2, 4]


def test_a_stream_is_cut_in_each_epoch(tmp_path: Path) -> None:
    source = shards(tmp_path / "shards")
    whole, cut = load(source), load(source, train(limit_batches=3))
    assert cut.num_train == 60
    assert cut.stream is not None
    assert whole.stream is not None
    for epoch in (1, 2):
        batches = list(cut.stream.batches(0, epoch).as_numpy_iterator())
        expected = list(whole.stream.batches(0, epoch).as_numpy_iterator())[:3]
        assert len(batches) == 3
        for batch, other in zip(batches, expected, strict=True):
            np.testing.assert_array_equal(batch["feature"], other["feature"])
    fingerprints = {load(source, train(limit_batches=n)).fingerprint() for n in (1, 2, 3, 30, 99, None)}
    # 600 rows are 30 batches, and the test split is whole from 30 on, too.
    assert len(fingerprints) == 4
    assert prepare(tmp_path / "run", dataset=cut, epochs=1).fit()
    assert [row.step for row in RunDirectory(tmp_path / "run").read_rows()] == [0, 3]


def is_overfitting(cut: Dataset, whole: Dataset, num_rows: int) -> None:
    for split in (cut.train, cut.test):
        for name, array in split.items():
            np.testing.assert_array_equal(array, whole.train[name][:num_rows])
    rows = loop.order(cut.num_train, cut.batch_size, seed=0, epoch=3, ordered=cut.ordered)
    np.testing.assert_array_equal(rows.ravel(), np.arange(num_rows))


def test_the_first_batches_are_both_splits(tmp_path: Path) -> None:
    is_overfitting(load(NUMBERS, train(overfit_batches=1)), load(NUMBERS), 20)
    is_overfitting(load(NUMBERS, train(overfit_batches=99)), load(NUMBERS), 100)
    source = shards(tmp_path / "shards")
    is_overfitting(load(source, train(overfit_batches=2)), load(source), 40)
    with pytest.raises(DataSetError, match=r"must be at most 12: .* 256 rows .* has 20. Received: 13"):
        load(source, train(overfit_batches=13))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__limit_batches": 0}, "train.limit_batches must be >= 1. Received: 0."),
        ({"train__overfit_batches": "one"}, "train.overfit_batches must be an integer. Received: 'one'."),
        (
            {"train__limit_batches": 3, "train__overfit_batches": 1},
            "train.limit_batches must be null. Received: 3.",
        ),
    ],
)
def test_wrong_values_are_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checks.check(changed(**changes))


def test_runs_with_and_without_these_keys_are_evaluated_and_go_on(command: Command, tmp_path: Path) -> None:
    for key in ("limit_batches", "overfit_batches"):
        arguments = [f"train.{key}=1", "model=dense", "train.epochs=1", f"hydra.run.dir={key}"]
        assert "verdict: match" in command("pipeline", *arguments).stdout
        assert "verdict: match" in command("pipeline.evaluate", f"run_dir={key}").stdout
        assert "verdict: match" in command("pipeline.export", f"run_dir={key}", "export=checkpoint").stdout
        stderr = command("pipeline", f"train.resume={key}", f"train.{key}=2", code=2).stderr
        assert f"train.{key} must be 1, as in the run in" in stderr
        assert "verdict: match" in command("pipeline", f"train.resume={key}", "train.epochs=2").stdout
    command("pipeline", "model=dense", "train.epochs=1", "hydra.run.dir=old")
    old = tmp_path / "old"
    added = [name.partition(".")[2] for name in resume.ADDED]

    def forget(facts: dict[str, Any]) -> None:
        for key in added:
            del facts["config"]["train"][key]

    rewrite(old / "run.json", forget)
    assert "limit_batches" not in json.dumps(json.loads((old / "run.json").read_text())["config"])
    assert "verdict: match" in command("pipeline.evaluate", "run_dir=old").stdout
    stderr = command("pipeline", "train.resume=old", "train.limit_batches=1", code=2).stderr
    assert "train.limit_batches must be None, as in the run in" in stderr
    assert "verdict: match" in command("pipeline", "train.resume=old", "train.epochs=2").stdout
