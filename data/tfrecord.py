"""Training splits larger than memory, in shards of TensorFlow's record format.

A folder holds:

    records.json                        names, dtypes, shapes of the arrays; rows and SHA-256 of each shard
    train-00000-of-00008.tfrecord[.gz]  a `tf.train.Example` for each row; a feature holds an array's bytes,
                                        or its texts
    head.npz                            the first rows of the training split
    test.npz                            the test split, which stays in memory

`python -m pipeline.records` writes such a folder from any other data source.
Format: https://www.tensorflow.org/tutorials/load_data/tfrecord.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from tqdm import tqdm

from data.base import Arrays, DataError, Dataset, Stream
from data.npz import read_archive

if TYPE_CHECKING:
    import tensorflow as tf

MANIFEST, HEAD, TEST = "records.json", "head.npz", "test.npz"
NUM_HEAD = 256
"""Rows of the training split in `head.npz`: checks of shapes and dtypes need rows, but not many."""

BLOCK_ROWS = 16
"""Rows that are read from a shard before the turn of the next shard."""


TEXT = "string"
"""The dtype in `records.json` of arrays of text, whose width is no property of the data."""


class TFRecord:
    """A data set in the shards that `Writer` has written to `dir`, read during training.

    Each epoch reads the shards in another order, which follows from the seed of the run and the number of the
    epoch. Data that must keep its order is read in the order in which it was written.

    Args:
        dir: Folder of the shards.
        batch_size: Rows in a batch.
        interleave: Shards that are read at a time.
        shuffle_rows: Rows in memory among which the next row is drawn.
    """

    def __init__(
        self,
        *,
        dir: Path,
        batch_size: Annotated[int, ">= 1"] = 32,
        interleave: Annotated[int, ">= 1"] = 4,
        shuffle_rows: Annotated[int, ">= 1"] = 10_000,
    ) -> None:
        self.dir = dir
        self.batch_size = batch_size
        self.interleave = interleave
        self.shuffle_rows = shuffle_rows
        self._are_checked = False

    def load(self) -> Dataset:
        """Read `records.json` and the test split, and check that every shard exists in its full size.

        The SHA-256 of the shards is compared later, before the first batch: reading all shards takes long.

        Raises:
            DataError: A file is missing, damaged or changed.
        """
        path = self.dir / MANIFEST
        try:
            text = path.read_bytes()
            self.manifest: dict[str, Any] = json.loads(text)
            shards = self.manifest["shards"]
            # The file may come from somebody who is not trusted: no name may lead to another folder.
            if any(Path(name).name != name for name in shards):
                raise ValueError("a shard's name leads elsewhere")
            sizes = {name: (self.dir / name).stat().st_size for name in shards}
            head, test = (self._read(name, self.manifest["files"][name]) for name in (HEAD, TEST))
            stream = Stream(
                num_rows=sum(shard["rows"] for shard in shards.values()),
                ranges={
                    name: tuple(array["range"])
                    for name, array in self.manifest["arrays"].items()
                    if array["dtype"] != TEXT
                },
                digest=hashlib.sha256(text).hexdigest(),
                batches=self._batches,
            )
            facts = {"ordered": self.manifest["ordered"], "metadata": self.manifest["metadata"]}
        except DataError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"data.dir must hold {MANIFEST} and what it names, as python -m pipeline.records writes it. "
                f"Reading {path} failed: {type(error).__name__}: {error}."
            ) from error
        for name, shard in shards.items():
            if sizes[name] != shard["bytes"]:
                raise DataError(
                    f"{self.dir / name} must have {shard['bytes']:,} bytes. Received: {sizes[name]:,}. "
                    "The shard is truncated or changed."
                )
        return Dataset(train=head, test=test, batch_size=self.batch_size, stream=stream, **facts)

    def _read(self, name: str, digest: str) -> Arrays:
        self._check_digest(name, digest)
        return read_archive(self.dir / name)

    def _check_digest(self, name: str, wanted: str) -> None:
        received = _digest(self.dir / name)
        if received != wanted:
            raise DataError(
                f"{self.dir / name} must have the SHA-256 {wanted}. Received: {received}. It was changed."
            )

    def _check_shards(self) -> None:
        """Compare the SHA-256 of each shard, once for each process.

        Raises:
            DataError: A shard was changed.
        """
        if self._are_checked:
            return
        shards = self.manifest["shards"]
        digests = [shard["sha256"] for shard in shards.values()]
        with ThreadPoolExecutor() as pool:
            checked = pool.map(self._check_digest, shards, digests)
            list(tqdm(checked, "check shards", len(shards), unit="shard", leave=False, disable=None))
        self._are_checked = True

    def _batches(self, seed: int, epoch: int) -> tf.data.Dataset:
        """Return the whole batches of an epoch: see `Stream.batches`."""
        import tensorflow as tf

        self._check_shards()
        generator = np.random.default_rng([seed, epoch])
        ordered: bool = self.manifest["ordered"]
        names = np.array(list(self.manifest["shards"]))
        paths = [str(self.dir / name) for name in (names if ordered else generator.permutation(names))]
        compression = "GZIP" if self.manifest["compression"] == "gzip" else ""
        rows = tf.data.Dataset.from_tensor_slices(paths).interleave(
            lambda path: tf.data.TFRecordDataset(path, compression_type=compression),
            cycle_length=1 if ordered else min(self.interleave, len(paths)),
            block_length=BLOCK_ROWS,
            num_parallel_calls=tf.data.AUTOTUNE,
            # Without this, the shard that answers first would come first.
            deterministic=True,
        )
        if not ordered:
            rows = rows.shuffle(self.shuffle_rows, seed=int(generator.integers(2**31)))
        batches = rows.batch(self.batch_size, drop_remainder=True)
        decode = tf.autograph.experimental.do_not_convert(self._decode)
        return batches.map(decode, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    def _decode(self, serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return the arrays of a batch of serialized `tf.train.Example`s, string `[B]`."""
        import tensorflow as tf

        arrays = self.manifest["arrays"]
        features = {
            name: tf.io.FixedLenFeature(facts["shape"] if facts["dtype"] == TEXT else [], tf.string)
            for name, facts in arrays.items()
        }
        parsed = tf.io.parse_example(serialized, features)
        return {
            name: parsed[name]
            if facts["dtype"] == TEXT
            else tf.reshape(
                tf.io.decode_raw(parsed[name], facts["dtype"]), [self.batch_size, *facts["shape"]]
            )
            for name, facts in arrays.items()
        }


class Writer:
    """Writes a data set as shards, which `TFRecord` reads.

    Args:
        num_shards: Number of files that the training split is divided into.
        compression: How each file is packed.
    """

    def __init__(
        self, *, num_shards: Annotated[int, ">= 1"] = 8, compression: Literal["none", "gzip"] = "none"
    ) -> None:
        self.num_shards = num_shards
        self.compression = compression

    def write(self, dataset: Dataset, folder: Path) -> Iterable[int]:
        """Write a data set to an empty folder; yield the number of rows of each shard after it is written.

        Raises:
            DataError: The data set comes from shards already, or has fewer rows than the number of shards.
        """
        num_rows = dataset.num_train
        if dataset.stream is not None or num_rows < self.num_shards:
            raise DataError(
                f"Shards are written of a data set in memory that has a row for each of {self.num_shards}. "
                f"Received: {num_rows} rows{'' if dataset.stream is None else ' in shards'}."
            )
        suffix = ".tfrecord.gz" if self.compression == "gzip" else ".tfrecord"
        shards: dict[str, dict[str, Any]] = {}
        ends = [num_rows * (number + 1) // self.num_shards for number in range(self.num_shards)]
        for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            name = f"train-{number:05d}-of-{self.num_shards:05d}{suffix}"
            self._write_shard(folder / name, {key: array[start:end] for key, array in dataset.train.items()})
            size = (folder / name).stat().st_size
            shards[name] = {"rows": end - start, "bytes": size, "sha256": _digest(folder / name)}
            yield end - start
        _save(folder / HEAD, {key: array[:NUM_HEAD] for key, array in dataset.train.items()})
        _save(folder / TEST, dataset.test)
        manifest = {
            "arrays": {
                key: {"dtype": TEXT, "shape": array.shape[1:]}
                if array.dtype.kind == "S"
                else {
                    "dtype": array.dtype.name,
                    "shape": array.shape[1:],
                    "range": [array.min().item(), array.max().item()],
                }
                for key, array in dataset.train.items()
            },
            "compression": self.compression,
            "ordered": dataset.ordered,
            "metadata": dict(dataset.metadata),
            "files": {name: _digest(folder / name) for name in (HEAD, TEST)},
            "shards": shards,
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")

    def _write_shard(self, path: Path, arrays: Arrays) -> None:
        import tensorflow as tf

        # A feature stores bytes without their order. They are little-endian, as `decode_raw` expects.
        little = {key: np.ascontiguousarray(a, a.dtype.newbyteorder("<")) for key, a in arrays.items()}
        with tf.io.TFRecordWriter(str(path), "GZIP" if self.compression == "gzip" else None) as writer:
            for row in range(len(next(iter(arrays.values())))):
                features = {
                    key: tf.train.Feature(bytes_list=tf.train.BytesList(value=_values(array[row])))
                    for key, array in little.items()
                }
                example = tf.train.Example(features=tf.train.Features(feature=features))
                writer.write(example.SerializeToString(deterministic=True))


def _values(row: Any) -> list[bytes]:
    """Return the bytes of a row of an array; of text, which varies in length, those of each item."""
    return np.ravel(row).tolist() if row.dtype.kind == "S" else [row.tobytes()]


def _save(path: Path, arrays: Mapping[str, Any]) -> None:
    np.savez(path, **arrays)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
