from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from data.base import DataError, Dataset
from pipeline.training.setup import batch_specs

X = np.arange(8, dtype=np.float32).reshape(4, 2)
Y = np.arange(4, dtype=np.int32)


def dataset(**changes: Any) -> Dataset:
    arrays = {"x": X, "y": Y}
    return Dataset(**{"train": arrays, "test": arrays, "batch_size": 2, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {}}, "train split must have at least one array"),
        ({"train": {"x": X, "y": Y[:3]}}, r"equal length. Received: {'x': 4, 'y': 3}"),
        ({"test": {"x": X[:0], "y": Y[:0]}}, "test split must not be empty"),
        ({"train": {"x": np.float32(1), "y": Y}}, "must be of equal length"),
        ({"test": {"x": X}}, r"test split must have .* arrays \['x', 'y'\]. Received: \['x'\]"),
        ({"test": {"x": X, "y": Y, "z": Y}}, r"Received: \['x', 'y', 'z'\]"),
        ({"metadata": {"a": X}}, "metadata must be JSON values"),
        ({"test": {"x": X, "y": Y.astype(float)}}, r"like .* int32 \[4\]. Received: float64"),
        ({"test": {"x": X[:, :1], "y": Y}}, r"Received: float32 \[4, 1\]"),
        ({"train": {"x": np.where(X == 5, np.nan, X), "y": Y}}, "'x' must be finite. Row 2 is not"),
        ({"batch_size": 5}, "batch_size must be at most the 4 training examples. Received: 5"),
        ({"batch_size": 3, "ordered": True}, "train split of ordered data must be whole batches of 3"),
    ],
)
def test_what_cannot_be_used_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        dataset(**changes)


class TestText:
    WORDS = ("é", "", "bcd")
    ENCODED = (b"\xc3\xa9", b"", b"bcd")

    @pytest.mark.parametrize(
        "array",
        [
            np.array(WORDS),
            np.array(WORDS, object),
            np.array(ENCODED, object),
            np.array(ENCODED),
            np.array([WORDS[0], *ENCODED[1:]], object),
            np.array(WORDS, np.dtypes.StringDType()),
        ],
        ids=["str", "objects", "bytes as objects", "bytes", "both", "numpy's strings"],
    )
    def test_is_held_as_bytes_of_one_width(self, array: Any) -> None:
        data = Dataset(
            {"x": array[:, np.newaxis], "y": Y[:3]}, {"x": array[:1, np.newaxis], "y": Y[:1]}, batch_size=2
        )
        assert data.train["x"].dtype == data.test["x"].dtype == "S3"
        assert data.train["x"].tolist() == [[word] for word in self.ENCODED]
        assert data.test["x"].tolist() == [[self.ENCODED[0]]]
        assert data.train["y"] is not None
        assert data.train["y"].dtype == np.int32

    def test_without_a_letter_has_a_width(self) -> None:
        assert dataset(train={"x": np.array(["", ""])}, test={"x": np.array([""])}).train["x"].dtype == "S1"

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (
                ["a", None, 3],
                r"train array 'x' holds objects, which must be text .*Row 1 is of type NoneType",
            ),
            (["a", "b", {}], "Row 2 is of type dict. Make an array of one dtype"),
            (["a", "b\0", "c"], "train array 'x' must not end with a NUL character. Row 1 does"),
            (["a", "b", "\ud800"], "train array 'x' must be text in UTF-8. Row 2 is not: .*surrogates"),
        ],
    )
    def test_what_is_none_is_refused(self, values: list[Any], message: str) -> None:
        with pytest.raises(DataError, match=message):
            dataset(train={"x": np.array(values, object)}, test={"x": np.array(["a"])})

    def test_the_row_is_that_of_the_first_dimension(self) -> None:
        pairs = np.array([["a", "b"], ["c", 3]], object)
        with pytest.raises(DataError, match="test array 'x' .*Row 1 is of type int"):
            dataset(train={"x": pairs[:1]}, test={"x": pairs})

    def test_beside_numbers_is_refused(self) -> None:
        with pytest.raises(DataError, match=r"training split's \|S1 \[3\]. Received: int32 \[4\]"):
            dataset(train={"x": np.array(["a", "b", "c"])}, test={"x": Y})
        with pytest.raises(DataError, match=r"arrays \['x', 'z'\]. Received: \['x'\]"):
            dataset(train={"x": np.array(["a"]), "z": np.array(["a"])}, test={"x": Y})

    def test_that_would_not_fit_into_memory_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("os.sysconf", lambda name: 10)
        with pytest.raises(DataError, match="as wide as the longest of 60 bytes, must fit into memory"):
            dataset(train={"x": np.array(["a" * 60, "b"])}, test={"x": np.array(["a"])})

    def test_its_fingerprint_depends_on_nothing_but_the_text(self) -> None:
        def of(words: Any, test: Any = ("a",)) -> str:
            return dataset(train={"x": np.array(words)}, test={"x": np.array(test)}).fingerprint()

        known = of(["ab", "c"])
        assert of(np.array(["ab", "c"], object)) == of(np.array([b"ab", b"c"], "S9")) == known
        assert of(np.array(["ab", "c"]).astype("U7")[:]) == known
        others = [of(["c", "ab"]), of(["a", "bc"]), of(["ab", "c"], ["a" * 9]), of(["ab", "c", ""])]
        assert len({known, *others, of([["ab"], ["c"]], [["a"]])}) == 6

    def test_its_spec_is_that_of_strings(self) -> None:
        words = {"x": np.array([["ab"], ["c"]])}
        assert batch_specs(dataset(train=words, test=words)) == {
            "x": tf.TensorSpec([None, 1], tf.string, "x")
        }


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"x": X[::-1], "y": Y}},
        {"train": {"x": X, "z": Y}, "test": {"x": X, "z": Y}},
        {"test": {"x": X + 1, "y": Y}},
        {"train": {"x": X.astype(float), "y": Y}, "test": {"x": X.astype(float), "y": Y}},
        {"batch_size": 4},
        {"ordered": True},
        {"metadata": {"vocabulary": "ab"}},
    ],
)
def test_the_fingerprint_changes_with_what_the_data_is(changes: dict[str, Any]) -> None:
    assert dataset(**changes).fingerprint() != dataset().fingerprint()


def test_the_fingerprint_does_not_depend_on_how_the_data_is_stored() -> None:
    other = {"y": Y.astype(">i4"), "x": np.asfortranarray(X)}
    assert dataset(train=other, test=other).fingerprint() == dataset().fingerprint()
