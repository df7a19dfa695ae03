"""MNIST, or any images and labels in its IDX format (http://yann.lecun.com/exdb/mnist/)."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import math
import tempfile
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, cast

import numpy as np

from data.base import Arrays, DataError, Dataset, check_memory

MIRROR = "https://storage.googleapis.com/cvdf-datasets/mnist/"
TIMEOUT_SECS = 30
MAX_DOWNLOAD_BYTES = 2**26

# MD5 of the unpacked files. Packed files differ from mirror to mirror, because gzip stores a time and a name.
DIGESTS = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


class Mnist:
    """Images `[N, 28, 28, 1]` uint8 in [0, 255], labels `[N]` uint8 in [0, 10).

    `load` looks for the four IDX files, packed with gzip or not, in `dir`. If `download` is true, `load`
    downloads the missing files from `url` into `dir` and compares their MD5 with that of the original files.
    Files that are there already may hold any other images and labels, such as Fashion-MNIST.

    Args:
        dir: Folder of the IDX files; `load` looks there before it downloads.
        batch_size: Rows in a batch.
        download: Whether to download missing files.
        url: Folder to download from.
    """

    def __init__(
        self,
        *,
        dir: Path,
        batch_size: Annotated[int, ">= 1"] = 100,
        download: bool = True,
        url: str = MIRROR,
    ) -> None:
        self.dir = dir
        self.batch_size = batch_size
        self.download = download
        self.url = url

    def load(self) -> Dataset:
        """Read the four files; download missing files before.

        Raises:
            DataError: A file is missing and cannot be downloaded, or is damaged.
        """
        for name in DIGESTS:
            if self._find(name) is None:
                self._fetch(name)
        return Dataset(train=self._split("train"), test=self._split("t10k"), batch_size=self.batch_size)

    def _split(self, prefix: str) -> Arrays:
        images = _read_idx(self._path(f"{prefix}-images-idx3-ubyte"), num_dimensions=3)
        labels = _read_idx(self._path(f"{prefix}-labels-idx1-ubyte"), num_dimensions=1)
        return {"images": images[..., np.newaxis], "labels": labels}

    def _find(self, name: str) -> Path | None:
        candidates = (self.dir / name, self.dir / f"{name}.gz")
        return next((path for path in candidates if path.is_file()), None)

    def _path(self, name: str) -> Path:
        path = self._find(name)
        if path is None:
            raise DataError(f"{name} must be in {self.dir}. It was removed while reading.")
        return path

    def _fetch(self, name: str) -> None:
        remedy = (
            f"Put {name}.gz there, set data.dir to a folder that has it, "
            "or use data=digits, which needs no download"
        )
        if not self.download:
            raise DataError(
                f"data.dir must hold {name} or {name}.gz. Not found in {self.dir}, and "
                f"data.download is false. {remedy}."
            )
        url = f"{self.url.rstrip('/')}/{name}.gz"
        part: Path | None = None
        try:
            self.dir.mkdir(parents=True, exist_ok=True)
            with (
                urllib.request.urlopen(url, timeout=TIMEOUT_SECS) as response,
                tempfile.NamedTemporaryFile(dir=self.dir, suffix=".part", delete=False) as file,
            ):
                # A file appears under its own name only when it is whole: another process may look for it.
                part = Path(file.name)
                while chunk := response.read(2**20):
                    file.write(chunk)
                    if file.tell() > MAX_DOWNLOAD_BYTES:
                        raise ValueError(f"it has more than {MAX_DOWNLOAD_BYTES:,} bytes")
            digest = _md5(part)
            if digest != DIGESTS[name]:
                raise ValueError(f"its MD5, unpacked, must be {DIGESTS[name]}. Received: {digest}")
            part.rename(self.dir / f"{name}.gz")
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise DataError(
                f"data.dir must hold {name} or {name}.gz. Not found in {self.dir}, and downloading "
                f"{url} failed: {error}. {remedy}."
            ) from error
        finally:
            if part is not None:
                part.unlink(missing_ok=True)


def _open(path: Path) -> IO[bytes]:
    """Open a file for reading; unpack it during reading if it begins with the magic number of gzip."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path) if packed else path.open("rb"))


def _md5(path: Path) -> str:
    """Return the MD5 of the unpacked content of a file, reading a mebibyte at a time."""
    with _unpacking(path), _open(path) as file:
        digest = hashlib.md5(usedforsecurity=False)
        while chunk := file.read(2**20):
            digest.update(chunk)
        return digest.hexdigest()


@contextmanager
def _unpacking(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} must be a whole gzip file. Unpacking failed: {error}.") from error


def _read_idx(path: Path, *, num_dimensions: int) -> np.ndarray:
    """Return the array of an IDX file of unsigned bytes; keep no more bytes than the header announces.

    The format: two zero bytes, the type (8 is unsigned byte), the number of dimensions, each dimension as a
    big-endian 32-bit integer, then the values. See http://yann.lecun.com/exdb/mnist/.

    Raises:
        DataError: The magic number, the dimensions or the length of the file are wrong.
    """
    magic = bytes([0, 0, 8, num_dimensions])
    with _unpacking(path), _open(path) as file:
        received = file.read(4)
        if received != magic:
            raise DataError(
                f"{path} must be an IDX file of unsigned bytes in {num_dimensions} dimensions, which "
                f"opens with {magic.hex()}. Received: {received.hex() or 'an empty file'}."
            )
        header = file.read(4 * num_dimensions)
        shape = [int.from_bytes(header[i : i + 4], "big") for i in range(0, len(header), 4)]
        size, header_size = math.prod(shape), 4 + 4 * num_dimensions
        check_memory(size, str(path))
        content = file.read(size)
        is_longer = bool(file.read(1))
    if len(content) != size or is_longer or len(shape) != num_dimensions:
        raise DataError(
            f"{path} must have {header_size + size:,} bytes for its shape {shape}. Received: "
            f"{'more' if is_longer else f'{4 + len(header) + len(content):,}'}. "
            "The file is truncated or damaged."
        )
    return np.frombuffer(content, np.uint8).reshape(shape)
