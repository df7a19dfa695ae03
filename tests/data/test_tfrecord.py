"""Shards: that they hold what was written, in an order that is a function of (seed, epoch)."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.base import DataError, Dataset
from data.tfrecord import HEAD, MANIFEST, TEST, TFRecord, Writer
from models.base import ArraySpec
from pipeline.config.dataset_checks import check_batch
from pipeline.errors import DataSetError
from pipeline.runs.directory import RunDirectory
from pipeline.training import loop
from tests.cases import CASES, Case
from tests.conftest import Command
from tests.pipeline.test_training import files, prepare

CNN, LSTM, DENSE = CASES[1:]
NUM_ROWS = 103

Make = Callable[..., TFRecord]


def rows() -> Dataset:
    """Return rows that say who they are in three ways."""
    index = np.arange(NUM_ROWS)
    train: dict[str, Any] = {
        "index": index.astype(np.int32),
        "image": np.tile(index.astype(np.uint8)[:, np.newaxis, np.newaxis], [1, 2, 3]),
        "value": (index / 7).astype(np.float32)[:, np.newaxis],
    }
    test = {name: array[:5] for name, array in train.items()}
    return Dataset(train=train, test=test, batch_size=10, metadata={"vocabulary": "ab"})


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return what writes a data set as shards and returns what reads them."""

    def written(dataset: Dataset, writer: Writer | None = None, **options: Any) -> TFRecord:
        list((writer or Writer(num_shards=3)).write(dataset, tmp_path))
        return TFRecord(**{"dir": tmp_path, "batch_size": dataset.batch_size, **options})

    return written


def read(dataset: Dataset, seed: int = 0, epoch: int = 1) -> list[dict[str, Any]]:
    assert dataset.stream is not None
    return [
        {name: tensor.numpy() for name, tensor in batch.items()}
        for batch in dataset.stream.batches(seed, epoch)
    ]


def order(dataset: Dataset, seed: int = 0, epoch: int = 1) -> list[int]:
    return np.concatenate([batch["index"] for batch in read(dataset, seed, epoch)]).tolist()


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_an_epoch_has_every_row_once(make: Make, compression: Any) -> None:
    dataset = make(rows(), Writer(num_shards=3, compression=compression)).load()
    batches = read(dataset)
    assert [len(batch["index"]) for batch in batches] == [10] * 10
    taken = order(dataset)
    assert len(set(taken)) == 100
    for batch in batches:
        for name, array in rows().train.items():
            np.testing.assert_array_equal(batch[name], array[batch["index"]])
            assert batch[name].dtype == array.dtype


def test_text_is_read_as_it_was_written(make: Make, tmp_path: Path) -> None:
    words = np.array([["a" * row, "é"] for row in range(NUM_ROWS)])
    train = {**rows().train, "words": words, "word": words[:, 0]}
    dataset = make(replace(rows(), train=train, test={key: array[:5] for key, array in train.items()})).load()
    for batch in read(dataset):
        assert batch["words"].tolist() == np.char.encode(words[batch["index"]]).tolist()
        assert batch["word"].tolist() == batch["words"][:, 0].tolist()
    assert dataset.stream is not None
    assert set(dataset.stream.ranges) == set(rows().train)
    # A model that takes numbers under this name is told so, though text has no range.
    takes = {name: ArraySpec(array.shape[1:], {array.dtype.name: (0, 255)}) for name, array in train.items()}
    takes["words"] = ArraySpec((2,), {"float32": (0, 1)})

    class Numbers:
        def arrays(self, metadata: Any) -> Any:
            return {name: replace(spec, shape=(None, *spec.shape)) for name, spec in takes.items()}

    with pytest.raises(
        DataSetError, match=r"train array 'words' must be .* float32.* Received: \[103, 2\] \|S102"
    ):
        check_batch(Numbers(), dataset)  # type: ignore[arg-type]


def test_the_order_is_a_function_of_seed_and_epoch(make: Make) -> None:
    dataset = make(rows()).load()
    assert order(dataset, 0, 1) == order(dataset, 0, 1)
    assert order(dataset, 0, 1) != order(dataset, 0, 2) != order(dataset, 1, 2)
    assert order(dataset, 0, 1) != sorted(order(dataset, 0, 1))


def test_ordered_data_stays_in_order(make: Make) -> None:
    data = rows()
    train = {name: array[:100] for name, array in data.train.items()}
    test = {name: array[:10] for name, array in train.items()}
    dataset = make(replace(data, train=train, test=test, ordered=True)).load()
    assert dataset.ordered
    assert order(dataset) == list(range(100))


def test_facts_come_with_it(make: Make) -> None:
    source = make(rows())
    dataset = source.load()
    assert dataset.num_train == NUM_ROWS
    assert dataset.metadata == {"vocabulary": "ab"}
    np.testing.assert_array_equal(dataset.test["index"], np.arange(5))
    np.testing.assert_array_equal(dataset.train["index"], np.arange(NUM_ROWS))
    assert dataset.fingerprint() == source.load().fingerprint()
    manifest = json.loads((source.dir / MANIFEST).read_text())
    next(iter(manifest["shards"].values()))["sha256"] = "0"
    (source.dir / MANIFEST).write_text(json.dumps(manifest))
    assert dataset.fingerprint() != source.load().fingerprint()


@pytest.mark.parametrize("case", [CNN, LSTM], ids=str)
def test_it_trains_the_same_whenever_it_is_read(case: Case, make: Make, tmp_path: Path) -> None:
    source = make(case.load())
    for name in ("first", "second"):
        assert prepare(tmp_path / name, case, dataset=source.load()).fit()
    assert files(tmp_path / "first") == files(tmp_path / "second")


def test_ordered_shards_train_as_the_arrays_they_were_written_from(make: Make, tmp_path: Path) -> None:
    dataset = LSTM.load()
    assert prepare(tmp_path / "arrays", LSTM, dataset=dataset).fit()
    assert prepare(tmp_path / "shards", LSTM, dataset=make(dataset).load()).fit()
    assert files(tmp_path / "arrays") == files(tmp_path / "shards")


def test_what_is_wrong_with_shards_is_said(make: Make, tmp_path: Path) -> None:
    source = make(rows())
    with pytest.raises(DataError, match=r"in memory that has a row for each of 200\. Received: 103 rows\."):
        next(iter(Writer(num_shards=200).write(rows(), tmp_path)))
    with pytest.raises(DataError, match=r"Received: 103 rows in shards"):
        next(iter(Writer().write(source.load(), tmp_path)))
    shard = next(tmp_path.glob("train-*"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"The shard is truncated or changed"):
        source.load()
    shard.unlink()
    with pytest.raises(DataError, match=r"as python -m pipeline.records writes it.* FileNotFoundError"):
        source.load()
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    manifest["shards"] = {"../../secret": {"rows": 1, "bytes": 1, "sha256": ""}}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="a shard's name leads elsewhere"):
        source.load()
    (tmp_path / MANIFEST).write_text("[]")
    with pytest.raises(DataError, match="data.dir must hold records.json"):
        source.load()


def flip_shards(folder: Path) -> None:
    for shard in folder.glob("train-*"):
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)


def test_changed_shards_are_refused_before_the_training(make: Make, tmp_path: Path) -> None:
    source = make(DENSE.load())
    first, second, *_ = sorted(tmp_path.glob("train-*"))
    assert first.stat().st_size == second.stat().st_size
    shutil.copy(first, second)
    trained = prepare(tmp_path / "run", DENSE, dataset=source.load())
    with pytest.raises(DataSetError, match=f"{second} must have the SHA-256 .* It was changed"):
        trained.fit()
    assert not RunDirectory(tmp_path / "run").log.exists()


def test_a_shard_that_is_damaged_meanwhile_stops_the_training(make: Make, tmp_path: Path) -> None:
    dataset = make(DENSE.load()).load()
    read(dataset)
    flip_shards(tmp_path)
    trained = prepare(tmp_path / "run", DENSE, dataset=dataset)
    with pytest.raises(DataSetError, match="The shards of the training data must be whole"):
        trained.fit()
    assert len(RunDirectory(tmp_path / "run").read_rows()) == 1


@pytest.mark.parametrize("name", [HEAD, TEST])
def test_changed_arrays_are_refused(name: str, make: Make, tmp_path: Path) -> None:
    source = make(DENSE.load())
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(DataError, match=f"{name} must have the SHA-256 .* It was changed"):
        source.load()
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    manifest["files"][name] = hashlib.sha256(b"PK").hexdigest()
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=f"{name} must be an .npz archive of plain arrays"):
        source.load()


def test_values_that_the_model_does_not_take_are_found_in_the_manifest(make: Make) -> None:
    class Model:
        def arrays(self, metadata: Any) -> Any:
            return {
                "index": ArraySpec((None,), {"int32": (0, 99)}),
                "image": ArraySpec((None, 2, 3), {"uint8": None}),
                "value": ArraySpec((None, 1), {"float32": None}),
            }

        def build(self, batch: Any, metadata: Any) -> Any: ...

    dataset = make(rows()).load()
    small = replace(dataset, train={name: array[:50] for name, array in dataset.train.items()})
    with pytest.raises(
        DataSetError, match=r"'index' must be \[any\] int32 in \[0, 99\]\. It holds 0 to 102\."
    ):
        check_batch(Model(), small)


def test_a_batch_is_read_once_a_step(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the chunks are: nothing is left out between two of them."""
    source = make(DENSE.load())
    assert prepare(tmp_path / "whole", DENSE, dataset=source.load()).fit()
    monkeypatch.setattr(loop, "CHUNK_SECS", 0.0)
    assert prepare(tmp_path / "steps", DENSE, dataset=source.load()).fit()
    assert files(tmp_path / "whole") == files(tmp_path / "steps")


def test_as_commands(command: Command, tmp_path: Path) -> None:
    command("pipeline.records", "data=numbers", "dir=shards", "writer.compression=gzip")
    assert (
        "dir must not be there yet"
        in command("pipeline.records", "data=numbers", "dir=shards", code=2).stderr
    )
    stderr = command("pipeline.records", "data=numbers", "dir=x", "writer.num_shards=1000", code=2).stderr
    assert "that has a row for each of 1000" in stderr
    assert not list(tmp_path.glob("*x*"))
    stderr = command("pipeline.records", "data=numbers", "dir=/proc/none/shards", code=1).stderr
    assert "error: A file could not be read or written. " in stderr
    assert "/proc/none" in stderr
    stderr = command("pipeline.records", "writer.num_shards=0", code=2).stderr
    assert "writer.num_shards must be >= 1" in stderr
    options = ["model=dense", "data=tfrecord", "data.dir=shards", "data.batch_size=20", "train.epochs=2"]
    completed = command("pipeline", *options, "export=all", "hydra.run.dir=run")
    assert "verdict: match" in completed.stdout + completed.stderr
    command("pipeline.evaluate", "run_dir=run")
