"""The report: one page that shows a run, what was restored of it, and how to use its exports.

It reads what the run's directory says of the run, and opens no model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

from pipeline import charts, page
from pipeline.charts import Point, Series, element
from pipeline.cli.quoting import override
from pipeline.runs import checksums
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import Row

MAX_PROBLEMS = 20
"""Problems beyond which the others are folded."""

MAX_EPOCHS = 24
"""Rows of the table of metrics beyond which those in the middle are folded, unless one does not match."""

MAX_PARITY_ROWS = 100
"""The same of the tables of exports, which have several rows for each export."""

UNVERIFIED = "not verified"

LEFT_ALIGNED = ("format", "version", "signature", "largest difference of a metric")

SNIPPETS = {
    "saved_model": """\
import tensorflow as tf
serve = tf.saved_model.load({directory!r}).signatures[{signature!r}]
print(serve.structured_input_signature[1], serve.structured_outputs)""",
    "checkpoint": """\
import tensorflow as tf
graph = tf.saved_model.load({graph!r})
tf.train.Checkpoint(weights=graph.weights).restore({prefix!r}).expect_partial()
serve = graph.signatures[{signature!r}]""",
    "meta_graph": """\
import tensorflow as tf
session = tf.compat.v1.Session(graph=tf.Graph())
with session.graph.as_default():
    saver = tf.compat.v1.train.import_meta_graph({meta!r})
    saver.restore(session, {prefix!r})""",
    "simple_save": """\
import tensorflow as tf
session = tf.compat.v1.Session(graph=tf.Graph())
tf.compat.v1.saved_model.load(session, ["serve"], {directory!r})
arrays = {{}}  # an array for each placeholder of the input pipeline, such as "<array>_data_ph:0"
session.run("dataset_init", {{"batch_size_ph:0": 32, **arrays}})""",
    "keras": """\
import keras
network = keras.saving.load_model({keras!r}, compile=False)
network.summary()""",
    "tflite": """\
from ai_edge_litert.interpreter import Interpreter
serve = Interpreter(model_path={tflite!r}).get_signature_runner({signature!r})
print(serve.get_input_details(), serve.get_output_details())""",
    "onnx": """\
import onnxruntime
session = onnxruntime.InferenceSession({onnx!r}, providers=["CPUExecutionProvider"])
print([node.name for node in session.get_inputs()], [node.name for node in session.get_outputs()])""",
}
"""How to open each format with its own runtime alone."""

Found = Mapping[str, Any]
"""A row of the receipt: what was found of an epoch of an artifact."""


@dataclass(frozen=True)
class _Finished:
    """What a run's directory says of it.

    Attributes:
        run: The directory.
        facts: `run.json`.
        log: `metrics.jsonl`.
        verdict: The receipt's, or that there is none.
        epochs: The receipt's rows of checkpoints, by epoch.
        exports: The receipt's rows of exports, one for each epoch of each.
        problems: A sentence for all that does not match.
    """

    run: RunDirectory
    facts: Mapping[str, Any]
    log: Sequence[Row]
    verdict: str
    epochs: Mapping[int, Found]
    exports: Sequence[Found]
    problems: Sequence[str]

    @property
    def model(self) -> str:
        return str(self.facts["config"].get("model", {}).get("_target_", "model")).rpartition(".")[2]

    @property
    def formats(self) -> str:
        return ", ".join(dict.fromkeys(found["format"] for found in self.exports)) or "checkpoints"


class _Line(NamedTuple):
    """A line of a table; its status is the last cell."""

    cells: Sequence[str]
    status: str


def write(run: RunDirectory) -> None:
    """Write the page of a run that has been verified.

    Raises:
        ConfigError: What the run wrote of itself is missing or damaged.
    """
    finished = _read(run)
    title = f"{finished.model}, {finished.formats}: {finished.verdict}"
    sections = (_header, _curves, _exports, _metrics, _facts, _commands)
    page.write(run.report, title, (part for section in sections for part in section(finished)))


def _read(run: RunDirectory) -> _Finished:
    facts, log = run.read_facts(), run.read_rows()
    try:
        receipt = checksums.unseal(run.verification.read_text())
        verdict, epochs = receipt["verdict"], {found["epoch"]: found for found in receipt["epochs"]}
        exports = [found for export in receipt.get("exports", []) for found in export["epochs"]]
        problems = [sentence for found in [*epochs.values(), *exports] for sentence in _problems(found)]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        problem = (
            f"{run.verification} must be a receipt. Reading it failed: {error!r}. Evaluate the run again."
        )
        return _Finished(run, facts, log, UNVERIFIED, {}, [], [problem])
    return _Finished(run, facts, log, verdict, epochs, exports, problems)


def _problems(found: Found) -> Iterator[str]:
    where = f"{found['artifact']}, epoch {found['epoch']}"
    for problem in found.get("problems", []):
        yield f"{where}: {problem}"
    for name, metric in found["metrics"].items():
        if not metric["match"]:
            yield (
                f"{where}: {name} must be {metric['logged']!r} as logged. Restored: {metric['restored']}, "
                f"a difference of {page.number(metric['difference'], '+.3g')} "
                f"(tolerance {metric['tolerance']:g})."
            )
    for name, answers in found.get("signatures", {}).items():
        if not answers["match"]:
            yield (
                f"{where}: {name} must answer as the trained model did. Largest difference: "
                f"{page.number(answers['max_abs_error'])}, argmax flips: {answers['argmax_flips']}."
            )


def _header(finished: _Finished) -> Iterator[Element]:
    yield element("h1", finished.model)
    yield element("p", f"Exported as {finished.formats}.", class_="muted")
    yield element("p", element("code", str(finished.run.path.absolute())), class_="muted")
    sign = {page.MATCH: "✓ ", page.MISMATCH: "✗ "}.get(finished.verdict, "")
    num_exports = len({found["artifact"] for found in finished.exports})
    counts = (
        f"Epochs verified: {len(finished.epochs)} of {len(finished.log)}. Exports verified: {num_exports}. "
        "Each was restored, evaluated, and held against the log of the training."
    )
    badge = element("span", sign + finished.verdict, class_=f"badge {page.status_class(finished.verdict)}")
    yield element("p", badge, element("span", counts), class_="verdict")
    if finished.problems:
        first, others = finished.problems[:MAX_PROBLEMS], finished.problems[MAX_PROBLEMS:]
        problems = [element("h2", f"Problems: {len(finished.problems)}"), page.sentences(first)]
        if others:
            problems.append(page.details(f"{len(others)} more", page.sentences(others)))
        yield element("section", *problems, class_="problems")


def _curves(finished: _Finished) -> Iterator[Element]:
    yield element("h2", "Learning curves")
    names = dict.fromkeys(
        [*finished.log[0].test, *(name for row in finished.log for name in row.train or {})]
    )
    yield element("div", *(_curve(finished, name) for name in names), class_="curves")


def _curve(finished: _Finished, name: str) -> Element:
    test = [Point(x=row.epoch, y=row.test[name]) for row in finished.log if name in row.test]
    train = [Point(x=row.epoch, y=row.train[name]) for row in finished.log if row.train and name in row.train]
    series = [
        Series(name=f"train/{name}", points=train, color=2),
        Series(name=f"test/{name}", points=test),
        Series(name="restored epoch", points=_restored(name, finished.epochs.values()), shape="circle"),
        Series(name="restored export", points=_restored(name, finished.exports), shape="square", color=3),
    ]
    series = [one for one in series if one.points]
    title = f"{name} by epoch: {', '.join(one.name for one in series)}"
    return charts.figure(name, title, series, x_label="epoch")


def _restored(name: str, rows: Iterable[Found]) -> list[Point]:
    points = []
    for found in rows:
        metric = found["metrics"].get(f"test/{name}")
        if metric:
            label = f"{found['format']}, epoch {found['epoch']}: {page.number(metric['restored'])}"
            y = float(metric["restored"])
            points.append(Point(x=found["epoch"], y=y, label=label, flagged=not metric["match"]))
    return points


def _exports(finished: _Finished) -> Iterator[Element]:
    if not finished.exports:
        return
    yield element("h2", "Exports")
    lines = [line for found in finished.exports for line in _parity(found)]
    if lines:
        header = [
            "format",
            "epoch",
            "signature",
            "max abs error",
            "argmax flips",
            "ms at batch 1",
            "ms at 32",
        ]
        yield element("h3", "Answers of each signature to recorded requests")
        yield from _table([*header, "version"], lines, MAX_PARITY_ROWS)
    yield element("h3", "Files and metrics")
    header = ["format", "epoch", "seconds to load", "size", "largest difference of a metric", "version"]
    yield from _table(header, list(map(_export, finished.exports)), MAX_PARITY_ROWS)
    reasons = dict.fromkeys(
        f"{_format(found)} leaves out {', '.join(names)}: {reason}."
        for found in finished.exports
        for reason, names in _by_reason(found.get("left_out", {})).items()
    )
    if reasons:
        yield element("h3", "Left out")
        yield page.sentences(reasons)


def _parity(found: Found) -> Iterator[_Line]:
    for name, answers in found.get("signatures", {}).items():
        latencies = [answers["latency_ms"].get(size) for size in ("1", "32")]
        cells = [
            _format(found),
            str(found["epoch"]),
            name,
            page.number(answers["max_abs_error"], ".3g"),
            str(answers["argmax_flips"]),
            *(page.number(latency, ".3f") for latency in latencies),
            Path(found["artifact"]).name,
        ]
        yield _Line(cells, page.MATCH if answers["match"] else page.MISMATCH)


def _format(found: Found) -> str:
    quantization = found.get("quantization", "none")
    return found["format"] if quantization == "none" else f"{found['format']} {quantization}"


def _export(found: Found) -> _Line:
    differences = [(name, metric["difference"]) for name, metric in found["metrics"].items()]
    name, worst = max(differences, key=lambda one: _extent(one[1]), default=("", None))
    largest = f"{name} {page.number(worst, '+.3g')}" if worst else page.number(worst)
    cells = [
        _format(found),
        str(found["epoch"]),
        page.number(found.get("load_secs"), ".2f"),
        _size(found.get("size_bytes")),
        largest,
        Path(found["artifact"]).name,
    ]
    return _Line(cells, _status(found))


def _extent(difference: float | str) -> float:
    return math.inf if isinstance(difference, str) else abs(difference)


def _by_reason(left_out: Mapping[str, str]) -> Mapping[str, Sequence[str]]:
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        by_reason.setdefault(reason, []).append(name)
    return by_reason


def _metrics(finished: _Finished) -> Iterator[Element]:
    yield element("h2", "Metrics of each epoch")
    names = [f"test/{name}" for name in finished.log[0].test]
    header = ["epoch", *(column for name in names for column in (name, "restored", "difference"))]
    lines = []
    for row in finished.log:
        found = finished.epochs.get(row.epoch, {"metrics": {}})
        cells = [str(row.epoch)]
        for name in names:
            metric = found["metrics"].get(name, {})
            cells += [
                page.number(row.test.get(name.removeprefix("test/"))),
                page.number(metric.get("restored")),
                page.number(metric.get("difference"), "+.3g"),
            ]
        lines.append(_Line(cells, _status(found) if row.epoch in finished.epochs else UNVERIFIED))
    yield from _table(header, lines, MAX_EPOCHS)


def _status(found: Found) -> str:
    if not found["metrics"]:
        return page.DAMAGED
    return page.MATCH if all(metric["match"] for metric in found["metrics"].values()) else page.MISMATCH


def _table(header: Sequence[str], lines: Sequence[_Line], max_lines: int) -> Iterator[Element]:
    """Yield a table with the status of each line; those that mismatch are never folded."""
    shown = []
    for line in lines:
        status = element("td", line.status, class_=page.status_class(line.status))
        shown.append(page.Line([*line.cells, status], is_kept=line.status not in (page.MATCH, UNVERIFIED)))
    yield from page.table([*header, "verdict"], shown, max_lines=max_lines, left=LEFT_ALIGNED)


def _facts(finished: _Finished) -> Iterator[Element]:
    facts = finished.facts
    config, data, model = facts["config"], facts["data"], facts.get("model", {})
    yield element("h2", "What was run")
    yield page.command("pipeline", *map(str, facts["overrides"]))
    said = {
        "Model": f"{config.get('model', {}).get('_target_', page.MISSING)}, "
        f"{page.number(model.get('parameters'), ',')} parameters",
        "Data": f"{config['data'].get('_target_', page.MISSING)}, {page.number(data.get('num_train'), ',')} "
        f"for training and {page.number(data.get('num_test'), ',')} to test",
        "Data's fingerprint": f"SHA-256 {data['fingerprint']}",
        "Seed": str(facts["seed"]),
        "Device": _plain(facts.get("device", {})),
        "Versions": _plain(facts.get("versions", {})),
        "Graph": _size(facts.get("sizes", {}).get("graph_bytes")),
    }
    yield page.facts(said.items())
    yield page.details(
        "The whole configuration", element("pre", json.dumps(config, indent=2, ensure_ascii=False))
    )


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items()) or page.MISSING
    return ", ".join(map(_plain, value)) if isinstance(value, list) else str(value)


def _commands(finished: _Finished) -> Iterator[Element]:
    path = finished.run.path.absolute()
    run_dir = override("run_dir", path)
    yield element("h2", "How to use it")
    yield element("h3", "Verify it again, or export another epoch")
    yield page.command("pipeline.evaluate", run_dir)
    yield page.command("pipeline.export", run_dir, "export=onnx", "epoch=best")
    for format, snippet in SNIPPETS.items():
        directory = finished.run.newest_export(format)
        if directory:
            yield element("h3", format)
            export_dir = override("export_dir", path / "export" / format)
            yield page.command("pipeline.predict", export_dir)
            yield element("pre", snippet.format_map(_paths(finished, directory.absolute())), class_="command")


def _paths(finished: _Finished, directory: Path) -> Mapping[str, str]:
    """Return what the snippets name: files of an export, and a signature that it holds."""
    artifact = str(directory.relative_to(finished.run.path.absolute()))
    held = {
        name
        for found in finished.exports
        if found["artifact"] == artifact
        for name in found.get("signatures", {})
    }
    signature = "serving_default" if "serving_default" in held or not held else sorted(held)[0]
    indices = sorted(directory.glob("epoch-*.index"), key=lambda path: (len(path.name), path.name))
    prefix = indices[-1].with_suffix("") if indices else directory / "epoch"
    paths = {
        "directory": directory,
        "prefix": prefix,
        "meta": prefix.with_suffix(".meta"),
        "graph": directory / "graph",
        "keras": directory / "model.keras",
        "tflite": directory / "model.tflite",
        "onnx": directory / ("model.onnx" if signature == "serving_default" else f"{signature}.onnx"),
    }
    return {"signature": signature, **{name: str(path) for name, path in paths.items()}}


def _size(num_bytes: int | None) -> str:
    if num_bytes is None:
        return page.MISSING
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:,.1f} kB"
