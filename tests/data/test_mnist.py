from __future__ import annotations

import gzip
import hashlib
import http.server
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import mnist
from data.base import DataError
from data.mnist import DIGESTS, Mnist

GENERATOR = np.random.default_rng(0)


def idx(array: np.ndarray) -> bytes:
    """Return an array of bytes in the IDX format."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


ARRAYS = {
    name: GENERATOR.integers(10, size=(6, 28, 28) if "images" in name else (6,), dtype=np.uint8)
    for name in DIGESTS
}
FILES = {name: idx(array) for name, array in ARRAYS.items()}
IMAGES = "train-images-idx3-ubyte"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the four files, some packed and some not."""
    for name, content in FILES.items():
        if "labels" in name:
            (tmp_path / name).write_bytes(content)
        else:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    return tmp_path


def load(folder: Path, **options: Any) -> Any:
    return Mnist(dir=folder, **{"batch_size": 2, "download": False, **options}).load()


def test_reads_packed_and_unpacked_files(folder: Path) -> None:
    data = load(folder)
    np.testing.assert_array_equal(data.train["images"][..., 0], ARRAYS[IMAGES])
    np.testing.assert_array_equal(data.test["labels"], ARRAYS["t10k-labels-idx1-ubyte"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Received: an empty file"),
        (b"\x00\x00\x08\x01" + FILES[IMAGES][4:], "opens with 00000803. Received: 00000801"),
        (FILES[IMAGES][:-1], "must have 4,720 bytes for its shape .* Received: 4,719"),
        (FILES[IMAGES] + b"x", "must have 4,720 bytes for its shape .* Received: more"),
        (FILES[IMAGES][:10], "truncated or damaged"),
        (b"\x00\x00\x08\x03" + b"\xff" * 12, r"must fit into memory, .* GB. It says that it holds"),
        (gzip.compress(b"\x00\x00\x08\x03\x00\x00\x00\x01" + b"\x00" * 2**24), "Received: more"),
        (gzip.compress(FILES[IMAGES])[:-20], "must be a whole gzip file"),
        (b"\x1f\x8b" + b"\xff" * 50, "must be a whole gzip file"),
    ],
)
def test_damaged_files_are_named(folder: Path, content: bytes, message: str) -> None:
    (folder / f"{IMAGES}.gz").unlink()
    (folder / IMAGES).write_bytes(content)
    with pytest.raises(DataError, match=message) as refusal:
        load(folder)
    assert str(folder / IMAGES) in str(refusal.value)


def test_without_a_download_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Not found in .*download is false.*data=digits") as refusal:
        load(tmp_path)
    assert str(tmp_path) in str(refusal.value)


def test_a_file_that_goes_away_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match="It was removed while reading"):
        Mnist(dir=folder)._path("nowhere")


class TestDownload:
    @pytest.fixture
    def served(self, tmp_path: Path) -> Iterator[tuple[str, Path]]:
        """Serve a folder on loopback; return its address and the folder."""
        folder = tmp_path / "served"
        folder.mkdir()

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *arguments: Any, **options: Any) -> None:
                super().__init__(*arguments, directory=str(folder), **options)

            def log_message(self, *arguments: Any) -> None:
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}/", folder
            server.shutdown()
            thread.join()

    def test_fetches_what_is_missing_once(
        self, served: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        url, folder = served
        digests = {name: hashlib.md5(content).hexdigest() for name, content in FILES.items()}
        monkeypatch.setattr(mnist, "DIGESTS", digests)
        for name, content in FILES.items():
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        target = tmp_path / "new" / "folder"
        first = load(target, download=True, url=url)
        assert sorted(path.name for path in target.iterdir()) == sorted(f"{n}.gz" for n in FILES)
        again = load(target, download=False)
        assert first.fingerprint() == again.fingerprint()

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (gzip.compress(b"not MNIST", mtime=0), "its MD5, unpacked, must be .* Received: .*data=digits"),
            (b"\x1f\x8bgarbage", "must be a whole gzip file"),
            (None, "failed: HTTP Error 404.*data=digits"),
            (bytes(1_000_001), "failed: it has more than 1,000,000 bytes"),
        ],
    )
    def test_a_bad_download_leaves_nothing_behind(
        self,
        served: tuple[str, Path],
        tmp_path: Path,
        content: bytes | None,
        message: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        url, folder = served
        monkeypatch.setattr(mnist, "MAX_DOWNLOAD_BYTES", 1_000_000)
        if content is not None:
            for name in FILES:
                (folder / f"{name}.gz").write_bytes(content)
        with pytest.raises(DataError, match=message):
            load(tmp_path / "new", download=True, url=url)
        assert not list((tmp_path / "new").iterdir())

    def test_no_network_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="downloading .* failed: .*refused"):
            load(tmp_path, download=True, url="http://127.0.0.1:9/")
