"""Training splits larger than memory, in shards of TensorFlow's record format.

records.json                          what the shards hold: arrays, rows, digests
train-00000-of-00008.tfrecord[.gz]    a `tf.train.Example` for each row, each array's bytes a feature
head.npz                              the first rows of the training split
test.npz                              the test split, which stays in memory

`python -m pipeline.records` writes them from any other data source.
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
BLOCK_ROWS = 16
"""Rows taken from a shard before the next one's turn."""


class TFRecord:
    """What `Writer` has written to `dir`.

    An epoch reads the shards in an order of its own, `interleave` of them at a time, and shuffles among
    `shuffle_rows` rows; ordered data is read as it was written.
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
        """Read the manifest and the test split, and check that every shard is there.

        What the shards hold is checked before the first batch is taken.
        """
        path = self.dir / MANIFEST
        try:
            text = path.read_bytes()
            self.manifest: dict[str, Any] = json.loads(text)
            shards = self.manifest["shards"]
            if any(Path(name).name != name for name in shards):
                raise ValueError("a shard's name leads elsewhere")
            sizes = {name: (self.dir / name).stat().st_size for name in shards}
            head, test = (self._read(name, self.manifest["files"][name]) for name in (HEAD, TEST))
            stream = Stream(
                num_rows=sum(shard["rows"] for shard in shards.values()),
                ranges={name: tuple(array["range"]) for name, array in self.manifest["arrays"].items()},
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
        """Hold each shard against its digest, once, since to read all of them may take a while."""
        if self._are_checked:
            return
        shards = self.manifest["shards"]
        digests = [shard["sha256"] for shard in shards.values()]
        with ThreadPoolExecutor() as pool:
            checked = pool.map(self._check_digest, shards, digests)
            list(tqdm(checked, "check shards", len(shards), unit="shard", leave=False, disable=None))
        self._are_checked = True

    def _batches(self, seed: int, epoch: int) -> tf.data.Dataset:
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
            deterministic=True,
        )
        if not ordered:
            rows = rows.shuffle(self.shuffle_rows, seed=int(generator.integers(2**31)))
        batches = rows.batch(self.batch_size, drop_remainder=True)
        decode = tf.autograph.experimental.do_not_convert(self._decode)
        return batches.map(decode, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    def _decode(self, serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        import tensorflow as tf

        arrays = self.manifest["arrays"]
        features = {name: tf.io.FixedLenFeature([], tf.string) for name in arrays}
        parsed = tf.io.parse_example(serialized, features)
        return {
            name: tf.reshape(
                tf.io.decode_raw(parsed[name], facts["dtype"]), [self.batch_size, *facts["shape"]]
            )
            for name, facts in arrays.items()
        }


class Writer:
    """Writes a data set for `TFRecord` to read.

    Attributes:
        num_shards: Files that the training split is divided into.
        compression: Of each of them.
    """

    def __init__(
        self, *, num_shards: Annotated[int, ">= 1"] = 8, compression: Literal["none", "gzip"] = "none"
    ) -> None:
        self.num_shards = num_shards
        self.compression = compression

    def write(self, dataset: Dataset, folder: Path) -> Iterable[int]:
        """Write to an empty folder; yield the number of rows of each shard when it is written.

        Raises:
            DataError: The data set has been read from shards itself, or has fewer rows than there are shards.
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
                key: {
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

        little = {key: np.ascontiguousarray(a, a.dtype.newbyteorder("<")) for key, a in arrays.items()}
        with tf.io.TFRecordWriter(str(path), "GZIP" if self.compression == "gzip" else None) as writer:
            for row in range(len(next(iter(arrays.values())))):
                features = {
                    key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[array[row].tobytes()]))
                    for key, array in little.items()
                }
                example = tf.train.Example(features=tf.train.Features(feature=features))
                writer.write(example.SerializeToString(deterministic=True))


def _save(path: Path, arrays: Mapping[str, Any]) -> None:
    np.savez(path, **arrays)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
