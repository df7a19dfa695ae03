"""Each source: what it provides, and what it says when it cannot."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.base import DataError
from data.digits import Digits
from data.npz import Npz
from data.numbers import Numbers
from data.sequences import Sequences
from data.text import Text


def test_sequences_follow_from_the_seed() -> None:
    data = Sequences(num_train=5, num_test=3, batch_size=2).load()
    assert data.train["features"].shape == (5, 10, 30)
    assert data.train["features"].dtype == np.float32
    assert data.test["labels"].shape == (3,)
    assert data.fingerprint() == Sequences(num_train=5, num_test=3, batch_size=2).load().fingerprint()
    other = Sequences(num_train=5, num_test=3, batch_size=2, seed=1).load()
    assert data.fingerprint() != other.fingerprint()


def test_numbers_double() -> None:
    data = Numbers(count=3, batch_size=1).load()
    np.testing.assert_array_equal(data.train["feature"], [[0, 0], [1, 1], [2, 2]])
    np.testing.assert_array_equal(data.train["target"], [[0], [2], [4]])
    np.testing.assert_array_equal(data.test["target"], [[1], [3]])


def test_digits_are_enlarged_to_28_x_28() -> None:
    data = Digits(test_fraction=0.25).load()
    images = np.concatenate([data.train["images"], data.test["images"]])
    assert images.shape == (1797, 28, 28, 1)
    assert images.dtype == np.uint8
    assert (images.min(), images.max()) == (0, 255)
    assert data.num_test == 449
    assert not images[:, :2].any()
    square = images[:, 2:5, 2:5]
    assert (square == square[:, :1, :1]).all()


def test_digits_name_the_extra_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'roundtrip\[digits\]'"):
        Digits()


class TestText:
    def load(self, tmp_path: Path, text: str | bytes, **options: Any) -> Any:
        path = tmp_path / "text.txt"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        defaults = {"batch_size": 2, "sequence_length": 3, "test_fraction": 0.3}
        return Text(path=path, **{**defaults, **options}).load()

    def test_streams_go_on_from_batch_to_batch(self, tmp_path: Path) -> None:
        text = "abcdefghijklmnopqrstuvwxyz" * 2
        data = self.load(tmp_path, text)
        # 36 training characters: 2 streams x 5 steps x 3 characters, each one's target the next one.
        assert data.ordered
        assert data.train["tokens"].shape == (10, 3)
        for stream, first in ((0, 0), (1, 15)):
            tokens = data.train["tokens"][stream::2].ravel()
            targets = data.train["targets"][stream::2].ravel()
            letters = "".join(data.metadata["vocabulary"][token] for token in tokens)
            assert letters == text[first : first + 15]
            np.testing.assert_array_equal(tokens[1:], targets[:-1])

    def test_the_tail_is_held_out(self, tmp_path: Path) -> None:
        data = self.load(tmp_path, "a" * 70 + "b" * 30)
        assert data.metadata["vocabulary"] == "ab"
        assert not data.train["tokens"].any()
        assert data.test["tokens"].all()

    @pytest.mark.parametrize(("size", "dtype"), [(256, np.uint8), (257, np.uint16), (70_000, np.int32)])
    def test_the_dtype_is_the_narrowest_that_holds_the_vocabulary(
        self, tmp_path: Path, size: int, dtype: type
    ) -> None:
        # Beyond the surrogates, which no UTF-8 text may hold.
        data = self.load(tmp_path, "".join(map(chr, range(0x10000, 0x10000 + size))))
        assert data.train["tokens"].dtype == dtype
        assert data.train["tokens"].max() > data.train["tokens"].min()

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "must have at least 2 streams x 3 characters"),
            ("abcdefghi", "Received: 6. Use a longer text"),
            (b"caf\xe9", "must be UTF-8 text. Byte 3 is not"),
        ],
    )
    def test_what_cannot_be_used_is_refused(self, tmp_path: Path, content: str | bytes, message: str) -> None:
        with pytest.raises(DataError, match=message):
            self.load(tmp_path, content)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"nowhere.txt: No such file"):
            Text(path=tmp_path / "nowhere.txt").load()

    def test_the_default_corpus_ships_inside_python(self) -> None:
        data = Text().load()
        assert data.num_train > 1000
        assert "\n" in data.metadata["vocabulary"]


class TestNpz:
    def save(self, path: Path, **arrays: Any) -> Path:
        np.savez(path, **arrays)
        return path

    def test_splits_off_the_tail(self, tmp_path: Path) -> None:
        path = self.save(tmp_path / "a.npz", x=np.arange(10), y=np.arange(10) * 2)
        data = Npz(path=path, batch_size=2, test_fraction=0.2).load()
        assert data.test["y"].tolist() == [16, 18]
        assert data.num_train == 8

    def test_takes_a_test_file(self, tmp_path: Path) -> None:
        path = self.save(tmp_path / "a.npz", x=np.arange(10))
        test = self.save(tmp_path / "b.npz", x=np.arange(3))
        data = Npz(path=path, test_path=test, batch_size=2).load()
        assert (data.num_train, data.num_test) == (10, 3)

    def test_refuses_arrays_of_unequal_length(self, tmp_path: Path) -> None:
        path = self.save(tmp_path / "a.npz", x=np.arange(10), y=np.arange(9))
        with pytest.raises(DataError, match="one length.*Received: {'x': 10, 'y': 9}"):
            Npz(path=path).load()

    def test_refuses_pickles_and_what_is_no_archive(self, tmp_path: Path) -> None:
        path = self.save(tmp_path / "a.npz", x=np.array([{}, {}], dtype=object))
        with pytest.raises(DataError, match="plain arrays.*allow_pickle"):
            Npz(path=path).load()
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(DataError, match=r"must be an \.npz archive"):
            Npz(path=path).load()
        np.save(tmp_path / "one.npy", np.arange(3))
        with pytest.raises(DataError, match=r"must be an \.npz archive"):
            Npz(path=tmp_path / "one.npy").load()

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="Not found: .*nowhere"):
            Npz(path=tmp_path / "nowhere.npz").load()
