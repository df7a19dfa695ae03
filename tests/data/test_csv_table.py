"""Tables: what columns become, what is held out and filled in, and what is wrong with a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.base import DataError, Dataset
from data.csv_table import CsvTable

TABLE = """age,height,city,label
31,1.5,Köln,yes
,2,"Ulm, Donau",no
47,,Köln,no
20,1.75,,yes
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    path.write_text(TABLE)
    return path


def load(path: Path, content: str | bytes | None = None, **options: Any) -> Dataset:
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    defaults = {"target": "label", "batch_size": 1, "split": "tail", "test_fraction": 0.25}
    return CsvTable(path=path, **{**defaults, **options}).load()


def column(data: Dataset, name: str) -> list[Any]:
    assert data.train[name].shape == (data.num_train, 1)
    return [*data.train[name][:, 0].tolist(), *data.test[name][:, 0].tolist()]


def test_columns_become_arrays_of_their_types(path: Path) -> None:
    data = load(path, missing="impute")
    assert {name: array.dtype.str for name, array in data.train.items()} == {
        "age": "<i8",
        "height": "<f4",
        "city": "|S10",
        "label": "<i8",
    }
    assert data.train["label"].tolist() == [1, 0, 0]
    assert data.test["label"].tolist() == [1]
    assert column(data, "city") == ["Köln".encode(), b"Ulm, Donau", "Köln".encode(), b""]


def test_missing_values_are_imputed_from_the_training_split(path: Path) -> None:
    data = load(path, missing="impute")
    assert column(data, "age") == [31, 39, 47, 20], "the median of 31 and 47, not of 20"
    assert column(data, "height") == [1.5, 2.0, 1.75, 1.75]
    assert data.metadata == {
        "columns": ["age", "height", "city"],
        "classes": ["no", "yes"],
        "vocabularies": {"city": ["Köln", "Ulm, Donau"]},
        "imputed": {"age": 39, "height": 1.75, "city": ""},
    }


def test_rows_without_a_value_are_dropped(path: Path) -> None:
    data = load(path, TABLE + "1,2,Rom,yes\n2,3,Rom,no\n", missing="drop")
    assert column(data, "age") == [31, 1, 2]
    data = load(path, missing={"age": "drop", "height": "impute", "city": "impute"})
    assert column(data, "age") == [31, 47, 20, 1, 2]
    assert data.metadata["imputed"] == {"height": 1.75, "city": ""}


def test_missing_values_are_refused_where_they_are(path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(path)
    assert str(caught.value).splitlines() == [
        f"{path}, line {line}, column '{name}': a value must be there. Received: ''. Drop such rows with "
        "data.missing=drop; of inputs, data.missing=impute replaces the value."
        for line, name in ((3, "age"), (4, "height"), (5, "city"))
    ]
    with pytest.raises(DataError, match="line 3, column 'label': a value must be there. Received: 'NA'"):
        load(path, "x,label\n1,2\n2,NA\n", missing="impute")
    with pytest.raises(DataError, match="must have a row that is whole. All 2 lack a value"):
        load(path, "x,label\n1,\n2,NA\n", missing="drop")
    with pytest.raises(DataError, match="column 'x': .*All are missing in the training split"):
        load(path, "x,label\n,1\nnull,2\n3,3\n", missing="impute")


def test_what_is_missing_can_be_said(path: Path) -> None:
    data = load(path, "x,y,label\n?,,0\n1,NA,1\n3,b,1\n4,c,0\n", missing="impute", missing_values=["?"])
    assert column(data, "x") == [2, 1, 3, 4]
    assert column(data, "y") == [b"", b"NA", b"b", b"c"]


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["1", "-2", "+3"], "int"),
        (["1", "2", " 3 "], "int"),
        (["1", "2", "3."], "float"),
        (["1", "2", str(2**63)], "float"),
        (["1e3", "2", "3"], "float"),
        (["1", "2", "c"], "text"),
        (["1_0", "2", "3"], "text"),
    ],
)
def test_types_are_inferred_from_all_rows(path: Path, cells: list[str], kind: str) -> None:
    data = load(path, "x,label\n" + "".join(f"{cell},1\n" for cell in cells))
    assert data.train["x"].dtype.kind == {"int": "i", "float": "f", "text": "S"}[kind]


def test_types_can_be_said(path: Path) -> None:
    text = "zip,count,label\n007,1,0\n010,2,1\n"
    data = load(path, text, types={"zip": "text", "count": "float", "label": "float"})
    assert column(data, "zip") == [b"007", b"010"]
    assert data.train["count"].dtype == data.train["label"].dtype == np.float32
    assert "classes" not in data.metadata


def test_a_test_file_is_read_as_the_training_file(path: Path, tmp_path: Path) -> None:
    test = tmp_path / "test.csv"
    test.write_text("\nlabel,city,height,other,age\nno,Rom,3,-,\nyes,Ulm,,-,7\n")
    data = load(path, test_path=test, missing="impute")
    assert (data.num_train, data.num_test) == (4, 2)
    assert column(data, "age")[4:] == [31, 7]
    assert column(data, "height")[4:] == [3, 1.75]
    assert data.test["label"].tolist() == [0, 1]
    assert data.metadata["vocabularies"] == {"city": ["", "Köln", "Ulm, Donau"]}
    test.write_text("label,city,height,age\nyes,Rom,1,1\nmaybe,Rom,1,1\n")
    with pytest.raises(DataError, match=r"test.csv, line 3, column 'label': a class .*Received: 'maybe'"):
        load(path, test_path=test, missing="impute")
    test.write_text("label,city,height,age\nyes,Rom,1,1.5\n")
    with pytest.raises(DataError, match=r"test.csv, line 2, column 'age': .* an integer. Received: '1.5'"):
        load(path, test_path=test, missing="impute")
    test.write_text("label,city\nyes,Rom\n")
    with pytest.raises(DataError, match=r"the columns of data.path. .*test.csv lacks \['age', 'height'\]"):
        load(path, test_path=test, missing="impute")


def test_inputs_and_several_targets(path: Path) -> None:
    data = load(path, target=["label", "city"], inputs=["age"], missing={"age": "impute", "city": "drop"})
    assert list(data.train) == ["age", "label", "city"]
    assert data.metadata["columns"] == ["age"]
    assert data.metadata["classes"] == {"label": ["no", "yes"], "city": ["Köln", "Ulm, Donau"]}
    assert data.metadata["vocabularies"] == {}
    assert data.train["city"].tolist() == [0, 1]


@pytest.mark.parametrize("target", ["label", "number"])
def test_splits_are_stratified_by_the_target(path: Path, target: str) -> None:
    text = "x,label,number\n" + "".join(f"{n},{'ab'[n > 89]},{int(n > 89)}\n" for n in range(100))
    data = load(path, text, target=target, split="stratified", test_fraction=0.1)
    assert data.test[target].sum() == 1
    other = load(path, target=target, split="stratified", test_fraction=0.1, seed=1)
    assert data.fingerprint() != other.fingerprint()
    assert (
        data.fingerprint() == load(path, target=target, split="stratified", test_fraction=0.1).fingerprint()
    )
    with pytest.raises(DataError, match="stratified needs one class .*Received: float32"):
        load(path, "x,label\n1,0.5\n2,1.5\n", split="stratified")


def test_the_format_of_the_file(path: Path) -> None:
    text = '\ufeffa;text;label\r\n1;"two\r\nlines; ""quoted""";x\r\n\r\n2;plain;y\r\n'
    data = load(path, text, delimiter=";")
    assert column(data, "a") == [1, 2]
    assert column(data, "text") == [b'two\r\nlines; "quoted"', b"plain"]
    assert column(load(path, "a\tlabel\n1\t2\n3\t4\n", delimiter="tab"), "a") == [1, 3]
    with pytest.raises(DataError, match="line 5, column 'a': .*Received: 'z'"):
        load(path, text.replace("2;plain", "z;plain"), delimiter=";", types={"a": "int"})


def test_arrays_have_names_that_tensors_may_have(path: Path) -> None:
    data = load(path, "Größe (cm),2nd, label \n1,2,3\n4,5,6\n")
    assert list(data.train) == ["Groe_cm", "column_2nd", "label"]
    assert data.metadata["columns"] == ["Groe_cm", "column_2nd"]
    with pytest.raises(DataError, match="name of 'a_b' would be like another, 'a_b'. Rename it"):
        load(path, "a b,a_b,label\n1,2,3\n4,5,6\n")
    with pytest.raises(DataError, match="name of '高さ' would be of no letter"):
        load(path, "高さ,label\n1,2\n3,4\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must have a line of names and a row. Received: 0 lines"),
        ("a,label\n", "Received: 1 lines"),
        ("a,,label\n1,2,3\n", r"must have a name for each column .*columns \[2\]. .*to_csv"),
        ("a,b,a,label\n1,2,3,4\n", r"must have each column once. Twice: \['a'\]"),
        ("a,b\n1,2\n", r"data.target must name columns .*lacks \['label'\]. It has: a, b\.$"),
        ("a;label\n1;2\n", "It has: a;label. Is data.delimiter right"),
        ("a,label\n1,2\n1,2,3\n", "line 3: a row must have 2 cells. Received: 3. .*quotes"),
        ('a,label\n"1\n2",2\n1\n', "line 4: a row must have 2 cells. Received: 1"),
        ('a,label\n1,2\n"1,2\n3,4\n', "row that begins in line 3: unexpected end of data"),
        (
            b"a,label\n1,2\n1,caf\xe9\n",
            r"must be UTF-8. Line 3 is not: invalid continuation byte \(b'\\xe9'\)",
        ),
        ("a,label\n1,2\ninf,2\n", "line 3, column 'a': the value must be a finite number. Received: 'inf'"),
        ("a,label\n1,2\n1e39,2\n", "line 3, column 'a': .* finite number. Received: '1e39'"),
    ],
)
def test_what_is_no_table_is_refused(path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(path, content)


def test_five_problems_are_said_at_once(path: Path) -> None:
    text = "a,b,label\n" + "x,1.5,1\n" * 4 + "1,2,1\n" * 3
    with pytest.raises(DataError) as caught:
        load(path, text, types={"a": "int", "b": "int"})
    *cells, more = str(caught.value).splitlines()
    assert [cell.partition(": ")[0].partition(", ")[2] for cell in cells] == [
        *(f"line {line}, column 'a'" for line in (2, 3, 4, 5)),
        "line 2, column 'b'",
    ]
    assert more == "There are more."
    with pytest.raises(DataError) as caught:
        load(path, "a,label\n" + "1\n" * 9)
    assert len(str(caught.value).splitlines()) == 6


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must name CSV files. .*nowhere.csv: No such file"):
        load(tmp_path / "nowhere.csv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"types": {"agee": "int"}}, r"data.types must name columns .*lacks \['agee'\]"),
        ({"missing": {"agee": "drop"}}, r"data.missing must name columns .*lacks \['agee'\]"),
        ({"inputs": ["agee"]}, r"data.inputs must name columns .*lacks \['agee'\]"),
    ],
)
def test_columns_that_are_not_there_are_named(path: Path, options: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(path, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 3}, "data.target must be a column or a list of columns. Received: 3"),
        ({"target": []}, "Received: \\[\\]"),
        ({"inputs": []}, "data.inputs must name at least one column"),
        ({"inputs": ["label"]}, r"must name a column once. Twice: \['label'\]"),
        ({"delimiter": ";;"}, "one character, or tab. Received: ';;'"),
        (
            {"split": "stratified", "target": ["a", "b"]},
            r"stratified needs one target. Received: \['a', 'b'\]",
        ),
        ({"missing": "fill"}, "data.missing must be one of refuse, drop, impute, .*Received: 'fill'"),
        ({"missing": {"age": "fill"}}, "Received: 'fill'"),
    ],
)
def test_what_contradicts_itself_is_a_configuration_error(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CsvTable(path=Path("a.csv"), **{"target": "label", **options})
