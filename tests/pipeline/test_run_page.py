from __future__ import annotations

import ast
import json
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.formats import FORMATS
from pipeline.pages import charts
from pipeline.pages.charts import Point, Series, chart, legend
from pipeline.runs import checksums
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import Row
from pipeline.verification import page
from pipeline.verification.receipt import Receipt

VOID = ("meta", "br", "hr", "img", "link", "input")


class Page(HTMLParser):
    """A page, read: its tags, all of its text, the rows of its tables; fails where tags do not close."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)

    def of(self, tag: str) -> list[str]:
        """Return the texts directly inside a kind of tag."""
        return [text for where, text in self.texts if where == tag]

    def classes(self, tag: str) -> list[str]:
        return [str(attributes.get("class")) for name, attributes in self.tags if name == tag]

    def assert_needs_nothing_but_itself(self) -> None:
        assert self.source.startswith("<!doctype html>\n<html")
        assert self.source.isascii()
        assert "http" not in self.source
        assert "url(" not in self.source
        assert "@import" not in self.source
        assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in self.tags}


def metric(logged: float, restored: float | str | None = None, *, match: bool = True) -> dict[str, Any]:
    restored = logged if restored is None else restored
    difference = restored if isinstance(restored, str) else restored - logged
    return {
        "logged": logged,
        "restored": restored,
        "difference": difference,
        "tolerance": 0.0,
        "match": match,
    }


def checkpoint(row: Row, **changed: Any) -> dict[str, Any]:
    metrics = {f"test/{name}": metric(value) for name, value in row.test.items()}
    return {
        "epoch": row.epoch,
        "format": "checkpoint",
        "artifact": row.checkpoint,
        "metrics": metrics | changed,
    }


def export(format: str, row: Row, **changed: Any) -> dict[str, Any]:
    answers = {
        "max_abs_error": 1.5e-7,
        "argmax_flips": 0,
        "match": True,
        "latency_ms": {"1": 1.25, "32": 2.5},
    }
    found = {
        **checkpoint(row),
        "format": format,
        "artifact": f"export/{format}/17",
        "signatures": {"serving_default": answers},
        "left_out": {},
        "size_bytes": 2_500_000,
        "load_secs": 0.125,
    }
    return found | changed


def judged(facts: dict[str, Any]) -> dict[str, Any]:
    """Return a receipt with the verdict that follows from its numbers."""
    try:
        return Receipt.from_json({**facts, "verdict": "match"}).to_json()
    except ValueError:
        return {**facts, "verdict": "mismatch"}


class Run:
    """A run directory as a training and its verification leave it, made of JSON."""

    def __init__(self, path: Path, *, num_epochs: int = 3) -> None:
        self.directory = RunDirectory(path)
        self.rows = [
            Row(
                epoch=epoch,
                step=epoch * 10,
                train={"loss": 3.0 / (epoch + 1)} if epoch else None,
                test={"accuracy": 0.5 + epoch / 1e5, "loss": 2.0 / (epoch + 1)},
                checkpoint=f"checkpoints/epoch-{epoch:04d}",
            )
            for epoch in range(num_epochs)
        ]
        self.facts: dict[str, Any] = {
            "seed": 7,
            "versions": {"python": "3.11.7", "tensorflow": "2.21.0"},
            "device": {"type": "CPU", "names": ["x86_64"], "cores": 2},
            "data": {"fingerprint": "abc123", "num_train": 6400, "num_test": 64, "metadata": {}},
            "model": {"parameters": 2625},
            "sizes": {"graph_bytes": 132_695},
            "files": {},
            "overrides": ["model=gru", "export=all"],
            "config": {
                "data": {"_target_": "data.sequences.Sequences", "batch_size": 32},
                "model": {"_target_": "models.gru.GRUClassifier"},
                "verify": {"abs_tolerance": None},
                "best": {"metric": "loss", "direction": "minimize"},
                "train": {"deterministic": True},
            },
        }
        self.epochs = [checkpoint(row) for row in self.rows]
        self.exports = [export(format, self.rows[-1]) for format in FORMATS]

    def write(self) -> Page:
        """Write what was set, and return the page that is made of it."""
        self.directory.path.mkdir(parents=True, exist_ok=True)
        self.directory.write_facts(self.facts)
        for row in self.rows if len(self.rows) < 100 else ():
            self.directory.append_row(row)
        if len(self.rows) >= 100:  # Each append waits for the disk.
            self.directory.rewrite_rows(self.rows)
        facts = {"format": "checkpoint", "artifact": "checkpoints", "epochs": self.epochs}
        if self.exports:
            facts["exports"] = [
                judged({"format": one["format"], "artifact": one["artifact"], "epochs": [one]})
                for one in self.exports
            ]
        self.directory.verification.write_text(json.dumps(checksums.with_checksum(judged(facts))))
        for found in self.exports:
            (self.directory.path / found["artifact"]).mkdir(parents=True, exist_ok=True)
        page.write(self.directory)
        return Page(self.directory.report.read_text())


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def test_the_page_needs_nothing_but_itself(run: Run) -> None:
    page = run.write()
    page.assert_needs_nothing_but_itself()
    assert not [name for _, attributes in page.tags for name in attributes if name in ("src", "href")]


def test_a_match_is_told_with_how_much_was_verified(run: Run) -> None:
    page = run.write()
    assert page.of("h1") == ["GRUClassifier"]
    assert page.of("title")[0] == f"GRUClassifier, {', '.join(FORMATS)}: match"
    assert str(run.directory.path) in page.of("code")
    assert "✓ match" in page.of("span")
    assert any(text.startswith("Epochs verified: 3 of 3. Exports verified: 7.") for text in page.of("span"))
    assert "problems" not in page.classes("section")


def test_every_epoch_and_every_metric_is_in_the_table(run: Run) -> None:
    page = run.write()
    names = [
        "epoch",
        "test/accuracy",
        "restored",
        "difference",
        "test/loss",
        "restored",
        "difference",
        "verdict",
    ]
    at = page.rows.index(names)
    assert page.rows[at + 1 : at + 4] == [
        ["0", "0.5", "0.5", "0", "2", "2", "0", "match"],
        ["1", "0.50001", "0.50001", "0", "1", "1", "0", "match"],
        ["2", "0.50002", "0.50002", "0", "0.666667", "0.666667", "0", "match"],
    ]


def test_every_export_is_in_both_tables(run: Run) -> None:
    run.exports[0]["signatures"]["step"] = {
        "max_abs_error": "inf",
        "argmax_flips": 0,
        "match": True,
        "latency_ms": {"1": 0.0042},
    }
    run.exports[-1]["metrics"] = {
        "test/loss": metric(2.0, 2.25) | {"tolerance": 0.5},
        "test/other": metric(1.0),
    }
    page = run.write()
    for format in FORMATS:
        assert [format, "2", "serving_default", "1.5e-07", "0", "1.250", "2.500", "17", "match"] in page.rows
    assert ["saved_model", "2", "step", "inf", "0", "0.004", "-", "17", "match"] in page.rows
    assert ["saved_model", "2", "0.12", "2.5 MB", "0", "17", "match"] in page.rows
    assert ["onnx", "2", "0.12", "2.5 MB", "test/loss +0.25", "17", "match"] in page.rows


def test_what_a_format_leaves_out_is_told_once_with_the_reason(run: Run) -> None:
    left_out = {"evaluate": "it holds one network", "step": "it holds one network", "generate": "no strings"}
    run.exports = [
        export("keras", run.rows[1], left_out=left_out, artifact="export/keras/16"),
        export("keras", run.rows[2], left_out=left_out),
    ]
    assert run.write().of("li")[-2:] == [
        "keras leaves out evaluate, step: it holds one network.",
        "keras leaves out generate: no strings.",
    ]


def test_text_stays_text(run: Run) -> None:
    evil = "<script>alert('&')</script>"
    run.directory = RunDirectory(run.directory.path / f"{evil}".replace("/", "|"))
    run.facts["config"]["model"]["_target_"] = evil
    run.facts["overrides"] = [f"model={evil}"]
    run.rows = [Row(0, 0, None, {evil: 1.0}, "checkpoints/epoch-0000")]
    run.epochs = [checkpoint(run.rows[0], **{f"test/{evil}": metric(1.0, 2.0, match=False)})]
    run.exports = [export("onnx", run.rows[0], signatures={}, left_out={evil: evil})]
    page = run.write()
    assert "<script" not in page.source
    assert any(evil in text for text in page.of("h1"))
    assert any(evil in text for text in page.of("th"))
    assert any(evil in text for text in page.of("strong"))
    assert f"onnx leaves out {evil}: {evil}." in page.of("li")


def test_what_does_not_match_is_said_at_the_top(run: Run) -> None:
    run.epochs[1] = checkpoint(run.rows[1], **{"test/loss": metric(1.0, 1.25, match=False)})
    run.epochs[2] |= {"metrics": {}, "problems": ["checkpoints/epoch-0002 must be whole."]}
    answers = {"max_abs_error": 0.5, "argmax_flips": 3, "match": False, "latency_ms": {}}
    run.exports = [export("onnx", run.rows[2], signatures={"step": answers})]
    page = run.write()
    assert "✗ mismatch" in page.of("span")
    assert page.of("h2")[0] == "Problems: 3"
    sentences = [
        "checkpoints/epoch-0001, epoch 1: test/loss must be 1.0 as logged. "
        "Restored: 1.25, +0.25 (tolerance 0).",
        "checkpoints/epoch-0002, epoch 2: checkpoints/epoch-0002 must be whole.",
        "export/onnx/17, epoch 2: step must answer as the trained model did. Largest difference: 0.5, "
        "argmax flips: 3.",
    ]
    assert [text for text in page.of("li") if text in sentences] == sentences
    assert page.source.index("Problems: 3") < page.source.index("Learning curves")
    assert ["1", "0.50001", "0.50001", "0", "1", "1.25", "+0.25", "mismatch"] in page.rows
    assert ["2", "0.50002", "-", "-", "0.666667", "-", "-", "damaged"] in page.rows
    assert ["onnx", "2", "step", "0.5", "3", "-", "-", "17", "mismatch"] in page.rows


def test_a_damaged_export_has_no_answers(run: Run) -> None:
    found = {
        "format": "onnx",
        "epoch": 2,
        "artifact": "export/onnx/17",
        "metrics": {},
        "problems": ["Cut short."],
    }
    run.exports = [found]
    page = run.write()
    assert "export/onnx/17, epoch 2: Cut short." in page.of("li")
    assert ["onnx", "2", "-", "-", "-", "17", "damaged"] in page.rows
    assert "signature" not in page.of("th")


def test_many_problems_are_folded(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", num_epochs=30)
    wrong = {"test/loss": metric(1.0, 2.0, match=False)}
    run.epochs = [checkpoint(row, **wrong) for row in run.rows]
    page = run.write()
    assert "Problems: 30" in page.of("h2")
    assert "10 more" in page.of("summary")


@pytest.mark.parametrize("word", ["nan", "inf", "-inf"])
def test_a_restored_value_that_is_no_number(run: Run, word: str) -> None:
    signed = f"{float(word):+.3g}"
    wrong = {"test/loss": metric(1.0, word, match=False)}
    run.epochs[1] = checkpoint(run.rows[1], **wrong)
    run.exports[0]["metrics"] |= wrong
    page = run.write()
    assert any(f"Restored: {word}, {float(word):+.3g} (tolerance" in text for text in page.of("li"))
    assert ["1", "0.50001", "0.50001", "0", "1", word, signed, "mismatch"] in page.rows
    assert ["saved_model", "2", "0.12", "2.5 MB", f"test/loss {signed}", "17", "mismatch"] in page.rows
    drawn = [
        value for tag, attributes in page.tags if tag in ("path", "circle") for value in attributes.values()
    ]
    assert not [value for value in drawn if "nan" in str(value) or "inf" in str(value)]


@pytest.mark.parametrize("receipt", [None, "{", "[]", "{}", '{"verdict": "match", "epochs": [{"epoch": 0}]}'])
def test_without_a_receipt_nothing_is_verified(run: Run, receipt: str | None) -> None:
    run.write()
    run.directory.verification.unlink()
    if receipt is not None:
        run.directory.verification.write_text(receipt)
    page.write(run.directory)
    shown = Page(run.directory.report.read_text())
    assert "not verified" in shown.of("span")
    assert any("verification.json must be a receipt." in text for text in shown.of("li"))
    assert ["0", "0.5", "-", "-", "2", "-", "-", "not verified"] in shown.rows


def test_one_epoch(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", num_epochs=1)
    page = run.write()
    assert page.classes("svg").count("chart") == 2
    assert any(text.startswith("Epochs verified: 1 of 1.") for text in page.of("span"))
    assert "train/loss" not in page.of("li")


def test_ten_thousand_epochs_fold_and_thin_but_keep_the_mismatch(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", num_epochs=10_000)
    run.epochs[5003] = checkpoint(run.rows[5003], **{"test/loss": metric(1.0, 1.5, match=False)})
    run.epochs = run.epochs[:9000]
    page = run.write()
    assert "9975 more rows, none of which mismatches" in page.of("summary")
    shown = page.rows[
        : page.rows.index(["12", "0.50012", "0.50012", "0", "0.153846", "0.153846", "0", "match"])
    ]
    assert [row[0] for row in shown[-28:-1]] == [
        *map(str, range(12)),
        "…",
        "5003",
        "…",
        *map(str, range(9988, 10_000)),
    ]
    assert shown[-2][-1] == "not verified"
    assert page.classes("g").count("mark flagged") == 1
    assert page.classes("circle").count("None") < 150
    assert any("epoch 5003: 1.5" in text for text in page.of("title"))


def test_the_log_scale_is_chosen_for_a_wide_range(run: Run) -> None:
    assert "log scale" not in run.write().of("text")
    wide = chart("wide", line(1e-9, 3.0, 1e4), x_label="epoch")
    texts = [text.text for text in wide.iter("text")]
    assert "log scale" in texts
    assert "10⁻⁹" in texts
    assert len(texts) <= charts.MAX_STEPS + 7
    assert {"1", "10", "100", "1000"} < {
        text.text for text in chart("", line(0.5, 1e3), x_label="").iter("text")
    }
    for values in ((0.0, 1e6), (-1.0, 1e6), (1.0, 99.0)):
        assert "log scale" not in [text.text for text in chart("", line(*values), x_label="").iter("text")]


def line(*values: float) -> list[Series]:
    return [Series(name="one", points=[Point(x=x, y=y) for x, y in enumerate(values)])]


def y_labels(*values: float) -> list[str | None]:
    svg = chart("", line(*values), x_label="epoch")
    return [text.text for text in svg.iter("text") if text.get("dy")]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ((0.0, 1.0), ["0", "1"]),
        ((0.1, 0.6), ["0.1", "0.2", "0.3", "0.4", "0.5", "0.6"]),
        ((0.31, 0.36), ["0.31", "0.32", "0.33", "0.34", "0.35", "0.36"]),
        ((0.25, 0.25), ["0.2490", "0.2495", "0.2500", "0.2505", "0.2510"]),
        ((0.0, 0.0), ["0"]),
        ((-1.5, 1.0), ["-1.5", "-1.0", "-0.5", "0.0", "0.5", "1.0"]),
        ((1e-7, 3e-7), ["1e-07", "1.5e-07", "2e-07", "2.5e-07", "3e-07"]),
        ((2e9, 4e9), ["2e+09", "2.5e+09", "3e+09", "3.5e+09", "4e+09"]),
    ],
)
def test_ticks_are_round_numbers(values: tuple[float, float], labels: list[str]) -> None:
    assert y_labels(*values) == labels


def test_all_is_drawn_inside_the_frame() -> None:
    points = [Point(x=x, y=y) for x, y in [(0, 5.0), (1, -3.0), (2, 11.0), (3, 4.0)]]
    svg = chart("title", [Series(name="one", points=points, shape="circle")], x_label="epoch")
    circles = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in svg.iter("circle")]
    assert len(circles) == 4
    assert all(30 < x < charts.WIDTH - 10 and 10 < y < charts.HEIGHT - 40 for x, y in circles)
    assert [x for x, _ in circles] == sorted(x for x, _ in circles)
    assert min(circles, key=lambda circle: circle[1]) == circles[2]
    assert (svg.get("role"), svg[0].tag, svg[0].text) == ("img", "title", "title")


def test_marks_at_one_place_are_one_mark_with_all_labels() -> None:
    points = [
        Point(x=1, y=2.0, label="onnx"),
        Point(x=1, y=2.0, label="tflite", flagged=True),
        Point(x=2, y=1.0, label="keras"),
    ]
    series = [Series(name="exports", points=points, shape="square")]
    svg = chart("", series, x_label="epoch")
    assert [g.findtext("title") for g in svg.iter("g")] == ["onnx\ntflite", "keras"]
    assert [g.get("class") for g in svg.iter("g")] == ["mark flagged", "mark color-1"]
    assert "mismatch" in [item[0].tail for item in legend(series).iter("li")]


def test_a_chart_of_nothing_says_so() -> None:
    svg = chart("", line(float("nan"), float("inf")), x_label="epoch")
    assert [text.text for text in svg.iter("text")] == ["no finite values"]
    one_of_two = [*line(float("nan")), *line(1.0)]
    assert [path.get("d") for path in chart("", one_of_two, x_label="").iter("path")][-2] == ""


def test_what_was_run_is_there_to_be_run_again(run: Run) -> None:
    run.facts["overrides"] = ["model=gru", "data.name='a: b'", "data.path=a long path with spaces"]
    page = run.write()
    commands = [shlex.split(text) for text in page.of("pre") if text.startswith("python")]
    assert commands[0] == ["python", "-m", "pipeline", *run.facts["overrides"]]
    facts = dict(zip(page.of("dt"), page.of("dd"), strict=True))
    assert facts == {
        "Model": "models.gru.GRUClassifier, 2,625 parameters",
        "Data": "data.sequences.Sequences, 6,400 for training, 64 to test",
        "Data's fingerprint": "SHA-256 abc123",
        "Seed": "7",
        "Device": "type CPU, names x86_64, cores 2",
        "Versions": "python 3.11.7, tensorflow 2.21.0",
        "Graph": "132.7 kB",
    }
    assert json.loads(next(text for text in page.of("pre") if text.startswith("{"))) == run.facts["config"]


def test_a_network_of_the_user_and_its_validation_split_are_named(run: Run) -> None:
    run.facts["config"]["model"]["network"] = "mine.nets.price"
    run.facts["data"]["num_validation"] = 640
    run.rows = [replace(row, validation={"loss": 3.0, "accuracy": 0.4}) for row in run.rows]
    page = run.write()
    assert page.of("h1") == ["mine.nets.price"]
    assert "data.sequences.Sequences, 6,400 for training, 640 for validation, 64 to test" in page.of("dd")
    assert any("validation/loss" in text for _, text in page.texts)


def test_layers_are_listed_with_their_parameters(run: Run) -> None:
    run.facts["model"]["variables"] = {
        "body/conv/kernel": {"shape": [3, 3, 1, 4], "trained": True},
        "body/conv/bias": {"shape": [4], "trained": False},
        "frozen/gamma": {"shape": [4], "trained": False},
        "slope": {"shape": [], "trained": True},
    }
    page = run.write()
    assert "Layers and their 4 variables" in page.of("summary")
    assert page.rows[-4:] == [
        ["layer", "variables", "parameters", "trained"],
        ["body/conv", "kernel [3, 3, 1, 4], bias [4]", "40", "partly"],
        ["frozen", "gamma [4]", "4", "no"],
        ["slope []", "1", "yes"],
    ]


def test_facts_that_are_not_known_are_left_open(run: Run) -> None:
    run.facts["overrides"] = []
    run.exports = []
    for name in ("versions", "device", "model", "sizes"):
        del run.facts[name]
    page = run.write()
    assert "python -m pipeline" in page.of("pre")
    assert page.of("dd").count("-") == 3
    assert "Exported as checkpoints." in page.of("p")
    assert "Exports" not in page.of("h2")


def test_commands_of_a_directory_with_spaces(tmp_path: Path) -> None:
    run = Run(tmp_path / 'it\'s a "run"')
    page = run.write()
    commands = [shlex.split(text) for text in page.of("pre") if text.startswith("python")]
    escaped = str(run.directory.path).replace('"', '\\"')
    assert commands[1] == ["python", "-m", "pipeline.evaluate", f'run_dir="{escaped}"']
    assert commands[2] == [*commands[1][:2], "pipeline.export", commands[1][3], "export=onnx", "epoch=best"]
    assert [command[3] for command in commands[3:]] == [
        f'export_dir="{escaped}/export/{format}"' for format in FORMATS
    ]


def test_each_format_that_is_there_is_opened_with_its_own_runtime(run: Run) -> None:
    run.exports = [export(format, run.rows[-1]) for format in ("checkpoint", "meta_graph", "tflite", "onnx")]
    run.exports[2]["signatures"] = {"step": run.exports[2]["signatures"]["serving_default"]}
    export_dir = run.directory.path / "export"
    run.exports.append(run.exports[1] | {"epoch": 1})  # The export holds two epochs: the later one is opened.
    for found in run.exports:
        found["artifact"] = (
            found["artifact"].replace("/17", "/18") if found["format"] == "onnx" else found["artifact"]
        )
    run.exports[3]["signatures"] = {"predict": run.exports[3]["signatures"]["serving_default"]}
    page = run.write()
    snippets = [text for text in page.of("pre") if "import" in text]
    for snippet in snippets:
        ast.parse(snippet)
    assert len(snippets) == 4
    assert f"restore('{export_dir}/checkpoint/17/epoch-0002')" in snippets[0]
    assert f"import_meta_graph('{export_dir}/meta_graph/17/epoch-2' + \".meta\")" in snippets[1]
    assert "get_signature_runner('step')" in snippets[2]
    assert f"'{export_dir}/onnx/18/predict.onnx'" in snippets[3]


def test_the_page_is_replaced_in_one_step(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write()
    before = run.directory.report.read_text()
    monkeypatch.setattr(Path, "rename", lambda self, target: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        page.write(run.directory)
    assert run.directory.report.read_text() == before
    assert not list(run.directory.path.glob(".*.staging"))


def test_values_whose_difference_overflows_are_left_out() -> None:
    points = [Point(x=0, y=1e308), Point(x=1, y=-1e308), Point(x=2, y=3.0)]
    svg = chart("", [Series(name="one", points=points, shape="circle")], x_label="")
    assert len(list(svg.iter("circle"))) == 1
